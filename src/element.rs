//! Element types as load and store adapters: what lies in memory, and the lanes it is computed in.

use crate::passes::{Compiled, Passes};
use crate::simd::{Real, Simd, Vector};
use std::marker::PhantomData;

/// A type of activations: `f32` or `f64`. Sealed: the kernels know how each is loaded and stored.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type of gamma and beta and of their gradients; also what native lanes hold.
    type Param: Real;
    /// The lanes that passes compute in.
    #[doc(hidden)]
    type Native<S: Simd>: Store<Element = Self, V: Vector<Scalar = Self::Param>>;
    /// Lanes of f64, to redo a reduction in which f32 overflowed or met subnormals.
    #[doc(hidden)]
    type Redo<S: Simd>: Load<Element = Self, V = S::F64>;
    /// Whether `Redo` has a larger range than `Native`.
    #[doc(hidden)]
    const HAS_REDO: bool;
    /// The passes, compiled for this type.
    #[doc(hidden)]
    type Passes: Passes<Self, Self::Param>;
}

impl Element for f32 {
    type Param = f32;
    type Native<S: Simd> = Same<S::F32>;
    type Redo<S: Simd> = Widened<S>;
    const HAS_REDO: bool = true;
    type Passes = Compiled;
}

impl Element for f64 {
    type Param = f64;
    type Native<S: Simd> = Same<S::F64>;
    type Redo<S: Simd> = Same<S::F64>;
    const HAS_REDO: bool = false;
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
/// The caller guarantees that the values named can be written at `p`; only `stream` asks for an alignment, of
/// [`STREAM_ALIGN`](crate::simd::STREAM_ALIGN).
pub trait Store: Load {
    unsafe fn store(v: Self::V, p: *mut Self::Element);
    unsafe fn store_first(v: Self::V, p: *mut Self::Element, n: usize);
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

/// f32 computed in lanes of f64.
pub struct Widened<S>(PhantomData<S>);

impl<S: Simd> Load for Widened<S> {
    type Element = f32;
    type V = S::F64;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> S::F64 {
        // SAFETY: the caller's promise.
        unsafe { S::widen(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> S::F64 {
        // SAFETY: the caller's promise.
        unsafe { S::widen_first(p, n) }
    }
}
