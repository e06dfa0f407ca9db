//! bf16 and f16: widened to f32 when loaded, rounded once, to nearest even, when stored.

use super::{Load, Storage, Store, Widened};
use crate::simd::{HalfLanes, MAX_LANES, Simd};
use half::{bf16, f16};
use std::marker::PhantomData;

impl Storage for bf16 {
    type Scalar = f32;
    type Native<S: Simd> = Bf16<S>;
    type Wide<S: Simd> = Widened<S, Bf16<S>>;
    const LEAVES_RANGE: bool = true;
    const INTERLEAVES: bool = false;
}

impl Storage for f16 {
    type Scalar = f32;
    type Native<S: Simd> = F16<S>;
    type Wide<S: Simd> = Widened<S, F16<S>>;
    const LEAVES_RANGE: bool = false;
    const INTERLEAVES: bool = false;
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
                let mut lanes = [<$element>::ZERO; MAX_LANES];
                // SAFETY: the caller's promise for `n` values; no more than `lanes` holds are copied.
                unsafe {
                    std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(MAX_LANES));
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
                let mut lanes = [<$element>::ZERO; MAX_LANES];
                // SAFETY: the caller's promise for `n` values; no more than `lanes` holds are copied.
                unsafe {
                    v.$store::<false>(lanes.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(MAX_LANES));
                }
            }
        }
    };
}

adapter!(Bf16, bf16, load_bf16, store_bf16);
adapter!(F16, f16, load_f16, store_f16);
