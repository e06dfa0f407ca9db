//! Conversions between 16 lanes of f32 and 16 values of bf16 or f16, the same bits in every tier.

use half::{bf16, f16};

/// Lanes of f32 that load and store 16-bit types.
///
/// # Safety (of all functions)
/// The caller guarantees that 16 values can be read or written at `p`; no alignment is needed but to their 32 bytes
/// where they `STREAM`, past the caches if the tier has such stores.
pub trait HalfLanes: Sized {
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// To the nearest, ties to even.
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16);
    unsafe fn load_f16(p: *const f16) -> Self;
    /// To the nearest, ties to even.
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16);
}

impl HalfLanes for wide::f32x16 {
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self::new(unsafe { p.cast::<[bf16; 16]>().read_unaligned() }.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[bf16; 16]>().write_unaligned(self.to_array().map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self::new(unsafe { p.cast::<[f16; 16]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f16; 16]>().write_unaligned(self.to_array().map(f16::from_f32)) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{HalfLanes, bf16, f16};
    use crate::simd::{avx2, avx512};
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX2. 32 bytes can be written at `p`, which is aligned to as many where `STREAM`.
    #[inline(always)]
    unsafe fn store256<const STREAM: bool>(p: *mut __m256i, v: __m256i) {
        // SAFETY: the caller's promise; kernels fence before they return.
        unsafe { if STREAM { _mm256_stream_si256(p, v) } else { _mm256_storeu_si256(p, v) } }
    }

    impl HalfLanes for avx2::F32 {
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
                    let high = _mm256_srli_epi32::<16>(bits);
                    let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
                    let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
                    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
                    let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
                    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                    _mm256_blendv_epi8(rounded, quiet, nan)
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
            unsafe {
                Self(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
            }
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

    impl HalfLanes for avx512::F32 {
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
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                let half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1));
                let quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(1 << 22));
                let bits = _mm512_srli_epi32::<16>(quiet);
                store256::<STREAM>(p.cast(), _mm512_cvtepi32_epi16(bits));
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
}
