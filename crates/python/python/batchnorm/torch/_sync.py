"""
Batch normalization over the batches of all processes of a group, on CPUs.

Forward, each process sends the count, the means and the variances of its part, and merges those of all parts in the
order of the ranks by Chan's formula; backward, its two sums. So all processes compute with the same numbers, bit for
bit.
"""

import torch
from torch import distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from .. import _native
from . import _kernels, _modules
from ._convert import _OURS, _THEIRS
from ._eager import dense
from ._functional import _is_eager, _suits
from ._kernels import ACTIVATIONS

# What a process sends in place of its count if it fails, so that the others do not wait for it.
_FAILED = float("nan")


def _gather(row, group):
    """The rows of all processes, one collective operation."""
    rows = torch.empty(distributed.get_world_size(group), row.numel(), dtype=row.dtype)
    distributed.all_gather(list(rows.unbind()), row, group)
    failed = rows[:, 0].isnan().nonzero().flatten().tolist()
    if failed:
        raise RuntimeError(
            f"synchronized batch normalization failed in the processes of rank {failed}: see their errors"
        )
    return rows


def _exchange(compute, channels, group):
    """Gathers rows of 2·channels + 1 values, the first of which is not NaN; the computation of any may fail."""
    try:
        row = compute()
    except Exception:
        row = torch.zeros(2 * channels + 1, dtype=torch.float64)
        row[0] = _FAILED
        try:
            _gather(row, group)
        except RuntimeError:
            # The error of this process says more.
            pass
        raise
    return _gather(row, group)


def _halves(row, channels):
    """How native functions are given the two arrays of a row."""
    address = row.data_ptr()
    return (address + 8, channels), (address + 8 * (channels + 1), channels)


class _Normalize(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, mean, var, momentum, eps, activation, slope, channels, group, check):
        settings = memory_format = None

        def statistics():
            nonlocal x, weight, bias, residual, settings, memory_format
            check()
            memory_format = _kernels.memory_format_of(x)
            x, residual = dense(x, memory_format), dense(residual, memory_format)
            weight, bias = dense(weight, torch.contiguous_format), dense(bias, torch.contiguous_format)
            shape = _kernels.shape_of(x, memory_format)
            settings = _kernels.settings(x, bias if weight is None else weight, shape, eps, activation, slope)
            row = torch.empty(2 * channels + 1, dtype=torch.float64)
            no_inputs = None, None, None, None, None
            row[0] = _native.statistics(settings, _kernels.raw(x), no_inputs, _halves(row, channels))
            return row

        rows = _exchange(statistics, channels, group)
        merged = torch.empty(2 * channels + 1, dtype=torch.float64)
        _native.merge_statistics(_kernels.raw(rows), _kernels.raw(merged), channels)
        count = merged[0].item()
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        source = count, 1, *_halves(merged, channels)
        y = _kernels.normalize(x, source, weight, bias, residual, settings)
        if mean is not None:
            _kernels.update_running(mean, var, merged[1:].view(2, channels), count, momentum)
            increment_version((mean, var))
        ctx.settings, ctx.memory_format, ctx.channels, ctx.group = settings, memory_format, channels, group
        needs_y = _kernels.needs_output(x.dtype, activation, residual, True)
        ctx.save_for_backward(x, weight, bias, merged, y if needs_y else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, merged, output = ctx.saved_tensors
        settings, channels, dy = ctx.settings, ctx.channels, dense(dy, ctx.memory_format)
        of_x, of_weight, of_bias, of_residual = ctx.needs_input_grad[:4]
        source = merged[0].item(), 1, *_halves(merged, channels)
        x_and_dy = _kernels.raw(x), _kernels.raw(dy)
        given = *map(_kernels.optional, (weight, bias)), None, _kernels.optional(output), None

        def sums():
            row = torch.zeros(2 * channels + 1, dtype=torch.float64)
            _native.gradient_sums(settings, x_and_dy, source, given, _halves(row, channels))
            own.append(row)
            return row

        own = []
        if of_x:
            rows = _exchange(sums, channels, ctx.group)
            # In the order of the ranks, so that all processes have the same bits.
            whole = torch.zeros(2 * channels + 1, dtype=torch.float64)
            for row in rows:
                whole += row
        else:
            # dresidual alone does not depend on the sums.
            whole = sums()
        dx = _kernels.empty_like(x) if of_x else None
        dresidual = _kernels.empty_like(x) if of_residual else None
        outputs = _kernels.optional(dx), _kernels.optional(dresidual), None, None
        _native.input_gradient(settings, x_and_dy, source, _halves(whole, channels), given, outputs)
        dweight, dbias = _own_gradients(settings, source, own[0], channels, of_weight, of_bias)
        return dx, dweight, dbias, dresidual, *[None] * 9


def _own_gradients(settings, source, sums, channels, of_weight, of_bias):
    """The gradients of weight and bias from this process's part, which DistributedDataParallel adds up."""
    dtype = _kernels.TYPES[settings[1]]
    lanes = torch.float64 if dtype == torch.float64 else torch.float32
    gradients = [torch.empty(channels, dtype=lanes) if needed else None for needed in (of_weight, of_bias)]
    number = _kernels.ELEMENTS[lanes]
    parameters = number, number, (0, channels, 1), *settings[3:]
    outputs = None, None, *map(_kernels.optional, gradients)
    _native.parameter_gradients(parameters, source, _halves(sums, channels), outputs)
    return [None if gradient is None else gradient.to(dtype) for gradient in gradients]


class SyncBatchNorm(_modules._Forward, torch.nn.modules.batchnorm._BatchNorm):
    """
    `torch.nn.SyncBatchNorm` for CPUs, over any backend that gathers CPU tensors, such as gloo. It is no subclass of it,
    as DistributedDataParallel refuses those on CPUs.

    The result is that of one process on the joined batch. Parts may have different sizes, and may be empty. Each layer
    and direction takes one collective operation, of 2·num_features + 1 values of float64 from each process; in eval
    mode there is none. All processes must run the same layers in the same order, forward and backward. If one of them
    fails within a layer, the others raise a RuntimeError.
    """

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        process_group=None,
        device=None,
        dtype=None,
        **named,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **named)
        self.process_group = process_group

    def _check_input_dim(self, input):
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input):
        return self._synchronized(input)

    def _synchronized(self, input, residual=None):
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return self._batch_norm(input, residual)
        group = distributed.group.WORLD if self.process_group is None else self.process_group
        if distributed.get_world_size(group) == 1:
            return self._batch_norm(input, residual)
        return _synchronize(self, input, residual, group)

    @classmethod
    def convert_sync_batchnorm(cls, module, process_group=None):
        """
        Makes every batch normalization of a model a synchronized one, in place, and returns the model: those of PyTorch
        and of `batchnorm.torch`, with ReLU and the addition that are fused with them.
        """
        for part in module.modules():
            kind = _synchronized_class(type(part))
            if kind is not None:
                part.__class__, part.process_group = kind, process_group
        return module


# Collective operations are not traced.
@torch.compiler.disable
def _synchronize(module, input, residual, group):
    tensors = input, module.weight, module.bias, residual
    averages = (module.running_mean, module.running_var) if module.track_running_stats else (None, None)

    def check():
        """What a single process refuses must not keep the others waiting."""
        module._check_input_dim(input)
        if input.shape[1] != module.num_features:
            raise ValueError(f"expected {module.num_features} channels, got {input.shape[1]}")
        if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
            expected, actual = (input.dtype, tuple(input.shape)), (residual.dtype, tuple(residual.shape))
            raise ValueError(f"expected a residual like the input, {expected}, got {actual}")
        # A part may have one value per channel, or none.
        probe = input if input.numel() > module.num_features else input.new_empty(2, module.num_features)
        if not _suits(probe, *averages, *tensors[1:3], True, None):
            kind = f"{input.dtype} on {input.device}"
            raise ValueError(f"expected a CPU tensor of a floating-point type that suits the parameters, got {kind}")
        if not _is_eager(input, *averages, *tensors[1:]):
            raise ValueError("expected plain tensors outside of transforms of functions")

    return _Normalize.apply(
        *tensors,
        *averages,
        module._count_batch(),
        module.eps,
        ACTIVATIONS[module._activation],
        module.negative_slope,
        module.num_features,
        group,
        check,
    )


class SyncBatchNormReLU(_modules._ReLU, SyncBatchNorm):
    """`relu(SyncBatchNorm(input))` in one sweep."""


class SyncBatchNormLeakyReLU(_modules._LeakyReLU, SyncBatchNorm):
    """`leaky_relu(SyncBatchNorm(input), negative_slope)` in one sweep."""


class SyncBatchNormAddReLU(_modules._ReLU, SyncBatchNorm):
    """`relu(SyncBatchNorm(input) + residual)` in one sweep."""

    def forward(self, input, residual):
        return self._synchronized(input, residual)


_FUSED = {
    getattr(_modules, f"BatchNorm{fused}{dims}d"): synchronized
    for fused, synchronized in (
        ("ReLU", SyncBatchNormReLU),
        ("LeakyReLU", SyncBatchNormLeakyReLU),
        ("AddReLU", SyncBatchNormAddReLU),
    )
    for dims in (1, 2, 3)
}


def _synchronized_class(kind):
    if kind in _OURS or kind in _THEIRS or kind is torch.nn.SyncBatchNorm:
        return SyncBatchNorm
    return _FUSED.get(kind)
