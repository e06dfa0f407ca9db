//! Memory that passes need for per-channel arrays, kept for the next pass.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A cache line, so that arrays start on one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f64; 8]);

/// Buffers not in use. A clone starts with none.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<Line>>>);

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// A buffer of at least `len` values of f64, whatever was in them before.
    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let needed = len.div_ceil(8);
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; 8]));
        }
        Buffer { lines, pool: self }
    }
}

/// A buffer on loan; it returns to its pool when dropped.
pub(crate) struct Buffer<'a> {
    lines: Vec<Line>,
    pool: &'a Pool,
}

impl Buffer<'_> {
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f64 {
        self.lines.as_mut_ptr().cast()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(lines);
    }
}
