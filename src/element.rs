//! The public element types, and where the kernels are compiled.

use crate::lanes::Storage;
use crate::passes::engine::Engine;
use crate::passes::request::Pass;
use crate::passes::scratch::Sizes;
use crate::simd::Real;
use std::fmt::Debug;
use std::mem::MaybeUninit;

/// A type of activations: `f32`, `f64`, `bf16` or `f16`. Sealed: the kernels know how each is loaded and stored.
pub trait Element: sealed::Sealed + Storage + Default + Debug {
    /// The type of gamma, beta, weights and parameter gradients, in which lanes compute: f64 for f64, f32 for the
    /// others.
    type Param: Real + Element<Param = Self::Param>;

    /// The nearest value of this type, to even if two are as near.
    fn from_f64(v: f64) -> Self;
    /// The nearest value of this type, to even if two are as near.
    fn from_f32(v: f32) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// The nearest f32: exact, except of f64.
    fn to_f32(self) -> f32;

    /// The same values if this type is its own [`Param`](Self::Param).
    #[doc(hidden)]
    fn as_params(values: &[Self]) -> Option<&[Self::Param]>;
    /// The same.
    #[doc(hidden)]
    fn as_params_mut(values: &mut [MaybeUninit<Self>]) -> Option<&mut [MaybeUninit<Self::Param>]>;
    /// The range in which y must stay if x̂ is rebuilt from it: the smallest normal value and the largest finite one;
    /// for f64, values whose squares are such values, with room for what they are multiplied by.
    #[doc(hidden)]
    const RANGE: [f64; 2];
    /// Runs a pass. Implemented for each type in this crate: were it a generic function, every crate that calls it
    /// would compile all kernels again, at its own level of optimization.
    ///
    /// # Safety
    /// See [`request`](crate::passes::request).
    #[doc(hidden)]
    unsafe fn run(engine: &Engine, pass: Pass<'_, Self, Self::Param>);
    #[doc(hidden)]
    fn scratch_sizes(engine: &Engine) -> Sizes;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! element {
    ($type:ty, $param:ty, $range:expr, $from_f64:expr, $from_f32:expr, $as_params:expr, $as_params_mut:expr) => {
        impl sealed::Sealed for $type {}

        impl Element for $type {
            type Param = $param;
            const RANGE: [f64; 2] = $range;
            #[inline]
            fn from_f64(v: f64) -> Self {
                $from_f64(v)
            }
            #[inline]
            fn from_f32(v: f32) -> Self {
                $from_f32(v)
            }
            #[inline]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline]
            fn to_f32(self) -> f32 {
                Element::to_f64(self) as f32
            }
            fn as_params(values: &[Self]) -> Option<&[$param]> {
                $as_params(values)
            }
            fn as_params_mut(values: &mut [MaybeUninit<Self>]) -> Option<&mut [MaybeUninit<$param>]> {
                $as_params_mut(values)
            }
            #[inline(never)]
            unsafe fn run(engine: &Engine, pass: Pass<'_, Self, $param>) {
                // SAFETY: the caller's promise.
                unsafe { crate::passes::run(engine, pass) }
            }
            fn scratch_sizes(engine: &Engine) -> Sizes {
                crate::passes::scratch_sizes::<Self>(engine)
            }
        }
    };
}

element!(f32, f32, [f32::MIN_POSITIVE as f64, f32::MAX as f64], |v| v as f32, |v| v, Some, Some);
element!(f64, f64, [1.0 / f64::LIMIT, f64::LIMIT], |v| v, f64::from, Some, Some);
// That of f32, and 2^128 · (1 − 2^-8).
#[cfg(feature = "half")]
element!(
    half::bf16,
    f32,
    [f32::MIN_POSITIVE as f64, f32::MAX as f64 / (2.0 - f32::EPSILON as f64) * (2.0 - 1.0 / 128.0)],
    half::bf16::from_f64,
    half::bf16::from_f32,
    |_| None,
    |_| None
);
#[cfg(feature = "half")]
element!(half::f16, f32, [1.0 / 16384.0, 65504.0], half::f16::from_f64, half::f16::from_f32, |_| None, |_| None);
