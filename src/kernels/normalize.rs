//! `y = act((x − mean)·scale + shift + residual)`, centred: folded to `x·s + t` it would cancel if |mean| is much
//! larger than std. What a mean rounded to a lane has lost, times the scale, is part of the shift.

use super::activation::activate;
use super::map::{MAX_COEFS, Map};
use super::operands::{Any, Kind, Operands, RESIDUAL, Variant, masked};
use crate::activation::Activation;
use crate::simd::Vector;
use std::marker::PhantomData;

/// How many coefficients this needs: mean_hi, scale, shift, prescale. Only kernels of any variant need the last.
pub(crate) const COEFS: usize = 4;

/// One input, x.
pub(crate) struct Normalize<K>(PhantomData<K>);

impl<K: Kind> Map for Normalize<K> {
    type Kind = K;
    type Any = Normalize<Any>;
    const INPUTS: usize = 1;
    const COEFS: usize = if K::ANY { COEFS } else { COEFS - 1 };
    const FACTORS: &'static [usize] = &[3];
    #[inline(always)]
    fn apply<V: Vector>(coefs: &[V; MAX_COEFS], x: &Operands<V>, variant: &Variant) -> [V; 2] {
        let coefs = [coefs[0], coefs[1], coefs[2], coefs[3]];
        if !K::ANY {
            let [mean_hi, scale, shift, _] = coefs;
            let z = x.inputs[0].sub(mean_hi).mul(scale).add(shift);
            if !K::RELU {
                return [z; 2];
            }
            let z = if variant.residual { z.add(x.inputs[RESIDUAL]) } else { z };
            return [activate(Activation::Relu, z); 2];
        }
        let y = activate(variant.activation, argument(&coefs, x.inputs[0], x, variant));
        [masked(variant, x.weight, y); 2]
    }
}

/// `x − mean_hi`, times a power of two.
#[inline(always)]
pub(super) fn center<V: Vector>(x: V, prescale: V, mean_hi: V) -> V {
    x.mul(prescale).sub(mean_hi)
}

/// The argument of the activation.
#[inline(always)]
pub(super) fn argument<V: Vector>(coefs: &[V; COEFS], x: V, operands: &Operands<V>, variant: &Variant) -> V {
    let [mean_hi, scale, shift, prescale] = *coefs;
    let z = center(x, prescale, mean_hi).mul(scale).add(shift);
    if variant.residual { z.add(operands.inputs[RESIDUAL]) } else { z }
}
