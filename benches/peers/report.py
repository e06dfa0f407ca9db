"""
Evaluates what `run` measured. As a program it needs nothing but Python 3: it prints a summary of one or more JSON files
of `run`, and writes tables and pictures made from them into the docs.
"""

import argparse
import json
import math
import sys

# The memory limits are meaningful only for tensors that do not fit in the caches: those above this size.
LARGE_BYTES = 24e6

PEERS, LIMITS = ["torch", "onednn"], ["read", "copy", "triad"]
ISA_TITLES = {"portable": "portable code", "avx2": "AVX2", "avx512": "AVX-512"}
POOL_TITLES = {"openmp": "OpenMP's threads", "rayon": "rayon's pool", "own": "the library's own pool"}
PASS_TITLES = {"forward": "forward training", "inference": "inference", "backward": "backward"}

# Through Python.
LAYER_PEERS = {"eager": "PyTorch", "compiled": "torch.compile", "xla": "XLA"}
LAYER_PASS_TITLES = {"forward": "forward training", "inference": "inference", "step": "training step"}


def shape_name(shape):
    return "x".join(map(str, shape))


def tensor_bytes(row):
    return 4 * math.prod(row["shape"])


def variants(row):
    """This crate with each instruction set, on each kind of threads, as they are named in `ms`; the main one first."""
    return [who for who in row["ms"] if who.startswith("ours ")]


def isa_and_pool(variant):
    _, isa, pool = variant.split()
    return isa, pool


def title_of(variant):
    isa, pool = isa_and_pool(variant)
    return f"{ISA_TITLES[isa]}, {POOL_TITLES[pool]}"


def of_main_isa(rows):
    """The variants with the first instruction set. Those with other ones are compared with these."""
    every = variants(rows[0])
    return [variant for variant in every if isa_and_pool(variant)[0] == isa_and_pool(every[0])[0]]


def counterpart(rows, variant):
    """The variant with the main instruction set on the same threads."""
    return next(other for other in of_main_isa(rows) if isa_and_pool(other)[1] == isa_and_pool(variant)[1])


def faster_peer(row):
    return min(row["ms"][peer] for peer in PEERS)


def speedup(row, variant):
    """The time of the faster peer over ours."""
    return faster_peer(row) / row["ms"][variant]


def limit(row):
    """
    The least time in which the memory bandwidth allows the pass. In NCHW a channel can stay in cache between its
    statistics and its normalization; in NHWC and NC the whole tensor is read twice.
    """
    read, copy, triad = (row["ms"][sweep] for sweep in LIMITS)
    if row["pass"] == "backward":
        return triad
    if row["pass"] == "forward" and row["layout"] != "NCHW":
        return read + copy
    return copy


def to_limit(row, variant):
    return row["ms"][variant] / limit(row)


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def cells(title, values, rest=""):
    return f"{title:<44} " + " ".join(f"{value:>14}" for value in values) + f"  {rest}"


def native_heading(options):
    ours = [f"{isa} {pool}" for isa in options.isa for pool in options.pool]
    return cells("milliseconds", [*ours, *PEERS, "speedup", *LIMITS, "to the limit"], "oneDNN's implementation")


def native_line(row):
    ours = variants(row)

    def times(names):
        return [f"{row['ms'][name]:.4f}" for name in names]

    title = f"{row['pass']} {row['layout']} {shape_name(row['shape'])}"
    gain, ratio = f"{speedup(row, ours[0]):.2f}x", f"{to_limit(row, ours[0]):.2f}"
    return cells(title, [*times([*ours, *PEERS]), gain, *times(LIMITS), ratio], row["onednn"])


def python_heading():
    return cells("milliseconds", ["this crate", *LAYER_PEERS.values(), "speedup"])


def python_line(row):
    ms = row["ms"]
    times = [f"{ms[who]:.3f}" if who in ms else "not installed" for who in ["ours", *LAYER_PEERS]]
    title = f"{row['layer']} {row['pass']} {row['layout']} {shape_name(row['shape'])}"
    return cells(title, [*times, f"{layer_speedup(row):.2f}x"])


def layer_speedup(row):
    """The time of the fastest peer over ours."""
    return min(ms for who, ms in row["ms"].items() if who != "ours") / row["ms"]["ours"]


def grouped(rows, *keys):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups.items()


def means(rows, variant):
    """
    For each pass and layout, in the order of the rows: the geometric mean and the least of the speedups, and the
    geometric mean and the largest of the ratios to the limit.
    """
    for (name, layout), group in grouped(rows, "pass", "layout"):
        gains = [speedup(row, variant) for row in group]
        large = [to_limit(row, variant) for row in group if tensor_bytes(row) > LARGE_BYTES]
        yield name, layout, geometric_mean(gains), min(gains), geometric_mean(large), max(large, default=math.nan)


def native_summary(rows, variant):
    yield cells(title_of(variant), ["speedup", "least", "to the limit", "most"])
    for name, layout, mean, least, large, most in means(rows, variant):
        yield cells(f"{name} {layout}", [f"{mean:.2f}x", f"{least:.2f}x", f"{large:.2f}", f"{most:.2f}"])
    slower = [row for row in rows if speedup(row, variant) < 1]
    yield f"slower than the faster peer: {len(slower)} of {len(rows)}"
    for row in slower:
        yield cells(f"{row['pass']} {row['layout']} {shape_name(row['shape'])}", [f"{speedup(row, variant):.2f}x"])
    yield ""


def layer_means(rows):
    """
    For each layout, layer and pass: the geometric mean of the speedups over each peer, or None where a peer was not
    installed, and the least of the speedups over the fastest.
    """
    for group, members in grouped(rows, "layout", "layer", "pass"):
        ratios = {peer: [row["ms"][peer] / row["ms"]["ours"] for row in members if peer in row["ms"]]
                  for peer in LAYER_PEERS}
        gains = [geometric_mean(values) if values else None for values in ratios.values()]
        yield *group, gains, min(map(layer_speedup, members))


def python_summary(rows):
    yield cells("speedup through Python", [*LAYER_PEERS.values(), "least"])
    for layout, layer, name, gains, least in layer_means(rows):
        shown = ["not installed" if gain is None else f"{gain:.2f}x" for gain in gains]
        yield cells(f"{layout} {layer} {name}", [*shown, f"{least:.2f}x"])


def summary(result):
    lines = ["Geometric means; speedup is over the faster or fastest peer.", ""]
    native, python = result["native"], result["python"]
    for variant in variants(native[0]) if native else []:
        lines += native_summary(native, variant)
    return "\n".join(lines + (list(python_summary(python)) if python else []))


def milliseconds(ms):
    """With three significant digits, but no more than four decimals."""
    return f"{ms:.{max(0, min(4, 2 - math.floor(math.log10(ms))))}f}"


def how_measured(result, parts):
    """Where the figures are from."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name in parts)
    yield f"{result['cpu']};"
    yield f"{result['threads']} threads; medians of {result['rounds']} interleaved rounds; {versions}."
    yield ""


def markdown_summary(rows, ours):
    """A column for each of some variants. Those with the main instruction set are compared with peers and limits."""
    main = of_main_isa(rows)
    main_isa = ISA_TITLES[isa_and_pool(main[0])[0]]
    titles = [title_of(v) + ("" if v in main else f", over {main_isa}") for v in ours]
    yield f"| | {' | '.join(titles)} |"
    yield "|---" * (1 + len(ours)) + "|"
    columns = {variant: list(means(rows, variant)) for variant in main}
    for i, ((name, layout), group) in enumerate(grouped(rows, "pass", "layout")):
        line = []
        for variant in ours:
            if variant in main:
                _, _, mean, least, large, most = columns[variant][i]
                line.append(f"{mean:.2f}× ({least:.2f}×)" + (f", {large:.2f} ({most:.2f})" if large > 0 else ""))
            else:
                ratios = [row["ms"][variant] / row["ms"][counterpart(rows, variant)] for row in group]
                line.append(f"{geometric_mean(ratios):.2f} ({max(ratios):.2f})")
        yield f"| {layout} {PASS_TITLES[name]} | {' | '.join(line)} |"


SUMMARY_CAPTION = """\
Speedup over the faster of PyTorch and oneDNN: geometric mean (least); then, above 24 MB, the ratio to the
memory-bandwidth limit: geometric mean (largest). The title of a column says on which threads this crate ran; the peers
ran on OpenMP's threads."""


def markdown_tensors(rows, variant):
    main = of_main_isa(rows)
    tensors = {}
    for row in rows:
        cell = f"{milliseconds(row['ms'][variant])} ms"
        if variant in main:
            cell += f", {speedup(row, variant):.2f}×"
            cell += f", {to_limit(row, variant):.2f}" if tensor_bytes(row) > LARGE_BYTES else ""
        else:
            cell += f", {row['ms'][variant] / row['ms'][main[0]]:.2f}"
        tensors.setdefault((row["layout"], shape_name(row["shape"])), {})[row["pass"]] = cell
    yield f"### {title_of(variant)}"
    yield ""
    if variant in main:
        yield "Each cell has the time, the speedup over the faster peer and, above 24 MB, the ratio to the limit."
    else:
        yield f"Each cell has the time, and its ratio to that of {title_of(main[0])}, in the same run."
    yield ""
    yield f"| tensor | {' | '.join(PASS_TITLES.values())} |"
    yield "|---" * (1 + len(PASS_TITLES)) + "|"
    for (layout, shape), passes in tensors.items():
        yield f"| {layout} {shape.replace('x', '×')} | {' | '.join(passes.get(p, '') for p in PASS_TITLES)} |"


def native_tables(result):
    """A summary, and tables of all tensors: the main instruction set on each kind of threads, others on the first."""
    rows = result["native"]
    main = of_main_isa(rows)
    yield from how_measured(result, ["PyTorch", "oneDNN"])
    yield from SUMMARY_CAPTION.splitlines()
    if len(variants(rows[0])) > len(main):
        yield "The last columns have times with one instruction set over those with another: geometric mean (largest)."
    yield ""
    yield from markdown_summary(rows, variants(rows[0]))
    for variant in variants(rows[0]):
        if variant in main or isa_and_pool(variant)[1] == isa_and_pool(main[0])[1]:
            yield ""
            yield from markdown_tensors(rows, variant)


def python_tables(result):
    rows = result["python"]
    yield from how_measured(result, ["PyTorch", "jax"])
    isa = ISA_TITLES[rows[0]["isa"]]
    yield f"This crate ran with {isa}, on the library's own pool. The first table has its speedups,"
    yield "as geometric means over the tensors of the second, and the least of all tensors over the fastest peer."
    yield ""
    yield f"| | {' | '.join(f'over {peer}' for peer in LAYER_PEERS.values())} | least |"
    yield "|---" * (2 + len(LAYER_PEERS)) + "|"
    for layout, layer, name, gains, least in layer_means(rows):
        shown = ["not installed" if gain is None else f"{gain:.2f}×" for gain in gains]
        yield f"| {layout} {layer}, {LAYER_PASS_TITLES[name]} | {' | '.join(shown)} | {least:.2f}× |"
    yield ""
    yield "Milliseconds, and the speedup over the fastest peer:"
    yield ""
    yield f"| tensor | layer, pass | this crate | {' | '.join(LAYER_PEERS.values())} | speedup |"
    yield "|---" * (4 + len(LAYER_PEERS)) + "|"
    for row in rows:
        ms = row["ms"]
        times = [milliseconds(ms[who]) if who in ms else "not installed" for who in ["ours", *LAYER_PEERS]]
        tensor = f"{row['layout']} {shape_name(row['shape']).replace('x', '×')}"
        what = f"{row['layer']}, {LAYER_PASS_TITLES[row['pass']]}"
        yield f"| {tensor} | {what} | {' | '.join(times)} | {layer_speedup(row):.2f}× |"


def write_between_markers(path, name, lines):
    begin, end = f"<!-- {name}: written by benches/peers/report.py -->", f"<!-- /{name} -->"
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"{path}: expected one line {begin} and one {end}")
    before, rest = text.split(begin)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{rest.split(end)[1]}")


def bandwidth(row, ms):
    """GB/s, counting once each byte that a pass would read or write if the caches were large enough."""
    return tensor_bytes(row) * (3 if row["pass"] == "backward" else 2) / ms / 1e6


def ticks(low, high):
    """1, 2 and 5 times the powers of ten."""
    every = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5)]
    return [tick for tick in every if low <= tick <= high]


class Panel:
    """Bandwidth over tensor size for one pass, both on logarithmic scales."""

    WIDTH, HEIGHT = 300, 220

    def __init__(self, x, y, sizes, speeds):
        self.left, self.top, self.sizes, self.speeds = x, y, sizes, speeds

    def x(self, megabytes):
        low, high = map(math.log, self.sizes)
        return self.left + self.WIDTH * (math.log(megabytes) - low) / (high - low)

    def y(self, speed):
        low, high = map(math.log, self.speeds)
        return self.top + self.HEIGHT * (1 - (math.log(speed) - low) / (high - low))

    def draw(self, title, rows):
        right, bottom = self.left + self.WIDTH, self.top + self.HEIGHT
        cached = self.x(LARGE_BYTES / 1e6)
        yield f'<text x="{self.left}" y="{self.top - 8}" class="title">{title}</text>'
        yield f'<path d="M{self.left} {self.top}H{cached:.1f}V{bottom}H{self.left}Z" class="cached"/>'
        for tick in ticks(*self.speeds):
            y = self.y(tick)
            yield f'<path d="M{self.left} {y:.1f}H{right}" class="grid"/>'
            yield f'<text x="{self.left - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks(*self.sizes):
            if math.log10(tick).is_integer():
                yield f'<path d="M{self.x(tick):.1f} {self.top}V{bottom}" class="grid"/>'
                yield f'<text x="{self.x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>'
        for row in rows:
            x = self.x(tensor_bytes(row) / 1e6)
            ours_ms = row["ms"][variants(row)[0]]
            ours, best, most = (self.y(bandwidth(row, ms)) for ms in (ours_ms, faster_peer(row), limit(row)))
            yield f'<path d="M{x - 5:.1f} {most:.1f}h10" class="limit"/>'
            yield f'<path d="M{x:.1f} {best:.1f}V{ours:.1f}" class="gain"/>'
            yield self.dot(x, best, "peer", row, faster_peer(row))
            yield self.dot(x, ours, "ours", row, ours_ms)

    @staticmethod
    def dot(x, y, kind, row, ms):
        text = f"{row['layout']} {shape_name(row['shape'])}: {milliseconds(ms)} ms, {bandwidth(row, ms):.0f} GB/s"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{kind}"><title>{text}</title></circle>'


STYLE = """
text { font: 12px sans-serif; fill: #333 }
.title { font-weight: bold }
.cached { fill: #eee }
.grid { stroke: #d8d8d8; fill: none }
.limit { stroke: #222; stroke-width: 2; fill: none }
.gain { stroke: #999; fill: none }
.ours { fill: #1668b8; stroke: #1668b8 }
.peer { fill: #fff; stroke: #d2691e; stroke-width: 1.5 }
.mean { fill: #6ba5dc }
.least { stroke: #d2691e; stroke-width: 3; fill: none }
.parity { stroke: #222; stroke-dasharray: 4 3; fill: none }
"""


def svg_start(width, height):
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    yield f"<style>{STYLE}</style>"
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'


def bandwidth_picture(rows):
    """An SVG in the manner of a roofline plot: the bandwidth of each pass over tensor size, with the memory limit."""
    main = variants(rows[0])[0]
    sizes = [tensor_bytes(row) / 1e6 for row in rows]
    speeds = [bandwidth(row, ms) for row in rows for ms in (row["ms"][main], faster_peer(row), limit(row))]
    sizes, speeds = (min(sizes) / 1.3, max(sizes) * 1.3), (min(speeds) / 1.2, max(speeds) * 1.2)
    width, height = 1080, 620
    yield from svg_start(width, height)
    legend = [
        (60, '<circle cy="-4" r="3.5" class="ours"/>', f"this crate: {title_of(main)}"),
        (325, '<circle cy="-4" r="3.5" class="peer"/>', "the faster of PyTorch and oneDNN"),
        (565, '<path d="M-5 -4h10" class="limit"/>', "memory limit, measured by plain sweeps"),
        (845, '<rect x="-7" y="-11" width="14" height="14" class="cached"/>', "up to 24 MB: caches help"),
    ]
    for x, mark, text in legend:
        yield f'<g transform="translate({x} 24)">{mark}<text x="12">{text}</text></g>'
    for i, layouts in enumerate([["NCHW"], ["NHWC", "NC"]]):
        for j, (name, title) in enumerate(PASS_TITLES.items()):
            chosen = [row for row in rows if row["pass"] == name and row["layout"] in layouts]
            panel = Panel(60 + 350 * j, 70 + 275 * i, sizes, speeds)
            yield from panel.draw(f"{title}, {' and '.join(layouts)}", chosen)
    yield f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">tensor size in MB</text>'
    vertical = f'transform="translate(18 {height / 2}) rotate(-90)" text-anchor="middle"'
    yield f"<text {vertical}>GB/s, each tensor counted once</text>"
    yield "</svg>"


def speedup_picture(rows):
    """An SVG of bars: the geometric mean of the speedups for each layout and pass, with the least marked."""
    main = variants(rows[0])[0]
    groups = list(means(rows, main))
    width, left, right, top, pitch, gap = 780, 190, 150, 70, 26, 10
    unit = (width - left - right) / max(mean for _, _, mean, *_ in groups)
    bars, bottom = [], top
    for k, (name, layout, mean, least, *_) in enumerate(groups):
        bottom += gap if k and layout != groups[k - 1][1] else 0
        y, end = bottom + 18, left + unit * mean
        bars += [
            f'<text x="{left - 10}" y="{y}" text-anchor="end">{layout} {PASS_TITLES[name]}</text>',
            f'<rect x="{left}" y="{y - 14}" width="{end - left:.1f}" height="18" class="mean"/>',
            f'<path d="M{left + unit * least:.1f} {y - 17}v24" class="least"/>',
            f'<text x="{end + 10:.1f}" y="{y}"><tspan class="title">{mean:.2f}×</tspan>, least {least:.2f}×</text>',
        ]
        bottom += pitch
    height, parity = bottom + 30, left + unit
    yield from svg_start(width, height)
    yield '<text x="20" y="26" class="title">Speedup over the faster of PyTorch and oneDNN; '
    yield f"this crate: {title_of(main)}</text>"
    legend = [
        (27, '<rect x="-7" y="-11" width="14" height="14" class="mean"/>', "geometric mean of all tensors"),
        (250, '<path d="M0 -16v24" class="least"/>', "least speedup of a single tensor"),
    ]
    for x, mark, text in legend:
        yield f'<g transform="translate({x} 52)">{mark}<text x="14">{text}</text></g>'
    yield from bars
    yield f'<path d="M{parity:.1f} {top}V{bottom + 6}" class="parity"/>'
    yield f'<text x="{parity:.1f}" y="{bottom + 20}" text-anchor="middle">1×, the time of the faster peer</text>'
    yield "</svg>"


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def merged(results):
    """Of runs that share no tensor. They must have been run in the same way."""
    result = results[0]
    for other in results[1:]:
        for key in ["cpu", "rounds", "versions"]:
            if other[key] != result[key]:
                sys.exit(f"the runs differ in {key}: {result[key]} and {other[key]}")
        result = result | {part: result[part] + other[part] for part in ["native", "python"]}
    if len({tuple(row["ms"]) for row in result["native"]}) > 1:
        sys.exit("the runs timed this crate with different instruction sets or threads")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="+", help="of one run, or of several runs that share no tensor")
    parser.add_argument("--threads", type=int, default=2, help="evaluate the rows of this many (default: %(default)s)")
    parser.add_argument("--readme", metavar="PATH", help="write the summary between the markers there")
    parser.add_argument("--all", metavar="PATH", help="write all tables between the markers there")
    parser.add_argument("--speedup", metavar="PATH", help="draw the speedups there, as SVG")
    parser.add_argument("--bandwidth", metavar="PATH", help="draw the bandwidths there, as SVG")
    options = parser.parse_args()
    results = []
    for path in options.json:
        with open(path) as file:
            results.append(json.load(file))
    results = [result for result in results if result["threads"] == options.threads]
    if not results:
        sys.exit(f"no runs with {options.threads} threads")
    result = merged(results)
    print(summary(result))
    rows = result["native"]
    if rows and options.readme:
        caption = SUMMARY_CAPTION.splitlines()
        write_between_markers(options.readme, "speed", [*caption, "", *markdown_summary(rows, of_main_isa(rows))])
    if rows and options.all:
        write_between_markers(options.all, "speed", native_tables(result))
    if result["python"] and options.all:
        write_between_markers(options.all, "python", python_tables(result))
    if rows and options.speedup:
        write_lines(options.speedup, speedup_picture(rows))
    if rows and options.bandwidth:
        write_lines(options.bandwidth, bandwidth_picture(rows))


if __name__ == "__main__":
    main()
