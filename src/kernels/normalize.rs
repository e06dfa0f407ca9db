//! `y = act((x − mean)·scale + shift + residual)`, centred: folding it to `x·s + t` would cancel where |mean| is much
//! larger than std.

use super::activation::activate;
use super::map::{MAX_COEFS, Map};
use super::operands::{Fused, Operands, RESIDUAL, existing};
use crate::simd::Vector;

/// How many coefficients this needs: prescale, mean_hi, mean_lo, scale, shift.
pub(crate) const COEFS: usize = 5;

/// One input, x.
pub(crate) struct Normalize<const FUSED: bool>;

impl<const FUSED: bool> Map for Normalize<FUSED> {
    const INPUTS: usize = 1;
    const COEFS: usize = COEFS;
    const FACTORS: &'static [usize] = &[0];
    const FUSED: bool = FUSED;
    #[inline(always)]
    fn apply<V: Vector>(coefs: [V; MAX_COEFS], x: Operands<V>, fused: &Fused) -> [V; 2] {
        let [prescale, mean_hi, mean_lo, scale, shift, ..] = coefs;
        let coefs = [prescale, mean_hi, mean_lo, scale, shift];
        if !FUSED {
            return [normalize(coefs, x.inputs[0]); 2];
        }
        let y = activate(fused.activation, argument(coefs, x.inputs[0], &x, fused));
        [existing(fused, x.weight, y); 2]
    }
}

/// `x − mean`, times a power of two, with a mean of twice the precision of a lane.
#[inline(always)]
pub(crate) fn center<V: Vector>(x: V, prescale: V, mean_hi: V, mean_lo: V) -> V {
    x.mul(prescale).sub(mean_hi).sub(mean_lo)
}

#[inline(always)]
fn normalize<V: Vector>([prescale, mean_hi, mean_lo, scale, shift]: [V; COEFS], x: V) -> V {
    center(x, prescale, mean_hi, mean_lo).mul(scale).add(shift)
}

/// What the activation is applied to.
#[inline(always)]
pub(crate) fn argument<V: Vector>(coefs: [V; COEFS], x: V, operands: &Operands<V>, fused: &Fused) -> V {
    let z = normalize(coefs, x);
    if fused.residual { z.add(operands.inputs[RESIDUAL]) } else { z }
}
