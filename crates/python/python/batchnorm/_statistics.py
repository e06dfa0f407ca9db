"""What passes learn about a batch, and the averages kept for inference."""

from __future__ import annotations

import numpy as np

from . import _native
from ._arrays import ELEMENTS, check_values, check_writeable, output_values, raw

_FLOATS = np.dtype(np.float64), np.dtype(np.float32)


class Statistics:
    """
    Mean and biased variance of each channel over `count` values: of a batch, or of a part of one, float64 or float32.

    `count` is the sum of the weights if positions have weights. Statistics over no values, with a count of 0, are where
    merging starts.
    """

    def __init__(self, count: float, mean: np.ndarray, var: np.ndarray):
        self.count, self.mean, self.var = count, mean, var
        self._source()

    @classmethod
    def empty(cls, channels: int) -> Statistics:
        """Statistics over no values."""
        return cls(0.0, np.zeros(channels), np.zeros(channels))

    def __repr__(self):
        return f"Statistics(count={self.count!r}, mean={self.mean!r}, var={self.var!r})"

    def merge(self, other: Statistics) -> None:
        """Makes these the statistics of their values and those of `other` together, by Chan's formula, in float64."""
        parts = []
        for statistics in self, other:
            statistics._source()
            parts.append(np.concatenate([[statistics.count], statistics.mean, statistics.var]).astype(np.float64))
        if parts[0].size != parts[1].size:
            raise ValueError(f"other has the wrong length: expected {self.mean.size} elements, got {other.mean.size}")
        rows, merged, channels = np.concatenate(parts), np.empty_like(parts[0]), self.mean.size
        _native.merge_statistics(raw(rows), raw(merged), channels)
        self.count = float(merged[0])
        self.mean, self.var = merged[1 : channels + 1].copy(), merged[channels + 1 :].copy()

    def _source(self):
        """How native functions are given them."""
        check_values("mean", self.mean, *_FLOATS)
        check_values("var", self.var, self.mean.dtype)
        if self.mean.size != self.var.size:
            raise ValueError(f"var has the wrong length: expected {self.mean.size} elements, got {self.var.size}")
        return float(self.count), ELEMENTS[self.mean.dtype], raw(self.mean), raw(self.var)


class RunningStatistics:
    """
    Averages of mean and variance over the batches seen in training, with which inference normalizes, even a single
    example. `mean` and `var` are arrays of float64, or of another dtype of activations, which are updated in place.
    """

    def __init__(self, channels: int, dtype=np.float64):
        self._set(np.zeros(channels, dtype), np.ones(channels, dtype), 0)

    def _set(self, mean, var, batches):
        self.mean, self.var, self.batches = mean, var, batches
        self._source()

    @classmethod
    def of(cls, mean: np.ndarray, var: np.ndarray, batches: int = 0) -> RunningStatistics:
        """Averages kept elsewhere, such as those of a checkpoint. They are used where they are."""
        running = cls.__new__(cls)
        running._set(mean, var, batches)
        return running

    def __repr__(self):
        return f"RunningStatistics(mean={self.mean!r}, var={self.var!r}, batches={self.batches})"

    def update(self, batch: Statistics, momentum: float | None = 0.1, *, biased: bool = False) -> None:
        """
        Updates the averages with a batch: `running = (1 − momentum)·running + momentum·new`. The momentum weighs the
        new value, as PyTorch does, and lies in [0, 1]; None gives the plain average over all batches. Variances are
        averaged unbiased (over M − 1), unless `biased` is true.
        """
        if not isinstance(batch, Statistics):
            raise TypeError(f"batch has the wrong type: expected Statistics, got {type(batch).__name__}")
        self._source()
        check_writeable("running mean", self.mean)
        check_writeable("running var", self.var)
        source = batch._source()
        if batch.mean.size != self.mean.size:
            raise ValueError(f"batch has the wrong length: expected {self.mean.size} elements, got {batch.mean.size}")
        momentum = None if momentum is None else float(momentum)
        self.batches = _native.update_running(
            ELEMENTS[self.mean.dtype],
            raw(self.mean),
            raw(self.var),
            self.batches,
            source,
            momentum,
            bool(biased),
            False,
        )

    def _source(self):
        check_values("running mean", self.mean, *ELEMENTS)
        check_values("running var", self.var, self.mean.dtype)
        if self.mean.size != self.var.size:
            raise ValueError(
                f"running var has the wrong length: expected {self.mean.size} elements, got {self.var.size}"
            )
        return None, ELEMENTS[self.mean.dtype], raw(self.mean), raw(self.var)


class GradientSums:
    """
    Σg and Σg·(x − mean) of each channel, in float64: what the backward pass needs to know about the whole batch. The
    sums of parts of a batch, about the same mean, add up.
    """

    def __init__(self, g: np.ndarray, gx: np.ndarray):
        self.g, self.gx = g, gx
        self._raw()

    def __repr__(self):
        return f"GradientSums(g={self.g!r}, gx={self.gx!r})"

    def merge(self, other: GradientSums) -> None:
        """Makes these the sums over the values of both."""
        self._raw()
        other._raw()
        if other.g.size != self.g.size:
            raise ValueError(f"other has the wrong length: expected {self.g.size} elements, got {other.g.size}")
        self.g, self.gx = self.g + other.g, self.gx + other.gx

    def _raw(self):
        return output_values("g", self.g, np.dtype(np.float64)), output_values("gx", self.gx, np.dtype(np.float64))


def source(statistics):
    """How native functions are given the statistics of a batch, or running ones."""
    if not isinstance(statistics, (Statistics, RunningStatistics)):
        got = type(statistics).__name__
        raise TypeError(f"statistics have the wrong type: expected Statistics or RunningStatistics, got {got}")
    return statistics._source()


def batch(statistics):
    """The same, of a batch only."""
    if not isinstance(statistics, Statistics):
        raise TypeError(f"statistics have the wrong type: expected Statistics, got {type(statistics).__name__}")
    return statistics._source()
