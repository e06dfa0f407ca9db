"""`python -m batchnorm.bench --help`"""

import argparse
import sys


def main():
    parser = argparse.ArgumentParser(
        prog="python -m batchnorm.bench",
        description="Compares batchnorm.torch with PyTorch and, where it is installed, jax on this machine.",
    )
    parser.add_argument(
        "tables", nargs="*", default=[], help="layers, networks, overhead, memory; all of them if none is named"
    )
    parser.add_argument("--threads", type=int, help="the number of threads; PyTorch's own choice by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row of a table; 2 by default")
    parser.add_argument("--shapes", help="only the shapes that contain this text")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed: there is nothing to compare with")
    from . import layers, networks

    tables = {
        "layers": layers.layers,
        "overhead": layers.overhead,
        "networks": networks.networks,
        "memory": networks.memory,
    }
    unknown = set(options.tables) - set(tables)
    if unknown:
        parser.error(f"unknown table {unknown.pop()!r}: expected some of {', '.join(tables)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"PyTorch {torch.__version__}, f32, {torch.get_num_threads()} threads. Times are medians, interleaved.")
    for name in options.tables or tables:
        print()
        tables[name](options)


main()
