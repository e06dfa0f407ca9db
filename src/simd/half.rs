//! Conversions between 16 lanes of f32 and 16 values of bf16 or f16, with the same bits in every tier.

#[cfg(feature = "half")]
use half::{bf16, f16};

/// Lanes of f32 that load and store 16-bit types. Without the feature `half` there is nothing to convert.
///
/// # Safety (of all functions)
/// The caller guarantees that 16 values can be read or written at `p`; no alignment is needed, except 32 bytes if
/// `STREAM`, which bypasses the caches if the tier has such stores.
pub trait HalfLanes: Sized {
    #[cfg(feature = "half")]
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// Rounds to nearest, ties to even. A NaN stays one if its lower 16 bits are 0, as they are in what was loaded, or if
    /// it is the one that operations make of numbers; a carry could turn others into 0.
    #[cfg(feature = "half")]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16);
    #[cfg(feature = "half")]
    unsafe fn load_f16(p: *const f16) -> Self;
    /// Rounds to nearest, ties to even.
    #[cfg(feature = "half")]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16);
}
