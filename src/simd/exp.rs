//! The exponential function in lanes.

use super::real::Real;
use super::vector::Vector;

#[inline(always)]
fn splat<V: Vector>(v: f64) -> V {
    V::splat(V::Scalar::from_wide(v))
}

/// e to the power of z, which is not positive, by operations that IEEE 754 fixes: the same bits everywhere.
///
/// `z = n·ln 2 + r` with |r| ≤ ln 2 / 2, exp(r) by its series. The result is within four roundings.
#[inline(always)]
pub(super) fn exp<V: Vector>(z: V) -> V {
    #[inline(always)]
    fn round<V: Vector>(v: V) -> V {
        let rounder = splat::<V>(V::Scalar::ROUNDER);
        v.add(rounder).sub(rounder)
    }
    // NaN goes through.
    let low = splat::<V>(V::Scalar::EXP_LIMIT);
    let z = z.sub(low).if_positive(z, low);
    let n = round(z.mul(splat(std::f64::consts::LOG2_E)));
    let [ln_2_hi, ln_2_lo] = V::Scalar::LN_2;
    let r = z.sub(n.mul(splat(ln_2_hi))).sub(n.mul(splat(ln_2_lo)));
    let mut factorials = [1.0f64; 16];
    for k in 1..=V::Scalar::EXP_DEGREE {
        factorials[k] = factorials[k - 1] * k as f64;
    }
    let mut series = splat::<V>(1.0 / factorials[V::Scalar::EXP_DEGREE]);
    for k in (0..V::Scalar::EXP_DEGREE).rev() {
        series = series.mul(r).add(splat(1.0 / factorials[k]));
    }
    // In two factors: 2^n may be beyond the range of normal numbers, on its way to 0.
    let half = round(n.mul(splat(0.5)));
    series.mul(half.exp2()).mul(n.sub(half).exp2())
}
