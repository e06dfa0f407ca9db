"""This crate, PyTorch, oneDNN and the limits of the memory, on buffers that all of them share."""

import ctypes
import functools
import itertools
import math

import numpy as np
import oracle
import torch
from oracle import EPS
from timing import all_cores, measure, own_cores

PASSES = ["forward", "inference", "backward"]  # in the order of `Pass` of contestant.h


class Case(ctypes.Structure):
    """`Case` of contestant.h."""

    POINTERS = ["x", "dy", "out", "gamma", "beta", "dgamma", "dbeta", "mean", "var"]
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ["n", "c", "h", "w"]],
        *[(name, ctypes.c_int32) for name in ["channels_last", "threads", "own_threads", "isa"]],
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

    def checked_channels(self):
        """All channels of tensors up to 16 MB, 16 channels of larger ones."""
        count = min(self.c, 16) if self.x.numel() > 1 << 22 else self.c
        return torch.linspace(0, self.c - 1, count).round().long()

    def exact(self, flat, channels):
        """Channels of a tensor in f64, as [image, channel, pixel]."""
        return self.by_channel(flat)[:, channels].numpy().astype(np.float64)

    def case(self, threads, own_threads=False, isa=0):
        pointers = [getattr(self, name).data_ptr() for name in Case.POINTERS]
        channels_last = self.layout != "NCHW"
        return Case(self.n, self.c, self.h, self.w, channels_last, threads, own_threads, isa, EPS, *pointers)


def per_channel(values, channels):
    return values[channels].numpy().astype(np.float64)[:, None]


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


def expected(buffers, name, channels):
    """For some channels: each output in f64, and its error bound in units of u."""
    x, gamma = buffers.exact(buffers.x, channels), per_channel(buffers.gamma, channels)
    if name == "backward":
        outputs = oracle.backward(x, buffers.exact(buffers.dy, channels), gamma)
        return {"out": outputs.pop("dx"), **outputs}
    given = tuple(per_channel(v, channels) for v in (buffers.mean, buffers.var)) if name == "inference" else None
    return {"out": oracle.forward(x, gamma, per_channel(buffers.beta, channels), given)}


def check(buffers, contestants, passes):
    """Checks that every contestant writes every element and agrees with f64 arithmetic."""
    channels = buffers.checked_channels()
    m = buffers.x.numel() // buffers.c
    for name in passes:
        outputs = expected(buffers, name, channels)
        for who, contestant in contestants.items():
            for output in outputs:
                getattr(buffers, output).fill_(math.nan)
            contestant.outputs_of(name)
            for output, (value, bound) in outputs.items():
                got = getattr(buffers, output)
                if got.isnan().any():
                    raise SystemExit(f"{who}, {name}: elements of {output} were not written")
                got = buffers.exact(got, channels) if output == "out" else got[channels].numpy()
                oracle.compare(f"{who}, {name}: {output}", got, value, bound, oracle.unit(who, m))


def ours(libraries, options, buffers):
    """This crate on each kind of threads, with each instruction set."""
    for isa, pool in itertools.product(options.isa, options.pool):
        case = buffers.case(options.threads, pool == "own", options.isa_number[isa])
        if pool == "rayon":
            with all_cores():
                contestant = Native(libraries.rayon, "rayon", case)
        else:
            with own_cores():
                contestant = Native(libraries.contestants, "ours", case)
        yield f"ours {isa} {pool}", contestant


def rows(libraries, options, tensors):
    for layout, shape in tensors:
        buffers = Buffers(shape, layout)
        contestants = dict(ours(libraries, options, buffers))
        contestants["torch"] = PyTorch(buffers)
        contestants["onednn"] = Native(libraries.contestants, "onednn", buffers.case(options.threads))
        for contestant in contestants.values():
            contestant.call("forward")()  # for the statistics that backward needs
        check(buffers, contestants, options.passes)

        limits = Native(libraries.contestants, "limits", buffers.case(options.threads))
        calls = {(name, who): c.call(name) for name in options.passes for who, c in contestants.items()}
        calls |= {("limit", who): limits.call(name) for name, who in zip(PASSES, ["read", "copy", "triad"])}
        times = measure(calls, options.rounds, lambda name: name[1].endswith((" rayon", " own")))
        for name in options.passes:
            ms = {who: times[of, who] for of, who in calls if of in (name, "limit")}
            implementation = contestants["onednn"].implementation(name)
            yield {"pass": name, "layout": layout, "shape": shape, "ms": ms, "onednn": implementation}
