//! `dx = (g − mean(g) + (x − mean)·slope)·scale`, with `slope = −inv_std²·mean(g·(x − mean))` and `g = dy·act'`. In lanes
//! it is `(g + ((x − mean_hi)·slope + constant))·scale`: all that does not depend on the element is one constant.
//!
//! The scale comes last and in two factors, the first a power of two, which rounds nothing that matters: a subnormal
//! channel with eps = 0 has scales beyond the range of lanes although dx is within it. A weight multiplies what flows
//! through the statistics, on which the position has that much influence.

use super::activation::{gradient, inverse};
use super::double_backward::double_backward;
use super::map::{MAX_COEFS, Map};
use super::normalize::{self, argument, center};
use super::operands::{Any, Kind, OUTPUT, Operands, Variant, masked, scaled_weight};
use crate::activation::Activation;
use crate::simd::Vector;
use std::marker::PhantomData;

/// How many coefficients this needs: mean_hi, scale, slope, constant, prescale, boost. Only kernels of any variant need
/// the last two.
pub(crate) const COEFS: usize = 6;

/// Two inputs, dy and x; two outputs, dx and g. If the argument of the activation is computed again, the coefficients of
/// the forward pass come after its own.
pub(crate) struct InputGradient<K>(PhantomData<K>);

impl<K: Kind> Map for InputGradient<K> {
    type Kind = K;
    type Any = InputGradient<Any>;
    const INPUTS: usize = 2;
    const COEFS: usize = if K::ANY || K::RELU { COEFS + normalize::COEFS } else { COEFS - 2 };
    const RECOMPUTE_COEFS: usize = if K::ANY { normalize::COEFS } else { 0 };
    const FACTORS: &'static [usize] = &[4, 5, 9];
    #[inline(always)]
    fn apply<V: Vector>(coefs: &[V; MAX_COEFS], operands: &Operands<V>, variant: &Variant) -> [V; 2] {
        let [mean_hi, scale, slope, constant, prescale, boost, forward @ ..] = *coefs;
        if !K::ANY {
            let d = operands.inputs[1].sub(mean_hi);
            let g = before_relu::<V, K>(&forward, d, operands);
            return [g.add(d.mul(slope).add(constant)).mul(scale), g];
        }
        if variant.double_backward {
            return [double_backward(coefs, operands); 2];
        }
        let (g, x) = upstream(&forward, operands, variant);
        let w = operands.weight;
        let inner = if variant.constant {
            g
        } else {
            let through = center(x, prescale, mean_hi).mul(slope).add(constant);
            g.add(through.mul(scaled_weight(variant, w)))
        };
        [masked(variant, w, inner.mul(boost).mul(scale)), g]
    }
}

/// The gradient before ReLU, if there is one, from `d = x − mean_hi`, which is the same forward and backward if no
/// factors are applied.
#[inline(always)]
pub(super) fn before_relu<V: Vector, K: Kind>(forward: &[V; normalize::COEFS], d: V, operands: &Operands<V>) -> V {
    let [_, scale, shift, _] = *forward;
    let dy = operands.inputs[0];
    if K::MASK {
        gradient(Activation::Relu, operands.inputs[OUTPUT], dy)
    } else if K::RELU {
        gradient(Activation::Relu, d.mul(scale).add(shift), dy)
    } else {
        dy
    }
}

/// The gradient before the activation, and x.
#[inline(always)]
pub(super) fn upstream<V: Vector>(
    forward: &[V; normalize::COEFS],
    operands: &Operands<V>,
    variant: &Variant,
) -> (V, V) {
    let [dy, x, ..] = operands.inputs;
    let output = operands.inputs[OUTPUT];
    let z = match variant.activation {
        Activation::Identity => x,
        _ if variant.output => output,
        _ => argument(forward, x, operands, variant),
    };
    let g = masked(variant, operands.weight, gradient(variant.activation, z, dy));
    (g, if variant.rebuild { inverse(variant.activation, output) } else { x })
}
