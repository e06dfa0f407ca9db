"""The passes as custom operators, for what traces graphs: torch.compile, torch.export and dispatch modes."""

from typing import Optional

import torch
from torch import Tensor
from torch.library import custom_op

from . import _kernels
from ._eager import dense


def batch_norm(x, mean, var, weight, bias, training, momentum, residual, eps, activation, slope):
    fusion = residual, eps, activation, slope
    if not training:
        return normalize(x, mean, var, weight, bias, *fusion)
    y, statistics = forward_training(x, weight, bias, *fusion)
    if mean is not None:
        update_running(mean, var, statistics, x.numel() // x.shape[1], momentum)
    return y


def _prepare(x, weight, bias, eps, activation, slope):
    memory_format = _kernels.memory_format_of(x)
    x = dense(x, memory_format)
    shape = _kernels.shape_of(x, memory_format)
    settings = _kernels.settings(x, bias if weight is None else weight, shape, eps, activation, slope)
    return x, memory_format, settings


def _parameters(*values):
    return [dense(v, torch.contiguous_format) for v in values]


@custom_op("batchnorm::forward_training", mutates_args=(), device_types="cpu")
def forward_training(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    residual: Optional[Tensor],
    eps: float,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    x, memory_format, settings = _prepare(x, weight, bias, eps, activation, slope)
    return _kernels.forward_training(x, *_parameters(weight, bias), dense(residual, memory_format), settings)


@forward_training.register_fake
def _(x, weight, bias, residual, eps, activation, slope):
    x = dense(x, _kernels.memory_format_of(x))
    return torch.empty_like(x), x.new_empty(2, x.shape[1], dtype=torch.float64)


@custom_op("batchnorm::normalize", mutates_args=(), device_types="cpu")
def normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    residual: Optional[Tensor],
    eps: float,
    activation: int,
    slope: float,
) -> Tensor:
    x, memory_format, settings = _prepare(x, weight, bias, eps, activation, slope)
    source = _kernels.running_source(*_parameters(mean, var))
    return _kernels.normalize(x, source, *_parameters(weight, bias), dense(residual, memory_format), settings)


@normalize.register_fake
def _(x, mean, var, weight, bias, residual, eps, activation, slope):
    return torch.empty_like(dense(x, _kernels.memory_format_of(x)))


@custom_op("batchnorm::update_running", mutates_args=("mean", "var"), device_types="cpu")
def update_running(mean: Tensor, var: Tensor, statistics: Tensor, count: int, momentum: float) -> None:
    _kernels.update_running(mean, var, statistics, count, momentum)


@update_running.register_fake
def _(mean, var, statistics, count, momentum):
    pass


@custom_op("batchnorm::backward", mutates_args=(), device_types="cpu")
def backward(
    x: Tensor,
    dy: Tensor,
    mean: Tensor,
    var: Tensor,
    count: float,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    output: Optional[Tensor],
    eps: float,
    activation: int,
    slope: float,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients that are needed of x, weight, bias and the residual. A count of 0 stands for running statistics."""
    x, memory_format, settings = _prepare(x, weight, bias, eps, activation, slope)
    mean, var, weight, bias = _parameters(mean, var, weight, bias)
    source = (count or None, _kernels.ELEMENTS[mean.dtype], _kernels.raw(mean), _kernels.raw(var))
    dy, output = dense(dy, memory_format), dense(output, memory_format)
    gradients = _kernels.backward(x, dy, source, weight, bias, output, settings, needs)
    return [gradient for gradient in gradients if gradient is not None]


@backward.register_fake
def _(x, dy, mean, var, count, weight, bias, output, eps, activation, slope, needs):
    x = dense(x, _kernels.memory_format_of(x))
    parameter = bias if weight is None else weight
    dtype = x.dtype if parameter is None else parameter.dtype
    per_channel = [x.new_empty(x.shape[1], dtype=dtype) for _ in range(2)]
    gradients = torch.empty_like(x), *per_channel, torch.empty_like(x)
    return [gradient for gradient, needed in zip(gradients, needs) if needed]


def _gradients(needs, gradients):
    """Of x, weight, bias and the residual, from the list of those that are needed."""
    gradients = iter(gradients)
    return [next(gradients) if needed else None for needed in needs]


def _training_context(ctx, inputs, output):
    x, weight, bias, residual, ctx.eps, ctx.activation, ctx.slope = inputs
    y, statistics = output
    ctx.mark_non_differentiable(statistics)
    needs_y = _kernels.needs_output(x.dtype, ctx.activation, residual, True)
    ctx.save_for_backward(x, weight, bias, statistics, y if needs_y else None)


def _training_backward(ctx, dy, _):
    x, weight, bias, statistics, y = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    mean, var = statistics.unbind()
    count = float(x.numel() // x.shape[1])
    fusion = y, ctx.eps, ctx.activation, ctx.slope
    gradients = backward(x, dy, mean, var, count, weight, bias, *fusion, needs)
    return *_gradients(needs, gradients), None, None, None


forward_training.register_autograd(_training_backward, setup_context=_training_context)


def _normalize_context(ctx, inputs, output):
    x, mean, var, weight, bias, _, ctx.eps, ctx.activation, ctx.slope = inputs
    needs_y = _kernels.needs_output(x.dtype, ctx.activation, None, False)
    ctx.save_for_backward(x, mean, var, weight, bias, output if needs_y else None)


def _normalize_backward(ctx, dy):
    x, mean, var, weight, bias, y = ctx.saved_tensors
    of_x, _, _, of_weight, of_bias, of_residual = ctx.needs_input_grad[:6]
    needs = [of_x, of_weight, of_bias, of_residual]
    fusion = y, ctx.eps, ctx.activation, ctx.slope
    gradients = backward(x, dy, mean, var, 0.0, weight, bias, *fusion, needs)
    dx, dweight, dbias, dresidual = _gradients(needs, gradients)
    return dx, None, None, dweight, dbias, dresidual, None, None, None


normalize.register_autograd(_normalize_backward, setup_context=_normalize_context)
