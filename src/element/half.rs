//! bf16 and f16: widened to f32 when loaded, rounded once, to nearest even, when stored.

use super::{Element, Load, Store, Widened, sealed};
use crate::passes::Compiled;
use crate::simd::{HalfLanes, Simd};
use half::{bf16, f16};
use std::marker::PhantomData;

impl sealed::Sealed for bf16 {}
impl sealed::Sealed for f16 {}

impl Element for bf16 {
    type Param = f32;
    type Native<S: Simd> = Bf16<S>;
    type Redo<S: Simd> = Widened<S, Bf16<S>>;
    const HAS_REDO: bool = true;
    // That of f32, and 2^128 · (1 − 2^-8).
    const RANGE: [f64; 2] =
        [f32::MIN_POSITIVE as f64, f32::MAX as f64 / (2.0 - f32::EPSILON as f64) * (2.0 - 1.0 / 128.0)];
    type Passes = Compiled;
}

impl Element for f16 {
    type Param = f32;
    type Native<S: Simd> = F16<S>;
    type Redo<S: Simd> = Widened<S, F16<S>>;
    const HAS_REDO: bool = false;
    const RANGE: [f64; 2] = [1.0 / 16384.0, 65504.0];
    type Passes = Compiled;
}

macro_rules! adapter {
    ($adapter:ident, $element:ty, $load:ident, $store:ident) => {
        /// 16 bits in memory, computed in lanes of f32, rounded once when stored.
        pub struct $adapter<S>(PhantomData<S>);

        impl<S: Simd> Load for $adapter<S> {
            type Element = $element;
            type V = S::F32;

            #[inline(always)]
            unsafe fn load(p: *const $element) -> S::F32 {
                // SAFETY: the caller's promise.
                unsafe { S::F32::$load(p) }
            }
            #[inline(always)]
            unsafe fn load_first(p: *const $element, n: usize) -> S::F32 {
                let mut lanes = [<$element>::ZERO; 16];
                // SAFETY: the caller's promise for `n` values; no more than `lanes` holds are copied.
                unsafe {
                    std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(16));
                    S::F32::$load(lanes.as_ptr())
                }
            }
        }

        impl<S: Simd> Store for $adapter<S> {
            #[inline(always)]
            unsafe fn store(v: S::F32, p: *mut $element) {
                // SAFETY: the caller's promise.
                unsafe { v.$store::<false>(p) }
            }
            #[inline(always)]
            unsafe fn stream(v: S::F32, p: *mut $element) {
                // SAFETY: the caller's promise.
                unsafe { v.$store::<true>(p) }
            }
            #[inline(always)]
            unsafe fn store_first(v: S::F32, p: *mut $element, n: usize) {
                let mut lanes = [<$element>::ZERO; 16];
                // SAFETY: the caller's promise for `n` values; no more than `lanes` holds are copied.
                unsafe {
                    v.$store::<false>(lanes.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(16));
                }
            }
        }
    };
}

adapter!(Bf16, bf16, load_bf16, store_bf16);
adapter!(F16, f16, load_f16, store_f16);
