"""
Evaluates the rows that `run` measured. As a program it needs nothing but Python 3: it prints a summary of one or more
JSON files of `run`, and writes tables and pictures made from them into the docs.
"""

import argparse
import json
import math
import sys

# The memory limits are meaningful only for tensors that do not fit in the caches: those above this size.
LARGE_BYTES = 24e6

CONTESTANTS, LIMITS = ["ours", "torch", "onednn"], ["read", "copy", "triad"]


def shape_name(shape):
    return "x".join(map(str, shape))


def tensor_bytes(row):
    return 4 * math.prod(row["shape"])


def faster_peer(row):
    return min(row["torch_ms"], row["onednn_ms"])


def speedup(row):
    """The time of the faster peer over ours."""
    return faster_peer(row) / row["ours_ms"]


def limit(row):
    """
    The least time in which the memory bandwidth allows the pass. In NCHW a channel can stay in cache between its
    statistics and its normalization; in NHWC and NC the whole tensor is read twice.
    """
    if row["pass"] == "backward":
        return row["triad_ms"]
    if row["pass"] == "forward" and row["layout"] != "NCHW":
        return row["read_ms"] + row["copy_ms"]
    return row["copy_ms"]


def to_limit(row):
    return row["ours_ms"] / limit(row)


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def columns(title, contestants, gain, limits, ratio, implementation):
    times = " ".join(f"{cell:>9}" for cell in contestants)
    sweeps = " ".join(f"{cell:>9}" for cell in limits)
    return f"{title:<30} {times} {gain:>7} | {sweeps} {ratio:>6} | {implementation}"


HEADING = columns("milliseconds", CONTESTANTS, "speedup", LIMITS, "ratio", "oneDNN's implementation")


def line(row):
    def times(names):
        return [f"{row[name + '_ms']:.4f}" for name in names]

    title = f"{row['pass']} {row['layout']} {shape_name(row['shape'])}"
    gain, ratio = f"{speedup(row):.2f}x", f"{to_limit(row):.2f}"
    return columns(title, times(CONTESTANTS), gain, times(LIMITS), ratio, row["onednn"])


def means(rows):
    """
    For each pass and layout, in the order of the rows: the geometric mean and the least of the speedups, and the
    geometric mean and the largest of the ratios to the limit.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["pass"], row["layout"]), []).append(row)
    for (name, layout), group in groups.items():
        gains = [speedup(row) for row in group]
        large = [to_limit(row) for row in group if tensor_bytes(row) > LARGE_BYTES]
        yield name, layout, geometric_mean(gains), min(gains), geometric_mean(large), max(large, default=math.nan)


def summary(rows):
    lines = [f"{'':<22} {'speedup over faster peer':>24} {'least':>7} {'to the limit above 24 MB':>26} {'most':>7}"]
    for name, layout, mean, least, large, most in means(rows):
        lines.append(f"{name + ' ' + layout:<22} {mean:>23.2f}x {least:>6.2f}x {large:>26.2f} {most:>7.2f}")
    slower = [row for row in rows if speedup(row) < 1]
    lines += ["(geometric means)", "", f"slower than the faster peer: {len(slower)} of {len(rows)}"]
    return "\n".join(lines + [line(row) for row in slower])


PASS_TITLES = {"forward": "forward training", "inference": "inference", "backward": "backward"}


def milliseconds(ms):
    """With three significant digits, but no more than four decimals."""
    return f"{ms:.{max(0, min(4, 2 - math.floor(math.log10(ms))))}f}"


def markdown_summary(rows):
    yield "| | speedup: geometric mean (least) | ratio to the limit above 24 MB: geometric mean (largest) |"
    yield "|---|---|---|"
    for name, layout, mean, least, large, most in means(rows):
        yield f"| {layout} {PASS_TITLES[name]} | {mean:.2f}× ({least:.2f}×) | {large:.2f} ({most:.2f}) |"


def markdown_tensors(rows):
    cells = {}
    for row in rows:
        tensor = row["layout"], shape_name(row["shape"])
        cell = f"{milliseconds(row['ours_ms'])} ms, {speedup(row):.2f}×"
        if tensor_bytes(row) > LARGE_BYTES:
            cell += f", {to_limit(row):.2f}"
        cells.setdefault(tensor, {})[row["pass"]] = cell
    yield f"| tensor | {' | '.join(PASS_TITLES.values())} |"
    yield "|---" * (1 + len(PASS_TITLES)) + "|"
    for (layout, shape), passes in cells.items():
        yield f"| {layout} {shape.replace('x', '×')} | {' | '.join(passes.get(p, '') for p in PASS_TITLES)} |"


BEGIN, END = "<!-- speed: written by benches/peers/report.py -->", "<!-- /speed -->"


def write_between_markers(path, lines):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{path}: expected one line {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.split(END)[1]}")


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
            ours, best, most = (self.y(bandwidth(row, ms)) for ms in (row["ours_ms"], faster_peer(row), limit(row)))
            yield f'<path d="M{x - 5:.1f} {most:.1f}h10" class="limit"/>'
            yield f'<path d="M{x:.1f} {best:.1f}V{ours:.1f}" class="gain"/>'
            yield self.dot(x, best, "peer", row, faster_peer(row))
            yield self.dot(x, ours, "ours", row, row["ours_ms"])

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
    sizes = [tensor_bytes(row) / 1e6 for row in rows]
    speeds = [bandwidth(row, ms) for row in rows for ms in (row["ours_ms"], faster_peer(row), limit(row))]
    sizes, speeds = (min(sizes) / 1.3, max(sizes) * 1.3), (min(speeds) / 1.2, max(speeds) * 1.2)
    width, height = 1080, 620
    yield from svg_start(width, height)
    legend = [
        (60, '<circle cy="-4" r="3.5" class="ours"/>', "this crate"),
        (165, '<circle cy="-4" r="3.5" class="peer"/>', "the faster of PyTorch and oneDNN"),
        (405, '<path d="M-5 -4h10" class="limit"/>', "memory limit, measured by plain sweeps"),
        (690, '<rect x="-7" y="-11" width="14" height="14" class="cached"/>', "up to 24 MB: caches help"),
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


def speedup_picture(groups):
    """An SVG of bars: the geometric mean of the speedups for each layout and pass of `means`, with the least marked."""
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
    yield '<text x="20" y="26" class="title">Speedup over the faster of PyTorch and oneDNN</text>'
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="+", help="of one run, or of several runs that share no tensor")
    parser.add_argument("--threads", type=int, default=2, help="evaluate the rows of this many (default: %(default)s)")
    parser.add_argument("--readme", metavar="PATH", help="write the summary between the markers there")
    parser.add_argument("--all", metavar="PATH", help="write the summary and all tensors between the markers there")
    parser.add_argument("--speedup", metavar="PATH", help="draw the speedups there, as SVG")
    parser.add_argument("--bandwidth", metavar="PATH", help="draw the bandwidths there, as SVG")
    options = parser.parse_args()
    rows = []
    for path in options.json:
        with open(path) as file:
            rows += [row for row in json.load(file) if row["threads"] == options.threads]
    if not rows:
        sys.exit(f"no rows with {options.threads} threads")
    print(summary(rows))
    if options.readme:
        write_between_markers(options.readme, markdown_summary(rows))
    if options.all:
        write_between_markers(options.all, [*markdown_summary(rows), "", *markdown_tensors(rows)])
    if options.speedup:
        write_lines(options.speedup, speedup_picture(list(means(rows))))
    if options.bandwidth:
        write_lines(options.bandwidth, bandwidth_picture(rows))


if __name__ == "__main__":
    main()
