"""The modules, which are PyTorch's with another forward pass."""

import torch

from ._functional import batch_norm


class _Forward:
    """The forward pass of a subclass of `torch.nn.modules.batchnorm._BatchNorm`."""

    _activation = None
    negative_slope = 0.0
    # What the backward pass keeps; `convert` sets it on instances.
    memory = "input"

    def forward(self, input):
        return self._batch_norm(input)

    def _batch_norm(self, input, residual=None):
        self._check_input_dim(input)
        # Looking up attributes of a module takes several times as long.
        buffers, parameters, training = self._buffers, self._parameters, self.training
        mean, var = buffers["running_mean"], buffers["running_var"]
        from_batch = training or (mean is None and var is None)
        momentum = self._count_batch()
        if training and not self.track_running_stats:
            mean = var = None
        return batch_norm(
            input,
            mean,
            var,
            # A parameter can be made an attribute that is computed, by torch.nn.utils.parametrize.
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            from_batch,
            momentum,
            self.eps,
            residual=residual,
            activation=self._activation,
            negative_slope=self.negative_slope,
            memory=self.memory,
        )

    def _count_batch(self):
        """Counts a batch in training. Returns the momentum for it."""
        momentum = self.momentum
        if self.training and self.track_running_stats:
            batches = self._buffers["num_batches_tracked"]
            if batches is not None:
                batches.add_(1)
                if momentum is None:
                    return 1.0 / float(batches)
        return 0.0 if momentum is None else momentum

    def extra_repr(self):
        memory = "" if self.memory == "input" else f", memory={self.memory!r}"
        return super().extra_repr() + memory


class BatchNorm1d(_Forward, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with the kernels of this package."""


class BatchNorm2d(_Forward, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with the kernels of this package."""


class BatchNorm3d(_Forward, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with the kernels of this package."""


class _ReLU:
    _activation = "relu"


class BatchNormReLU1d(_ReLU, BatchNorm1d):
    """`relu(BatchNorm1d(input))` in one sweep."""


class BatchNormReLU2d(_ReLU, BatchNorm2d):
    """`relu(BatchNorm2d(input))` in one sweep."""


class BatchNormReLU3d(_ReLU, BatchNorm3d):
    """`relu(BatchNorm3d(input))` in one sweep."""


class _LeakyReLU:
    _activation = "leaky_relu"

    def __init__(self, *arguments, negative_slope=0.01, **named):
        super().__init__(*arguments, **named)
        self.negative_slope = negative_slope

    def extra_repr(self):
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class BatchNormLeakyReLU1d(_LeakyReLU, BatchNorm1d):
    """`leaky_relu(BatchNorm1d(input), negative_slope)` in one sweep."""


class BatchNormLeakyReLU2d(_LeakyReLU, BatchNorm2d):
    """`leaky_relu(BatchNorm2d(input), negative_slope)` in one sweep."""


class BatchNormLeakyReLU3d(_LeakyReLU, BatchNorm3d):
    """`leaky_relu(BatchNorm3d(input), negative_slope)` in one sweep."""


class _AddReLU(_ReLU):
    def forward(self, input, residual):
        return self._batch_norm(input, residual)


class BatchNormAddReLU1d(_AddReLU, BatchNorm1d):
    """`relu(BatchNorm1d(input) + residual)` in one sweep."""


class BatchNormAddReLU2d(_AddReLU, BatchNorm2d):
    """`relu(BatchNorm2d(input) + residual)` in one sweep."""


class BatchNormAddReLU3d(_AddReLU, BatchNorm3d):
    """`relu(BatchNorm3d(input) + residual)` in one sweep."""
