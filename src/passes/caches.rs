//! The size of the L2 cache, by which planes are grouped. No result depends on it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the machine does not say.
const TYPICAL: usize = 1 << 20;

/// Bytes of the L2 cache of a core. The machine is asked once.
pub(crate) fn l2_bytes() -> usize {
    static L2: AtomicUsize = AtomicUsize::new(0);
    let mut bytes = L2.load(Ordering::Relaxed);
    if bytes == 0 {
        bytes = machine::l2_bytes().filter(|bytes| (1 << 17..1 << 26).contains(bytes)).unwrap_or(TYPICAL);
        L2.store(bytes, Ordering::Relaxed);
    }
    bytes
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use std::arch::x86_64::{__cpuid_count, CpuidResult};

    // AMD64 Architecture Programmer's Manual 3, E.4.15, and Intel 64 Software Developer's Manual 2A, CPUID: both have
    // the same fields in leaves of different numbers.
    const AMD: u32 = 0x8000_001d;
    const INTEL: u32 = 4;

    pub(super) fn l2_bytes() -> Option<usize> {
        let [highest, highest_extended] = [0, 0x8000_0000].map(|leaf| cpuid(leaf, 0).eax);
        let has_amd = highest_extended >= AMD && cpuid(0x8000_0001, 0).ecx & (1 << 22) != 0;
        let leaf = if has_amd { Some(AMD) } else { (highest >= INTEL).then_some(INTEL) }?;
        let caches = (0..16).map(|k| cpuid(leaf, k)).take_while(|cache| cache.eax & 31 != 0);
        let mut l2 = caches.filter(|cache| cache.eax >> 5 & 7 == 2);
        l2.next().map(|cache| {
            let field = |shift: u32, bits: u32| (cache.ebx >> shift & ((1 << bits) - 1)) as usize + 1;
            field(0, 12) * field(12, 10) * field(22, 10) * (cache.ecx as usize + 1)
        })
    }

    #[allow(unused_unsafe)] // the function is safe in newer versions of Rust than the oldest supported one
    fn cpuid(leaf: u32, sub_leaf: u32) -> CpuidResult {
        // SAFETY: every x86-64 CPU has this instruction.
        unsafe { __cpuid_count(leaf, sub_leaf) }
    }
}

#[cfg(all(target_os = "linux", not(target_arch = "x86_64")))]
mod machine {
    pub(super) fn l2_bytes() -> Option<usize> {
        let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").ok()?;
        size.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    }
}

#[cfg(not(any(target_os = "linux", target_arch = "x86_64")))]
mod machine {
    pub(super) fn l2_bytes() -> Option<usize> {
        None
    }
}
