//! What a kernel walks over, and the lengths that walks and their callers agree on.

use crate::shape::Shape;
use crate::simd::MAX_LANES;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A part of an activation: some channels at some positions. Position `o * inner + i` is the place of an element
/// among the values of its channel.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub(crate) channels: Range<usize>,
    pub(crate) positions: Range<usize>,
}

/// The most channels of a tile of planes that is summed: their state lies on the stack.
pub(crate) const MAX_GROUP: usize = 64;

/// The first `n` slots, each set to the value. A small tile would spend most of its time on setting all of them.
#[inline(always)]
pub(super) fn start<T: Copy>(slots: &mut [MaybeUninit<T>; MAX_GROUP], n: usize, value: T) -> &mut [T] {
    let slots = &mut slots[..n];
    for slot in &mut *slots {
        slot.write(value);
    }
    // SAFETY: all of these have just been written, and `MaybeUninit<T>` has the layout of T.
    unsafe { &mut *(std::ptr::from_mut(slots) as *mut [T]) }
}

/// Elements from one per-channel array to the next: whole vectors of any type, so that arrays are read and written
/// without tails, and one vector more, or the arrays of a power of two of channels would compete for the same sets
/// of L1.
pub(crate) const fn padded(channels: usize) -> usize {
    // An empty shape may have any number of channels.
    let channels = if channels < usize::MAX / 2 { channels } else { usize::MAX / 2 };
    channels.next_multiple_of(MAX_LANES) + MAX_LANES
}

/// Bytes from what is read to what is prefetched: far enough for memory to answer, near enough to be used.
pub(crate) const PREFETCH_BYTES: usize = 4096;

/// The pieces of contiguous positions in a range: `(o, first i, length)`, in order.
pub(super) struct Runs {
    outer: usize,
    start: usize,
    left: usize,
    inner: usize,
}

impl Runs {
    #[inline(always)]
    pub(super) fn new(shape: Shape, positions: &Range<usize>) -> Self {
        let inner = shape.inner().max(1);
        Self { outer: positions.start / inner, start: positions.start % inner, left: positions.len(), inner }
    }
}

impl Iterator for Runs {
    type Item = (usize, usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let len = self.left.min(self.inner - self.start);
        let run = (self.outer, self.start, len);
        self.left -= len;
        self.outer += 1;
        self.start = 0;
        Some(run)
    }
}
