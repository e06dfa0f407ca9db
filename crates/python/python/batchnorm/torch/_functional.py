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
    if every channel allows to rebuild x̂ from y: not with "relu", with a residual, or where weight is nearly 0. It
    saves memory if y is needed anyway, as by a convolution; y must not be changed in place before the backward pass.

    Arguments that the kernels of this package do not support, and wrong ones, are left to PyTorch's function.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is unknown: expected one of {list(ACTIVATIONS)}, got {activation!r}")
    if memory not in ("input", "output"):
        raise ValueError(f"memory is unknown: expected 'input' or 'output', got {memory!r}")
    number = ACTIVATIONS[activation]
    statistics = running_mean, running_var
    # A trace of TorchScript is to run where this package is not.
    if torch._C._get_tracing_state() is None and _suits(
        input, running_mean, running_var, weight, bias, training, residual
    ):
        if torch.compiler.is_dynamo_compiling() or torch._C._len_torch_dispatch_stack() > 0:
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
                # Nothing has been written. PyTorch computes with some values that the kernels refuse, such as a
                # negative variance, and has exceptions of its own for the others.
                pass
    y = functional.batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    if number == IDENTITY:
        return y
    return functional.relu(y) if activation == "relu" else functional.leaky_relu(y, negative_slope)


def _suits(x, mean, var, weight, bias, training, residual):
    """Whether the kernels support these types, devices and dims. It is also called with fake tensors."""
    if not isinstance(x, torch.Tensor) or not x.is_cpu or x.layout is not torch.strided:
        return False
    dtype, size, shape = x.dtype, x.numel(), x.shape
    if dtype not in ELEMENTS or len(shape) < 2 or size == 0 or (training and size == shape[1]):
        return False
    if mean is None or var is None:
        if mean is not var or not training:
            return False
    elif not _fit(dtype, mean, var):
        return False
    if not _fit(dtype, bias if weight is None else weight, weight if bias is None else bias):
        return False
    return residual is None or (residual.dtype == dtype and residual.shape == shape and residual.is_cpu)


def _fit(dtype, a, b):
    """Whether two arrays of one value per channel have the same type, and one that suits that of the activations."""
    if a is None:
        return True
    own = a.dtype
    return own == b.dtype and (own == dtype or (own == torch.float32 and dtype in _16_BITS)) and a.is_cpu and b.is_cpu


def _lengths_fit(x, *per_channel):
    return all(values is None or values.shape == (x.shape[1],) for values in per_channel)


def _is_eager(x, mean, var, *others):
    """Whether these are tensors with memory, and nothing follows what is done with them but autograd."""
    for tensor in (x, mean, var, *others):
        if tensor is not None and type(tensor) not in _PLAIN_TYPES:
            return False
    if mean is not None and not (mean.is_contiguous() and var.is_contiguous()):
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0
