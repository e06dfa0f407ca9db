//! The `wide` crate's vectors: SSE2, NEON, wasm simd128 or scalar code, as the crate was compiled.

use super::exp::exp;
use super::half::HalfLanes;
use super::real::Real;
use super::vector::{Kernel, Simd, Vector};
#[cfg(feature = "half")]
use half::{bf16, f16};
use wide::{f32x16, f64x8};

pub(super) struct Portable;

impl Simd for Portable {
    type F32 = f32x16;
    type F64 = f64x8;
    const STREAMS: bool = false;
    // On x86-64 this tier serves CPUs older than AVX2, which are not worth the time to compile more.
    const ALL_KINDS: bool = !cfg!(target_arch = "x86_64");

    #[inline(always)]
    fn widen(v: f32x16) -> f64x8 {
        widen(v)[0]
    }
    #[inline(always)]
    fn fence() {}
    #[inline(never)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        kernel.run::<Self>();
    }
}

macro_rules! portable_vector {
    ($vector:ty, $scalar:ty, $lanes:literal) => {
        type Scalar = $scalar;
        const LANES: usize = $lanes;

        #[inline(always)]
        fn splat(v: $scalar) -> Self {
            <$vector>::splat(v)
        }
        #[inline(always)]
        fn add(self, rhs: Self) -> Self {
            self + rhs
        }
        #[inline(always)]
        fn sub(self, rhs: Self) -> Self {
            self - rhs
        }
        #[inline(always)]
        fn mul(self, rhs: Self) -> Self {
            self * rhs
        }
        #[inline(always)]
        fn div(self, rhs: Self) -> Self {
            self / rhs
        }
        #[inline(always)]
        fn if_positive(self, then: Self, otherwise: Self) -> Self {
            self.simd_le(<$vector>::ZERO).select(otherwise, then)
        }
        #[inline(always)]
        fn exp2(self) -> Self {
            let one = (1.0 as $scalar).to_bits();
            let power =
                |v: $scalar| <$scalar>::from_bits((v.to_bits() << (<$scalar>::MANTISSA_DIGITS - 1)).wrapping_add(one));
            <$vector>::new((self + <$vector>::splat(<$scalar as Real>::ROUNDER as $scalar)).to_array().map(power))
        }
        #[inline(never)]
        fn exp(self) -> Self {
            exp(self)
        }
        #[inline(always)]
        fn first(self, n: usize) -> Self {
            let mut lanes = self.to_array();
            lanes[n.min($lanes)..].fill(0.0);
            <$vector>::new(lanes)
        }
        #[inline(always)]
        unsafe fn load(p: *const $scalar) -> Self {
            // SAFETY: the caller's promise.
            <$vector>::new(unsafe { p.cast::<[$scalar; $lanes]>().read_unaligned() })
        }
        #[inline(always)]
        unsafe fn load_first(p: *const $scalar, n: usize) -> Self {
            let mut lanes = [0.0; $lanes];
            // SAFETY: the caller's promise for `n` values; no more than `lanes` holds are copied.
            unsafe { std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min($lanes)) };
            <$vector>::new(lanes)
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut $scalar) {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<[$scalar; $lanes]>().write_unaligned(self.to_array()) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut $scalar, n: usize) {
            let lanes = self.to_array();
            // SAFETY: the caller's promise for `n` values; no more than `lanes` holds are copied.
            unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min($lanes)) }
        }
        #[inline(always)]
        unsafe fn stream(self, p: *mut $scalar) {
            // SAFETY: the caller's promise. `wide` has no streaming store; an ordinary one gives the same memory.
            unsafe { self.store(p) }
        }
        #[inline(always)]
        fn prefetch<const L1: bool>(_: *const u8) {}
    };
}

#[inline(always)]
fn widen(v: f32x16) -> [f64x8; 2] {
    let v = v.to_array();
    let mut halves = [[0.0f64; 8]; 2];
    for i in 0..8 {
        (halves[0][i], halves[1][i]) = (f64::from(v[i]), f64::from(v[i + 8]));
    }
    [f64x8::new(halves[0]), f64x8::new(halves[1])]
}

impl Vector for f32x16 {
    type Wide = [f64x8; 2];
    portable_vector!(f32x16, f32, 16);

    #[inline(always)]
    fn wide_zero() -> [f64x8; 2] {
        [f64x8::ZERO; 2]
    }
    #[inline(always)]
    fn accumulate(self, acc: [f64x8; 2]) -> [f64x8; 2] {
        let [low, high] = widen(self);
        [acc[0] + low, acc[1] + high]
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f64, _: *const f64) -> [f64x8; 2] {
        // SAFETY: the caller's promise.
        unsafe { [f64x8::load(p), f64x8::load(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn wide_store(acc: [f64x8; 2], p: *mut f64, _: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe {
            acc[0].store(p);
            acc[1].store(p.add(8));
        }
    }
}

impl Vector for f64x8 {
    type Wide = [f64x8; 2];
    portable_vector!(f64x8, f64, 8);

    #[inline(always)]
    fn wide_zero() -> [f64x8; 2] {
        [Self::splat(0.0); 2]
    }
    #[inline(always)]
    fn accumulate(self, acc: [f64x8; 2]) -> [f64x8; 2] {
        self.add_to_both(acc)
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f64, rests: *const f64) -> [f64x8; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Vector::load(p), Vector::load(rests)] }
    }
    #[inline(always)]
    unsafe fn wide_store(acc: [f64x8; 2], p: *mut f64, rests: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe {
            Vector::store(acc[0], p);
            Vector::store(acc[1], rests);
        }
    }
}

#[cfg(feature = "half")]
// Outlined where it is more than a shift: too much code to inline at every use.
impl HalfLanes for f32x16 {
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self::new(unsafe { p.cast::<[bf16; 16]>().read_unaligned() }.map(bf16::to_f32))
    }
    #[inline(never)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[bf16; 16]>().write_unaligned(self.to_array().map(bf16::from_f32)) }
    }
    #[inline(never)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self::new(unsafe { p.cast::<[f16; 16]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(never)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f16; 16]>().write_unaligned(self.to_array().map(f16::from_f32)) }
    }
}

#[cfg(not(feature = "half"))]
// Outlined where it is more than a shift: too much code to inline at every use.
impl HalfLanes for f32x16 {}
