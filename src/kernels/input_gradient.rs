//! `dx = (g − mean(g) + (x − mean)·slope)·scale`, where `slope = −inv_std²·mean(g·(x − mean))`.
//!
//! The scale comes last, so that it alone decides whether dx is beyond the range of lanes.

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
        g.sub(mean_g).add(center(x, prescale, mean_hi, mean_lo).mul(slope)).mul(scale)
    }
}
