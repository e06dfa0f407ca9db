"""Batch normalization alone, and with what follows it."""

import torch
from torch import nn

import batchnorm.torch as bt

from .timing import cell, header, medians, row

# Those of ResNet-50 with 32 images of 224×224, some of ResNet-18's, and a small one.
SHAPES = [
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 256, 14, 14),
    (32, 1024, 14, 14),
    (32, 512, 7, 7),
    (32, 2048, 7, 7),
]
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Theirs(nn.Module):
    def __init__(self, channels, relu, add):
        super().__init__()
        self.bn, self.relu, self.add = nn.BatchNorm2d(channels), relu, add

    def forward(self, x, residual=None):
        y = self.bn(x)
        if self.add:
            y += residual
        return torch.relu_(y) if self.relu else y


LAYERS = {
    "BN": (False, False, bt.BatchNorm2d),
    "BN + ReLU": (True, False, bt.BatchNormReLU2d),
    "BN + add + ReLU": (True, True, bt.BatchNormAddReLU2d),
}


def in_torch(module, inputs, dy, backward):
    leaves = [v.clone(memory_format=torch.preserve_format).requires_grad_(backward) for v in inputs]
    wanted = [*leaves, *module.parameters()]

    def call():
        if not backward:
            with torch.no_grad():
                return module(*leaves)
        return torch.autograd.grad(module(*leaves), wanted, dy)

    return call


def in_jax(jax, relu, add, memory_format, inputs, dy, backward):
    """The formulas of flax, compiled as a whole."""
    last = memory_format is torch.channels_last
    axes = (0, 1, 2) if last else (0, 2, 3)

    def array(tensor):
        return jax.numpy.asarray((tensor.permute(0, 2, 3, 1) if last else tensor).contiguous().numpy())

    def layer(gamma, beta, x, residual=None):
        mean, square = x.mean(axes, keepdims=True), (x * x).mean(axes, keepdims=True)
        var = jax.numpy.maximum(0, square - mean * mean)
        y = (x - mean) * (jax.lax.rsqrt(var + 1e-5) * gamma) + beta
        y = y + residual if add else y
        return jax.nn.relu(y) if relu else y

    def step(dy, *arguments):
        y, pullback = jax.vjp(layer, *arguments)
        return y, *pullback(dy)

    channels = inputs[0].shape[1]
    shape = (channels,) if last else (channels, 1, 1)
    arguments = jax.numpy.ones(shape), jax.numpy.zeros(shape), *map(array, inputs)
    function = jax.jit(step if backward else layer)
    arguments = (array(dy), *arguments) if backward else arguments
    return lambda: jax.block_until_ready(function(*arguments))


def find_jax():
    try:
        import jax
    except ImportError:
        return None
    return jax


def layers(options):
    jax = find_jax()
    print("Milliseconds of a layer in training; in brackets, what part of that time batchnorm.torch takes.")
    header("layer", "pass", "layout", "shape", "batchnorm.torch", "eager", "torch.compile", "jax")
    for name, (relu, add, ours) in LAYERS.items():
        for layout, memory_format in FORMATS.items():
            for shape in SHAPES:
                title = "×".join(map(str, shape))
                if options.shapes and options.shapes not in title:
                    continue
                tensors = [torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(3)]
                inputs, dy = tensors[: 1 + add], tensors[2]
                for backward in False, True:
                    theirs, channels = Theirs(shape[1], relu, add), shape[1]
                    calls = {
                        "ours": in_torch(ours(channels), inputs, dy, backward),
                        "eager": in_torch(theirs, inputs, dy, backward),
                    }
                    if not options.no_compile:
                        torch.compiler.reset()
                        compiled = torch.compile(Theirs(channels, relu, add), dynamic=False)
                        calls["compile"] = in_torch(compiled, inputs, dy, backward)
                    if jax:
                        calls["jax"] = in_jax(jax, relu, add, memory_format, inputs, dy, backward)
                    ms = medians(calls, options.seconds)
                    others = [cell(ms.get(who), ms["ours"]) for who in ("eager", "compile", "jax")]
                    passes = "forward + backward" if backward else "forward"
                    row(name, passes, layout, title, f"{ms['ours']:.3g}", *others)


def overhead(options):
    print("Microseconds of forward + backward on 2×4×3×3, which is what a call costs.")
    header("layer", "batchnorm.torch", "eager")
    for name, (relu, add, ours) in LAYERS.items():
        inputs = [torch.randn(2, 4, 3, 3) for _ in range(1 + add)]
        dy = torch.randn(2, 4, 3, 3)
        calls = {
            "ours": in_torch(ours(4), inputs, dy, True),
            "eager": in_torch(Theirs(4, relu, add), inputs, dy, True),
        }
        us = {who: 1e3 * ms for who, ms in medians(calls, options.seconds).items()}
        row(name, f"{us['ours']:.0f}", cell(us["eager"], us["ours"]))
