//! `y = (x − mean)·scale + shift`, centred: folding it to `x·s + t` would cancel where |mean| is much larger than std.

use super::map::{MAX_COEFS, Map};
use crate::simd::Vector;

/// One input, x. Coefficients: prescale, mean_hi, mean_lo, scale, shift.
pub(crate) struct Normalize;

impl Map for Normalize {
    const INPUTS: usize = 1;
    const COEFS: usize = 5;
    #[inline(always)]
    fn apply<V: Vector>([prescale, mean_hi, mean_lo, scale, shift, ..]: [V; MAX_COEFS], [x, _]: [V; 2]) -> V {
        center(x, prescale, mean_hi, mean_lo).mul(scale).add(shift)
    }
}

/// `x − mean`, times a power of two, with a mean of twice the precision of a lane.
#[inline(always)]
pub(crate) fn center<V: Vector>(x: V, prescale: V, mean_hi: V, mean_lo: V) -> V {
    x.mul(prescale).sub(mean_hi).sub(mean_lo)
}
