//! Scales of a channel, and how they are cut into factors that lanes can apply.

use crate::simd::Real;

/// `1/sqrt(var + eps)`, and 0 if that divides by 0: a constant channel with eps = 0 has x̂ = 0.
#[inline(always)]
pub(crate) fn inv_std(var: f64, eps: f64) -> f64 {
    let v = var + eps;
    if v == 0.0 { 0.0 } else { 1.0 / v.sqrt() }
}

/// Whether gamma·inv_std fits in an f64 whenever gamma fits in a lane. f32 skips the extra range handling of f64, which
/// small tensors would notice.
#[inline(always)]
fn scale_fits<P: Real>() -> bool {
    P::MAX < f64::MAX
}

/// gamma·inv_std, to find factors of it: 0 only if one of the two is, and subnormal if the smallest factor is wanted.
#[inline(always)]
pub(super) fn size_of_scale<P: Real>(gamma: f64, inv_std: f64) -> f64 {
    let scale = gamma * inv_std;
    let lost = !scale_fits::<P>() & (scale == 0.0) & (gamma != 0.0) & (inv_std != 0.0);
    if lost { f64::from_bits(1) } else { scale }
}

/// gamma·inv_std divided by a factor of it.
#[inline(always)]
pub(super) fn rest_of_scale<P: Real>(factor: f64, gamma: f64, inv_std: f64) -> f64 {
    if scale_fits::<P>() {
        return gamma * inv_std / factor;
    }
    // Beyond the range only if gamma is 0.
    let rest = inv_std / factor;
    gamma * if rest > f64::MAX { f64::MAX } else { rest }
}

/// The power of two at or below a positive normal number, and 0 for subnormal ones.
#[inline(always)]
fn power_of_two(v: f64) -> f64 {
    f64::from_bits(v.to_bits() & f64::INFINITY.to_bits())
}

/// By which factor a prescale may pass the limit of lanes.
const MARGIN: f64 = (1u64 << 26) as f64;

/// A power of two by which x and mean are multiplied, exactly, before they are subtracted, so that lanes neither
/// overflow nor lose bits in a channel of huge or tiny values; 1 for all other channels.
#[inline(always)]
pub(super) fn prescale<P: Real>(mean: f64, var: f64, inv_std: f64, scale: f64) -> f64 {
    let largest = mean.abs().max(var.sqrt());
    let scale = scale.abs();
    let unit = (largest <= P::LIMIT)
        & (inv_std <= P::LIMIT)
        & ((scale == 0.0) | ((scale <= P::LIMIT) & (scale >= 1.0 / P::LIMIT)));
    // Below 1 only if the rest of the scale would leave the range, and by no more than that: bits that x then loses are
    // multiplied by a tiny rest. If above 1, no larger than the scale, or x would overflow although y does not; but
    // just above the scale if gamma is so small that its bound does not cover what a subnormal mean lost: that is
    // then not multiplied.
    let above = if scale * (P::LIMIT * MARGIN) < inv_std { 2.0 } else { 1.0 };
    let factor = power_of_two(scale) * if scale < 1.0 / P::LIMIT { P::LIMIT } else { above };
    let least = if scale >= 1.0 / P::LIMIT { 1.0 } else { 0.0 };
    let wanted = factor.max(least).min(P::LIMIT / power_of_two(largest));
    let wanted = wanted.clamp(1.0 / (P::LIMIT * MARGIN), P::LIMIT * MARGIN);
    if unit { 1.0 } else { wanted }
}

/// The largest power of two below `1/sqrt(v)`, without the root and the division, which small tensors would notice.
#[inline(always)]
fn power_of_two_below_inverse_root(v: f64) -> f64 {
    let exponent = v.to_bits() >> 52 & 0x7ff;
    f64::from_bits((2045 - ((exponent + 1023) >> 1)) << 52)
}

/// The [`prescale`] of the gradients, which multiply deviations by g and by inv_std squared, so that lanes leave their
/// range earlier. Deviations are brought to about x̂, whose products with g are in range, or, if eps far outweighs the
/// variance, to a size at which they do not lose bits.
#[inline(always)]
pub(crate) fn gradient_prescale<P: Real>(mean: f64, var: f64, var_with_eps: f64) -> f64 {
    let (limit, square_limit) = (P::LIMIT * P::LIMIT, P::SQUARE_LIMIT * P::SQUARE_LIMIT);
    let unit = (var == 0.0) | ((var <= square_limit) & (var >= 1.0 / square_limit));
    let wanted = power_of_two_below_inverse_root(var_with_eps.min(limit * var));
    let wanted = wanted.min(P::LIMIT / power_of_two(mean.abs()));
    let wanted = wanted.clamp(1.0 / (P::LIMIT * MARGIN), P::LIMIT * MARGIN);
    if unit { 1.0 } else { wanted }
}

/// An f64 as a lane value, and what its rounding has lost, exactly.
#[inline(always)]
pub(crate) fn split<P: Real>(v: f64) -> (P, f64) {
    let hi = P::from_wide(v);
    (hi, v - hi.to_wide())
}

/// Whether all values are 1.
#[inline(always)]
pub(super) fn all_ones<P: Real>(values: &[P]) -> bool {
    let mut ones = true;
    // To the end, as loops that may end early are not vectorized.
    for v in values {
        ones &= *v == P::from_wide(1.0);
    }
    ones
}
