//! Element types as numbers, with the constants that comparisons need.

use batchnorm::Element;
use half::{bf16, f16};
use std::fmt::Debug;

/// A type of numbers.
pub trait Value: Copy + Debug + Default + PartialEq {
    /// The type's name.
    const NAME: &'static str;
    /// Half an ulp at 1.
    const U: f64;
    /// The smallest positive value.
    const SMALLEST_SUBNORMAL: f64;
    /// The smallest positive normal value.
    const SMALLEST_NORMAL: f64 = Self::SMALLEST_SUBNORMAL / (2.0 * Self::U);
    /// The largest finite value.
    const LARGEST: f64;
    /// In lanes, dx is multiplied by gamma·inv_std in two factors, the first of which is a power of two. This is the
    /// largest, and its reciprocal the smallest.
    const LARGEST_FACTOR: f64;
    /// One of the NaNs.
    const NAN: Self;
    /// The nearest value.
    fn of(v: f64) -> Self;
    /// The same number, as [`Element::to_f64`], which 16-bit types have only with the feature `half`.
    fn number(self) -> f64;
    /// The bits; the same ones for every NaN, since payloads are not promised.
    fn bits(self) -> u64;
}

/// An element type.
pub trait Number: Value + Element<Param: Value> {
    /// Lanes of a virtual vector.
    const LANES: usize = 64 / size_of::<Self::Param>();
    /// The range that y must stay in if x̂ is to be rebuilt from it: of normal numbers, or 2^±500 for f64.
    const INVERTIBLE: [f64; 2] = if size_of::<Self>() == 8 {
        [power_of_two(-500), power_of_two(500)]
    } else {
        [Self::SMALLEST_NORMAL, Self::LARGEST]
    };
}

/// An element type that is its own type of gamma and beta.
pub trait Float: Number + Element<Param = Self> {}

impl<T: Value + Element<Param: Value>> Number for T {}
impl<T: Number + Element<Param = T>> Float for T {}

const fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

macro_rules! values {
    ($($type:ident: $epsilon:expr, $smallest:expr, $largest:expr, $factor:expr, $of:expr, $number:expr;)*) => {$(
        impl Value for $type {
            const NAME: &'static str = stringify!($type);
            const U: f64 = $epsilon / 2.0;
            const SMALLEST_SUBNORMAL: f64 = $smallest;
            const LARGEST: f64 = $largest;
            const LARGEST_FACTOR: f64 = power_of_two($factor);
            const NAN: Self = $type::NAN;
            fn of(v: f64) -> Self {
                $of(v)
            }
            fn number(self) -> f64 {
                $number(self)
            }
            fn bits(self) -> u64 {
                if self.is_nan() { Self::NAN.to_bits().into() } else { self.to_bits().into() }
            }
        }
    )*};
}

// bf16 and f16 have lanes of f32.
values! {
    f32: f32::EPSILON as f64, f32::from_bits(1) as f64, f32::MAX as f64, 126, |v| v as f32, f64::from;
    f64: f64::EPSILON, f64::from_bits(1), f64::MAX, 526, f64::from, f64::from;
    bf16: bf16::EPSILON.to_f64_const(), bf16::MIN_POSITIVE_SUBNORMAL.to_f64_const(), bf16::MAX.to_f64_const(), 126,
        bf16::from_f64, f64::from;
    f16: f16::EPSILON.to_f64_const(), f16::MIN_POSITIVE_SUBNORMAL.to_f64_const(), f16::MAX.to_f64_const(), 126,
        f16::from_f64, f64::from;
}

/// All values as f64.
pub fn to_f64<T: Value>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.number()).collect()
}
