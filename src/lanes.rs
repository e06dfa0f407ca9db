//! Storage types as load and store adapters: what lies in memory, and the lanes that compute it.
//!
//! Kernels are generic over [`Storage`] and do not know the types themselves.

use crate::simd::{Real, Simd, Vector};
use std::marker::PhantomData;

#[cfg(feature = "half")]
mod half;

/// A type of activations, as kernels see it.
pub trait Storage: Copy + Send + Sync + 'static {
    /// The type that lanes compute in, which is also that of gamma, beta, weights and parameter gradients: f64 for f64,
    /// f32 for the others.
    type Scalar: Real + Storage<Scalar = Self::Scalar>;
    /// The lanes that passes compute in.
    type Native<S: Simd>: Store<Element = Self, V: Vector<Scalar = Self::Scalar>>;
    /// Lanes of f64, for weighted reductions and to repeat one whose squares have left the range.
    type Wide<S: Simd>: Load<Element = Self, V = S::F64>;
    /// Whether squares of differences of values can leave the range of `Native` lanes but not that of `Wide` ones.
    const LEAVES_RANGE: bool;
    /// Whether kernels are compiled for ReLU. Other types run those of any variant: they are rarer, or their conversions
    /// take most of the time.
    const RELU_KIND: bool = false;
    /// Whether a forward pass is so close to the memory's limit that it gains from reducing one group of planes while
    /// it maps the one before. Conversions of 16-bit types take more time than memory does.
    const INTERLEAVES: bool;
    /// As [`Kernel::AVX2_SERVES`](crate::simd::Kernel::AVX2_SERVES).
    const AVX2_SERVES: bool = false;
}

impl Storage for f32 {
    type Scalar = f32;
    type Native<S: Simd> = Same<S::F32>;
    type Wide<S: Simd> = Widened<S, Same<S::F32>>;
    const LEAVES_RANGE: bool = true;
    const RELU_KIND: bool = true;
    const INTERLEAVES: bool = true;
}

impl Storage for f64 {
    type Scalar = f64;
    type Native<S: Simd> = Same<S::F64>;
    type Wide<S: Simd> = Same<S::F64>;
    const LEAVES_RANGE: bool = false;
    const INTERLEAVES: bool = true;
    // 256-bit code takes 1.00 to 1.08 of the time in cache, and as long from memory.
    const AVX2_SERVES: bool = true;
}

/// How a storage type is read into lanes.
///
/// # Safety (of all functions)
/// The caller guarantees that the named values can be read at `p`; no alignment is needed.
pub trait Load {
    type Element: Copy;
    type V: Vector;

    unsafe fn load(p: *const Self::Element) -> Self::V;
    /// Zero in the lanes from `n` on, whose memory is not touched.
    unsafe fn load_first(p: *const Self::Element, n: usize) -> Self::V;
}

/// How lanes are written as a storage type.
///
/// # Safety (of all functions)
/// The caller guarantees that the named values can be written at `p`; only `stream` needs alignment.
pub trait Store: Load {
    unsafe fn store(v: Self::V, p: *mut Self::Element);
    unsafe fn store_first(v: Self::V, p: *mut Self::Element, n: usize);
    /// A non-temporal store, if the tier has one. `p` must be aligned to the bytes of a vector.
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

/// Elements of which `L` loads lanes of f32, in lanes of f64: the first half of each vector.
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
