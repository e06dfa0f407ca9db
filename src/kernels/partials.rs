//! Partial results of the segments of a batch, and how they are merged.

use super::merge::{MeansAndM2, Merge};
use crate::parallel::Shared;
use crate::simd::{Kernel, Simd};
use std::ops::Range;

/// Partial results of the segments, two arrays each, merged in a tree that follows from the number of segments alone:
/// neighbours, then neighbouring pairs, and so on.
pub(crate) struct Partials<'a> {
    slots: Shared<f64>,
    stride: usize,
    channels: Range<usize>,
    counts: &'a [f64],
}

/// The two arrays of the slot of a segment, of which each has `stride` values.
pub(crate) fn slot(slots: Shared<f64>, segment: usize, stride: usize) -> [*mut f64; 2] {
    let first = slots.ptr().wrapping_add(2 * segment * stride);
    [first, first.wrapping_add(stride)]
}

impl<'a> Partials<'a> {
    /// Some channels of the slots. `counts` are the values of a channel in each segment, or their weight.
    ///
    /// # Safety
    /// There is a slot for each count, with these channels, and nothing else uses them during `'a`.
    pub(crate) unsafe fn new(slots: Shared<f64>, stride: usize, channels: Range<usize>, counts: &'a [f64]) -> Self {
        Self { slots, stride, channels, counts }
    }

    #[inline(always)]
    fn slot(&self, segment: usize) -> [&'a mut [f64]; 2] {
        let Range { start, end } = self.channels;
        let at = 2 * segment * self.stride;
        // SAFETY: whoever made this promised that nothing else uses these channels; the two arrays are a stride apart.
        unsafe {
            [self.slots.slice(at + start..at + end), self.slots.slice(at + self.stride + start..at + self.stride + end)]
        }
    }

    /// Merges all slots into the first and returns it.
    #[inline(always)]
    pub(super) fn fold<M: Merge>(self) -> [&'a mut [f64]; 2] {
        let slots = self.counts.len();
        let count = |first: usize, n: usize| self.counts[first..(first + n).min(slots)].iter().sum();
        let mut step = 1;
        while step < slots {
            for i in (0..slots - step).step_by(2 * step) {
                let (a, b) = (self.slot(i), self.slot(i + step));
                M::merge(count(i, step), a, count(i + step, step), [&*b[0], &*b[1]]);
            }
            step *= 2;
        }
        self.slot(0)
    }
}

/// Partial moments, to mean and biased variance.
pub(crate) struct MomentsOfAll<'a> {
    pub(crate) partials: Partials<'a>,
    pub(crate) mean: &'a mut [f64],
    pub(crate) var: &'a mut [f64],
}

impl Kernel for MomentsOfAll<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // Weights that are all 0 leave no values, and M2 is then 0.
        let count = self.partials.counts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let [mean, m2] = self.partials.fold::<MeansAndM2>();
        self.mean.copy_from_slice(mean);
        for (var, m2) in self.var.iter_mut().zip(m2) {
            *var = *m2 / count;
        }
    }
}
