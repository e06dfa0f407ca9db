"""The textbook formulas in extended precision, and the bounds of docs/numerics.md."""

import numpy as np

# Half an ulp of 1 of the type that lanes compute in, and what rounding to float16 adds.
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-24, np.dtype(np.float64): 2.0**-53}
# For float64 the factors of the bounds are 1e-13·κ instead of a number of units.
FACTOR_F64 = 1e-13


class Oracle:
    """Of an x with its channels along axis 1."""

    def __init__(self, x, gamma, beta, eps, mean=None, var=None):
        self.dtype = x.dtype
        self.axes = (0, *range(2, x.ndim))
        wide = x.astype(np.longdouble)
        self.mean = wide.mean(self.axes, keepdims=True) if mean is None else self.column(mean, x)
        self.var = ((wide - self.mean) ** 2).mean(self.axes, keepdims=True) if var is None else self.column(var, x)
        self.constant = mean is not None
        self.gamma = self.column(np.ones(x.shape[1]) if gamma is None else gamma, x)
        self.beta = self.column(np.zeros(x.shape[1]) if beta is None else beta, x)
        self.inv_std = 1 / np.sqrt(self.var + eps)
        self.xhat = (wide - self.mean) * self.inv_std
        self.y = self.gamma * self.xhat + self.beta
        kappa = np.sqrt(1 + self.mean**2 / (self.var + eps))
        wide_factor = FACTOR_F64 * kappa
        self.factor = (lambda units: wide_factor) if x.dtype == np.float64 else (lambda units: units * 2.0**-24)

    @staticmethod
    def column(values, x):
        return np.asarray(values).astype(np.longdouble).reshape(-1, *[1] * (x.ndim - 2))

    def y_bound(self):
        return self.factor(8) * (abs(self.gamma) * (1 + abs(self.xhat)) + abs(self.beta)) + 2.0**-149

    def gradients(self, g):
        """dx, dgamma and dbeta with their bounds, for the gradient g of gamma·x̂ + beta."""
        g = g.astype(np.longdouble)
        dbeta, dgamma = g.sum(self.axes, keepdims=True), (g * self.xhat).sum(self.axes, keepdims=True)
        m = g.size // g.shape[1]
        of_beta = self.factor(8) * abs(g).sum(self.axes, keepdims=True)
        of_gamma = self.factor(8) * abs(g * self.xhat).sum(self.axes, keepdims=True)
        scale = self.gamma * self.inv_std
        if self.constant:
            dx, terms = scale * g, abs(g)
        else:
            dx = scale * (g - dbeta / m - self.xhat * dgamma / m)
            terms = abs(g) + abs(dbeta / m) + abs(self.xhat * dgamma / m)
        # The errors of the sums appear in dx, as it is made from them.
        of_dx = abs(scale) * (self.factor(16) * terms + (of_beta + abs(self.xhat) * of_gamma) / m) + 2.0**-140
        return (dx, of_dx), (dgamma, of_gamma), (dbeta, of_beta)


def compare(actual, expected, bound, name):
    """Compares with what rounding to float16 adds."""
    expected, bound = np.broadcast_to(expected, np.shape(expected)), np.broadcast_to(bound, np.shape(expected))
    actual = np.asarray(actual)
    if actual.dtype == np.float16:
        bound = bound + np.maximum(2.0**-11 * (abs(expected) + bound), 2.0**-25)
    error = abs(actual.astype(np.longdouble).reshape(expected.shape) - expected)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error - bound)), error.shape)
    assert (error <= bound).all(), (
        f"{name}: {actual.reshape(expected.shape)[worst]} at {worst}, expected {expected[worst]}"
    )
