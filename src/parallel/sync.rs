//! What threads synchronize by, for [`team`](super::team): `tests/loom` compiles that file with loom's items instead.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
pub(super) use std::thread::yield_now;
