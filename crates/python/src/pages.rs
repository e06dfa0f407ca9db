//! Huge pages for new memory.

/// Asks the system for huge pages in a range of memory, which is about to be written for the first time: to ask it for
/// one page of 4 KB after the other takes several times as long as a pass. The memory stays as it is, and a system that
/// has no huge pages ignores the advice.
#[cfg(target_os = "linux")]
pub(crate) fn want_huge(address: usize, bytes: usize) {
    // A multiple of all sizes of small pages: the advice is given for whole ones.
    const PAGE: usize = 1 << 16;
    let Some(start) = address.checked_next_multiple_of(PAGE) else { return };
    let len = address.saturating_add(bytes).saturating_sub(start) / PAGE * PAGE;
    if len > 0 && !is_resident(start) && !is_resident(start + len - PAGE) {
        // SAFETY: the advice changes neither contents nor permissions, and is refused for a range that is not mapped.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn want_huge(_: usize, _: usize) {}

#[cfg(target_os = "linux")]
fn is_resident(address: usize) -> bool {
    let mut resident = 0;
    // SAFETY: asks about one page, and is refused if it is not mapped.
    let failed = unsafe { libc::mincore(std::ptr::without_provenance_mut(address), 1, &raw mut resident) } != 0;
    failed || resident & 1 == 1
}
