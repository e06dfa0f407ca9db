//! `dx = (g − mean(g) + (x − mean)·slope)·scale`, where `slope = −inv_std²·mean(g·(x − mean))`.
//!
//! The scale comes last and in two factors, the second a power of two: a subnormal channel with eps = 0 has scales beyond
//! the range of lanes where dx is not.

use super::map::{MAX_COEFS, Map};
use super::normalize::center;
use crate::simd::Vector;

/// Two inputs, g and x. Coefficients: prescale, mean_hi, mean_lo, scale, mean of g, slope, boost.
pub(crate) struct InputGradient;

impl Map for InputGradient {
    const INPUTS: usize = 2;
    const COEFS: usize = 7;
    #[inline(always)]
    fn apply<V: Vector>(coefs: [V; MAX_COEFS], [g, x]: [V; 2]) -> V {
        let [prescale, mean_hi, mean_lo, scale, mean_g, slope, boost] = coefs;
        g.sub(mean_g).add(center(x, prescale, mean_hi, mean_lo).mul(slope)).mul(scale).mul(boost)
    }
}
