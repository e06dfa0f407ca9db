"""Times this crate, PyTorch, oneDNN and the memory limits, interleaved. Started by `run`, which builds everything."""

import argparse
import ctypes
import functools
import json
import math
import os
import statistics
import time

import report

PASSES = ["forward", "inference", "backward"]
LAYOUTS = ["NCHW", "NHWC", "NC"]
EPS = 1e-5

# ResNet-50 at batch 32, its nine distinct layers: channels and side.
RESNET = [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)]
# Channels and planes as in MobileNet and DenseNet, most of which are not a multiple of the vector length.
ODD = [(24, 56, 56), (96, 56, 56), (40, 28, 28), (57, 17, 16), (96, 13, 13), (1000, 13, 13), (1000, 7, 7)]
SMALL = [(1, 64, 56, 56), (1, 57, 17, 16), (1, 64, 7, 7)]
IMAGES = [(32, c, side, side) for c, side in RESNET] + [(32, *odd) for odd in ODD] + SMALL
ROWS = [(65536, 256), (4096, 1024), (1024, 1000), (256, 512), (128, 57)]
LARGE = (64, 256, 128, 128)
QUICK = [(32, 64, 56, 56), (32, 512, 28, 28), (32, 57, 17, 16), (1, 64, 7, 7), (256, 512)]

# A timing repeats a pass for at least this long, so that the clock and waking threads do not matter.
TIMING_SECONDS = 4e-3
# OpenMP's threads spin before they sleep, for less than this.
SPIN_SECONDS = 15e-3
CPUS = sorted(os.sched_getaffinity(0))


def arguments():
    parser = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__)
    parser.add_argument("shape", nargs="*", help="time only shapes that contain one of these, such as 32x64x56")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="time only this; repeatable")
    parser.add_argument("--pass", dest="passes", action="append", choices=PASSES, help="time only this; repeatable")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds to take medians of (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="time a few shapes")
    parser.add_argument("--large", action="store_true", help="add a tensor of 1 GB")
    parser.add_argument("--own-threads", action="store_true", help="run this crate on its own pool, not OpenMP's")
    parser.add_argument("--huge-pages", action="store_true", help="put tensors on huge pages, if madvise provides them")
    parser.add_argument("--json", metavar="PATH", help="write the rows to this file")
    parser.add_argument("--contestants", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layout, options.passes = options.layout or LAYOUTS, options.passes or PASSES
    return options


class Case(ctypes.Structure):
    """`Case` of contestant.h."""

    POINTERS = ["x", "dy", "out", "gamma", "beta", "dgamma", "dbeta", "mean", "var"]
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ["n", "c", "h", "w"]],
        *[(name, ctypes.c_int32) for name in ["channels_last", "threads", "own_threads"]],
        ("eps", ctypes.c_double),
        *[(name, ctypes.c_void_p) for name in POINTERS],
    ]


class Buffers:
    """The tensors of one shape, shared by all contestants."""

    def __init__(self, shape, layout):
        self.layout = layout
        self.n, self.c, self.h, self.w = (*shape, 1, 1)[:4]
        torch.manual_seed(1)
        self.gamma, self.beta = torch.rand(self.c) + 0.5, torch.randn(self.c)
        self.mean, self.var = torch.randn(self.c), torch.rand(self.c) + 0.5
        # Distributed as the running statistics say, as in a trained network.
        size = self.n * self.c * self.h * self.w
        self.x, self.dy, self.out = torch.randn(size), torch.randn(size), torch.empty(size)
        self.by_channel(self.x).mul_(self.var.sqrt().view(-1, 1)).add_(self.mean.view(-1, 1))
        self.dgamma, self.dbeta = torch.empty(self.c), torch.empty(self.c)
        # Leaves freed pages for what PyTorch allocates later: malloc does not always reuse the same ones.
        spare = [torch.zeros(size) for _ in range(3)]
        del spare

    def view(self, flat):
        """As PyTorch represents tensors of the layout."""
        if self.layout == "NC":
            return flat.view(self.n, self.c)
        if self.layout == "NCHW":
            return flat.view(self.n, self.c, self.h, self.w)
        return flat.view(self.n, self.h, self.w, self.c).permute(0, 3, 1, 2)

    def by_channel(self, flat):
        """As [image, channel, pixel]."""
        if self.layout == "NCHW":
            return flat.view(self.n, self.c, -1)
        return flat.view(self.n, -1, self.c).transpose(1, 2)

    def case(self, options):
        pointers = [getattr(self, name).data_ptr() for name in Case.POINTERS]
        channels_last = self.layout != "NCHW"
        return Case(self.n, self.c, self.h, self.w, channels_last, options.threads, options.own_threads, EPS, *pointers)


class Native:
    """A contestant of contestant.h."""

    def __init__(self, library, name, case):
        new = getattr(library, name + "_new")
        new.restype = ctypes.c_void_p
        self.library, self.handle = library, ctypes.c_void_p(new(ctypes.byref(case)))

    def __del__(self):
        self.library.contestant_free(self.handle)

    def call(self, name):
        return functools.partial(self.library.contestant_run, self.handle, ctypes.c_int32(PASSES.index(name)))

    def outputs_of(self, name):
        self.call(name)()

    def implementation(self, name):
        describe = self.library.contestant_implementation
        describe.restype = ctypes.c_char_p
        return describe(self.handle, ctypes.c_int32(PASSES.index(name))).decode()


class PyTorch:
    def __init__(self, buffers):
        self.buffers = buffers
        x, dy, y = (buffers.view(flat) for flat in (buffers.x, buffers.dy, buffers.out))
        gamma, beta, mean, var = buffers.gamma, buffers.beta, buffers.mean, buffers.var
        saved = torch.empty(buffers.c), torch.empty(buffers.c)
        none_saved = torch.empty(0), torch.empty(0)
        norm, backward = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward.default
        self.calls = {
            "forward": lambda: norm(x, gamma, beta, None, None, True, 0.1, EPS, out=(y, *saved)),
            "inference": lambda: norm(x, gamma, beta, mean, var, False, 0.1, EPS, out=(y, *none_saved)),
            # PyTorch has no variant that writes into given tensors without a copy.
            "backward": lambda: backward(dy, x, gamma, None, None, *saved, True, EPS, [True, True, True]),
        }

    def call(self, name):
        return self.calls[name]

    def outputs_of(self, name):
        outputs = self.calls[name]()
        if name == "backward":
            b = self.buffers
            for given, output in zip((b.view(b.out), b.dgamma, b.dbeta), outputs):
                given.copy_(output)


def oracle(buffers, name, channels):
    """For some channels, in f64: each output, and its error bound in units of u."""

    def exact(flat):
        return buffers.by_channel(flat)[:, channels].numpy().astype(np.float64)

    def per_channel(v):
        return v[channels].numpy().astype(np.float64)[:, None]

    x, gamma, beta = exact(buffers.x), per_channel(buffers.gamma), per_channel(buffers.beta)
    if name == "inference":
        mean, var = per_channel(buffers.mean), per_channel(buffers.var)
    else:
        mean = x.mean((0, 2), keepdims=True)
        var = ((x - mean) ** 2).mean((0, 2), keepdims=True)
    inv_std = 1 / np.sqrt(var + EPS)
    normal = (x - mean) * inv_std
    if name != "backward":
        return {"out": (normal * gamma + beta, 8 * (abs(gamma) * (1 + abs(normal)) + abs(beta)))}

    # The crate promises its bounds for given statistics and sums. The terms with 4 are what errors of the statistics,
    # 4 std of the mean and 8 var of the variance, add; errors of the sums carry over to dx.
    m = x.shape[0] * x.shape[2]
    dy = exact(buffers.dy)
    dbeta, dgamma = dy.sum((0, 2), keepdims=True), (dy * normal).sum((0, 2), keepdims=True)
    dbeta_bound = 8 * abs(dy).sum((0, 2), keepdims=True)
    dgamma_bound = 8 * abs(dy * normal).sum((0, 2), keepdims=True) + 4 * (abs(dbeta) + abs(dgamma))
    through_std = normal * dgamma / m
    parts = 16 * (abs(dy) + abs(dbeta) / m + abs(through_std))
    added = 4 * (abs(dy - dbeta / m) + 2 * abs(through_std) + abs(dgamma) / m)
    sums = (dbeta_bound + abs(normal) * dgamma_bound) / m
    return {
        "out": (gamma * inv_std * (dy - dbeta / m - through_std), abs(gamma) * inv_std * (parts + added + sums)),
        "dgamma": (dgamma.ravel(), dgamma_bound.ravel()),
        "dbeta": (dbeta.ravel(), dbeta_bound.ravel()),
    }


def check(buffers, contestants, passes):
    """
    Checks that every contestant writes every element and agrees with f64 arithmetic: in all channels of tensors up to
    16 MB, in 16 channels of larger ones. This crate must keep the bounds that it promises. The peers add M values in
    f32, whose roundings, as a random walk, may add up to sqrt(M) times these bounds.
    """
    few = buffers.x.numel() > 1 << 22
    channels = torch.linspace(0, buffers.c - 1, min(buffers.c, 16) if few else buffers.c).round().long()
    m = buffers.x.numel() // buffers.c
    for name in passes:
        expected = oracle(buffers, name, channels)
        for who, contestant in contestants.items():
            for output in expected:
                getattr(buffers, output).fill_(math.nan)
            contestant.outputs_of(name)
            unit = 2.0**-24 * (1 if who == "ours" else math.sqrt(m))
            for output, (value, bound) in expected.items():
                got = getattr(buffers, output)
                if not got.isfinite().all():
                    raise SystemExit(f"{who}, {name}: elements of {output} are not finite, or were not written")
                got = buffers.by_channel(got)[:, channels] if output == "out" else got[channels]
                error = (abs(got.numpy() - value) / bound).max()
                if error > unit:
                    raise SystemExit(f"{who}, {name}: {output} is off by {error / unit:.2f} times the bound")


def seconds(call, repeat):
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def measure(calls, rounds, pause):
    """The median time of each call in milliseconds, timed interleaved."""
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = math.ceil(TIMING_SECONDS / max(seconds(call, 3), 1e-7))
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause)
            if repeats[name] > 1:
                call()
            times[name].append(seconds(call, repeats[name]))
    return {name: statistics.median(t) * 1e3 for name, t in times.items()}


def rows_of(library, options, layout, shape):
    buffers = Buffers(shape, layout)
    case = buffers.case(options)
    threads = set(os.listdir("/proc/self/task"))
    ours = Native(library, "ours", case)
    # OpenMP binds its own threads in the same way.
    for cpu, thread in enumerate(set(os.listdir("/proc/self/task")) - threads, start=1):
        os.sched_setaffinity(int(thread), {CPUS[cpu]})
    contestants = {
        "ours": ours,
        "torch": PyTorch(buffers),
        "onednn": Native(library, "onednn", case),
    }
    for contestant in contestants.values():
        contestant.call("forward")()  # for the statistics that backward needs
    check(buffers, contestants, options.passes)

    limits = Native(library, "limits", case)
    calls = {(name, who): c.call(name) for name in options.passes for who, c in contestants.items()}
    calls |= {who: limits.call(name) for name, who in zip(PASSES, ["read", "copy", "triad"])}
    times = measure(calls, options.rounds, SPIN_SECONDS if options.own_threads else 0)
    for name in options.passes:
        row = {"pass": name, "layout": layout, "dtype": "f32", "shape": shape, "threads": options.threads}
        row |= {f"{who}_ms": times[name, who] for who in contestants}
        row |= {f"{who}_ms": times[who] for who in ["read", "copy", "triad"]}
        yield row | {"onednn": contestants["onednn"].implementation(name)}


def fits(shape):
    """Whether three tensors, PyTorch's dx and the memory of the checks fit in memory."""
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return 6 * 4 * math.prod(shape) < available


def shapes(options):
    images = IMAGES + [LARGE] * options.large
    for layout in options.layout:
        for shape in ROWS if layout == "NC" else images:
            name = report.shape_name(shape)
            if options.shape and not any(part in name for part in options.shape):
                continue
            if options.quick and shape not in QUICK:
                continue
            if not fits(shape):
                print(f"skipped, not enough memory: {layout} {name}")
                continue
            yield layout, shape


def keep_freed_memory():
    """
    PyTorch's backward allocates dx in each call. With this setting it reuses the pages of the previous call, as if dx
    were given, and does not fault in new ones.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(m_trim_threshold, -1) and mallopt(m_mmap_max, 0)):
        raise SystemExit("mallopt refused the settings")


def busy_seconds():
    """CPU time of the whole machine."""
    with open("/proc/stat") as lines:
        user, nice, system, _, _, irq, softirq, *_ = map(int, lines.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def main():
    options = arguments()
    # Libraries read these when they are loaded, so they are set before the imports.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["OMP_PROC_BIND"] = "true"
    if options.huge_pages:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    keep_freed_memory()
    global np, torch
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    library = ctypes.CDLL(options.contestants)  # after PyTorch, so that oneDNN shares its OpenMP
    rows = []
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    with torch.inference_mode():
        print(report.HEADING, flush=True)
        for layout, shape in shapes(options):
            for row in rows_of(library, options, layout, shape):
                rows.append(row)
                print(report.line(row), flush=True)
    if not rows:
        raise SystemExit("no shape matches; the shapes are: " + ", ".join(map(report.shape_name, IMAGES + ROWS)))
    others = (busy_seconds() - busy - (time.process_time() - own)) / (time.perf_counter() - start)
    print(f"\n{options.threads} threads; other processes kept {others:.2f} CPUs busy\n\n{report.summary(rows)}")
    if options.json:
        with open(options.json, "w") as file:
            file.write("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main()
