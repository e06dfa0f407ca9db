//! `y = act((x − mean)·scale + shift + residual)`, centred: folded to `x·s + t` it would cancel if |mean| is much
//! larger than std.

use super::activation::activate;
use super::map::{MAX_COEFS, Map};
use super::operands::{Operands, RESIDUAL, Variant, masked};
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
    type Fused = Normalize<true>;
    #[inline(always)]
    fn apply<V: Vector>(coefs: &[V; MAX_COEFS], x: &Operands<V>, variant: &Variant) -> [V; 2] {
        let coefs = [coefs[0], coefs[1], coefs[2], coefs[3], coefs[4]];
        if !FUSED {
            return [normalize(&coefs, x.inputs[0]); 2];
        }
        let y = activate(variant.activation, argument(&coefs, x.inputs[0], x, variant));
        [masked(variant, x.weight, y); 2]
    }
}

/// `x − mean`, times a power of two, with a mean of twice the precision of a lane.
#[inline(always)]
pub(super) fn center<V: Vector>(x: V, prescale: V, mean_hi: V, mean_lo: V) -> V {
    x.mul(prescale).sub(mean_hi).sub(mean_lo)
}

#[inline(always)]
fn normalize<V: Vector>(&[prescale, mean_hi, mean_lo, scale, shift]: &[V; COEFS], x: V) -> V {
    center(x, prescale, mean_hi, mean_lo).mul(scale).add(shift)
}

/// The argument of the activation.
#[inline(always)]
pub(super) fn argument<V: Vector>(coefs: &[V; COEFS], x: V, operands: &Operands<V>, variant: &Variant) -> V {
    let z = normalize(coefs, x);
    if variant.residual { z.add(operands.inputs[RESIDUAL]) } else { z }
}
