//! AVX2: two registers a vector, sign-bit masks for partial ones.
//!
//! SAFETY, for every block here that only says "AVX2": values of these types are made by kernels that run inside
//! [`Simd::enter`], which asks for a CPU that has AVX2; memory operations pass their caller's promise on.

use super::exp::exp;
use super::half::HalfLanes;
use super::real::Real;
use super::vector::{Kernel, Simd, Vector};
#[cfg(feature = "half")]
use half::{bf16, f16};
use std::arch::x86_64::*;

pub(super) struct Avx2;
#[derive(Clone, Copy)]
pub(super) struct F32(__m256, __m256);
#[derive(Clone, Copy)]
pub(super) struct F64(__m256d, __m256d);

impl Simd for Avx2 {
    type F32 = F32;
    type F64 = F64;
    const STREAMS: bool = true;
    const ALL_KINDS: bool = true;

    #[inline(always)]
    fn widen(v: F32) -> F64 {
        widen(v.0)
    }
    #[inline(always)]
    fn fence() {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }
    /// # Safety
    /// The CPU has AVX2 and F16C.
    #[target_feature(enable = "avx2,f16c")]
    #[inline(never)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        kernel.run::<Self>();
    }
}

/// Ones in the 32-bit lanes of 16 whose index is below `n`.
#[inline(always)]
fn mask16(n: usize) -> [__m256i; 2] {
    // SAFETY: AVX2.
    unsafe {
        let n = _mm256_set1_epi32(n.min(16) as i32);
        [
            _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)),
        ]
    }
}

/// Ones in the 64-bit lanes of 8 whose index is below `n`.
#[inline(always)]
fn mask8(n: usize) -> [__m256i; 2] {
    // SAFETY: AVX2.
    unsafe {
        let n = _mm256_set1_epi64x(n.min(8) as i64);
        [_mm256_cmpgt_epi64(n, _mm256_setr_epi64x(0, 1, 2, 3)), _mm256_cmpgt_epi64(n, _mm256_setr_epi64x(4, 5, 6, 7))]
    }
}

/// The sum of four values: halves onto each other until one is left.
#[inline(always)]
pub(super) fn sum(v: __m256d) -> f64 {
    // SAFETY: AVX, which both tiers that call this have.
    unsafe {
        let two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
        _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
    }
}

#[inline(always)]
fn widen(v: __m256) -> F64 {
    // SAFETY: AVX2.
    unsafe { F64(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v))) }
}

impl F64 {
    #[inline(always)]
    fn sum(self) -> f64 {
        // SAFETY: AVX2.
        sum(unsafe { _mm256_add_pd(self.0, self.1) })
    }
}

impl Vector for F32 {
    type Scalar = f32;
    type Wide = [F64; 2];
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_set1_ps(v), _mm256_set1_ps(v)) }
    }
    #[inline(always)]
    fn add(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_add_ps(self.0, rhs.0), _mm256_add_ps(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn sub(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_sub_ps(self.0, rhs.0), _mm256_sub_ps(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn mul(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_mul_ps(self.0, rhs.0), _mm256_mul_ps(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn div(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_div_ps(self.0, rhs.0), _mm256_div_ps(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn if_positive(self, then: Self, otherwise: Self) -> Self {
        // SAFETY: AVX2.
        unsafe {
            let zero = _mm256_setzero_ps();
            let not = [_mm256_cmp_ps::<_CMP_LE_OQ>(self.0, zero), _mm256_cmp_ps::<_CMP_LE_OQ>(self.1, zero)];
            Self(_mm256_blendv_ps(then.0, otherwise.0, not[0]), _mm256_blendv_ps(then.1, otherwise.1, not[1]))
        }
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        let bits = self.add(Self::splat(f32::ROUNDER as f32));
        // SAFETY: AVX2.
        unsafe {
            let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(bits.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(bits.1));
            Self(_mm256_castsi256_ps(_mm256_add_epi32(low, one)), _mm256_castsi256_ps(_mm256_add_epi32(high, one)))
        }
    }
    #[inline(always)]
    fn exp(self) -> Self {
        /// Outlined: too much code to inline at every use.
        #[target_feature(enable = "avx2,f16c")]
        #[inline(never)]
        fn outlined(v: F32) -> F32 {
            exp(v)
        }
        // SAFETY: AVX2.
        unsafe { outlined(self) }
    }
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        let [a, b] = mask16(n);
        // SAFETY: AVX2.
        unsafe { Self(_mm256_and_ps(self.0, _mm256_castsi256_ps(a)), _mm256_and_ps(self.1, _mm256_castsi256_ps(b))) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let [a, b] = mask16(n);
        // SAFETY: AVX2; masked lanes are not read, and their addresses are only wrapped to.
        unsafe { Self(_mm256_maskload_ps(p, a), _mm256_maskload_ps(p.wrapping_add(8), b)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX2.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        let [a, b] = mask16(n);
        // SAFETY: AVX2; masked lanes are not written, and their addresses are only wrapped to.
        unsafe {
            _mm256_maskstore_ps(p, a, self.0);
            _mm256_maskstore_ps(p.wrapping_add(8), b, self.1);
        }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32) {
        // SAFETY: AVX2; kernels fence before they return.
        unsafe {
            _mm256_stream_ps(p, self.0);
            _mm256_stream_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    fn prefetch<const L1: bool>(p: *const u8) {
        // SAFETY: SSE is part of x86-64, and a prefetch faults at no address.
        unsafe { if L1 { _mm_prefetch::<_MM_HINT_T0>(p.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(p.cast()) } }
    }
    #[inline(always)]
    fn wide_zero() -> [F64; 2] {
        [F64::splat(0.0); 2]
    }
    #[inline(always)]
    fn accumulate(self, acc: [F64; 2]) -> [F64; 2] {
        [acc[0].add(widen(self.0)), acc[1].add(widen(self.1))]
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f64, _: *const f64) -> [F64; 2] {
        // SAFETY: the caller's promise.
        unsafe { [F64::load(p), F64::load(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn wide_store(acc: [F64; 2], p: *mut f64, _: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe {
            acc[0].store(p);
            acc[1].store(p.add(8));
        }
    }
    #[inline(always)]
    fn wide_sum(acc: [F64; 2]) -> f64 {
        acc[0].add(acc[1]).sum()
    }
}

impl Vector for F64 {
    type Scalar = f64;
    type Wide = [F64; 2];
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(v: f64) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_set1_pd(v), _mm256_set1_pd(v)) }
    }
    #[inline(always)]
    fn add(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_add_pd(self.0, rhs.0), _mm256_add_pd(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn sub(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_sub_pd(self.0, rhs.0), _mm256_sub_pd(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn mul(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_mul_pd(self.0, rhs.0), _mm256_mul_pd(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn div(self, rhs: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_div_pd(self.0, rhs.0), _mm256_div_pd(self.1, rhs.1)) }
    }
    #[inline(always)]
    fn if_positive(self, then: Self, otherwise: Self) -> Self {
        // SAFETY: AVX2.
        unsafe {
            let zero = _mm256_setzero_pd();
            let not = [_mm256_cmp_pd::<_CMP_LE_OQ>(self.0, zero), _mm256_cmp_pd::<_CMP_LE_OQ>(self.1, zero)];
            Self(_mm256_blendv_pd(then.0, otherwise.0, not[0]), _mm256_blendv_pd(then.1, otherwise.1, not[1]))
        }
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        let bits = self.add(Self::splat(f64::ROUNDER));
        // SAFETY: AVX2.
        unsafe {
            let one = _mm256_castpd_si256(_mm256_set1_pd(1.0));
            let low = _mm256_slli_epi64::<52>(_mm256_castpd_si256(bits.0));
            let high = _mm256_slli_epi64::<52>(_mm256_castpd_si256(bits.1));
            Self(_mm256_castsi256_pd(_mm256_add_epi64(low, one)), _mm256_castsi256_pd(_mm256_add_epi64(high, one)))
        }
    }
    #[inline(always)]
    fn exp(self) -> Self {
        /// Outlined: too much code to inline at every use.
        #[target_feature(enable = "avx2,f16c")]
        #[inline(never)]
        fn outlined(v: F64) -> F64 {
            exp(v)
        }
        // SAFETY: AVX2.
        unsafe { outlined(self) }
    }
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        let [a, b] = mask8(n);
        // SAFETY: AVX2.
        unsafe { Self(_mm256_and_pd(self.0, _mm256_castsi256_pd(a)), _mm256_and_pd(self.1, _mm256_castsi256_pd(b))) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        // SAFETY: AVX2.
        unsafe { Self(_mm256_loadu_pd(p), _mm256_loadu_pd(p.add(4))) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f64, n: usize) -> Self {
        let [a, b] = mask8(n);
        // SAFETY: AVX2; masked lanes are not read, and their addresses are only wrapped to.
        unsafe { Self(_mm256_maskload_pd(p, a), _mm256_maskload_pd(p.wrapping_add(4), b)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        // SAFETY: AVX2.
        unsafe {
            _mm256_storeu_pd(p, self.0);
            _mm256_storeu_pd(p.add(4), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f64, n: usize) {
        let [a, b] = mask8(n);
        // SAFETY: AVX2; masked lanes are not written, and their addresses are only wrapped to.
        unsafe {
            _mm256_maskstore_pd(p, a, self.0);
            _mm256_maskstore_pd(p.wrapping_add(4), b, self.1);
        }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f64) {
        // SAFETY: AVX2; kernels fence before they return.
        unsafe {
            _mm256_stream_pd(p, self.0);
            _mm256_stream_pd(p.add(4), self.1);
        }
    }
    #[inline(always)]
    fn prefetch<const L1: bool>(p: *const u8) {
        // SAFETY: SSE is part of x86-64, and a prefetch faults at no address.
        unsafe { if L1 { _mm_prefetch::<_MM_HINT_T0>(p.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(p.cast()) } }
    }
    #[inline(always)]
    fn wide_zero() -> [F64; 2] {
        [Self::splat(0.0); 2]
    }
    #[inline(always)]
    fn accumulate(self, acc: [F64; 2]) -> [F64; 2] {
        self.add_to_both(acc)
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f64, rests: *const f64) -> [F64; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Vector::load(p), Vector::load(rests)] }
    }
    #[inline(always)]
    unsafe fn wide_store(acc: [F64; 2], p: *mut f64, rests: *mut f64) {
        // SAFETY: the caller's promise.
        unsafe {
            Vector::store(acc[0], p);
            Vector::store(acc[1], rests);
        }
    }
}

#[cfg(feature = "half")]
/// # Safety
/// The CPU has AVX2. 32 bytes can be written at `p`, which is aligned to as many where `STREAM`.
#[inline(always)]
pub(super) unsafe fn store256<const STREAM: bool>(p: *mut __m256i, v: __m256i) {
    // SAFETY: the caller's promise; kernels fence before they return.
    unsafe { if STREAM { _mm256_stream_si256(p, v) } else { _mm256_storeu_si256(p, v) } }
}

#[cfg(feature = "half")]
impl HalfLanes for F32 {
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        #[inline(always)]
        fn widen(bits: __m128i) -> __m256 {
            // SAFETY: AVX2.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
        }
        // SAFETY: AVX2; the caller's promise.
        unsafe { Self(widen(_mm_loadu_si128(p.cast())), widen(_mm_loadu_si128(p.add(8).cast()))) }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16) {
        #[inline(always)]
        fn narrow(v: __m256) -> __m256i {
            // SAFETY: AVX2.
            unsafe {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let half = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff));
                _mm256_srli_epi32::<16>(_mm256_add_epi32(half, odd))
            }
        }
        // SAFETY: AVX2; the caller's promise.
        unsafe {
            // Packing works on 128-bit halves; the permutation puts them in order.
            let packed = _mm256_packus_epi32(narrow(self.0), narrow(self.1));
            store256::<STREAM>(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: F16C, which `enter` has too; the caller's promise.
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16) {
        // SAFETY: F16C, which `enter` has too; the caller's promise.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
            store256::<STREAM>(p.cast(), _mm256_set_m128i(high, low));
        }
    }
}

#[cfg(not(feature = "half"))]
impl HalfLanes for F32 {}
