"""
The passes over tensors, which are on the CPU and of the types of ELEMENTS: how the native functions are given them.
"""

from pathlib import Path

import torch

from .. import _native

# The numbers of `elements.rs`.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
TYPES = list(ELEMENTS)
# Those of `plan.rs`.
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}
IDENTITY, RELU, LEAKY_RELU = 0, 1, 2

# The library that runs PyTorch's own operators. Passes run on the threads of the OpenMP runtime that it is linked to,
# as a second pool would compete with them for the same cores. Without one they run on a pool.
_native.use_openmp_of(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))

NO_OUTPUTS = None, None, None, None

# The malloc of glibc maps new memory for each tensor of more than 32 MB, and often for somewhat smaller ones. Tensors far
# below are mostly given memory that was used before, and in new memory lose as much to huge pages as they gain.
LARGE = 24 << 20


def raw(tensor):
    return tensor.data_ptr(), tensor.numel()


def empty_like(tensor):
    """An output. Large ones are given huge pages where the system has them, as numpy does with its own arrays."""
    output = torch.empty_like(tensor)
    if output.nbytes >= LARGE:
        _native.want_huge_pages(output.data_ptr(), output.nbytes)
    return output


def optional(tensor):
    return None if tensor is None else (tensor.data_ptr(), tensor.numel())


def memory_format_of(x):
    """The memory format of the output, as PyTorch chooses it; an input in another one is copied."""
    if x.is_contiguous():
        return torch.contiguous_format
    for dims, memory_format in (4, torch.channels_last), (5, torch.channels_last_3d):
        if x.dim() == dims and (x.is_contiguous(memory_format=memory_format) or _has_channels_last(x)):
            return memory_format
    return torch.contiguous_format


def _has_channels_last(x):
    """Whether the axes lie in this order, perhaps with gaps."""
    least = 0
    for axis in 1, *range(x.dim() - 1, 1, -1), 0:
        extent, stride = x.shape[axis], x.stride(axis)
        if stride < max(least, 1) or (axis == 0 and least == x.stride(1)):
            return False
        least = stride * extent if extent > 1 else stride
    return True


def shape_of(x, memory_format):
    """The shape of the core: outer, channels and inner."""
    channels = x.shape[1]
    if memory_format is torch.contiguous_format:
        outer = x.shape[0]
        # Only synchronized layers have batches that may be empty.
        return outer, channels, x.numel() // max(outer * channels, 1)
    return x.numel() // channels, channels, 1


def settings(x, parameter, shape, eps, activation, slope):
    element = ELEMENTS[x.dtype]
    parameter = element if parameter is None else ELEMENTS[parameter.dtype]
    return element, parameter, shape, eps, activation, slope, torch.get_num_threads()


def batch_source(statistics, count):
    """Of a tensor [2, channels] in float64."""
    address, channels = statistics.data_ptr(), statistics.shape[1]
    return count, 1, (address, channels), (address + 8 * channels, channels)


def running_source(mean, var):
    return None, ELEMENTS[mean.dtype], raw(mean), raw(var)


def forward_training(x, weight, bias, residual, settings, running=None):
    """
    y, and mean and variance in float64, of an x that is dense in its memory format. `running` are averages that are
    updated, mean and variance, with the momentum.
    """
    y, channels = empty_like(x), settings[2][1]
    statistics = torch.empty(2, channels, dtype=torch.float64)
    address = statistics.data_ptr()
    given = optional(weight), optional(bias), optional(residual), None, None
    of_batch = (address, channels), (address + 8 * channels, channels)
    if running is not None:
        mean, var, momentum = running
        running = ELEMENTS[mean.dtype], raw(mean), raw(var), momentum
    _native.forward_training(settings, raw(x), given, raw(y), of_batch, running)
    return y, statistics


def update_running(mean, var, statistics, count, momentum):
    source = batch_source(statistics, float(count))
    _native.update_running(ELEMENTS[mean.dtype], raw(mean), raw(var), 0, source, momentum, False, True)


def normalize(x, source, weight, bias, residual, settings):
    y = empty_like(x)
    _native.normalize(
        settings, raw(x), source, (optional(weight), optional(bias), optional(residual), None, None), raw(y)
    )
    return y


def needs_output(dtype, activation, residual, training):
    """
    Whether the backward pass is given y, whose sign is the derivative of the activation. Where ReLU alone was on, its
    argument is computed again from x, which takes less time than it takes to read y.
    """
    if activation == IDENTITY:
        return False
    return not (training and activation == RELU and residual is None and dtype == torch.float32)


def backward(x, dy, source, weight, bias, output, settings, needs):
    """dx, dweight, dbias and dresidual, each if it is needed, or else None."""
    of_x, of_weight, of_bias, of_residual = needs
    channels, dtype = settings[2][1], TYPES[settings[1]]
    dx = empty_like(x) if of_x else None
    dresidual = empty_like(x) if of_residual else None
    dweight = torch.empty(channels, dtype=dtype) if of_weight else None
    dbias = torch.empty(channels, dtype=dtype) if of_bias else None
    given = optional(weight), optional(bias), None, optional(output), None
    outputs = optional(dx), optional(dresidual), optional(dweight), optional(dbias)
    _native.backward(settings, (raw(x), raw(dy)), source, given, outputs)
    return dx, dweight, dbias, dresidual


def is_invertible(y, source, weight, bias, settings):
    """Whether x can be rebuilt from y in all channels: the backward pass checks it before anything else."""
    both, given = (raw(y), raw(y)), (optional(weight), optional(bias), None, None, None)
    try:
        _native.backward_from_output(settings, both, source, given, NO_OUTPUTS)
    except (TypeError, ValueError):
        return False
    return True


def backward_from_output(y, dy, source, weight, bias, settings, needs):
    of_x, of_weight, of_bias, _ = needs
    channels, dtype = settings[2][1], TYPES[settings[1]]
    dx = empty_like(y) if of_x else None
    dweight = torch.empty(channels, dtype=dtype) if of_weight else None
    dbias = torch.empty(channels, dtype=dtype) if of_bias else None
    given = optional(weight), optional(bias), None, None, None
    outputs = optional(dx), None, optional(dweight), optional(dbias)
    _native.backward_from_output(settings, (raw(y), raw(dy)), source, given, outputs)
    return dx, dweight, dbias, None


def double_backward(x, dy, source, weight, cotangents, settings, needs):
    """The gradients of x, dy and weight, each if it is needed, from those of dx, dweight and dbias."""
    of_x, of_dy, of_weight = needs
    element, _, shape, *rest = settings
    lanes = torch.float64 if x.dtype == torch.float64 else torch.float32
    widened = [None if v is None else v.to(lanes).contiguous() for v in (weight, *cotangents[1:])]
    gradient_x = empty_like(x) if of_x else None
    gradient_dy = empty_like(x) if of_dy else None
    gradient_weight = torch.empty(shape[1], dtype=lanes) if of_weight else None
    _native.double_backward(
        (element, ELEMENTS[lanes], shape, *rest),
        (raw(x), raw(dy)),
        source,
        optional(widened[0]),
        (raw(cotangents[0]), optional(widened[1]), optional(widened[2])),
        (optional(gradient_x), optional(gradient_dy), optional(gradient_weight)),
    )
    if of_weight:
        gradient_weight = gradient_weight.to(weight.dtype)
    return gradient_x, gradient_dy, gradient_weight
