//! Partial results of the segments of a batch, and how they are merged.

use super::merge::{AllMoments, Merge, Moments};
use crate::parallel::Shared;
use crate::simd::{Kernel, Simd};
use std::mem::take;
use std::ops::Range;

/// Partial results of the segments, K arrays each, merged in a tree that follows from the number of segments alone:
/// neighbours, then neighbouring pairs, and so on.
pub(crate) struct Partials<'a, const K: usize> {
    slots: Shared<f64>,
    stride: usize,
    columns: Range<usize>,
    counts: &'a [f64],
    parts: usize,
    rest: f64,
}

/// The arrays of the slot of a segment, of which each has `stride` values.
pub(crate) fn slot<const K: usize>(slots: Shared<f64>, segment: usize, stride: usize) -> [*mut f64; K] {
    std::array::from_fn(|k| slots.ptr().wrapping_add((K * segment + k) * stride))
}

impl<'a, const K: usize> Partials<'a, K> {
    /// Some columns of the slots. `counts` are the values of a column in each segment, or their weight.
    ///
    /// A column is a channel, or one of `parts` of it, a power of two, which then are all there: first a column of each
    /// channel, then the next of each. The slot after the last segment has the channels of `rest` values more, if that
    /// is not 0.
    ///
    /// # Safety
    /// There is a slot for each count, and for the rest, with these columns, and nothing else uses them during `'a`.
    pub(crate) unsafe fn new(
        slots: Shared<f64>,
        stride: usize,
        columns: Range<usize>,
        counts: &'a [f64],
        parts: usize,
        rest: f64,
    ) -> Self {
        Self { slots, stride, columns, counts, parts, rest }
    }

    /// The values of a channel, or their weight.
    #[inline(always)]
    fn count(&self) -> f64 {
        self.counts.iter().sum::<f64>() * self.parts as f64 + self.rest
    }

    #[inline(always)]
    fn slot(&self, segment: usize) -> [&'a mut [f64]; K] {
        let Range { start, end } = self.columns;
        std::array::from_fn(|k| {
            let at = (K * segment + k) * self.stride;
            // SAFETY: whoever made this promised that nothing else uses these channels; arrays are a stride apart.
            unsafe { self.slots.slice(at + start..at + end) }
        })
    }

    /// Merges all slots into the first, and the parts of channels into the first ones, and returns the channels.
    #[inline(always)]
    pub(super) fn fold<M: Merge<K>>(self) -> [&'a mut [f64]; K] {
        let slots = self.counts.len();
        let count = |first: usize, n: usize| self.counts[first..(first + n).min(slots)].iter().sum();
        let mut step = 1;
        while step < slots {
            for i in (0..slots - step).step_by(2 * step) {
                let (mut a, b) = (self.slot(i), self.slot(i + step));
                M::merge(count(i, step), &mut a, count(i + step, step), &b);
            }
            step *= 2;
        }
        let (mut all, mut parts) = (self.slot(0), self.parts);
        let mut count: f64 = self.counts.iter().sum();
        while parts > 1 {
            let middle = all[0].len() / 2;
            let mut others: [&mut [f64]; K] = std::array::from_fn(|_| Default::default());
            for (array, other) in all.iter_mut().zip(&mut others) {
                (*array, *other) = take(array).split_at_mut(middle);
            }
            M::merge(count, &mut all, count, &others);
            count *= 2.0;
            parts /= 2;
        }
        if self.rest > 0.0 {
            M::merge(count, &mut all, self.rest, &self.slot(slots));
        }
        all
    }
}

/// Partial moments, to mean and biased variance.
pub(crate) struct MomentsOfAll<'a> {
    pub(crate) partials: Partials<'a, 3>,
    pub(crate) mean: &'a mut [f64],
    pub(crate) var: &'a mut [f64],
}

impl Kernel for MomentsOfAll<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // Weights that are all 0 leave no values, and sums are then 0.
        let count = self.partials.count().max(f64::MIN_POSITIVE);
        let [pivot, s, q] = self.partials.fold::<AllMoments>();
        let inverse = 1.0 / count;
        for ((((mean, var), &mut pivot), &mut s), &mut q) in self.mean.iter_mut().zip(self.var).zip(pivot).zip(s).zip(q)
        {
            [*mean, *var] = Moments { pivot, s, q }.mean_and_var(count, inverse);
        }
    }
}
