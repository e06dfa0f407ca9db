//! `(v − mean(v))·k_v + (g − mean(g))·k_g + (x − mean)·k_x + k`, of which second derivatives are made. v is the
//! cotangent of dx. A variant of the [`input gradient`](super::input_gradient): it is needed too rarely for a walk of
//! its own.

use super::map::MAX_COEFS;
use super::normalize::center;
use super::operands::{COTANGENT, Operands};
use crate::simd::Vector;

/// How many coefficients this needs: mean_hi, k_x, mean of v, k_v, prescale, 1, mean of g, k_g, k, 1. The two 1 stand
/// where the input gradient has factors.
pub(crate) const COEFS: usize = 10;

#[inline(always)]
pub(super) fn double_backward<V: Vector>(coefs: &[V; MAX_COEFS], operands: &Operands<V>) -> V {
    let [mean_hi, k_x, mean_v, k_v, prescale, _, mean_g, k_g, k, _] = *coefs;
    let [g, x, ..] = operands.inputs;
    let through = center(x, prescale, mean_hi).mul(k_x);
    operands.inputs[COTANGENT].sub(mean_v).mul(k_v).add(g.sub(mean_g).mul(k_g)).add(through).add(k)
}
