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

impl Tile {
    pub(crate) fn all(shape: Shape) -> Self {
        Self { channels: 0..shape.channels(), positions: 0..shape.values_per_channel() }
    }
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

/// Contiguous elements of one channel.
#[derive(Clone, Copy)]
pub(crate) struct PlaneRun {
    /// The channel, and its index in the tile.
    pub(crate) c: usize,
    pub(crate) k: usize,
    /// The first element, and its position.
    pub(crate) element: usize,
    pub(crate) position: usize,
    pub(crate) len: usize,
}

/// The runs of a tile of planes, in the order of memory: those of all channels at some positions, then at the next.
pub(super) struct PlaneRuns {
    shape: Shape,
    channels: Range<usize>,
    /// Positions of the next run and after it.
    positions: Range<usize>,
    next: PlaneRun,
}

impl PlaneRuns {
    /// Of a tile with at least one channel.
    #[inline(never)]
    pub(super) fn new(shape: Shape, channels: Range<usize>, positions: Range<usize>) -> Self {
        // As after the last channel of a run without elements.
        let next = PlaneRun { c: channels.end, k: channels.len(), element: 0, position: positions.start, len: 0 };
        Self { shape, channels, positions, next }
    }

    /// Goes to the first channel at the positions after those of the last run. Outlined: it has no vectors, and is
    /// called once for all channels.
    #[inline(never)]
    fn next_positions(&mut self) {
        let (c, inner) = (self.channels.start, self.shape.inner());
        self.positions.start += self.next.len;
        let position = self.positions.start;
        let (o, i) = (position / inner, position % inner);
        let element = (o * self.shape.channels() + c) * inner + i;
        self.next = PlaneRun { c, k: 0, element, position, len: self.positions.len().min(inner - i) };
    }
}

impl Iterator for PlaneRuns {
    type Item = PlaneRun;

    #[inline]
    fn next(&mut self) -> Option<PlaneRun> {
        if self.next.k == self.channels.len() {
            self.next_positions();
            if self.next.len == 0 {
                return None;
            }
        }
        let run = self.next;
        self.next.c += 1;
        self.next.k += 1;
        self.next.element += self.shape.inner();
        Some(run)
    }
}
