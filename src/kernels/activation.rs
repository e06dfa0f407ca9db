//! Activations in lanes. The activation is chosen before the loop, so the branches on it are always predicted: they
//! cost nothing in a loop that is bound by memory, and no loop is compiled for each.

use crate::activation::Activation;
use crate::simd::{Real, Vector};

#[inline(always)]
fn splat<V: Vector>(v: f64) -> V {
    V::splat(V::Scalar::from_wide(v))
}

/// act(z)
#[inline(always)]
pub(crate) fn activate<V: Vector>(activation: Activation, z: V) -> V {
    match activation {
        Activation::Identity => z,
        Activation::Relu => z.if_positive(z, splat(0.0)),
        Activation::LeakyRelu(slope) => z.if_positive(z, z.mul(splat(slope))),
        Activation::Silu => z.mul(logistic(z)[0]),
    }
}

/// dy·act'(z). If act is piecewise linear, z may be anything of the same sign, such as y.
#[inline(always)]
pub(crate) fn gradient<V: Vector>(activation: Activation, z: V, dy: V) -> V {
    match activation {
        Activation::Identity => dy,
        Activation::Relu => z.if_positive(dy, splat(0.0)),
        Activation::LeakyRelu(slope) => z.if_positive(dy, dy.mul(splat(slope))),
        Activation::Silu => {
            let [s, rest] = logistic(z);
            dy.mul(s.mul(z.mul(rest).add(splat(1.0))))
        }
    }
}

/// The z that gave this y, for activations that have an inverse.
#[inline(always)]
pub(crate) fn inverse<V: Vector>(activation: Activation, y: V) -> V {
    match activation {
        Activation::LeakyRelu(slope) => y.if_positive(y, y.div(splat(slope))),
        _ => y,
    }
}

/// `1 / (1 + exp(−z))` and 1 minus it: both from exp(−|z|), which does not overflow, and without a difference, which
/// would cancel.
#[inline(always)]
fn logistic<V: Vector>(z: V) -> [V; 2] {
    let one = splat::<V>(1.0);
    let e = z.if_positive(splat::<V>(0.0).sub(z), z).exp();
    let sum = one.add(e);
    [z.if_positive(one, e).div(sum), z.if_positive(e, one).div(sum)]
}
