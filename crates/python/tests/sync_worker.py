"""One of the processes of test_torch_sync.py: python sync_worker.py RANK WORLD STORE."""

import copy
import os
import sys
from datetime import timedelta

import torch
from networks import resnet
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import batchnorm.torch as bt

RANK, WORLD, STORE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def values(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def part(whole, sizes):
    start = sum(sizes[:RANK])
    return whole[start : start + sizes[RANK]].clone()


def near(actual, expected, tolerance, what):
    expected = expected.to(actual.dtype)
    assert actual.shape == expected.shape, what
    if actual.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= tolerance * max(1.0, expected.double().abs().max().item()), f"{what}: {error}"


def total(tensor):
    """The sum over all processes."""
    tensor = tensor.double().clone()
    distributed.all_reduce(tensor)
    return tensor


def one_step(kind, dtype, sizes, channels_last):
    """The parts' results are those of one process on the joined batch."""
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    shape = (sum(sizes), 3, 5, 6)
    x, residual, dy = (values(shape, dtype, seed) for seed in (1, 2, 3))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    sync, single = (make(3, momentum=None if dtype == torch.float64 else 0.1).to(dtype) for make in kind)
    with torch.no_grad():
        for i, parameter in enumerate(sync.parameters()):
            parameter.copy_(values(3, dtype, 4 + i))
    single.load_state_dict(sync.state_dict())
    fused = isinstance(sync, bt.SyncBatchNormAddReLU)

    def run(module, cut):
        leaves = [cut(v).requires_grad_() for v in ((x, residual) if fused else (x,))]
        y = module(*leaves)
        y.backward(cut(dy))
        return y.detach(), *(leaf.grad for leaf in leaves)

    for a, b in zip(run(sync, lambda v: part(v, sizes)), run(single, torch.clone), strict=True):
        near(a, part(b, sizes), tolerance, f"{kind[0].__name__}, {dtype}, {sizes}")
    for a, b in zip(sync.parameters(), single.parameters(), strict=True):
        near(total(a.grad), b.grad, tolerance, "gradients of parameters")
    for (name, a), b in zip(sync.state_dict().items(), single.state_dict().values(), strict=True):
        near(a.double(), b.double(), tolerance, name)


def steps():
    kinds = (
        (bt.SyncBatchNorm, bt.BatchNorm2d),
        (bt.SyncBatchNormReLU, bt.BatchNormReLU2d),
        (bt.SyncBatchNormLeakyReLU, bt.BatchNormLeakyReLU2d),
        (bt.SyncBatchNormAddReLU, bt.BatchNormAddReLU2d),
    )
    for kind in kinds:
        for dtype in torch.float64, torch.float32, torch.bfloat16:
            for sizes in [2] * WORLD, [0] + [3] * (WORLD - 1), list(range(1, WORLD + 1)):
                for channels_last in False, True:
                    one_step(kind, dtype, sizes, channels_last)


def eval_mode_needs_no_other_process():
    if RANK == 0:
        module = bt.SyncBatchNorm(3).eval()
        module(values((2, 3, 4), torch.float32, 1).requires_grad_()).sum().backward()


def distributed_data_parallel():
    """Training steps of a network are those of one process on the joined batch."""
    torch.manual_seed(0)
    single = resnet().double()
    for fused in False, True:
        alone = copy.deepcopy(single)
        model = bt.fuse(copy.deepcopy(single)) if fused else copy.deepcopy(single)
        model = DistributedDataParallel(bt.SyncBatchNorm.convert_sync_batchnorm(model))
        models = model, alone
        optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in models]
        for step in range(3):
            x = values((2 * WORLD, 3, 8, 8), torch.float64, step)
            target = torch.arange(2 * WORLD) % 10
            losses = []
            for m, optimizer, cut in zip(
                models, optimizers, (lambda v: part(v, [2] * WORLD), torch.clone), strict=True
            ):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(m(cut(x)), cut(target))
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            near(total(losses[0]) / WORLD, losses[1], 1e-12, "losses")
        actual, expected = model.module.state_dict(), alone.state_dict()
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            near(actual[name].double(), value.double(), 1e-10, name)


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


def one_fails():
    """All processes get an error at once, and can go on."""
    module = bt.SyncBatchNorm(3)
    for wrong in values((2, 4, 5), torch.float32, 1), values((3,), torch.float32, 1), torch.ones(2, 3).to_sparse():
        x = wrong if RANK == WORLD - 1 else values((2, 3, 5), torch.float32, 1)
        error = error_of(lambda x=x: module(x))
        if RANK == WORLD - 1:
            assert error.startswith("ValueError: expected"), error
        else:
            assert error.startswith(
                f"RuntimeError: synchronized batch normalization failed in the processes of rank [{WORLD - 1}]"
            ), error
    one_value = values((1 if RANK == 0 else 0, 3), torch.float32, 1)
    assert "Expected more than 1 value per channel" in error_of(lambda: module(one_value))
    module(values((2, 3, 5), torch.float32, 1))


def one_ends():
    """The last process ends without a word, and the others do not wait forever."""
    if RANK < WORLD - 1:
        error_of(lambda: bt.SyncBatchNorm(3)(values((2, 3, 5), torch.float32, 1)))


torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{STORE}", rank=RANK, world_size=WORLD, timeout=timedelta(seconds=60)
)
steps()
eval_mode_needs_no_other_process()
distributed_data_parallel()
one_fails()
one_ends()
print("passed", flush=True)
# The group is broken, and its threads may abort the process if it ends as usual.
os._exit(0)
