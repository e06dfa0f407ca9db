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
use super::operands::{OUTPUT, Operands, Variant, masked, scaled_weight};
use crate::activation::Activation;
use crate::simd::Vector;

/// How many coefficients this needs: mean_hi, scale, slope, constant, prescale, boost. The plain pass does without the
/// last two.
pub(crate) const COEFS: usize = 6;

/// Two inputs, dy and x. If anything is fused: dx and g, and the coefficients of the forward pass after its own.
pub(crate) struct InputGradient<const FUSED: bool>;

impl<const FUSED: bool> Map for InputGradient<FUSED> {
    const INPUTS: usize = 2;
    const COEFS: usize = if FUSED { COEFS + normalize::COEFS } else { COEFS - 2 };
    const RECOMPUTE_COEFS: usize = if FUSED { normalize::COEFS } else { 0 };
    const FACTORS: &'static [usize] = &[4, 5, 9];
    const FUSED: bool = FUSED;
    type Fused = InputGradient<true>;
    #[inline(always)]
    fn apply<V: Vector>(coefs: &[V; MAX_COEFS], operands: &Operands<V>, variant: &Variant) -> [V; 2] {
        let [mean_hi, scale, slope, constant, prescale, boost, forward @ ..] = *coefs;
        let [dy, x, ..] = operands.inputs;
        if !FUSED {
            return [dy.add(x.sub(mean_hi).mul(slope).add(constant)).mul(scale); 2];
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
