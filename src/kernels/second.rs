//! `(v − mean(v))·k_v + (g − mean(g))·k_g + (x − mean)·k_x + k`: what second derivatives are made of.

use super::map::{MAX_COEFS, Map};
use super::normalize::center;
use super::operands::{Fused, Operands};
use crate::simd::Vector;

/// How many coefficients this needs: prescale, mean_hi, mean_lo, k_x, mean of v, k_v, mean of g, k_g, k.
pub(crate) const COEFS: usize = 9;

/// Three inputs: g, x, v.
pub(crate) struct Second;

impl Map for Second {
    const INPUTS: usize = 3;
    const COEFS: usize = COEFS;
    const FACTORS: &'static [usize] = &[0];
    const FUSED: bool = false;
    #[inline(always)]
    fn apply<V: Vector>(coefs: [V; MAX_COEFS], operands: Operands<V>, _: &Fused) -> [V; 2] {
        let [prescale, mean_hi, mean_lo, k_x, mean_v, k_v, mean_g, k_g, k, ..] = coefs;
        let [g, x, v, ..] = operands.inputs;
        let through = center(x, prescale, mean_hi, mean_lo).mul(k_x);
        [v.sub(mean_v).mul(k_v).add(g.sub(mean_g).mul(k_g)).add(through).add(k); 2]
    }
}
