//! AVX-512F: one register a vector, masks for partial ones.
//!
//! SAFETY, for every block here that only says "AVX-512F": values of these types are made by kernels that run inside
//! [`Simd::enter`], which asks for a CPU that has AVX-512F; memory operations pass their caller's promise on.

#[cfg(feature = "half")]
use super::avx2::store256;
use super::avx2::sum;
use super::exp::exp;
use super::half::HalfLanes;
use super::real::Real;
use super::vector::{Kernel, Simd, Vector};
#[cfg(feature = "half")]
use half::{bf16, f16};
use std::arch::x86_64::*;

pub(super) struct Avx512;
#[derive(Clone, Copy)]
pub(super) struct F32(__m512);
#[derive(Clone, Copy)]
pub(super) struct F64(__m512d);

impl Simd for Avx512 {
    type F32 = F32;
    type F64 = F64;
    const STREAMS: bool = true;
    const ALL_KINDS: bool = true;

    #[inline(always)]
    fn widen(v: F32) -> F64 {
        v.widen()[0]
    }
    #[inline(always)]
    fn fence() {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }
    /// # Safety
    /// The CPU has AVX-512F.
    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    unsafe fn enter<K: Kernel>(kernel: K) {
        kernel.run::<Self>();
    }
}

/// A mask of the first `n` of 16 lanes.
#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// A mask of the first `n` of 8 lanes.
#[inline(always)]
fn mask8(n: usize) -> __mmask8 {
    if n >= 8 { !0 } else { (1 << n) - 1 }
}

impl F32 {
    #[inline(always)]
    fn widen(self) -> [F64; 2] {
        // SAFETY: AVX-512F.
        unsafe {
            let low = _mm512_castps512_ps256(self.0);
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            [F64(_mm512_cvtps_pd(low)), F64(_mm512_cvtps_pd(high))]
        }
    }
}

impl F64 {
    #[inline(always)]
    fn sum(self) -> f64 {
        // SAFETY: AVX-512F.
        unsafe {
            let low = _mm512_castpd512_pd256(self.0);
            sum(_mm256_add_pd(low, _mm512_extractf64x4_pd::<1>(self.0)))
        }
    }
}

impl Vector for F32 {
    type Scalar = f32;
    type Wide = [F64; 2];
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_set1_ps(v)) }
    }
    #[inline(always)]
    fn add(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_add_ps(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn sub(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_sub_ps(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn mul(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_mul_ps(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn div(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_div_ps(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn if_positive(self, then: Self, otherwise: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe {
            let not = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, _mm512_setzero_ps());
            Self(_mm512_mask_blend_ps(not, then.0, otherwise.0))
        }
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        let bits = self.add(Self::splat(f32::ROUNDER as f32));
        // SAFETY: AVX-512F.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(bits.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_castps_si512(Self::splat(1.0).0))))
        }
    }
    #[inline(always)]
    fn exp(self) -> Self {
        /// Outlined: too much code to inline at every use.
        #[target_feature(enable = "avx512f")]
        #[inline(never)]
        fn outlined(v: F32) -> F32 {
            exp(v)
        }
        // SAFETY: AVX-512F.
        unsafe { outlined(self) }
    }
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_maskz_mov_ps(mask16(n), self.0)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: AVX-512F; masked lanes are not read.
        unsafe { Self(_mm512_maskz_loadu_ps(mask16(n), p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX-512F.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: AVX-512F; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, mask16(n), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32) {
        // SAFETY: AVX-512F; kernels fence before they return.
        unsafe { _mm512_stream_ps(p, self.0) }
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
        let [low, high] = self.widen();
        [acc[0].add(low), acc[1].add(high)]
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
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_set1_pd(v)) }
    }
    #[inline(always)]
    fn add(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_add_pd(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn sub(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_sub_pd(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn mul(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_mul_pd(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn div(self, rhs: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_div_pd(self.0, rhs.0)) }
    }
    #[inline(always)]
    fn if_positive(self, then: Self, otherwise: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe {
            let not = _mm512_cmp_pd_mask::<_CMP_LE_OQ>(self.0, _mm512_setzero_pd());
            Self(_mm512_mask_blend_pd(not, then.0, otherwise.0))
        }
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        let bits = self.add(Self::splat(f64::ROUNDER));
        // SAFETY: AVX-512F.
        unsafe {
            let exponent = _mm512_slli_epi64::<52>(_mm512_castpd_si512(bits.0));
            Self(_mm512_castsi512_pd(_mm512_add_epi64(exponent, _mm512_castpd_si512(Self::splat(1.0).0))))
        }
    }
    #[inline(always)]
    fn exp(self) -> Self {
        /// Outlined: too much code to inline at every use.
        #[target_feature(enable = "avx512f")]
        #[inline(never)]
        fn outlined(v: F64) -> F64 {
            exp(v)
        }
        // SAFETY: AVX-512F.
        unsafe { outlined(self) }
    }
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_maskz_mov_pd(mask8(n), self.0)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        // SAFETY: AVX-512F.
        unsafe { Self(_mm512_loadu_pd(p)) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f64, n: usize) -> Self {
        // SAFETY: AVX-512F; masked lanes are not read.
        unsafe { Self(_mm512_maskz_loadu_pd(mask8(n), p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        // SAFETY: AVX-512F.
        unsafe { _mm512_storeu_pd(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f64, n: usize) {
        // SAFETY: AVX-512F; masked lanes are not written.
        unsafe { _mm512_mask_storeu_pd(p, mask8(n), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f64) {
        // SAFETY: AVX-512F; kernels fence before they return.
        unsafe { _mm512_stream_pd(p, self.0) }
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
impl HalfLanes for F32 {
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: AVX-512F; the caller's promise.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16) {
        // SAFETY: AVX-512F; the caller's promise. (AVX512-BF16 has an instruction, which flushes subnormals to zero.)
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
            let half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1));
            store256::<STREAM>(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: AVX-512F; the caller's promise.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16) {
        // SAFETY: AVX-512F; the caller's promise.
        unsafe { store256::<STREAM>(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
}

#[cfg(not(feature = "half"))]
impl HalfLanes for F32 {}
