//! Element types as load and store adapters: what lies in memory, and the lanes it is computed in.

use crate::passes::{Compiled, Passes};
use crate::simd::{Real, Simd, Vector};
use std::marker::PhantomData;

#[cfg(feature = "half")]
mod half;

/// A type of activations: `f32`, `f64`, `bf16` or `f16`. Sealed: the kernels know how each is loaded and stored.
pub trait Element: sealed::Sealed + Copy + std::fmt::Debug + Send + Sync + 'static {
    /// The type of gamma, beta, weights and parameter gradients, in which lanes compute: f64 for f64, else f32.
    type Param: Real + Element<Param = Self::Param>;
    /// The lanes that passes compute in.
    #[doc(hidden)]
    type Native<S: Simd>: Store<Element = Self, V: Vector<Scalar = Self::Param>>;
    /// Lanes of f64, to redo a reduction in which f32 overflowed, and for weighted ones.
    #[doc(hidden)]
    type Redo<S: Simd>: Load<Element = Self, V = S::F64>;
    /// Whether differences of values can leave the range of `Native`, and not that of `Redo`.
    #[doc(hidden)]
    const HAS_REDO: bool;
    /// What y must stay in where x̂ is rebuilt from it: the smallest normal value and the largest finite one. For f64 those
    /// whose squares are such values, with room for what they are multiplied by.
    #[doc(hidden)]
    const RANGE: [f64; 2];
    /// The passes, compiled for this type.
    #[doc(hidden)]
    type Passes: Passes<Self, Self::Param>;
}

impl Element for f32 {
    type Param = f32;
    type Native<S: Simd> = Same<S::F32>;
    type Redo<S: Simd> = Widened<S, Same<S::F32>>;
    const HAS_REDO: bool = true;
    const RANGE: [f64; 2] = [f32::MIN_POSITIVE as f64, f32::MAX as f64];
    type Passes = Compiled;
}

impl Element for f64 {
    type Param = f64;
    type Native<S: Simd> = Same<S::F64>;
    type Redo<S: Simd> = Same<S::F64>;
    const HAS_REDO: bool = false;
    const RANGE: [f64; 2] = [1.0 / f64::LIMIT, f64::LIMIT];
    type Passes = Compiled;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// How an element type is read into lanes.
///
/// # Safety (of all functions)
/// The caller guarantees that the values named can be read at `p`; no alignment is needed.
pub trait Load {
    type Element: Copy;
    type V: Vector;

    unsafe fn load(p: *const Self::Element) -> Self::V;
    /// Zero in the lanes from `n` on, whose memory is not touched.
    unsafe fn load_first(p: *const Self::Element, n: usize) -> Self::V;
}

/// How lanes are written as an element type.
///
/// # Safety (of all functions)
/// The caller guarantees that the values named can be written at `p`; no alignment is needed.
pub trait Store: Load {
    unsafe fn store(v: Self::V, p: *mut Self::Element);
    unsafe fn store_first(v: Self::V, p: *mut Self::Element, n: usize);
    /// A store that passes the caches by, where the tier has one. `p` must be aligned to a vector's bytes.
    unsafe fn stream(v: Self::V, p: *mut Self::Element);
}

/// Elements computed in lanes of their own type.
pub struct Same<V>(PhantomData<V>);

impl<V: Vector> Load for Same<V> {
    type Element = V::Scalar;
    type V = V;

    #[inline(always)]
    unsafe fn load(p: *const V::Scalar) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const V::Scalar, n: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_first(p, n) }
    }
}

impl<V: Vector> Store for Same<V> {
    #[inline(always)]
    unsafe fn store(v: V, p: *mut V::Scalar) {
        // SAFETY: the caller's promise.
        unsafe { v.store(p) }
    }
    #[inline(always)]
    unsafe fn store_first(v: V, p: *mut V::Scalar, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { v.store_first(p, n) }
    }
    #[inline(always)]
    unsafe fn stream(v: V, p: *mut V::Scalar) {
        // SAFETY: the caller's promise.
        unsafe { v.stream(p) }
    }
}

/// What a kernel computes in lanes of f32, in lanes of f64: the first half of each vector.
pub struct Widened<S, L>(PhantomData<(S, L)>);

impl<S: Simd, L: Load<V = S::F32>> Load for Widened<S, L> {
    type Element = L::Element;
    type V = S::F64;

    #[inline(always)]
    unsafe fn load(p: *const L::Element) -> S::F64 {
        // SAFETY: the caller's promise for the 8 lanes of an f64 vector.
        unsafe { S::widen(L::load_first(p, 8)) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const L::Element, n: usize) -> S::F64 {
        // SAFETY: the caller's promise for `n` values, and no more than the lanes of an f64 vector.
        unsafe { S::widen(L::load_first(p, n.min(8))) }
    }
}
