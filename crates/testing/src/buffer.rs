//! Misaligned buffers.

use crate::Value;
use std::ops::{Deref, DerefMut};

/// A slice whose first element lies `offset` elements behind a cache line.
///
/// Canaries on both sides show writes outside of it. In fuzz targets the slice ends where its allocation ends, so that
/// AddressSanitizer finds every access behind it, and `offset` counts from the start of the allocation.
pub struct Buffer<T: Value> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

const CANARY: f64 = -123.0;

impl<T: Value> Buffer<T> {
    /// A copy of `values`.
    pub fn new(values: &[T], offset: usize) -> Self {
        let (line, len) = (64 / size_of::<T>(), values.len());
        let around = if cfg!(fuzzing) { offset % line } else { 4 * line };
        let mut memory = vec![T::of(CANARY); around + len];
        let start = if cfg!(fuzzing) { around } else { line + memory.as_ptr().align_offset(64) + offset % line };
        memory[start..start + len].copy_from_slice(values);
        Self { memory, start, len }
    }
    /// A buffer for an output, filled with NaN to show values that were not written.
    pub fn output(len: usize, offset: usize) -> Self {
        Self::new(&vec![T::NAN; len], offset)
    }
}

impl<T: Value> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl<T: Value> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl<T: Value> Drop for Buffer<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (before, rest) = self.memory.split_at(self.start);
            assert!(
                before.iter().chain(&rest[self.len..]).all(|v| v.number() == CANARY),
                "written outside of a buffer"
            );
        }
    }
}
