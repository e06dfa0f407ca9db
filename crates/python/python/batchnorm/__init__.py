"""
Batch normalization on CPUs for numpy arrays; `batchnorm.torch` has the modules for PyTorch.

For a channel with M values in the mini-batch:

    mean = (1/M) Σ x     var = (1/M) Σ (x − mean)²     x̂ = (x − mean) / sqrt(var + eps)
    z = gamma·x̂ + beta + residual                      y = act(z)

    dresidual = dy·act'(z) = g     dbeta = Σ g     dgamma = Σ g·x̂
    dx = gamma / sqrt(var + eps) · (g − dbeta/M − x̂·dgamma/M)

    >>> import numpy as np
    >>> import batchnorm as bn
    >>> x = np.array([[1, 10], [2, 20], [3, 30], [4, 40]], np.float32)
    >>> y, batch = bn.forward_training(x)
    >>> batch.mean
    array([ 2.5, 25. ])
    >>> running = bn.RunningStatistics(2)
    >>> running.update(batch, momentum=0.1)
    >>> dy = np.ones_like(x)
    >>> bn.backward(x, dy, batch).dbeta
    array([4., 4.], dtype=float32)
    >>> bn.normalize(x[:1], running).shape
    (1, 2)

x is an array of float32, float64 or float16 whose elements follow each other in memory, with its axes in any order;
`axis` is that of the channels. Nothing is copied, so all other arrays of x's shape must have its strides as well.
gamma, beta and their gradients have the dtype of x, or float32 beside float16. Statistics are in float64.

Errors are `ValueError` and `TypeError`, raised before anything is written. Python's lock is released during a pass: no
other thread may write its arrays meanwhile.
"""

from ._passes import (
    Gradients,
    backward,
    fold,
    forward_training,
    get_num_threads,
    gradient_sums,
    input_gradient,
    normalize,
    parameter_gradients,
    set_num_threads,
    statistics,
)
from ._statistics import GradientSums, RunningStatistics, Statistics

__all__ = [
    "GradientSums",
    "Gradients",
    "RunningStatistics",
    "Statistics",
    "backward",
    "fold",
    "forward_training",
    "get_num_threads",
    "gradient_sums",
    "input_gradient",
    "normalize",
    "parameter_gradients",
    "set_num_threads",
    "statistics",
]
