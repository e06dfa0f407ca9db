"""Finding what follows a normalization in the graph of a model."""

import copy
import logging
import operator
from collections import Counter

import torch
from torch import fx
from torch.nn import functional

from . import _modules
from ._convert import _OURS, _THEIRS, convert

_log = logging.getLogger("batchnorm.torch")

_RELU = {
    "call_function": {functional.relu, functional.relu_, torch.relu, torch.relu_},
    "call_method": {"relu", "relu_"},
}
_ADD = {
    "call_function": {operator.add, operator.iadd, torch.add},
    "call_method": {"add", "add_"},
}
# They change their first operand.
_ADD_IN_PLACE = {operator.iadd, "add_"}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, _modules._Forward) or super().is_leaf_module(module, name)


def fuse(model):
    """
    A model in which ReLU, leaky ReLU, or an addition and ReLU, that follows a batch normalization is part of it:
    `BatchNormReLU2d`, `BatchNormLeakyReLU2d` and `BatchNormAddReLU2d`, which save one or two sweeps over the tensor.
    Leaky ReLU is only found as a module. All other batch normalizations are converted.

    The result is a `torch.fx.GraphModule` that shares its parameters and buffers with `model`; names in its state_dict
    are the same. `result.meta["fused"]` lists what was fused, which is also logged. torch.fx must be able to trace the
    model: control flow that depends on values is an error of its own, and other control flow stays as it is now.
    """
    graph = _Tracer().trace(model)
    result = fx.GraphModule(model, graph, type(model).__name__)
    fused = []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        pattern = _pattern(result, node, calls)
        if pattern:
            fused.append(_replace(result, *pattern))
    graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.recompile()
    convert(result)
    result.meta["fused"] = fused
    for line in fused:
        _log.info("fused %s", line)
    return result


def _is(node, kind):
    return node.target in kind.get(node.op, ())


def _has_hooks(module):
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def _activation(model, node):
    """The name of the activation that a node is, as in the names of modules, and its slope; or None."""
    if _is(node, _RELU):
        return "ReLU", None
    if node.op != "call_module":
        return None
    module = model.get_submodule(node.target)
    if _has_hooks(module):
        return None
    if type(module) is torch.nn.ReLU:
        return "ReLU", None
    # PyTorch also takes slopes that are negative.
    if type(module) is torch.nn.LeakyReLU and module.negative_slope >= 0:
        return "LeakyReLU", module.negative_slope
    return None


def _is_batch_norm(model, node, calls):
    """Whether it is a module that nothing else uses: it becomes another one."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or calls[node.target] != 1 or len(node.users) != 1:
        return False
    module = model.get_submodule(node.target)
    return (type(module) in _OURS or type(module) in _THEIRS) and not _has_hooks(module)


def _pattern(model, relu, calls):
    """
    The nodes of a batch normalization, of the addition, if there is one, and of the activation; the residual, and the
    activation.
    """
    activation = _activation(model, relu)
    if activation is None or not relu.args or not isinstance(relu.args[0], fx.Node):
        return None
    before = relu.args[0]
    if _is_batch_norm(model, before, calls):
        return before, None, relu, None, activation
    if activation[0] != "ReLU" or not (
        _is(before, _ADD) and len(before.users) == 1 and len(before.args) == 2 and not before.kwargs
    ):
        return None
    first, second = before.args
    if not all(isinstance(operand, fx.Node) for operand in (first, second)) or first is second:
        return None
    if _is_batch_norm(model, first, calls):
        return first, before, relu, second, activation
    if _is_batch_norm(model, second, calls) and before.target not in _ADD_IN_PLACE:
        return second, before, relu, first, activation
    return None


def _replace(model, norm, add, relu, residual, activation):
    """Replaces the nodes by one. Returns what was fused."""
    module, (name, slope) = model.get_submodule(norm.target), activation
    kind = f"BatchNorm{'' if add is None else 'Add'}{name}"
    dims = next(n for n in (1, 2, 3) if isinstance(module, getattr(torch.nn, f"BatchNorm{n}d")))
    new = copy.copy(module)
    new.__class__ = getattr(_modules, f"{kind}{dims}d")
    if slope is not None:
        new.negative_slope = slope
    # Of its own, so that what is registered later in one module is not in the other.
    new._parameters, new._buffers = module._parameters.copy(), module._buffers.copy()
    model.set_submodule(norm.target, new)
    inputs = norm.args if add is None else (*norm.args, residual)
    # After all that it reads, which may come after the normalization.
    with model.graph.inserting_before(relu):
        node = model.graph.call_module(norm.target, inputs, norm.kwargs)
    line = " + ".join(_name(node) for node in (norm, add, relu) if node is not None)
    relu.replace_all_uses_with(node)
    for old in filter(None, (relu, add, norm)):
        model.graph.erase_node(old)
    return line


def _name(node):
    return node.target if node.op == "call_module" else node.name
