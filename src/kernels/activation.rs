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
        Activation::Silu => z.div(splat::<V>(0.0).sub(z).exp().add(splat(1.0))),
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
            let s = one.div(splat::<V>(0.0).sub(z).exp().add(one));
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
