"""Synchronized batch normalization over several processes of this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import batchnorm.torch as bt  # noqa: E402

WORKER = Path(__file__).with_name("sync_worker.py")


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_do_what_one_does(world, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, str(WORKER)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(store)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0 and "passed" in output, f"rank {rank}:\n{output}"


def test_alone_it_is_a_batch_normalization():
    x = torch.randn(4, 3, 5, 6)
    sync, single = bt.SyncBatchNorm(3), bt.BatchNorm2d(3)
    assert torch.equal(sync(x), single(x))
    assert torch.equal(sync.running_var, single.running_var)
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        sync(torch.ones(3))


def test_conversion():
    parts = bt.BatchNormReLU2d(3), bt.BatchNormLeakyReLU2d(3, negative_slope=0.2), bt.BatchNormAddReLU1d(3)
    model = torch.nn.Sequential(*parts, torch.nn.BatchNorm3d(3), bt.BatchNorm1d(3))
    parameters = list(model.parameters())
    converted = bt.SyncBatchNorm.convert_sync_batchnorm(model)
    fused = [bt.SyncBatchNormReLU, bt.SyncBatchNormLeakyReLU, bt.SyncBatchNormAddReLU]
    assert [type(module) for module in converted] == [*fused, bt.SyncBatchNorm, bt.SyncBatchNorm]
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))
    assert "SyncBatchNorm(3" in repr(converted) and converted[1].negative_slope == 0.2
