//! The private vector traits, their three tiers, and the one place that enters them.
//!
//! A vector has 16 lanes of f32 or 8 of f64 on every machine (`__m512`; two `__m256`; `wide::f32x16`), and it has only
//! operations whose result IEEE 754 fixes to the last bit. Same lanes, same order, same roundings: kernels written over
//! [`Vector`] give the same bits on every tier. No multiply-add is fused, as SSE2 and wasm have none.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
mod exp;
mod half;
mod isa;
mod portable;
mod real;
mod vector;

pub(crate) use dispatch::dispatch;
pub(crate) use isa::Detected;
pub use isa::Isa;
pub(crate) use real::Real;
pub(crate) use vector::{Kernel, MAX_LANES, STREAM_ALIGN, Simd, Vector, two_sum, with_rest};

#[cfg(feature = "half")]
pub(crate) use half::HalfLanes;
