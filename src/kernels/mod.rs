//! The loops. Each runs on one thread over one [`Tile`] and trusts its caller for lengths.
//!
//! There are two walks. **Planes** (`inner > 1`): a channel is a set of contiguous runs, its coefficients are splat.
//! **Rows** (`inner == 1`): neighbouring elements belong to neighbouring channels, coefficients are loaded. [`reduce`]
//! has both for passes that sum, [`map`] for passes that write; a pass is one body over vectors handed to them.

pub(crate) mod activation;
pub(crate) mod coefficients;
pub(crate) mod gradient_sums;
pub(crate) mod input_gradient;
pub(crate) mod map;
pub(crate) mod moments;
pub(crate) mod normalize;
pub(crate) mod operands;
pub(crate) mod reduce;
pub(crate) mod second;
mod sink;

use crate::Shape;
use crate::simd::MAX_LANES;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A part of an activation: some channels at some positions. Position `o * inner + i` is the place of an element
/// among its channel's values.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub(crate) channels: Range<usize>,
    pub(crate) positions: Range<usize>,
}

/// The most channels that a tile of planes may have: their state lives on the stack.
pub(crate) const MAX_GROUP: usize = 64;

/// The first `n` of the slots, at most all, each with the value. A small tile would spend most of its time on
/// starting the others.
#[inline(always)]
fn start<T: Copy>(slots: &mut [MaybeUninit<T>; MAX_GROUP], n: usize, value: T) -> &mut [T] {
    let slots = &mut slots[..n];
    for slot in &mut *slots {
        slot.write(value);
    }
    // SAFETY: all of these have just been written, and `MaybeUninit<T>` has the layout of T.
    unsafe { &mut *(std::ptr::from_mut(slots) as *mut [T]) }
}

/// Elements from one per-channel array to the next: whole vectors of any type, so that arrays are read and written
/// without tails, and a vector more, or the arrays of a power of two of channels would compete for the same sets
/// of L1.
pub(crate) const fn padded(channels: usize) -> usize {
    // An empty shape may have any number of channels.
    let channels = if channels < usize::MAX / 2 { channels } else { usize::MAX / 2 };
    channels.next_multiple_of(MAX_LANES) + MAX_LANES
}

/// Elements from one array of coefficients to the next: in rows, which are walked with all arrays at once, a page more
/// than an array. Several streams in a page lead the hardware's prefetching astray, and maps from memory take 1.3 to 1.5
/// times as long then. What fits a cache does without.
pub(crate) fn apart(shape: Shape) -> usize {
    const PAGE: usize = 4096 / size_of::<f32>();
    const LARGE: usize = 1 << 16;
    padded(shape.channels()) + if shape.inner() == 1 && shape.len() > LARGE { PAGE } else { 0 }
}

/// Bytes between what is read and what memory is asked for: far enough for it to answer, near enough to be used.
pub(crate) const AHEAD: usize = 4096;

/// The pieces of contiguous positions in a range: `(o, first i, length)`, in order.
pub(crate) struct Runs {
    outer: usize,
    start: usize,
    left: usize,
    inner: usize,
}

impl Runs {
    #[inline(always)]
    pub(crate) fn new(shape: Shape, positions: &Range<usize>) -> Self {
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
