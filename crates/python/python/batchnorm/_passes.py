"""The passes over numpy arrays."""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np

from . import _native
from ._arrays import (
    ELEMENTS,
    check_array,
    check_dtype,
    check_values,
    element,
    input_like,
    output_like,
    output_values,
    raw,
    strides,
)
from ._statistics import GradientSums, RunningStatistics, Statistics, batch, source

# The numbers of `plan.rs`.
_ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2, "silu": 3}

# 0 stands for one per core.
_threads = 0


def set_num_threads(threads: int) -> None:
    """
    Sets the number of threads on which passes over numpy arrays run, the calling one among them; 0 is one per core, the
    default. Results do not depend on it.
    """
    global _threads
    threads = operator.index(threads)
    if threads < 0:
        raise ValueError(f"threads is out of range: expected a number >= 0, got {threads}")
    _threads = threads


def get_num_threads() -> int:
    """The number set by [`set_num_threads`], 0 for one per core."""
    return _threads


class Gradients(NamedTuple):
    """The gradients that were wanted; the others are None."""

    dx: np.ndarray | None
    dgamma: np.ndarray | None
    dbeta: np.ndarray | None
    dresidual: np.ndarray | None


def activation_of(activation, slope):
    """The number of an activation, and its slope."""
    if activation not in _ACTIVATIONS:
        names = ", ".join(repr(name) for name in _ACTIVATIONS)
        raise ValueError(f"activation is unknown: expected one of {names}, got {activation!r}")
    if slope is None:
        slope = 0.01
    elif activation != "leaky_relu":
        raise ValueError(f"slope is only for the activation 'leaky_relu', got {slope!r} for {activation!r}")
    return _ACTIVATIONS[activation], float(slope)


class _Call:
    """The arguments of a pass that all passes have."""

    def __init__(self, x, axis, eps, activation, slope, gamma=None, beta=None):
        number = element("x", x)
        self.x = x
        axis = operator.index(axis)
        inside = axis + x.ndim if axis < 0 else axis
        # An axis that is out of range is an error of the core.
        shape = _native.shape_of(list(x.shape), strides(x), inside if inside >= 0 else x.ndim)
        self.channels = shape[1]
        # Parameters may be of float32 beside float16.
        allowed = (x.dtype, np.dtype(np.float32)) if x.dtype == np.float16 else (x.dtype,)
        self.parameter_dtype = x.dtype
        for name, parameter in ("beta", beta), ("gamma", gamma):
            if parameter is not None:
                check_dtype(name, parameter, *allowed)
                self.parameter_dtype = parameter.dtype
        self.lane_dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
        parameter_number = ELEMENTS[self.parameter_dtype]
        self.settings = number, parameter_number, shape, float(eps), *activation_of(activation, slope), _threads

    def parameter(self, name, values):
        if values is None:
            return None
        check_values(name, values, self.parameter_dtype)
        return raw(values)

    def inputs(self, gamma, beta, residual=None, output=None, weights=None):
        if weights is not None:
            check_values("weights", weights, self.lane_dtype)
            weights = raw(weights)
        return (
            self.parameter("gamma", gamma),
            self.parameter("beta", beta),
            input_like("residual", residual, self.x),
            input_like("output", output, self.x),
            weights,
        )

    def like_x(self, name, wanted):
        """An output of x's shape: an array that is given, or a new one if wanted, or None. And how it is given."""
        if wanted is False or wanted is None:
            return None, None
        array = np.empty_like(self.x, subok=False) if wanted is True else wanted
        return array, output_like(name, array, self.x)

    def per_channel(self, name, wanted):
        """The same for one value per channel."""
        if wanted is False or wanted is None:
            return None, None
        array = np.empty(self.channels, self.parameter_dtype) if wanted is True else wanted
        return array, output_values(name, array, self.parameter_dtype)

    def new_statistics(self):
        return np.empty(self.channels), np.empty(self.channels)


def statistics(x: np.ndarray, *, axis: int = 1, weights: np.ndarray | None = None) -> Statistics:
    """Mean and variance of each channel of x, in one pass over it: the first half of the forward pass in training."""
    call = _Call(x, axis, 1e-5, None, None)
    mean, var = call.new_statistics()
    given = call.inputs(None, None, weights=weights)
    return Statistics(_native.statistics(call.settings, raw(x), given, (raw(mean), raw(var))), mean, var)


def forward_training(
    x: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float | None = None,
    residual: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, Statistics]:
    """
    `y = act(gamma·x̂ + beta + residual)`, with the batch's own statistics. Returns y and the statistics.

    `activation` is None, "relu", "leaky_relu" (with `slope`, 0.01 if it is not given) or "silu". `weights` has a weight
    for each position, in the order of memory; a position with weight 0 is ignored, even if its value is NaN. `out` is
    an array for y, which may be x.
    """
    call = _Call(x, axis, eps, activation, slope, gamma, beta)
    given = call.inputs(gamma, beta, residual, weights=weights)
    y, raw_y = call.like_x("out", True if out is None else out)
    mean, var = call.new_statistics()
    count = _native.forward_training(call.settings, raw(x), given, raw_y, (raw(mean), raw(var)))
    return y, Statistics(count, mean, var)


def normalize(
    x: np.ndarray,
    statistics: Statistics | RunningStatistics,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float | None = None,
    residual: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """
    The same y with given statistics: running ones for inference, the batch's for the second half of the forward pass in
    training.
    """
    call = _Call(x, axis, eps, activation, slope, gamma, beta)
    given = call.inputs(gamma, beta, residual, weights=weights)
    y, raw_y = call.like_x("out", True if out is None else out)
    _native.normalize(call.settings, raw(x), source(statistics), given, raw_y)
    return y


def backward(
    x: np.ndarray,
    dy: np.ndarray,
    statistics: Statistics | RunningStatistics,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float | None = None,
    residual: np.ndarray | None = None,
    output: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    dx: np.ndarray | bool = True,
    dgamma: np.ndarray | bool = True,
    dbeta: np.ndarray | bool = True,
    dresidual: np.ndarray | bool = False,
) -> Gradients:
    """
    The wanted gradients: each is True for a new array, an array to write to, or False if it is not wanted, and then
    not computed. dx may be dy.

    Gradients flow through the statistics of a batch; running ones are constants. ReLU and leaky ReLU take their mask
    from `output`, which is y; without it, and for SiLU, the argument of the activation is recomputed from x, gamma,
    beta and the residual.
    """
    call = _Call(x, axis, eps, activation, slope, gamma, beta)
    given = call.inputs(gamma, beta, residual, output, weights)
    of_x, of_residual = call.like_x("dx", dx), call.like_x("dresidual", dresidual)
    of_gamma, of_beta = call.per_channel("dgamma", dgamma), call.per_channel("dbeta", dbeta)
    arrays, outputs = zip(of_x, of_residual, of_gamma, of_beta)
    _native.backward(call.settings, _x_and(dy, x), source(statistics), given, outputs)
    return _gradients(arrays)


def gradient_sums(
    x: np.ndarray,
    dy: np.ndarray,
    statistics: Statistics | RunningStatistics,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float | None = None,
    residual: np.ndarray | None = None,
    output: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> GradientSums:
    """Σg and Σg·(x − mean) of each channel: the first half of the backward pass."""
    call = _Call(x, axis, eps, activation, slope, gamma, beta)
    given = call.inputs(gamma, beta, residual, output, weights)
    g, gx = call.new_statistics()
    _native.gradient_sums(call.settings, _x_and(dy, x), source(statistics), given, (raw(g), raw(gx)))
    return GradientSums(g, gx)


def input_gradient(
    x: np.ndarray,
    dy: np.ndarray,
    statistics: Statistics,
    sums: GradientSums,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float | None = None,
    residual: np.ndarray | None = None,
    output: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    dx: np.ndarray | bool = True,
    dresidual: np.ndarray | bool = False,
) -> Gradients:
    """
    dx from the sums over the whole batch, whose statistics are given, too: the second half of the backward pass. x and
    dy may be a part of the batch.
    """
    call = _Call(x, axis, eps, activation, slope, gamma, beta)
    given = call.inputs(gamma, beta, residual, output, weights)
    of_x, of_residual = call.like_x("dx", dx), call.like_x("dresidual", dresidual)
    arrays, outputs = zip(of_x, of_residual, (None, None), (None, None))
    _native.input_gradient(call.settings, _x_and(dy, x), batch(statistics), _sums(sums), given, outputs)
    return _gradients(arrays)


def parameter_gradients(
    statistics: Statistics | RunningStatistics, sums: GradientSums, *, eps: float = 1e-5, dtype=np.float32
) -> Gradients:
    """dgamma and dbeta from the sums, as float32 or float64. Those of parts of a batch add up."""
    given = source(statistics)
    channels, dtype = statistics.mean.size, np.dtype(dtype)
    of_gamma, of_beta = np.empty(channels, dtype), np.empty(channels, dtype)
    number = element("dgamma", of_gamma)
    settings = number, number, (0, channels, 1), float(eps), 0, 0.0, 1
    _native.parameter_gradients(settings, given, _sums(sums), (None, None, raw(of_gamma), raw(of_beta)))
    return _gradients((None, None, of_gamma, of_beta))


def fold(
    statistics: Statistics | RunningStatistics,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """
    The scale and the shift of each channel, in float64, to which `normalize` with these statistics amounts:
    `y = scale·x + shift`. Both can be folded into the weights and the bias of a layer before or after it. gamma and
    beta are float32 or float64.
    """
    given = source(statistics)
    channels = statistics.mean.size
    dtype = next((p.dtype for p in (gamma, beta) if isinstance(p, np.ndarray)), np.dtype(np.float64))
    parameters = []
    for name, values in ("gamma", gamma), ("beta", beta):
        if values is not None:
            check_values(name, values, *([dtype] if dtype in (np.float32, np.float64) else [np.float32, np.float64]))
            values = raw(values)
        parameters.append(values)
    number = 0 if dtype == np.float32 else 1
    settings = number, number, (0, channels, 1), float(eps), 0, 0.0, 1
    scale, shift = np.empty(channels), np.empty(channels)
    _native.fold(settings, given, (*parameters, None, None, None), (raw(scale), raw(shift)))
    return scale, shift


def _x_and(dy, x):
    check_array("dy", dy)
    return raw(x), input_like("dy", dy, x)


def _sums(sums):
    if not isinstance(sums, GradientSums):
        raise TypeError(f"sums have the wrong type: expected GradientSums, got {type(sums).__name__}")
    return sums._raw()


def _gradients(arrays):
    """From the order of the native functions."""
    dx, dresidual, dgamma, dbeta = arrays
    return Gradients(dx, dgamma, dbeta, dresidual)
