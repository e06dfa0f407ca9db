//! What the fuzz targets share: how bytes become a [`Case`], where its passes run, and what results are held against.
//!
//! Every target runs a case once on [`Isa::Portable`], sequentially, and compares that with [`batchnorm::reference`]
//! by the bounds of [`Channel`]. All other ways to run it must then give the same bits.

mod bounds;
mod case;
mod fused;
mod place;

pub use bounds::{Channel, channels, within};
pub use case::{Case, Data, Dims, Value, widen};
pub use fused::{Fusing, Number, Problem, Step, Type};
pub use place::{Buffer, Place, Runner, baseline};

use batchnorm::{Element, Isa};
use std::fmt::Debug;

/// An element type, and what comparing it with f64 needs to know of it.
pub trait Float: Element<Param = Self> + PartialEq + Debug {
    /// Half an ulp at 1.
    const U: f64;
    /// The largest finite value and the smallest normal one.
    const MAX: f64;
    const MIN_NORMAL: f64;
    /// By how much, over 1/std, deviations may be multiplied in lanes.
    const LIMIT: f64;
    /// The smallest of two factors that a scale is applied as; the other may be subnormal.
    const LEAST_FACTOR: f64 = 1.0 / (Self::LIMIT * (1u32 << 26) as f64);
    /// What y must stay in where x is rebuilt from it.
    const INVERTIBLE: [f64; 2];
    /// What a subnormal result may be off, and the reference's with it: the smallest positive value of each.
    const SUBNORMAL: f64;
    /// The largest gamma·inv_std that y is checked for: 2^120 in one factor, the rest in another. f64 has none.
    const LARGEST_SCALE: f64;
    /// Whether f64 holds the square of every finite value.
    const SQUARES_FIT: bool;

    fn of(v: f64) -> Self;
    fn f64(self) -> f64;

    /// The relative error that y and the gradients of a channel may have.
    fn relative(kappa: f64) -> f64;
    /// The relative error that the variance of a channel may have.
    fn variance(kappa: f64) -> f64;

    /// Bits to compare: one pattern stands for every NaN, whose payload nobody promises.
    fn bits(self) -> u64 {
        bits(self.f64())
    }
}

impl Float for f32 {
    const U: f64 = f32::EPSILON as f64 / 2.0;
    const MAX: f64 = f32::MAX as f64;
    const MIN_NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const LIMIT: f64 = (1u128 << 100) as f64;
    const INVERTIBLE: [f64; 2] = [<Self as Float>::MIN_NORMAL, <Self as Float>::MAX];
    const SUBNORMAL: f64 = f32::from_bits(1) as f64 + f64::from_bits(1);
    const LARGEST_SCALE: f64 = f32::MAX as f64 * (1u128 << 120) as f64;
    const SQUARES_FIT: bool = true;

    fn of(v: f64) -> Self {
        v as f32
    }
    fn f64(self) -> f64 {
        f64::from(self)
    }
    fn relative(_: f64) -> f64 {
        8.0 * Self::U
    }
    fn variance(_: f64) -> f64 {
        4.0 * Self::U
    }
}

impl Float for f64 {
    const U: f64 = f64::EPSILON / 2.0;
    const MAX: f64 = f64::MAX;
    const MIN_NORMAL: f64 = f64::MIN_POSITIVE;
    /// 2^500.
    const LIMIT: f64 = f64::from_bits((1023 + 500) << 52);
    const INVERTIBLE: [f64; 2] = [1.0 / Self::LIMIT, Self::LIMIT];
    const SUBNORMAL: f64 = 2.0 * f64::from_bits(1);
    const LARGEST_SCALE: f64 = f64::INFINITY;
    const SQUARES_FIT: bool = false;

    fn of(v: f64) -> Self {
        v
    }
    fn f64(self) -> f64 {
        self
    }
    fn relative(kappa: f64) -> f64 {
        1e-13 * kappa
    }
    fn variance(kappa: f64) -> f64 {
        1e-13 * kappa
    }
}

fn bits(v: f64) -> u64 {
    if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() }
}

/// Asserts that two slices have the same bits.
#[track_caller]
pub fn same<E: Float>(what: &str, isa: Isa, expected: &[E], actual: &[E]) {
    assert_eq!(expected.len(), actual.len(), "{what} on {isa:?}");
    for (k, (e, a)) in expected.iter().zip(actual).enumerate() {
        assert_eq!(e.bits(), a.bits(), "{what}[{k}] on {isa:?}: expected {e:?}, got {a:?}");
    }
}
