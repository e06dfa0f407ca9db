"""Replacing the modules of a model."""

import torch

from . import _modules

_OURS = {getattr(torch.nn, f"BatchNorm{n}d"): getattr(_modules, f"BatchNorm{n}d") for n in (1, 2, 3)}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(model, *, memory="input"):
    """
    Makes every `torch.nn.BatchNorm1d`, 2d and 3d of a model one of `batchnorm.torch`, in place, and returns the model.

    The modules stay the same objects: parameters, buffers, hooks and what refers to them, such as an optimizer, do not
    change. Subclasses of these modules are left as they are, since they may do something else.

    With `memory="output"` the backward pass keeps y instead of the input where that is possible: see `batch_norm`.
    """
    if memory not in ("input", "output"):
        raise ValueError(f"memory is unknown: expected 'input' or 'output', got {memory!r}")
    for module in model.modules():
        if type(module) in _OURS:
            module.__class__ = _OURS[type(module)]
        if isinstance(module, _modules._Forward):
            module.memory = memory
    return model


def revert(model):
    """
    Undoes `convert`, in place, and returns the model.

    A module that `fuse` has made has no counterpart in PyTorch and is an error: keep the model that was fused.
    """
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, _modules._Forward) and type(module) not in _THEIRS:
            raise TypeError(f"expected BatchNorm1d, 2d or 3d, got {type(module).__name__}, which PyTorch does not have")
    for module in modules:
        if type(module) in _THEIRS:
            module.__class__ = _THEIRS[type(module)]
            vars(module).pop("memory", None)
    return model
