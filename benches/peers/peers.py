"""Times this crate and its peers, interleaved. Started by `run`, which builds everything."""

import argparse
import ctypes
import json
import logging
import math
import os
import types
from importlib import metadata, util

import report
import timing

PASSES = list(report.PASS_TITLES)
LAYOUTS = ["NCHW", "NHWC", "NC"]
PARTS = ["native", "python"]
POOLS = ["openmp", "rayon", "own"]
ISAS = ["best", "portable", "avx2", "avx512"]  # in the order of BN_ISA_

# ResNet-50 at batch 32, its nine distinct layers: channels and side.
RESNET = [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)]
# Channels and planes as in MobileNet and DenseNet, most of which are not a multiple of the vector length.
ODD = [(24, 56, 56), (96, 56, 56), (40, 28, 28), (57, 17, 16), (96, 13, 13), (1000, 13, 13), (1000, 7, 7)]
SMALL = [(1, 64, 56, 56), (1, 57, 17, 16), (1, 64, 7, 7)]
IMAGES = [(32, c, side, side) for c, side in RESNET] + [(32, *odd) for odd in ODD] + SMALL
ROWS = [(65536, 256), (4096, 1024), (1024, 1000), (256, 512), (128, 57)]
LARGE = (64, 256, 128, 128)
QUICK = [(32, 64, 56, 56), (32, 512, 28, 28), (32, 57, 17, 16), (1, 64, 7, 7), (256, 512)]
# Through Python, where compilers take seconds for each.
PYTHON = [(32, 64, 56, 56), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 512, 7, 7)]


def arguments():
    parser = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__)
    parser.add_argument("shape", nargs="*", help="time only shapes that contain one of these, such as 32x64x56")
    parser.add_argument("--only", choices=PARTS, help="native: passes into given buffers, compared with PyTorch and "
                        "oneDNN; python: layers through Python, compared with PyTorch, torch.compile and XLA")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="time only this; repeatable")
    parser.add_argument("--pass", dest="passes", action="append", choices=PASSES,
                        help="time only this of the native part; repeatable")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant (default: %(default)s)")
    parser.add_argument("--pool", action="append", choices=POOLS, help="the threads of this crate in the native part; "
                        "repeatable (default: openmp and rayon)")
    parser.add_argument("--isa", action="append", choices=ISAS, help="the instruction set of this crate; repeatable: "
                        "the python part takes the first (default: best)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds to take medians of (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="time a few shapes")
    parser.add_argument("--large", action="store_true", help="add a tensor of 1 GB")
    parser.add_argument("--huge-pages", action="store_true", help="put tensors on huge pages, if madvise provides them")
    parser.add_argument("--json", metavar="PATH", help="write the rows to this file")
    parser.add_argument("--target", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = [options.only] if options.only else PARTS
    options.layout, options.passes = options.layout or LAYOUTS, options.passes or PASSES
    options.pool = options.pool or POOLS[:2]
    return options


def choose_isa(options, library):
    """Resolves "best", so that the tables name an instruction set."""
    best = ctypes.c_int32()
    library.bn_best_isa(ctypes.byref(best))
    chosen = [isa if isa != "best" else ISAS[best.value] for isa in options.isa or ["best"]]
    options.isa = list(dict.fromkeys(chosen))
    options.isa_number = {isa: number for number, isa in enumerate(ISAS)}


def selected(options, layout, shapes):
    for shape in shapes:
        name = report.shape_name(shape)
        if options.shape and not any(part in name for part in options.shape):
            continue
        if options.quick and shape not in QUICK:
            continue
        # Three tensors, PyTorch's dx and the memory of the checks.
        if 6 * 4 * math.prod(shape) > timing.available_bytes():
            print(f"skipped, not enough memory: {layout} {name}")
            continue
        yield layout, shape


def native_tensors(options):
    images = IMAGES + [LARGE] * options.large
    for layout in options.layout:
        yield from selected(options, layout, ROWS if layout == "NC" else images)


def python_tensors(options):
    for layout in options.layout:
        yield from selected(options, layout, [] if layout == "NC" else PYTHON)


def set_environment(options):
    """Libraries read these when they are loaded, so they are set before the imports."""
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_PROC_BIND": "true",
        "RAYON_NUM_THREADS": str(options.threads),
        "NPROC": str(options.threads),  # XLA's
        "JAX_PLATFORMS": "cpu",
        # What is compiled for one number of threads is wrong for another.
        "TORCHINDUCTOR_CACHE_DIR": f"{options.target}/peers/inductor-{options.threads}",
    }
    if options.huge_pages:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"


def keep_freed_memory():
    """
    The peers allocate outputs in each call. With these settings they reuse the pages of the previous call, as if
    outputs were given, and do not fault in new ones: memory is never returned, and all threads share it.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(m_trim_threshold, -1) and mallopt(m_mmap_max, 0) and mallopt(m_arena_max, 1)):
        raise SystemExit("mallopt refused the settings")


def versions(contestants):
    contestants.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
    onednn = ".".join(map(str, contestants.dnnl_version().contents))
    jax = {"jax": metadata.version("jax")} if util.find_spec("jax") else {}
    return {"PyTorch": metadata.version("torch"), "oneDNN": onednn} | jax


def run_native(options, libraries):
    import native
    import torch

    with torch.inference_mode():
        print(report.native_heading(options), flush=True)
        for row in native.rows(libraries, options, native_tensors(options)):
            print(report.native_line(row), flush=True)
            yield row


def run_python(options, libraries):
    # It warns that FLOPs of another compiler cannot be counted.
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    import layers

    print(report.python_heading(), flush=True)
    for row in layers.rows(libraries, options, python_tensors(options)):
        print(report.python_line(row), flush=True)
        yield row


def main():
    options = arguments()
    set_environment(options)
    keep_freed_memory()
    import torch

    torch.set_num_threads(options.threads)
    # After PyTorch, so that oneDNN shares its OpenMP.
    libraries = types.SimpleNamespace(
        contestants=ctypes.CDLL(f"{options.target}/peers/contestants.so"),
        rayon=ctypes.CDLL(f"{options.target}/release/examples/libpeers_rayon.so"),
        batchnorm=ctypes.CDLL(f"{options.target}/release/libbatchnorm.so"),
    )
    choose_isa(options, libraries.batchnorm)
    result = {
        "cpu": timing.cpu(),
        "threads": options.threads,
        "rounds": options.rounds,
        "versions": versions(libraries.contestants),
        "native": [],
        "python": [],
    }
    for part, rows in [("native", run_native), ("python", run_python)]:
        if part in options.parts:
            result[part] += rows(options, libraries)
            print(flush=True)
    if not result["native"] and not result["python"]:
        raise SystemExit("no shape matches; the shapes are: " + ", ".join(map(report.shape_name, IMAGES + ROWS)))
    print(report.summary(result))
    print(f"\n{options.threads} threads; other processes kept {timing.LOAD.cpus():.2f} CPUs busy")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
