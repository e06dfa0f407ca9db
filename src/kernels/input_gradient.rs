//! `dx = (g − mean(g) + (x − mean)·slope)·scale`, where `slope = −inv_std²·mean(g·(x − mean))` and `g = dy·act'`.
//!
//! The scale comes last and in two factors, the first a power of two, which rounds nothing that matters: a subnormal
//! channel with eps = 0 has scales beyond the range of lanes where dx is not. A weight multiplies what comes through the
//! statistics, on which the position has that much influence.

use super::activation::{gradient, inverse};
use super::map::{MAX_COEFS, Map};
use super::normalize::{self, argument, center};
use super::operands::{Fused, OUTPUT, Operands, existing};
use crate::Activation;
use crate::simd::Vector;

/// How many coefficients this needs: prescale, mean_hi, mean_lo, scale, mean of g, slope, boost.
pub(crate) const COEFS: usize = 7;

/// Two inputs, dy and x. Where anything is fused: dx and g, and the coefficients of the forward pass after its own.
pub(crate) struct InputGradient<const FUSED: bool>;

impl<const FUSED: bool> Map for InputGradient<FUSED> {
    const INPUTS: usize = 2;
    const COEFS: usize = if FUSED { COEFS + normalize::COEFS } else { COEFS };
    const RECOMPUTE_COEFS: usize = if FUSED { normalize::COEFS } else { 0 };
    const FACTORS: &'static [usize] = if FUSED { &[0, 6, 7] } else { &[0, 6] };
    const FUSED: bool = FUSED;
    #[inline(always)]
    fn apply<V: Vector>(coefs: [V; MAX_COEFS], operands: Operands<V>, fused: &Fused) -> [V; 2] {
        let [prescale, mean_hi, mean_lo, scale, mean_g, slope, boost, forward @ ..] = coefs;
        let [dy, x, ..] = operands.inputs;
        if !FUSED {
            return [dy.sub(mean_g).add(center(x, prescale, mean_hi, mean_lo).mul(slope)).mul(boost).mul(scale); 2];
        }
        let (g, x) = upstream(forward, &operands, fused);
        let w = operands.weight;
        let inner = if fused.constant {
            g
        } else {
            let through = center(x, prescale, mean_hi, mean_lo).mul(slope).mul(w);
            g.sub(mean_g.mul(w)).add(through)
        };
        [existing(fused, w, inner.mul(boost).mul(scale)), g]
    }
}

/// The gradient before the activation, and x.
#[inline(always)]
pub(crate) fn upstream<V: Vector>(forward: [V; normalize::COEFS], operands: &Operands<V>, fused: &Fused) -> (V, V) {
    let [dy, x, ..] = operands.inputs;
    let output = operands.inputs[OUTPUT];
    let z = match fused.activation {
        Activation::Identity => x,
        _ if fused.output => output,
        _ => argument(forward, x, operands, fused),
    };
    let g = existing(fused, operands.weight, gradient(fused.activation, z, dy));
    (g, if fused.rebuild { inverse(fused.activation, output) } else { x })
}
