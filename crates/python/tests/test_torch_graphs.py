"""torch.compile, torch.export and what else traces graphs."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from test_torch import assert_near, pair, step, tensor  # noqa: E402

import batchnorm.torch as bt  # noqa: E402


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compile(training, memory_format, dynamic):
    torch.compiler.reset()
    x, dy = (tensor((4, 3, 5, 6), memory_format=memory_format, seed=s) for s in (1, 2))
    eager = pair(4, 3, torch.float32)[0].train(training)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    actual, expected = step(compiled, x, dy), step(eager, x, dy)
    # The same kernels run.
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), eager.state_dict().values(), strict=True)
    )
    assert actual[0].stride() == expected[0].stride()


def test_compile_fused():
    torch.compiler.reset()
    x, residual, dy = (tensor((4, 3, 5, 6), seed=s) for s in (1, 2, 3))
    eager = bt.BatchNormAddReLU2d(3)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    actual, expected = step(compiled, x, dy, residual), step(eager, x, dy, residual)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_compiled_wrong_arguments():
    torch.compiler.reset()
    compiled = torch.compile(bt.BatchNorm2d(3), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="running_mean should contain 2 elements not 3"):
        compiled(tensor((4, 2, 5, 6)))


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    module = pair(4, 3, torch.float32)[0].eval()
    x = tensor((4, 3, 5, 6))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert "batchnorm.normalize" in str(exported.graph)
    more = tensor((7, 3, 5, 6), seed=2)
    assert torch.equal(exported.module()(more), module(more))


@pytest.mark.parametrize("name", ["forward_training", "normalize"])
def test_operators_are_registered_right(name):
    tensors = [tensor((4, 3, 5), seed=1).requires_grad_(), *(tensor((3,), seed=s).requires_grad_() for s in (2, 3))]
    if name == "normalize":
        tensors[1:1] = [tensor((3,)), tensor((3,)).abs()]
    residual = tensor((4, 3, 5), seed=4).requires_grad_()
    operator = getattr(torch.ops.batchnorm, name).default
    torch.library.opcheck(operator, (*tensors, residual, 1e-5, 1, 0.0))


def test_running_statistics_operator():
    statistics = torch.stack([tensor((3,), torch.float64), tensor((3,), torch.float64).abs()])
    arguments = torch.zeros(3), torch.ones(3), statistics, 5, 0.1
    torch.library.opcheck(torch.ops.batchnorm.update_running.default, arguments)


def test_fake_tensors_and_flop_counter():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        y = bt.BatchNorm2d(3)(torch.empty(4, 3, 5, 6).to(memory_format=torch.channels_last))
    assert y.shape == (4, 3, 5, 6) and y.is_contiguous(memory_format=torch.channels_last)
    from torch.utils.flop_counter import FlopCounterMode

    x, dy = tensor((4, 3, 5, 6)), tensor((4, 3, 5, 6), seed=1)
    expected = step(bt.BatchNorm2d(3), x, dy)
    with FlopCounterMode(display=False):
        actual = step(bt.BatchNorm2d(3), x, dy)
    for a, b in zip(actual, expected, strict=True):
        assert_near(a, b)
