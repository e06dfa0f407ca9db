//! The weights of positions, and the blocks of a reduction that has them.

use super::merge::power_of_two_near_inverse;
use crate::simd::Real;
use std::ops::Range;
use std::ptr::null;

/// The weights of positions, counted from where they start.
///
/// Only their ratios matter. They are multiplied by a power of two that brings the heaviest one to between 1 and 2, so
/// that neither they nor their sums leave the range of lanes, and means of gradients are no larger than with a weight of
/// 1 for each; sums of weights, here and in kernels, are in that unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<P> {
    /// Null if all are 1.
    pub(crate) values: *const P,
    pub(crate) scale: f64,
}

/// Bounds of the scale: within them it is an ordinary value of lanes, and brings the largest and the smallest weight
/// near enough to 1.
fn scale_bounds<P: Real>() -> [f64; 2] {
    let bound =
        if P::MAX < f64::MAX { f64::from_bits((1023 + 120) << 52) } else { f64::from_bits((1023 + 1000) << 52) };
    [1.0 / bound, bound]
}

impl<P> Weights<P> {
    pub(crate) const NONE: Self = Self { values: null(), scale: 1.0 };
}

impl<P: Real> Weights<P> {
    pub(crate) fn new(weights: &[P]) -> Self {
        let heaviest = weights.iter().map(|w| w.to_wide()).fold(0.0, f64::max);
        let [least, most] = scale_bounds::<P>();
        let scale = if heaviest > 0.0 { (2.0 * power_of_two_near_inverse(heaviest)).clamp(least, most) } else { 1.0 };
        Self { values: weights.as_ptr(), scale }
    }

    /// From a position on.
    #[inline(always)]
    pub(super) fn from(self, position: usize) -> Self {
        Self { values: if self.values.is_null() { self.values } else { self.values.wrapping_add(position) }, ..self }
    }

    /// Their sum, in a fixed order: what the count of values is if there are none.
    ///
    /// # Safety
    /// The weights can be read.
    #[inline(always)]
    pub(crate) unsafe fn sum(self, positions: Range<usize>) -> f64 {
        if self.values.is_null() {
            return positions.len() as f64;
        }
        // SAFETY: the caller's promise.
        let weights = unsafe { std::slice::from_raw_parts(self.values.add(positions.start), positions.len()) };
        // Many sums at once, or the additions would wait for each other.
        let mut sums = [0.0; 8];
        for weights in weights.chunks(8) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight.to_wide() * self.scale;
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
        for p in positions.filter(|_| !self.values.is_null()) {
            // SAFETY: the caller's promise.
            let weight = unsafe { (*self.values.add(p)).to_wide() } * self.scale;
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
