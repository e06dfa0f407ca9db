//! The one place that enters a tier.

#[cfg(target_arch = "x86_64")]
use super::isa::Isa;
use super::vector::{Kernel, Simd};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use super::{isa::Detected, portable::Portable};

/// Runs a kernel with the code of a detected instruction set.
pub(crate) fn dispatch<K: Kernel>(detected: Detected, kernel: K) {
    let enter: unsafe fn(K) = match detected.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if !K::AVX2_SERVES => Avx512::enter::<K>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => Avx2::enter::<K>,
        _ => Portable::enter::<K>,
    };
    // SAFETY: only detection makes a `Detected`, so this CPU has the features; those of AVX-512 include those of AVX2.
    unsafe { enter(kernel) };
}
