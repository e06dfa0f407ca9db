//! `dx = (g − mean(g) + (x − mean)·slope)·scale`, with `slope = −inv_std²·mean(g·(x − mean))` and `g = dy·act'`.
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

/// How many coefficients this needs: prescale, mean_hi, mean_lo, scale, mean of g, slope, boost.
pub(crate) const COEFS: usize = 7;

/// Two inputs, dy and x. If anything is fused: dx and g, and the coefficients of the forward pass after its own.
pub(crate) struct InputGradient<const FUSED: bool>;

impl<const FUSED: bool> Map for InputGradient<FUSED> {
    const INPUTS: usize = 2;
    const COEFS: usize = if FUSED { COEFS + normalize::COEFS } else { COEFS };
    const RECOMPUTE_COEFS: usize = if FUSED { normalize::COEFS } else { 0 };
    const FACTORS: &'static [usize] = if FUSED { &[0, 6, 7] } else { &[0, 6] };
    const FUSED: bool = FUSED;
    type Fused = InputGradient<true>;
    #[inline(always)]
    fn apply<V: Vector>(coefs: &[V; MAX_COEFS], operands: &Operands<V>, variant: &Variant) -> [V; 2] {
        let [prescale, mean_hi, mean_lo, scale, mean_g, slope, boost, forward @ ..] = *coefs;
        let [dy, x, ..] = operands.inputs;
        if !FUSED {
            return [dy.sub(mean_g).add(center(x, prescale, mean_hi, mean_lo).mul(slope)).mul(boost).mul(scale); 2];
        }
        if variant.double_backward {
            return [double_backward(coefs, operands); 2];
        }
        let (g, x) = upstream(&forward, operands, variant);
        let w = operands.weight;
        let inner = if variant.constant {
            g
        } else {
            let share = scaled_weight(variant, w);
            let through = center(x, prescale, mean_hi, mean_lo).mul(slope).mul(share);
            g.sub(mean_g.mul(share)).add(through)
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
