//! `dx = (g − mean(g))·scale + (x − mean)·slope`, where `slope = −scale·inv_std²·mean(g·(x − mean))`.

use super::map::{MAX_COEFS, Map};
use super::normalize::center;
use crate::simd::Vector;

/// Two inputs, g and x. Coefficients: prescale, mean_hi, mean_lo, scale, mean of g, slope.
pub(crate) struct InputGradient;

impl Map for InputGradient {
    const INPUTS: usize = 2;
    const COEFS: usize = 6;
    #[inline(always)]
    fn apply<V: Vector>([prescale, mean_hi, mean_lo, scale, mean_g, slope]: [V; MAX_COEFS], [g, x]: [V; 2]) -> V {
        g.sub(mean_g).mul(scale).add(center(x, prescale, mean_hi, mean_lo).mul(slope))
    }
}
