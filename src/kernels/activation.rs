//! Activations in lanes. Which one it is was decided before the loop, so the branches on it are always foreseen: they
//! cost a loop that is bound by memory nothing, and no loop is compiled for each.

use crate::Activation;
use crate::simd::{Real, Vector};

#[inline(always)]
fn splat<V: Vector>(v: f64) -> V {
    V::splat(V::Scalar::from_f64(v))
}

/// act(z)
#[inline(always)]
pub(crate) fn activate<V: Vector>(activation: Activation, z: V) -> V {
    match activation {
        Activation::Identity => z,
        Activation::Relu => z.if_positive(z, splat(0.0)),
        Activation::LeakyRelu(slope) => z.if_positive(z, z.mul(splat(slope))),
        Activation::Silu => z.div(exp(splat::<V>(0.0).sub(z)).add(splat(1.0))),
    }
}

/// dy·act'(z). Where act is piecewise linear z may be anything of the same sign, such as y.
#[inline(always)]
pub(crate) fn gradient<V: Vector>(activation: Activation, z: V, dy: V) -> V {
    match activation {
        Activation::Identity => dy,
        Activation::Relu => z.if_positive(dy, splat(0.0)),
        Activation::LeakyRelu(slope) => z.if_positive(dy, dy.mul(splat(slope))),
        Activation::Silu => {
            let one = splat::<V>(1.0);
            let s = one.div(exp(splat::<V>(0.0).sub(z)).add(one));
            dy.mul(s.mul(z.mul(one.sub(s)).add(one)))
        }
    }
}

/// The z that gave this y; of activations that have an inverse.
#[inline(always)]
pub(crate) fn inverse<V: Vector>(activation: Activation, y: V) -> V {
    match activation {
        Activation::LeakyRelu(slope) => y.if_positive(y, y.div(splat(slope))),
        _ => y,
    }
}

/// e to the power of z, by operations that IEEE 754 fixes: the same bits everywhere.
///
/// `z = n·ln 2 + r` with |r| ≤ ln 2 / 2, exp(r) by its series. The result is within four roundings.
#[inline(always)]
fn exp<V: Vector>(z: V) -> V {
    #[inline(always)]
    fn round<V: Vector>(v: V) -> V {
        let rounder = splat::<V>(V::Scalar::ROUNDER);
        v.add(rounder).sub(rounder)
    }
    let [low, high] = [-V::Scalar::EXP_LIMIT, V::Scalar::EXP_LIMIT].map(splat::<V>);
    // NaN takes the limit, and comes back in what its caller divides by this.
    let z = z.sub(high).if_positive(high, z);
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
    // In two factors: 2^n may be beyond the range of the type, on its way to Inf or 0.
    let half = round(n.mul(splat(0.5)));
    series.mul(half.exp2()).mul(n.sub(half).exp2())
}
