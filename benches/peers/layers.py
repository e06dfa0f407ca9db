"""
Layers through Python: this crate, PyTorch, torch.compile and XLA, each of which allocates its outputs.

A layer is a normalization, and what follows it in a network. A step is its forward and its backward pass.
"""

import collections
import ctypes

import numpy as np
import oracle
import torch
from native import Buffers, per_channel
from oracle import EPS
from timing import all_cores, measure, own_cores
from torch.nn import functional

try:
    with all_cores():
        import jax

        jax.devices()  # starts its threads
except ImportError:
    jax = None

Layer = collections.namedtuple("Layer", ["title", "relu", "residual", "passes"])
LAYERS = [
    Layer("BN", False, False, ["forward", "inference", "step"]),
    Layer("BN + ReLU", True, False, ["forward", "step"]),
    Layer("BN + add + ReLU", True, True, ["forward", "step"]),
]


class Data(Buffers):
    """What a layer is given."""

    def __init__(self, shape, layout):
        super().__init__(shape, layout)
        self.residual = torch.randn(self.x.numel())
        self.given = self.mean, self.var
        self.avoid_kinks()

    def avoid_kinks(self):
        """
        Where the argument of ReLU is so near 0 that its sign is uncertain, dy is 0 in the channels that are checked:
        there every contestant's derivative is right.
        """
        channels = self.checked_channels()
        unit = oracle.unit("peers", self.x.numel() // self.c)
        dy = self.by_channel(self.dy)[:, channels]
        for layer in LAYERS:
            z, bound = self.argument(layer, channels)
            dy[torch.from_numpy(abs(z) <= unit * bound)] = 0
        self.by_channel(self.dy)[:, channels] = dy

    def argument(self, layer, channels, given=None):
        x, residual = (self.exact(flat, channels) for flat in (self.x, self.residual))
        gamma, beta = (per_channel(values, channels) for values in (self.gamma, self.beta))
        return oracle.forward(x, gamma, beta, given, residual if layer.residual else 0.0)

    def expected(self, layer, name, channels):
        """Of some channels, in f64: the outputs, in the order in which contestants return them, and their bounds."""
        given = tuple(per_channel(values, channels) for values in self.given) if name == "inference" else None
        z, bound = self.argument(layer, channels, given)
        outputs = {"y": (np.maximum(z, 0) if layer.relu else z, bound)}
        if name == "step":
            g = self.exact(self.dy, channels) * (z > 0 if layer.relu else 1)
            outputs |= oracle.backward(self.exact(self.x, channels), g, per_channel(self.gamma, channels))
            if layer.residual:
                # Exact: it is dy or 0.
                outputs["dresidual"] = (g, np.finfo(np.float32).tiny)
        return outputs

    def flat(self, tensor):
        """The inverse of `view`; values per channel stay as they are."""
        if tensor.dim() == 4 and self.layout == "NHWC":
            tensor = tensor.permute(0, 2, 3, 1)
        return tensor.reshape(-1)


class Array(ctypes.Structure):
    """`bn_slice` and its likes."""

    _fields_ = [("data", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Sized(ctypes.Structure):
    """A struct of batchnorm.h that begins with its size. Fields that are not given are 0."""

    def __init__(self, **fields):
        super().__init__(ctypes.sizeof(self), **fields)


def struct(**fields):
    return type("Struct", (Sized,), {"_fields_": [("struct_size", ctypes.c_size_t), *fields.items()]})


SIZE, INT, DOUBLE, POINTER = ctypes.c_size_t, ctypes.c_int32, ctypes.c_double, ctypes.c_void_p
PlanDesc = struct(
    outer=SIZE, channels=SIZE, inner=SIZE, eps=DOUBLE, slope=DOUBLE, element=INT, isa=INT, threads=INT, activation=INT,
    thread_count=SIZE, parallel_for=POINTER, parallel_for_ctx=POINTER, pool=POINTER, scratch=POINTER,
    scratch_bytes=SIZE,
)  # fmt: skip
Statistics = struct(count=DOUBLE, mean=Array, var=Array)
RunningStatistics = struct(
    batches=ctypes.c_uint64, mean=Array, var=Array, variance=INT, reserved=INT, float_mean=Array, float_var=Array
)
ForwardArgs = struct(
    x=Array, gamma=Array, beta=Array, residual=Array, weights=Array, y=Array, statistics=POINTER,
)  # fmt: skip
NormalizeArgs = struct(
    x=Array, statistics=POINTER, running=POINTER, gamma=Array, beta=Array, residual=Array, weights=Array, y=Array,
)  # fmt: skip
BackwardArgs = struct(
    x=Array, dy=Array, statistics=POINTER, running=POINTER, gamma=Array, beta=Array, residual=Array, output=Array,
    weights=Array, dx=Array, dresidual=Array, dgamma=Array, dbeta=Array,
)  # fmt: skip
ACTIVATION_IDENTITY, ACTIVATION_RELU = 0, 1
THREADS_SEQUENTIAL, THREADS_POOL = 0, 1


def ok(library, status):
    if status:
        library.bn_last_error_message.restype = ctypes.c_char_p
        raise SystemExit(f"ours: {library.bn_last_error_message().decode()}")


def array(tensor):
    return Array(tensor.data_ptr(), tensor.numel())


class Ours:
    """The C interface, with threads of the library."""

    def __init__(self, library, data, options, pool):
        self.library, self.data = library, data
        plane = data.h * data.w
        last = data.layout != "NCHW"
        self.plans = {}
        for activation in ACTIVATION_IDENTITY, ACTIVATION_RELU:
            desc = PlanDesc(
                outer=data.n * plane if last else data.n, channels=data.c, inner=1 if last else plane, eps=EPS,
                isa=options.isa_number[options.isa[0]], activation=activation, pool=pool,
                threads=THREADS_POOL if pool else THREADS_SEQUENTIAL,
            )  # fmt: skip
            plan = POINTER()
            ok(library, library.bn_plan_create(ctypes.byref(desc), ctypes.byref(plan)))
            self.plans[activation] = plan
        self.running_arrays = data.mean.double(), data.var.double()
        mean, var = map(array, self.running_arrays)
        self.running = RunningStatistics(batches=1, mean=mean, var=var)

    def __del__(self):
        for plan in self.plans.values():
            self.library.bn_plan_destroy(plan)

    def call(self, layer, name):
        data, library = self.data, self.library
        x, c = data.view(data.x), data.c
        plan = self.plans[ACTIVATION_RELU if layer.relu else ACTIVATION_IDENTITY]
        given = {"x": array(x), "gamma": array(data.gamma), "beta": array(data.beta)}
        if layer.residual:
            given["residual"] = array(data.residual)
        if name == "inference":
            return self.inference(plan, NormalizeArgs(**given, running=ctypes.addressof(self.running)))

        saved = Statistics()
        forward_args = ForwardArgs(**given, statistics=ctypes.addressof(saved))
        backward_args = BackwardArgs(**given, dy=array(data.dy), statistics=ctypes.addressof(saved))

        def forward():
            y, (mean, var) = torch.empty_like(x), torch.empty(2, c, dtype=torch.float64)
            forward_args.y, saved.mean, saved.var = array(y), array(mean), array(var)
            ok(library, library.bn_forward_training(plan, ctypes.byref(forward_args)))
            return y, mean, var

        def step():
            y, mean, var = forward()
            outputs = torch.empty_like(x), torch.empty(c), torch.empty(c)
            backward_args.dx, backward_args.dgamma, backward_args.dbeta = map(array, outputs)
            if layer.residual:
                # Without a residual it takes less time to compute the mask of ReLU again.
                backward_args.output = array(y)
                outputs += (torch.empty_like(x),)
                backward_args.dresidual = array(outputs[-1])
            ok(library, library.bn_backward(plan, ctypes.byref(backward_args)))
            return y, *outputs

        return step if name == "step" else lambda: forward()[:1]

    def inference(self, plan, args):
        x = self.data.view(self.data.x)

        def inference():
            y = torch.empty_like(x)
            args.y = array(y)
            ok(self.library, self.library.bn_normalize(plan, ctypes.byref(args)))
            return (y,)

        return inference

    def flat(self, output):
        return self.data.flat(output)


class PyTorch:
    def __init__(self, data, compiled):
        self.data, self.compiled = data, compiled

    def call(self, layer, name):
        data = self.data
        training = name != "inference"

        def apply(x, gamma, beta, residual, mean, var):
            y = functional.batch_norm(x, mean, var, gamma, beta, training, 0.1, EPS)
            if layer.residual:
                y += residual
            return torch.relu_(y) if layer.relu else y

        if self.compiled:
            apply = torch.compile(apply, dynamic=False, fullgraph=True)
        given = (None, None) if training else data.given
        x, dy, residual = (data.view(flat) for flat in (data.x, data.dy, data.residual))
        if name != "step":
            return lambda: (apply(x, data.gamma, data.beta, residual, *given),)

        wanted = [x, data.gamma, data.beta, residual]
        wanted = [tensor.detach().requires_grad_() for tensor in wanted]
        leaves = wanted if layer.residual else wanted[:3]

        def step():
            y = apply(*wanted, *given)
            return y, *torch.autograd.grad(y, leaves, dy)

        return step

    def flat(self, output):
        return self.data.flat(output.detach())


class Xla:
    """jax.jit, with the formulas of flax. A step is compiled as a whole."""

    def __init__(self, data):
        self.data = data
        self.last = data.layout != "NCHW"
        shape = (data.n, data.h, data.w, data.c) if self.last else (data.n, data.c, data.h, data.w)
        self.x, self.dy, self.residual = (
            jax.numpy.asarray(flat.view(shape).numpy()) for flat in (data.x, data.dy, data.residual)
        )
        by_channel = (data.c,) if self.last else (data.c, 1, 1)
        self.gamma, self.beta, *self.given = (
            jax.numpy.asarray(values.view(by_channel).numpy())
            for values in (data.gamma, data.beta, data.mean, data.var)
        )

    def call(self, layer, name):
        axes = (0, 1, 2) if self.last else (0, 2, 3)

        def apply(x, gamma, beta, residual, mean=None, var=None):
            if mean is None:
                mean, square = x.mean(axes, keepdims=True), (x * x).mean(axes, keepdims=True)
                var = jax.numpy.maximum(0, square - mean * mean)
            y = (x - mean) * (jax.lax.rsqrt(var + EPS) * gamma) + beta
            if layer.residual:
                y += residual
            return jax.nn.relu(y) if layer.relu else y

        inputs = self.x, self.gamma, self.beta, self.residual
        if name != "step":
            compiled = jax.jit(apply)
            given = self.given if name == "inference" else []
            return lambda: jax.block_until_ready((compiled(*inputs, *given),))

        @jax.jit
        def step(dy, *inputs):
            y, pullback = jax.vjp(apply, *inputs)
            return y, *pullback(dy)[: 4 if layer.residual else 3]

        return lambda: jax.block_until_ready(step(self.dy, *inputs))

    def flat(self, output):
        return torch.from_numpy(np.asarray(output).reshape(-1).copy())


def check(data, contestants, layer, calls):
    channels = data.checked_channels()
    m = data.x.numel() // data.c
    expected = {name: data.expected(layer, name, channels) for name in layer.passes}
    for (name, who), call in calls.items():
        outputs = call()
        if len(outputs) != len(expected[name]):
            raise SystemExit(f"{who}, {layer.title}, {name}: {len(outputs)} outputs, not {len(expected[name])}")
        for output, (of, (value, bound)) in zip(outputs, expected[name].items()):
            got = contestants[who].flat(output)
            per_element = got.numel() == data.x.numel()
            got = data.exact(got, channels) if per_element else got[channels].numpy()
            oracle.compare(f"{who}, {layer.title}, {name}: {of}", got, value, bound, oracle.unit(who, m))


def new_pool(library, threads):
    """One pool for all plans, or none for one thread."""
    pool = ctypes.c_void_p()
    if threads > 1:
        with own_cores():
            ok(library, library.bn_pool_create(ctypes.c_size_t(threads), ctypes.byref(pool)))
    return pool


def rows(libraries, options, tensors):
    library = libraries.batchnorm
    pool = new_pool(library, options.threads)
    for layout, shape in tensors:
        # Otherwise PyTorch's compiler takes further shapes for dynamic ones, and gives up after eight.
        torch.compiler.reset()
        data = Data(shape, layout)
        contestants = {
            "ours": Ours(library, data, options, pool),
            "eager": PyTorch(data, compiled=False),
            "compiled": PyTorch(data, compiled=True),
        }
        if jax:
            contestants["xla"] = Xla(data)
        for layer in LAYERS:
            calls = {(name, who): c.call(layer, name) for name in layer.passes for who, c in contestants.items()}
            check(data, contestants, layer, calls)
            # This crate and XLA do not run on OpenMP's threads, nor on each other's.
            times = measure(calls, options.rounds, lambda name: True)
            for name in layer.passes:
                ms = {who: times[name, who] for who in contestants}
                tensor = {"layout": layout, "shape": shape, "isa": options.isa[0]}
                yield {"layer": layer.title, "pass": name, **tensor, "ms": ms}
