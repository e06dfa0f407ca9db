"""PyTorch's own samples of arguments, which come with it."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("expecttest", reason="PyTorch's samples need expecttest")

from test_torch import assert_near, outcome  # noqa: E402
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402
from torch.testing._internal.common_modules import module_db  # noqa: E402

import batchnorm.torch as bt  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPERATOR = next(op for op in op_db if op.name == "nn.functional.batch_norm" and not op.variant_test_name)
MODULES = {getattr(torch.nn, name): getattr(bt, name) for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")}


def check(actual, expected):
    if isinstance(expected, torch.Tensor):
        assert_near(actual.detach(), expected.detach())
    else:
        assert actual == expected


def cloned(value):
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


def result(function, sample):
    """y, the gradients of all inputs, and the inputs, some of which are updated."""
    tensors = [cloned(sample.input), *map(cloned, sample.args)]
    named = {name: cloned(value) for name, value in sample.kwargs.items()}
    y = outcome(lambda: function(*tensors, **named))
    if not isinstance(y, torch.Tensor):
        return [y]
    leaves = [t for t in (*tensors, *named.values()) if isinstance(t, torch.Tensor)]
    wanted = [t for t in leaves if t.requires_grad]
    if y.requires_grad:
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view(y.shape))
    return [y.detach(), *(t.grad for t in wanted), *(t.detach() for t in leaves)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operator_samples(dtype):
    samples = list(OPERATOR.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) > 5
    for sample in samples:
        for a, b in zip(result(bt.batch_norm, sample), result(torch.nn.functional.batch_norm, sample), strict=True):
            check(a, b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("info", [m for m in module_db if m.module_cls in MODULES], ids=lambda m: m.name)
def test_module_samples(info, training):
    count = 0
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    ):
        made = sample.constructor_input
        modules = [kind(*made.args, **made.kwargs).double() for kind in (MODULES[info.module_cls], info.module_cls)]
        given = sample.forward_input
        results = [outcome(lambda m=m: m.train(training)(*given.args, **given.kwargs)) for m in modules]
        check(*results)
        count += 1
    assert count > 0
