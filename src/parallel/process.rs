//! The process, by which a forked child is recognized: of the threads of its parent it has only the one that forked.

/// The number of this process.
pub(super) fn id() -> u32 {
    // Only Unix has fork, and not every target has numbers.
    if cfg!(unix) { std::process::id() } else { 1 }
}
