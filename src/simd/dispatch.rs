//! The one place that enters a tier.

#[cfg(target_arch = "x86_64")]
use super::isa::Isa;
use super::vector::{Kernel, Simd};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use super::{isa::Detected, portable};

/// Runs a kernel with the code of a detected instruction set.
pub(crate) fn dispatch<K: Kernel>(detected: Detected, kernel: K) {
    match detected.isa() {
        // SAFETY: only detection makes a `Detected`, so this CPU has the features. Those of AVX-512 include those of AVX2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            if K::AVX2_SERVES {
                avx2::Avx2::enter(kernel);
            } else {
                avx512::Avx512::enter(kernel);
            }
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::Avx2::enter(kernel) },
        // SAFETY: the portable tier asks for nothing.
        _ => unsafe { portable::Portable::enter(kernel) },
    }
}
