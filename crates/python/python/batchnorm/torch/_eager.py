"""
Autograd's nodes in eager mode. `torch.library` has its own for custom operators, which take several times as long to
call: they are only used where a graph is traced.
"""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from . import _kernels
from ._kernels import IDENTITY, LEAKY_RELU


def dense(tensor, memory_format):
    """The tensor itself, if it is dense in this format, or a copy."""
    return None if tensor is None else tensor.contiguous(memory_format=memory_format)


def parameters(weight, bias):
    return dense(weight, torch.contiguous_format), dense(bias, torch.contiguous_format)


def plain(x, weight, bias, residual, mean, var, training, momentum, eps, activation, slope):
    """The forward pass: y, the memory format that it uses, the settings, and the statistics."""
    memory_format = _kernels.memory_format_of(x)
    x, residual = dense(x, memory_format), dense(residual, memory_format)
    weight, bias = parameters(weight, bias)
    shape = _kernels.shape_of(x, memory_format)
    settings = _kernels.settings(x, bias if weight is None else weight, shape, eps, activation, slope)
    if not training:
        y = _kernels.normalize(x, _kernels.running_source(mean, var), weight, bias, residual, settings)
        return y, memory_format, settings, None
    running = None if mean is None else (mean, var, momentum)
    y, statistics = _kernels.forward_training(x, weight, bias, residual, settings, running)
    if mean is not None:
        increment_version((mean, var))
    return y, memory_format, settings, statistics


class BatchNorm(Function):
    """y = act(weight·x̂ + bias + residual)."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, mean, var, training, momentum, eps, activation, slope, keep_output):
        y, memory_format, settings, statistics = plain(
            x, weight, bias, residual, mean, var, training, momentum, eps, activation, slope
        )
        ctx.settings, ctx.memory_format, ctx.from_output, ctx.count = settings, memory_format, False, None
        if training:
            shape, mean, var = settings[2], statistics, None
            ctx.count = float(shape[0] * shape[2])
            if keep_output and residual is None:
                source = _kernels.batch_source(statistics, ctx.count)
                ctx.from_output = _kernels.is_invertible(y, source, *parameters(weight, bias), settings)
        needs_y = ctx.from_output or _kernels.needs_output(x.dtype, activation, residual, training)
        # The arguments themselves, not dense copies: second derivatives flow to them.
        ctx.save_for_backward(None if ctx.from_output else x, weight, bias, mean, var, y if needs_y else None)
        return y

    @staticmethod
    def backward(ctx, dy):
        needs = ctx.needs_input_grad[:4]
        x, weight, bias, mean, var, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = differentiable(ctx, x, dy, weight, bias, mean, var, y, needs)
        else:
            x, dy = dense(x, ctx.memory_format), dense(dy, ctx.memory_format)
            source, affine = source_of(ctx, mean, var), parameters(weight, bias)
            if ctx.from_output:
                gradients = _kernels.backward_from_output(y, dy, source, *affine, ctx.settings, needs)
            else:
                gradients = _kernels.backward(x, dy, source, *affine, y, ctx.settings, needs)
        return *gradients, None, None, None, None, None, None, None, None


def source_of(ctx, mean, var):
    return _kernels.running_source(mean, var) if ctx.count is None else _kernels.batch_source(mean, ctx.count)


def differentiable(ctx, x, dy, weight, bias, mean, var, y, needs):
    """The gradients as functions of x, dy and weight that can be differentiated once more."""
    if ctx.from_output:
        raise RuntimeError("second derivatives need x: expected memory='input', got memory='output'")
    *rest, activation, slope, threads = ctx.settings
    if activation != IDENTITY:
        if y is None:
            source, affine = source_of(ctx, mean, var), parameters(weight, bias)
            y = _kernels.normalize(dense(x.detach(), ctx.memory_format), source, *affine, None, ctx.settings)
        # The derivative of the activation does not depend on its argument, but for its sign.
        dy = torch.where(y > 0, dy, dy * slope if activation == LEAKY_RELU else 0)
    settings = *rest, IDENTITY, 0.0, threads
    dx = dweight = dbias = None
    if any(needs[:3]):
        dx, dweight, dbias = Backward.apply(x, dy, weight, mean, var, ctx.count, settings, ctx.memory_format, needs[:3])
    return dx, dweight, dbias, dy if needs[3] else None


class Backward(Function):
    """dx, dweight and dbias without an activation."""

    @staticmethod
    def forward(ctx, x, dy, weight, mean, var, count, settings, memory_format, needs):
        ctx.count, ctx.settings, ctx.memory_format = count, settings, memory_format
        x, dy, weight = dense(x, memory_format), dense(dy, memory_format), dense(weight, torch.contiguous_format)
        ctx.save_for_backward(x, dy, weight, mean, var)
        ctx.set_materialize_grads(False)
        return _kernels.backward(x, dy, source_of(ctx, mean, var), weight, None, None, settings, (*needs, False))[:3]

    @staticmethod
    @once_differentiable
    def backward(ctx, of_dx, of_dweight, of_dbias):
        x, dy, weight, mean, var = ctx.saved_tensors
        of_dx = torch.zeros_like(x) if of_dx is None else dense(of_dx, ctx.memory_format)
        source, needs = source_of(ctx, mean, var), ctx.needs_input_grad[:3]
        cotangents = of_dx, of_dweight, of_dbias
        gradients = _kernels.double_backward(x, dy, source, weight, cotangents, ctx.settings, needs)
        return *gradients, None, None, None, None, None, None
