"""The modules in place of PyTorch's."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from networks import Functional, darknet, resnet, train  # noqa: E402
from torch import nn  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

import batchnorm.torch as bt  # noqa: E402
from batchnorm import _native  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
THEIRS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
OURS = {2: bt.BatchNorm1d, 3: bt.BatchNorm1d, 4: bt.BatchNorm2d, 5: bt.BatchNorm3d}
SHAPES = [(6, 3), (4, 3, 5), (4, 5, 6, 7), (2, 3, 4, 3, 2), (8, 17, 33, 31)]
# PyTorch's own errors are larger than ours: its sums in f32 are off by some units of the largest term.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def tensor(shape, dtype=torch.float32, memory_format=torch.contiguous_format, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if memory_format is torch.channels_last and len(shape) > 3:
        memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return values.contiguous(memory_format=memory_format)
    return values


def assert_near(ours, theirs, dtype=None):
    """In units of the largest value, since sums cancel."""
    assert (ours is None) == (theirs is None)
    if ours is None:
        return
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if theirs.numel():
        tolerance = TOLERANCES[dtype or ours.dtype]
        limit = tolerance * max(1.0, theirs.double().abs().max().item())
        assert (ours.double() - theirs.double()).abs().max().item() <= limit


def pair(dims, channels, dtype, **settings):
    """PyTorch's module and ours with the same state."""
    theirs = THEIRS[dims](channels, dtype=dtype, **settings)
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            parameter.copy_(tensor((channels,), dtype, seed=i + 5))
        if theirs.running_mean is not None:
            theirs.running_mean.copy_(tensor((channels,), dtype, seed=7))
            theirs.running_var.copy_(tensor((channels,), dtype, seed=8).abs() + 0.5)
    ours = OURS[dims](channels, dtype=dtype, **settings)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def step(module, x, dy, *others):
    """y and all gradients."""
    leaves = [v.clone().requires_grad_() for v in (x, *others)]
    y = module(*leaves)
    module.zero_grad()
    y.backward(dy)
    return y.detach(), *(leaf.grad for leaf in leaves), *(p.grad for p in module.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_does_what_pytorch_does(dtype, shape, layout):
    x, dy = (tensor(shape, dtype, LAYOUTS[layout], seed) for seed in (1, 2))
    ours, theirs = pair(len(shape), shape[1], dtype)
    for training in True, False:
        for module in ours, theirs:
            module.train(training)
        actual, expected = step(ours, x, dy), step(theirs, x, dy)
        assert actual[0].stride() == expected[0].stride() and actual[1].stride() == expected[1].stride()
        for a, b in zip(actual, expected, strict=True):
            assert_near(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert_near(a.double(), b.double(), dtype)


SETTINGS = [
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"momentum": 1.5},
    {"momentum": -0.5},
    {"affine": False},
    {"track_running_stats": False},
    {"eps": 0.1},
    {"bias": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings(settings):
    if "bias" in settings:
        try:
            nn.BatchNorm2d(1, **settings)
        except TypeError:
            pytest.skip("this version of PyTorch does not have the argument")
    shape = (4, 3, 5, 6)
    ours, theirs = pair(4, 3, torch.float64, **settings)
    for training in True, True, False:
        for module in ours, theirs:
            module.train(training)
        x, dy = tensor(shape, torch.float64, seed=3), tensor(shape, torch.float64, seed=4)
        for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
            assert_near(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert_near(a.double(), b.double())
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_with_parameters_of_32(dtype):
    x, dy = tensor((4, 3, 5), dtype), tensor((4, 3, 5), dtype, seed=1)
    ours, theirs = pair(3, 3, torch.float32)
    for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
        assert_near(a, b, dtype)
    assert_near(ours.running_var, theirs.running_var, dtype)
    assert ours.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(dtype):
    ours, theirs = pair(4, 3, torch.float32)
    x = tensor((4, 3, 5, 6), dtype)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ours(x), theirs(x)
    assert_near(a, b, torch.bfloat16)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_derivatives_of_arguments_with_gaps(activation):
    x = tensor((3, 2, 2, 4), torch.float64)[..., ::2].requires_grad_()
    both, one = (tensor(s, torch.float64, seed=3).requires_grad_() for s in ((2, 2), (1,)))

    def function(x, both, one):
        return bt.batch_norm(x, None, None, both[:, 0], one.expand(2), True, activation=activation)

    assert gradcheck(function, (x, both, one))
    assert gradgradcheck(function, (x, both, one))


def test_second_derivatives_with_relu_computed_again():
    x, cotangent = tensor((4, 3, 5, 6)).requires_grad_(), tensor((4, 3, 5, 6), seed=1)
    weight, bias = (tensor((3,), seed=s).requires_grad_() for s in (3, 4))

    def second(normalize):
        dx, dweight = torch.autograd.grad((normalize() * cotangent).sum(), (x, weight), create_graph=True)
        return torch.autograd.grad((dx * cotangent).sum() + (dweight * dweight).sum(), (x, weight))

    ours = second(lambda: bt.batch_norm(x, None, None, weight, bias, True, activation="relu"))
    theirs = second(lambda: nn.functional.batch_norm(x, None, None, weight, bias, True).relu())
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_derivatives(activation, training):
    x, residual = (tensor((3, 2, 2, 2), torch.float64, seed=s).requires_grad_() for s in (1, 2))
    weight, bias = (tensor((2,), torch.float64, seed=s).requires_grad_() for s in (3, 4))
    mean, var = tensor((2,), torch.float64), tensor((2,), torch.float64).abs() + 0.5

    def function(x, weight, bias, residual):
        given = (None, None) if training else (mean, var)
        return bt.batch_norm(x, *given, weight, bias, training, residual=residual, activation=activation)

    inputs = x, weight, bias, residual
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    assert gradcheck(lambda x: function(x, None, None, None), (x,))
    assert gradgradcheck(lambda x: function(x, None, None, None), (x,))


def test_only_needed_gradients_are_computed():
    ours = pair(3, 3, torch.float32)[0]
    ours.weight.requires_grad_(False)
    x, dy = tensor((4, 3, 5)), tensor((4, 3, 5), seed=1)
    expected = step(pair(3, 3, torch.float32)[0], x, dy)
    ours(x).backward(dy)
    assert ours.weight.grad is None and torch.equal(ours.bias.grad, expected[3])
    leaf = x.clone().requires_grad_()
    ours.requires_grad_(False)(leaf).backward(dy)
    assert torch.equal(leaf.grad, expected[1])


def references(kind, channels):
    """A fused module, and what it stands for."""
    ours, theirs = pair(4, channels, torch.float32)
    fused = getattr(bt, kind)(channels)
    fused.load_state_dict(ours.state_dict())
    if "Add" in kind:
        return fused, theirs, lambda x, residual: torch.relu(theirs(x) + residual)
    return fused, theirs, lambda x: torch.relu(theirs(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["BatchNormReLU2d", "BatchNormAddReLU2d"])
def test_fused_modules(kind, layout):
    shape = (4, 5, 6, 7)
    x, residual, dy = (tensor(shape, memory_format=LAYOUTS[layout], seed=s) for s in (1, 2, 3))
    fused, theirs, function = references(kind, 5)
    given = (x, residual) if "Add" in kind else (x,)
    for training in True, False:
        fused.train(training), theirs.train(training)
        leaves = [v.clone().requires_grad_() for v in given]
        theirs.zero_grad()
        y = function(*leaves)
        y.backward(dy)
        expected = [y.detach(), *(leaf.grad for leaf in leaves), *(p.grad for p in theirs.parameters())]
        for a, b in zip(step(fused, given[0], dy, *given[1:]), expected, strict=True):
            assert_near(a, b)
    if "Add" in kind:
        # A residual that is broadcast is added by PyTorch.
        assert_near(fused(x, residual[:1]), function(x, residual[:1]))


def test_bits_do_not_depend_on_threads():
    x, dy = tensor((16, 32, 40, 40)), tensor((16, 32, 40, 40), seed=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in 1, 2, 3:
            torch.set_num_threads(count)
            results.append(step(bt.BatchNorm2d(32), x, dy))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_torch_threads_are_found():
    from pathlib import Path

    from batchnorm import _native

    library = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    if not os.path.exists(library) or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this PyTorch does not run on OpenMP")
    assert _native.use_openmp_of(library)
    assert not _native.use_openmp_of("no such library")


def test_layouts_that_are_copied():
    ours, theirs = pair(4, 3, torch.float64)
    x, dy = tensor((8, 6, 7, 3), torch.float64), tensor((8, 3, 6, 7), torch.float64)
    for view in (
        lambda x: x.permute(0, 3, 1, 2),
        lambda x: x.permute(0, 3, 1, 2)[:, :, ::2],
        lambda x: x.transpose(1, 3),
        lambda x: x.permute(0, 3, 1, 2)[:1].expand(8, -1, -1, -1),
    ):
        given = view(x)
        gradient = dy[:, :, : given.shape[2], : given.shape[3]].transpose(2, 3).contiguous().transpose(2, 3)
        gradient = gradient if gradient.shape == given.shape else tensor(given.shape, torch.float64)
        for a, b in zip(step(ours, given, gradient), step(theirs, given, gradient), strict=True):
            assert_near(a, b)
        assert ours(given).stride() == theirs(given).stride()


def test_state_dicts_pickles_and_copies():
    ours, theirs = pair(4, 3, torch.float32)
    theirs.load_state_dict(ours.state_dict())
    x = tensor((4, 3, 5, 6))
    # A state_dict of PyTorch 0.4, which did not count batches.
    old = theirs.state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    ours.load_state_dict(old)
    expected = ours.eval()(x)
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    for copied in copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(saved, weights_only=False):
        assert type(copied) is bt.BatchNorm2d and not copied.training
        assert torch.equal(copied(x), expected)


def test_convert_and_revert():
    model, x = resnet(), tensor((4, 3, 12, 12))
    model.eval()
    expected, before = model(x), copy.deepcopy(model)
    parameters = list(model.parameters())
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    assert bt.convert(model) is model
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(bt.BatchNorm2d) == 6 and nn.BatchNorm2d not in kinds
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_near(model(x), expected)
    assert calls == [1]
    assert repr(bt.revert(model)) == repr(before)
    assert torch.equal(model(x), expected)
    # A subclass may do something else.
    lazy = nn.Sequential(nn.LazyBatchNorm2d(), nn.SyncBatchNorm(3))
    assert [type(m) for m in bt.convert(lazy)] == [nn.LazyBatchNorm2d, nn.SyncBatchNorm]


def test_fuse_finds_relu_and_additions():
    model, x = resnet(), tensor((4, 3, 12, 12))
    for training in False, True:
        model.train(training)
        expected, fused = copy.deepcopy(model)(x), bt.fuse(model)
        assert len(fused.meta["fused"]) == 5
        assert fused.meta["fused"][:3] == ["1 + 2", "3.bn1 + 3.relu", "3.bn2 + add + 3.relu"]
        kinds = [type(m) for m in fused.modules()]
        assert (kinds.count(bt.BatchNormReLU2d), kinds.count(bt.BatchNormAddReLU2d)) == (3, 2)
        assert kinds.count(bt.BatchNorm2d) == 1 and nn.BatchNorm2d not in kinds
        assert_near(copy.deepcopy(fused)(x), expected)
        assert fused.state_dict().keys() == model.state_dict().keys()
    # It is the model's own state that training changes.
    fused(x)
    assert model[1].num_batches_tracked == 1


def test_fuse_leaves_out_what_would_change_results():
    model, x = Functional(), tensor((6, 4))
    expected, fused = copy.deepcopy(model)(x), bt.fuse(model)
    kinds = {name: type(getattr(fused, name)) for name, _ in model.named_children()}
    assert kinds == {
        "relu1": bt.BatchNormReLU1d,
        "add": bt.BatchNormAddReLU1d,
        "twice": bt.BatchNorm1d,
        "scaled": bt.BatchNorm1d,
        "kept": bt.BatchNorm1d,
        "hooked": bt.BatchNorm1d,
    }
    assert_near(fused(x), expected)
    with pytest.raises(TypeError, match="got BatchNorm.*ReLU1d, which PyTorch does not have"):
        bt.revert(fused)


def test_training_gives_the_losses_of_pytorch():
    for dtype, tolerance in (torch.float64, 1e-12), (torch.float32, 1e-4):
        torch.manual_seed(0)
        theirs = resnet().to(dtype)
        ours, fused = bt.convert(copy.deepcopy(theirs)), bt.fuse(copy.deepcopy(theirs))
        expected = train(theirs, dtype, 10)
        for model in ours, fused:
            losses = train(model, dtype, 10)
            assert ((losses - expected).abs() <= tolerance * expected.abs()).all(), losses - expected


def test_leaky_relu_keeps_only_the_output():
    torch.manual_seed(0)
    theirs = darknet().double()
    ours = bt.fuse(copy.deepcopy(theirs))
    assert ours.meta["fused"] == ["1 + 2", "4 + 5", "7 + 8"]
    assert "negative_slope=0.1" in repr(ours)
    expected = train(theirs, torch.float64, 10)
    saves = bt.convert(copy.deepcopy(ours), memory="output")
    for model in ours, saves:
        assert ((train(model, torch.float64, 10) - expected).abs() <= 1e-12 * expected.abs()).all()
    with Counting() as counting:
        saves(tensor((4, 3, 12, 12), torch.float64))
    images = [kept for kept in counting.kept if kept.dim() == 4 and kept.shape[2] == 12]
    # The input, and the output of each normalization, which three layers share.
    assert len({kept.data_ptr() for kept in images}) == 4


class Counting(torch.autograd.graph.saved_tensors_hooks):
    """The tensors that the backward pass keeps."""

    def __init__(self):
        self.kept = []
        super().__init__(self.pack, lambda kept: kept)

    def __enter__(self):
        super().__enter__()
        return self

    def pack(self, kept):
        self.kept.append(kept)
        return kept


def test_keeping_the_output():
    x, dy = tensor((8, 3, 5, 6)), tensor((8, 3, 5, 6), seed=1)
    keeps_input = pair(4, 3, torch.float32)[0]
    keeps_output = bt.convert(copy.deepcopy(keeps_input), memory="output")
    assert "memory='output'" in repr(keeps_output)
    expected = step(keeps_input, x, dy)
    for a, b in zip(step(keeps_output, x, dy), expected, strict=True):
        assert_near(a, b)

    def keeps_x(module):
        leaf = x.clone().requires_grad_()
        with Counting() as counting:
            module(leaf)
        return any(kept.data_ptr() == leaf.data_ptr() for kept in counting.kept)

    assert keeps_x(keeps_input) and not keeps_x(keeps_output)
    # x̂ cannot be rebuilt where weight is 0.
    with torch.no_grad():
        keeps_output.weight[1] = keeps_input.weight[1] = 0
    assert keeps_x(keeps_output)
    for a, b in zip(step(keeps_output, x, dy), step(keeps_input, x, dy), strict=True):
        assert torch.equal(a, b)


def test_in_place_relu_after_it():
    ours, theirs = pair(4, 3, torch.float32)
    x, dy = tensor((4, 3, 5, 6)), tensor((4, 3, 5, 6), seed=1)
    model = lambda norm: nn.Sequential(norm, nn.ReLU(inplace=True))  # noqa: E731
    for a, b in zip(step(model(ours), x, dy), step(model(theirs), x, dy), strict=True):
        assert_near(a, b)


def test_changed_running_statistics_are_noticed():
    ours = bt.BatchNorm2d(3).eval()
    x = tensor((4, 3, 5, 6)).requires_grad_()
    y = ours(x)
    ours.train()(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def outcome(function):
    """The result, or the exception's type and message."""
    try:
        return function()
    except Exception as error:
        return type(error), str(error).split("\n")[0]


BAD = {
    "rank": (4, lambda: tensor((4, 3)), {}),
    "one value per channel": (4, lambda: tensor((1, 3, 1, 1)), {}),
    "channels": (4, lambda: tensor((4, 2, 5, 6)), {}),
    "integers": (4, lambda: torch.ones(4, 3, 5, 6, dtype=torch.int64), {}),
    "complex": (4, lambda: torch.ones(4, 3, 5, 6, dtype=torch.complex64), {}),
    "f64 with parameters of f32": (4, lambda: tensor((4, 3, 5, 6), torch.float64), {}),
    "f32 with parameters of f64": (4, lambda: tensor((4, 3, 5, 6)), {"dtype": torch.float64}),
    "meta": (4, lambda: torch.ones(4, 3, 5, 6, device="meta"), {}),
    "empty": (4, lambda: torch.ones(0, 3, 5, 6), {}),
    "sparse": (4, lambda: torch.ones(4, 3, 5, 6).to_sparse(), {}),
    "a list": (4, lambda: [1.0], {}),
    "negative eps": (4, lambda: tensor((4, 3, 5, 6)), {"eps": -0.01}),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_arguments_give_what_pytorch_gives(case, training):
    dims, make, settings = BAD[case]
    settings = {"dtype": torch.float32, **settings}
    ours, theirs = (module.train(training) for module in pair(dims, 3, **settings))
    actual, expected = outcome(lambda: ours(make())), outcome(lambda: theirs(make()))
    if isinstance(expected, torch.Tensor) and not expected.is_meta:
        assert_near(actual.detach().nan_to_num(), expected.detach().nan_to_num())
    elif isinstance(expected, torch.Tensor):
        assert actual.is_meta and actual.shape == expected.shape
    else:
        assert actual == expected


def test_running_variances_that_are_no_variances():
    ours, theirs = (module.eval() for module in pair(4, 3, torch.float32))
    for module in ours, theirs:
        module.running_var[0] = -1
        module.running_var[1] = float("nan")
    x, dy = tensor((4, 3, 5, 6)), tensor((4, 3, 5, 6), seed=1)
    for a, b in zip(step(ours, x, dy), step(theirs, x, dy), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert_near(a.nan_to_num(), b.nan_to_num())


def test_transforms_of_functions_go_to_pytorch():
    x = tensor((4, 3, 5), torch.float64)
    function = lambda x: bt.batch_norm(x, None, None, training=True).square().sum()  # noqa: E731
    assert_near(torch.func.grad(function)(x), torch.func.grad(lambda x: function(x))(x))
    assert torch.func.vmap(lambda x: bt.batch_norm(x, None, None, training=True))(x[None]).shape == (1, 4, 3, 5)
    traced = torch.jit.trace(bt.BatchNorm1d(3).eval(), tensor((4, 3, 5)), check_trace=False)
    assert "aten::batch_norm" in str(traced.inlined_graph)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process", "ignore::DeprecationWarning")
def test_data_loader_workers_and_forked_children():
    module = bt.BatchNorm2d(32)
    x = tensor((16, 32, 40, 40))
    expected = module(x).detach()
    child = os.fork()
    if child == 0:
        # PyTorch's own operators would wait for threads that the child does not have.
        os._exit(0 if (module(x).detach().numpy() == expected.numpy()).all() else 1)
    assert os.waitpid(child, 0)[1] == 0

    class Dataset(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            with torch.no_grad():
                return module(x)[0, 0, 0, 0]

    for value in torch.utils.data.DataLoader(Dataset(), num_workers=2):
        assert value == expected[0, 0, 0, 0]


def test_the_benchmark_prints_its_tables():
    command = [sys.executable, "-m", "batchnorm.bench", "layers", "overhead", "memory"]
    options = ["--no-compile", "--seconds", "0", "--shapes", "32×512×7×7"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    # 3 layers in 2 layouts forward and both ways, 3 overheads, 2 networks, and the heads of three tables.
    assert len(rows) == 12 + 3 + 2 + 6


def test_no_tensor_is_leaked():
    resource = pytest.importorskip("resource")
    x, dy = tensor((2, 512, 24, 24)), tensor((2, 512, 24, 24), seed=1)
    modules = bt.BatchNorm2d(512), bt.BatchNormReLU2d(512), bt.convert(torch.nn.BatchNorm2d(512), memory="output")

    def most(count):
        for _ in range(count):
            for module in modules:
                step(module, x, dy)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # One tensor of each step would be 140 MB.
    before = most(5)
    assert most(60) - before < 64 << 10


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="the system has no huge pages")
def test_large_outputs_are_given_huge_pages():
    # More than malloc keeps, so that the memory of y is new.
    x = torch.ones(1, 1, 40 << 20, dtype=torch.float16)
    y = bt.BatchNorm1d(1)(x)
    middle, flags = y.data_ptr() + y.nbytes // 2, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if "-" in key:
            start, end = (int(address, 16) for address in key.split("-"))
        elif key == "VmFlags:" and start <= middle < end:
            flags = rest
    assert "hg" in flags.split()
    assert y.count_nonzero() == 0


def test_memory_that_cannot_have_huge_pages():
    values = torch.ones(3)
    for address, size in (0, 0), (0, 1 << 40), (values.data_ptr(), values.nbytes), (2**64 - 1, 2**64 - 1):
        _native.want_huge_pages(address, size)
    assert values.sum() == 3
