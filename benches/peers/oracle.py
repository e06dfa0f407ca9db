"""What the passes compute, in f64, with error bounds in units of u. Arrays are [image, channel, pixel]."""

import numpy as np

EPS = 1e-5

# What the crate promises, as in docs/numerics.md, except that more is allowed of the statistics: of y, of the sums
# dbeta and dgamma, and of dx with given statistics and sums; of the mean, times std, and of the variance.
Y, SUMS, DX = 12, 8, 16
MEAN, VAR = 6, 12


def forward(x, gamma, beta, given=None, residual=0.0):
    """The argument of the activation, and its bound; ReLU adds nothing to it. `given` is mean and variance."""
    mean, var = given or statistics(x)
    normal = (x - mean) / np.sqrt(var + EPS)
    z = normal * gamma + beta + residual
    rounding = abs(z) if np.ndim(residual) else 0
    return z, Y * (abs(gamma) * (1 + abs(normal)) + abs(beta)) + rounding


def backward(x, dy, gamma):
    """dx, dgamma and dbeta, each with its bound."""
    mean, var = statistics(x)
    inv_std = 1 / np.sqrt(var + EPS)
    normal = (x - mean) * inv_std
    m = x.shape[0] * x.shape[2]
    dbeta, dgamma = dy.sum((0, 2), keepdims=True), (dy * normal).sum((0, 2), keepdims=True)
    # An error of the variance is half that error of inv_std. Errors of the sums carry over to dx.
    std = VAR / 2
    dbeta_bound = SUMS * abs(dy).sum((0, 2), keepdims=True)
    dgamma_bound = SUMS * abs(dy * normal).sum((0, 2), keepdims=True) + MEAN * abs(dbeta) + std * abs(dgamma)
    through_std = normal * dgamma / m
    parts = DX * (abs(dy) + abs(dbeta) / m + abs(through_std))
    added = std * (abs(dy - dbeta / m) + 2 * abs(through_std)) + MEAN * abs(dgamma) / m
    sums = (dbeta_bound + abs(normal) * dgamma_bound) / m
    return {
        "dx": (gamma * inv_std * (dy - dbeta / m - through_std), abs(gamma) * inv_std * (parts + added + sums)),
        "dgamma": (dgamma.ravel(), dgamma_bound.ravel()),
        "dbeta": (dbeta.ravel(), dbeta_bound.ravel()),
    }


def statistics(x):
    mean = x.mean((0, 2), keepdims=True)
    return mean, ((x - mean) ** 2).mean((0, 2), keepdims=True)


def unit(who, m):
    """
    The u of the bounds, as a relative error. This crate must keep the bounds that it promises. The peers add M values
    in f32, whose roundings, as a random walk, may add up to sqrt(M) times these bounds.
    """
    return 2.0**-24 * (1 if who.startswith("ours") else np.sqrt(m))


def compare(what, got, value, bound, unit):
    if not np.isfinite(got).all():
        raise SystemExit(f"{what}: elements are not finite, or were not written")
    error = abs(got - value)
    wrong = error > unit * bound
    if wrong.any():
        index = np.argmax(wrong)
        raise SystemExit(f"{what}: off by {error.flat[index]:.3g}, where {(unit * bound).flat[index]:.3g} is allowed")
