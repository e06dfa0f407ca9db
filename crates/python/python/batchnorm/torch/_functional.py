"""batch_norm as a function: which of three ways a call goes."""

import torch
from torch.autograd import forward_ad
from torch.nn import functional

from . import _eager, _ops
from ._kernels import ACTIVATIONS, ELEMENTS, IDENTITY

_PLAIN_TYPES = torch.Tensor, torch.nn.Parameter, torch.nn.Buffer
_16_BITS = torch.bfloat16, torch.float16


def batch_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    residual=None,
    activation=None,
    negative_slope=0.01,
    memory="input",
):
    """
    `torch.nn.functional.batch_norm`, with an addition and an activation in the same sweep:
    `y = act(weight·x̂ + bias + residual)`.

    `activation` is None, "relu" or "leaky_relu". With `memory="output"` the backward pass keeps y instead of the input,
    if every channel allows to rebuild x̂ from y: not with "relu", with a residual, or where weight is nearly 0. It saves
    memory if y is needed anyway, as by a convolution; y must not be changed in place before the backward pass.

    Arguments that the kernels of this package do not support, and wrong ones, are left to PyTorch's function.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is unknown: expected one of {list(ACTIVATIONS)}, got {activation!r}")
    if memory not in ("input", "output"):
        raise ValueError(f"memory is unknown: expected 'input' or 'output', got {memory!r}")
    number = ACTIVATIONS[activation]
    statistics = running_mean, running_var
    # A trace of TorchScript is to run where this package is not.
    if torch._C._get_tracing_state() is None and _suits(input, running_mean, running_var, weight, bias, training, residual):
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
            if _lengths_fit(input, running_mean, running_var, weight, bias):
                fusion = residual, eps, number, negative_slope
                return _ops.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, *fusion)
        elif _is_eager(input, running_mean, running_var, weight, bias, residual):
            tensors = input, weight, bias, residual
            arguments = *tensors, *statistics, training, momentum, eps, number, negative_slope
            try:
                if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
                    return _eager.BatchNorm.apply(*arguments, memory == "output")
                return _eager.plain(*arguments)[0]
            except ValueError:
                # Nothing has been written. PyTorch computes with some values that the kernels refuse, such as a negative
                # variance, and has exceptions of its own for the others.
                pass
    y = functional.batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    if number == IDENTITY:
        return y
    return functional.relu(y) if activation == "relu" else functional.leaky_relu(y, negative_slope)


def _suits(x, mean, var, weight, bias, training, residual):
    """Whether the kernels support these types, devices and dims. It is also called with fake tensors."""
    if not isinstance(x, torch.Tensor) or not x.is_cpu or x.dtype not in ELEMENTS or x.layout is not torch.strided:
        return False
    if x.dim() < 2 or x.numel() == 0 or (training and x.numel() == x.shape[1]):
        return False
    if (mean is None) != (var is None) or (mean is None and not training):
        return False
    parameter = bias if weight is None else weight
    if parameter is not None and not (parameter.dtype == x.dtype or _is_wide(parameter, x)):
        return False
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        return False
    for average in mean, var:
        if average is not None and not (average.dtype == mean.dtype and (mean.dtype == x.dtype or _is_wide(mean, x))):
            return False
    return residual is None or (residual.dtype == x.dtype and residual.shape == x.shape and residual.is_cpu)


def _is_wide(values, x):
    return values.dtype == torch.float32 and x.dtype in _16_BITS


def _lengths_fit(x, *per_channel):
    return all(values is None or (values.is_cpu and values.shape == (x.shape[1],)) for values in per_channel)


def _is_eager(x, mean, var, *others):
    """Whether these are tensors with memory, and nothing follows what is done with them but autograd."""
    for tensor in (x, mean, var, *others):
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or not tensor.is_cpu):
            return False
    for average in mean, var:
        if average is not None and not average.is_contiguous():
            return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0
