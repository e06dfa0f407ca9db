//! The weights of positions, and the blocks of a reduction that has them.

use crate::simd::Real;
use std::ops::Range;

/// The weights of positions, counted from where they start; null if all are 1.
#[derive(Clone, Copy)]
pub(crate) struct Weights<P>(pub(crate) *const P);

impl<P: Real> Weights<P> {
    /// Their sum, in a fixed order: what the count of values is if there are none.
    ///
    /// # Safety
    /// The weights can be read.
    #[inline(always)]
    pub(crate) unsafe fn sum(self, positions: Range<usize>) -> f64 {
        if self.0.is_null() {
            return positions.len() as f64;
        }
        // SAFETY: the caller's promise.
        let weights = unsafe { std::slice::from_raw_parts(self.0.add(positions.start), positions.len()) };
        // Many sums at once, or the additions would wait for each other.
        let mut sums = [0.0; 8];
        for weights in weights.chunks(8) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight.to_f64();
            }
        }
        sums.iter().sum()
    }

    /// The first of the heaviest of some positions, if it weighs more than `than`; none if there are no weights.
    ///
    /// # Safety
    /// The weights can be read.
    #[inline(always)]
    pub(crate) unsafe fn heaviest(self, positions: Range<usize>, than: f64) -> Option<usize> {
        let mut heaviest = (None, than);
        for p in positions.filter(|_| !self.0.is_null()) {
            // SAFETY: the caller's promise.
            let weight = unsafe { (*self.0.add(p)).to_f64() };
            if weight > heaviest.1 {
                heaviest = (Some(p), weight);
            }
        }
        heaviest.0
    }
}

/// A block of weighted positions, which all channels of a tile share.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) weight: f64,
    /// The position whose value is the pivot, if that is not the mean of the blocks before.
    pub(super) pivot: Option<usize>,
}

impl Block {
    pub(super) const EMPTY: Self = Self { weight: 0.0, pivot: None };
    /// The most blocks of a reduction, as each is as long as all before it.
    pub(super) const MOST: usize = usize::BITS as usize;
}
