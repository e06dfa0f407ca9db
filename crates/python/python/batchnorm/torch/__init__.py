"""
Batch normalization modules that replace those of PyTorch on CPUs.

    import batchnorm.torch

    batchnorm.torch.convert(model)         # every torch.nn.BatchNorm1d, 2d and 3d
    model = batchnorm.torch.fuse(model)    # and, with them, ReLU and the addition before it

The modules have the parameters, the buffers and the arguments of PyTorch's, and do what those do. Results are the same
on any number of threads, and statistics are computed in float64. What the kernels of this package do not support, such
as tensors on other devices, is left to PyTorch's own function, which also raises the exceptions for wrong arguments.
"""

from ._convert import convert, revert
from ._fuse import fuse
from ._functional import batch_norm
from ._modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAddReLU1d,
    BatchNormAddReLU2d,
    BatchNormAddReLU3d,
    BatchNormLeakyReLU1d,
    BatchNormLeakyReLU2d,
    BatchNormLeakyReLU3d,
    BatchNormReLU1d,
    BatchNormReLU2d,
    BatchNormReLU3d,
)
from ._sync import SyncBatchNorm, SyncBatchNormAddReLU, SyncBatchNormLeakyReLU, SyncBatchNormReLU

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAddReLU1d",
    "BatchNormAddReLU2d",
    "BatchNormAddReLU3d",
    "BatchNormLeakyReLU1d",
    "BatchNormLeakyReLU2d",
    "BatchNormLeakyReLU3d",
    "BatchNormReLU1d",
    "BatchNormReLU2d",
    "BatchNormReLU3d",
    "SyncBatchNorm",
    "SyncBatchNormAddReLU",
    "SyncBatchNormLeakyReLU",
    "SyncBatchNormReLU",
    "batch_norm",
    "convert",
    "fuse",
    "revert",
]
