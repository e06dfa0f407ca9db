"""The passes over numpy arrays."""

import doctest
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from oracle import Oracle, compare

import batchnorm as bn

DTYPES = [np.float32, np.float64, np.float16]
SHAPES = [(5, 3), (4, 3, 7), (2, 5, 3, 4), (3, 17, 2, 3, 4), (64, 33), (8, 16, 20, 30)]
LAYOUTS = ["first", "last"]


def array(rng, shape, dtype, layout, scale=1.0, offset=0.0):
    """Normal values, of a shape with channels along axis 1; with channels last in memory, it is a view."""
    values = (offset + scale * rng.standard_normal(shape)).astype(dtype)
    if layout == "last":
        values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    return values


def parameters(rng, channels, dtype):
    return rng.uniform(0.5, 2, channels).astype(dtype), rng.uniform(-1, 1, channels).astype(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
def test_training_is_within_the_bounds(dtype, shape, layout):
    rng = np.random.default_rng(1)
    for offset in 0, 100:
        x, dy = array(rng, shape, dtype, layout, 2, offset), array(rng, shape, dtype, layout)
        gamma, beta = parameters(rng, shape[1], dtype)
        y, batch = bn.forward_training(x, gamma, beta, eps=1e-3)
        assert (y.dtype, y.shape, y.strides) == (x.dtype, x.shape, x.strides)
        exact = Oracle(x, gamma, beta, 1e-3)
        assert batch.count == x.size // shape[1]
        compare(batch.mean, exact.mean, exact.factor(2) * np.sqrt(exact.var) + 2.0**-52 * abs(exact.mean), "mean")
        compare(batch.var, exact.var, exact.factor(4) * exact.var, "var")
        compare(y, exact.y, exact.y_bound(), "y")

        gradients = bn.backward(x, dy, batch, gamma, eps=1e-3)
        assert gradients.dx.strides == x.strides and gradients.dresidual is None
        for name, (expected, bound) in zip(["dx", "dgamma", "dbeta"], exact.gradients(dy)):
            compare(getattr(gradients, name), expected, bound, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
def test_running_statistics_are_constants(dtype):
    rng = np.random.default_rng(2)
    x, dy = array(rng, (4, 3, 5), dtype, "first"), array(rng, (4, 3, 5), dtype, "first")
    gamma, beta = parameters(rng, 3, dtype)
    mean, var = rng.standard_normal(3).astype(dtype), rng.uniform(0.5, 2, 3).astype(dtype)
    running = bn.RunningStatistics.of(mean, var)
    exact = Oracle(x, gamma, beta, 1e-5, mean, var)
    compare(bn.normalize(x, running, gamma, beta), exact.y, exact.y_bound(), "y")
    gradients = bn.backward(x, dy, running, gamma)
    for name, (expected, bound) in zip(["dx", "dgamma", "dbeta"], exact.gradients(dy)):
        compare(getattr(gradients, name), expected, bound, name)


def test_halves_give_the_bits_of_fused_passes():
    rng = np.random.default_rng(3)
    x, dy = array(rng, (6, 4, 9), np.float32, "first"), array(rng, (6, 4, 9), np.float32, "first")
    gamma, beta = parameters(rng, 4, np.float32)
    y, batch = bn.forward_training(x, gamma, beta)
    half = bn.statistics(x)
    assert (half.mean == batch.mean).all() and (half.var == batch.var).all() and half.count == batch.count == 54
    assert (bn.normalize(x, half, gamma, beta) == y).all()

    fused = bn.backward(x, dy, batch, gamma)
    sums = bn.gradient_sums(x, dy, batch)
    assert (bn.input_gradient(x, dy, batch, sums, gamma).dx == fused.dx).all()
    parts = bn.parameter_gradients(batch, sums)
    assert (parts.dgamma == fused.dgamma).all() and (parts.dbeta == fused.dbeta).all()


def test_parts_of_a_batch_merge():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    whole = bn.Statistics.empty(2)
    for part in x[:1], x[1:4], x[4:]:
        whole.merge(bn.statistics(part))
    of_all = bn.statistics(x)
    assert whole.count == 6
    assert (whole.mean == of_all.mean).all()
    np.testing.assert_allclose(whole.var, of_all.var, rtol=1e-15)
    dy = x[::-1].copy()
    sums = bn.gradient_sums(x[:2], dy[:2], of_all)
    sums.merge(bn.gradient_sums(x[2:], dy[2:], of_all))
    np.testing.assert_allclose(sums.gx, bn.gradient_sums(x, dy, of_all).gx, rtol=1e-14)


def test_fused_operations():
    rng = np.random.default_rng(4)
    x, residual, dy = (array(rng, (4, 3, 5, 6), np.float32, "last") for _ in range(3))
    gamma, beta = parameters(rng, 3, np.float32)
    plain = bn.forward_training(x, gamma, beta)[0]
    y, batch = bn.forward_training(x, gamma, beta, activation="relu", residual=residual)
    z = Oracle(x, gamma, beta, 1e-5).y + residual
    np.testing.assert_allclose(y, np.maximum(z, 0).astype(np.float32), rtol=1e-5, atol=1e-6)
    assert (bn.forward_training(x, gamma, beta, activation="relu")[0] == np.maximum(plain, 0)).all()
    leaky = bn.forward_training(x, gamma, beta, activation="leaky_relu", slope=0.25)[0]
    assert (leaky == np.where(plain > 0, plain, np.float32(0.25) * plain)).all()
    silu = bn.forward_training(x, gamma, beta, activation="silu")[0]
    np.testing.assert_allclose(silu, plain / (1 + np.exp(-plain)), rtol=1e-5, atol=1e-6)

    for given in {"output": y}, {"residual": residual}:
        gradients = bn.backward(x, dy, batch, gamma, beta, activation="relu", dresidual=True, **given)
        g = dy * (y > 0)
        assert (gradients.dresidual == g).all()
        assert (gradients.dx == bn.backward(x, g, batch, gamma).dx).all()


def test_weights_mask_positions():
    x = np.array([[[1, 2, 3], [4, 5, 6]], [[6, np.nan, np.nan], [1, np.nan, np.nan]]], np.float32)
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    y, batch = bn.forward_training(x, weights=mask)
    assert (batch.count, list(batch.mean)) == (4, [3, 4])
    assert (y[1, :, 1:] == 0).all() and np.isfinite(y).all()


def test_arrays_of_the_caller():
    rng = np.random.default_rng(5)
    x, dy = array(rng, (4, 3, 5), np.float32, "first"), array(rng, (4, 3, 5), np.float32, "first")
    expected, batch = bn.forward_training(x)
    out = np.empty_like(x)
    assert bn.forward_training(x, out=out)[0] is out and (out == expected).all()
    assert (bn.normalize(x, batch, out=out) == expected).all()
    gradients = bn.backward(x, dy, batch)
    dgamma, in_place = np.empty(3, np.float32), dy.copy()
    again = bn.backward(x, in_place, batch, dx=in_place, dgamma=dgamma, dbeta=False)
    assert again.dx is in_place and again.dgamma is dgamma and again.dbeta is None
    assert (in_place == gradients.dx).all() and (dgamma == gradients.dgamma).all()
    in_place = x.copy()
    bn.forward_training(in_place, out=in_place)
    assert (in_place == expected).all()
    in_place = x.copy()
    bn.normalize(in_place, batch, out=in_place)
    assert (in_place == expected).all()
    sums, in_place = bn.gradient_sums(x, dy, batch), dy.copy()
    bn.input_gradient(x, in_place, batch, sums, dx=in_place)
    assert (in_place == gradients.dx).all()


def test_the_axis_of_the_channels():
    rng = np.random.default_rng(6)
    x = array(rng, (4, 3, 5, 6), np.float32, "first")
    y = bn.forward_training(x)[0]
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for axis in -1, 3:
        np.testing.assert_allclose(np.moveaxis(bn.forward_training(last, axis=axis)[0], -1, 1), y, atol=1e-6)
    first = np.ascontiguousarray(np.moveaxis(x, 1, 0))
    np.testing.assert_allclose(np.moveaxis(bn.forward_training(first, axis=0)[0], 0, 1), y, atol=1e-6)


def test_averages():
    running = bn.RunningStatistics(1)
    running.update(bn.Statistics(5, np.array([2.0]), np.array([4.0])))
    assert (running.mean[0], running.batches) == (0.2, 1)
    np.testing.assert_allclose(running.var, [0.9 + 0.1 * 5], rtol=1e-15)
    running.update(bn.Statistics(5, np.array([4.0]), np.array([1.0])), None, biased=True)
    assert (running.mean[0], running.batches) == (0.5 * 0.2 + 0.5 * 4, 2)
    # They are updated where they are, and rounded once.
    mean, var = np.zeros(1, np.float32), np.ones(1, np.float32)
    bn.RunningStatistics.of(mean, var).update(bn.Statistics(2, np.array([1 / 3]), np.array([0.0])), 1.0)
    assert mean[0] == np.float32(1 / 3) and var[0] == 0


def test_folding():
    rng = np.random.default_rng(7)
    x, (gamma, beta) = array(rng, (4, 3), np.float64, "first"), parameters(rng, 3, np.float64)
    running = bn.RunningStatistics.of(rng.standard_normal(3), rng.uniform(0.5, 2, 3))
    scale, shift = bn.fold(running, gamma, beta, eps=1e-3)
    np.testing.assert_allclose(
        scale * x + shift, bn.normalize(x, running, gamma, beta, eps=1e-3), rtol=1e-12, atol=1e-13
    )


def test_bits_do_not_depend_on_threads():
    rng = np.random.default_rng(8)
    x, dy = array(rng, (16, 32, 40, 40), np.float32, "first"), array(rng, (16, 32, 40, 40), np.float32, "first")

    def step():
        y, batch = bn.forward_training(x)
        return y, bn.backward(x, dy, batch).dx

    expected = step()
    for threads in 1, 3:
        bn.set_num_threads(threads)
        assert bn.get_num_threads() == threads
        assert all((a == b).all() for a, b in zip(step(), expected))
    bn.set_num_threads(0)


def test_other_threads_run_during_a_pass():
    x = np.ones((16, 64, 56, 56), np.float32)
    go, ran = threading.Lock(), []
    go.acquire()

    def other():
        go.acquire()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    # No thread gives up Python's lock, unless what it calls releases it.
    sys.setswitchinterval(1000)
    try:
        go.release()
        passes = 0
        while not ran and passes < 100:
            bn.statistics(x)
            passes += 1
        assert ran
    finally:
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_can_call_passes():
    x = np.random.default_rng(9).standard_normal((16, 32, 40, 40)).astype(np.float32)
    expected = bn.forward_training(x)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if (bn.forward_training(x)[0] == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_empty_batches():
    for shape in (0, 3), (0, 3, 4), (2, 0, 4):
        x = np.empty(shape, np.float32)
        y, batch = bn.forward_training(x)
        assert y.shape == shape and batch.count == x.size // max(shape[1], 1) or shape[1] == 0
        assert bn.backward(x, x, batch, dx=True).dx.shape == shape


def test_pytorch_is_not_needed():
    code = """if True:
        import sys
        sys.modules["torch"] = None
        import batchnorm
        from runpy import run_module
        try:
            run_module("batchnorm.bench")
        except SystemExit as error:
            print(error)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "PyTorch is not installed: there is nothing to compare with\n"


def test_examples_of_the_documentation():
    assert doctest.testmod(bn).failed == 0 < doctest.testmod(bn).attempted
    page = (Path(__file__).parents[3] / "docs/python.md").read_text(encoding="utf-8")
    block = re.search("## numpy\n\n```python\n(.*?)```", page, re.DOTALL)[1]
    results = {}
    exec(block, results)
    assert results["gradients"].dbeta.tolist() == [8 * 16 * 16] * 3 and results["y"].shape == (8, 3, 16, 16)


X = np.zeros((4, 3), np.float32)
G = np.ones(3, np.float32)
BATCH = bn.Statistics(4, np.zeros(3), np.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bn.statistics([1.0]), TypeError, "x has the wrong type: expected a numpy array, got list"),
        (
            lambda: bn.statistics(X.astype(int)),
            TypeError,
            "x has the wrong dtype: expected float32, float64 or float16",
        ),
        (lambda: bn.statistics(X.astype(">f4")), TypeError, "x has the wrong dtype.*got >f4"),
        (lambda: bn.statistics(X, axis=2), ValueError, "the channel axis is out of range: expected one of 2 axes"),
        (lambda: bn.statistics(X, axis=-3), ValueError, "the channel axis is out of range: expected one of 2 axes"),
        (lambda: bn.statistics(X[::2]), ValueError, "not dense in memory: expected stride 3 for axis 0, got 6"),
        (lambda: bn.statistics(X[::-1]), ValueError, "which goes backwards"),
        (lambda: bn.forward_training(X, G[:2]), ValueError, "gamma has the wrong length: expected 3 elements, got 2"),
        (lambda: bn.forward_training(X, G.astype(float)), TypeError, "gamma has the wrong dtype: expected float32"),
        (lambda: bn.forward_training(X, None, G[None]), ValueError, "beta has the wrong dims: expected one axis"),
        (
            lambda: bn.forward_training(X, eps=-1),
            ValueError,
            "eps is out of range: expected a finite number >= 0, got -1",
        ),
        (lambda: bn.forward_training(X, activation="tanh"), ValueError, "activation is unknown: .*got 'tanh'"),
        (lambda: bn.forward_training(X, slope=0.1), ValueError, "slope is only for the activation 'leaky_relu'"),
        (
            lambda: bn.forward_training(X, activation="leaky_relu", slope=-1),
            ValueError,
            "slope is out of range: expected a finite number >= 0, got -1",
        ),
        (
            lambda: bn.forward_training(X, residual=X[:2]),
            ValueError,
            "residual has the wrong dims: expected those of x",
        ),
        (
            lambda: bn.forward_training(X, out=X.T.copy().T),
            ValueError,
            "out has the wrong strides: expected those of x",
        ),
        (lambda: bn.forward_training(X, out=X.astype(float)), TypeError, "out has the wrong dtype: expected float32"),
        (lambda: bn.forward_training(X, out=np.broadcast_to(G, (4, 3))), ValueError, "out"),
        (
            lambda: bn.forward_training(X, weights=-np.ones(4, np.float32)),
            ValueError,
            "weight of position 0 is invalid",
        ),
        (lambda: bn.backward(X, X, 3), TypeError, "statistics have the wrong type"),
        (lambda: bn.backward(X, X, BATCH, dx=X), ValueError, "overlaps"),
        (lambda: bn.backward(X, X, BATCH, dgamma=G[:2]), ValueError, "dgamma has the wrong length: expected 3"),
        (lambda: bn.backward(X, X[:2], BATCH), ValueError, "dy has the wrong dims"),
        (lambda: bn.backward(X, X, bn.Statistics.empty(3)), ValueError, "the statistics are empty"),
        (lambda: bn.normalize(X, bn.RunningStatistics(2)), ValueError, "running statistics has the wrong length"),
        (
            lambda: bn.normalize(X, bn.RunningStatistics.of(np.zeros(3), -np.ones(3))),
            ValueError,
            "variance of channel 0 is invalid: expected a number >= 0, got -1",
        ),
        (lambda: bn.Statistics(1, np.zeros(3), np.zeros(2)), ValueError, "var has the wrong length: expected 3"),
        (lambda: bn.Statistics(1, np.zeros(3, int), np.zeros(3)), TypeError, "mean has the wrong dtype"),
        (
            lambda: bn.RunningStatistics(3).update(BATCH, 1.5),
            ValueError,
            "momentum is out of range: expected a number in",
        ),
        (lambda: bn.RunningStatistics(2).update(BATCH), ValueError, "batch has the wrong length: expected 2"),
        (
            lambda: bn.RunningStatistics(3).update(bn.Statistics(1, G.astype(float), G.astype(float))),
            ValueError,
            "too few",
        ),
        (lambda: bn.set_num_threads(-1), ValueError, "threads is out of range: expected a number >= 0, got -1"),
        (lambda: bn.fold(BATCH, G[:1]), ValueError, "gamma has the wrong length: expected 3 elements, got 1"),
    ],
)
def test_errors_say_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_error_leaves_outputs_unchanged():
    out = np.full_like(X, 7)
    for call in (
        lambda: bn.forward_training(X, G[:2], out=out),
        lambda: bn.normalize(X, bn.RunningStatistics.of(np.zeros(3), np.full(3, np.nan)), out=out),
        lambda: bn.backward(X, X, BATCH, G[:2], dx=out),
    ):
        with pytest.raises(ValueError):
            call()
        assert (out == 7).all()


def test_read_only_arrays_are_not_written():
    out = np.zeros_like(X)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        bn.forward_training(X, out=out)
