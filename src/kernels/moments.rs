//! Mean and sum of squared deviations in one pass over memory: Welford's recurrence by blocks.
//!
//! ```text
//! pivot p = mean of the first values                   d = x − p
//! for each block, as long as all before it together:   S = Σ d     Q = Σ d²
//!     mean_b = p + S/n_b     M2_b = Q − S²/n_b         merge into (n, mean, M2)     p = mean
//! ```
//!
//! Blocks double, so a channel of M values has log2(M) of them and closing one costs nothing that can be measured.
//! Why this is exact to a few ulps, whatever the order of the data: f64 holds d², and sums it, so that d = x − p is all
//! that is rounded; the result is that of data off by u·|d|. With n_b ≤ n, Chan's merge adds at least
//! n_b·(mean_b − p)²/2 to M2, so all the Q together are at most 2·M2, and what is relative to Q is relative to M2.
//!
//! Welford, Technometrics 4 (1962); Chan, Golub, LeVeque, The American Statistician 37 (1983).
//!
//! Where x − p leaves the range of f32 the channel's segment is summed again with lanes of f64.

use super::reduce::{self, Reduce, Rows};
use super::{MAX_GROUP, Runs, Tile, padded, start};
use crate::Shape;
use crate::element::{Element, Load};
use crate::simd::{Kernel, Real, Simd, Vector, wide_sum};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

/// The terms d and d².
struct Deviations;

impl Reduce for Deviations {
    const INPUTS: usize = 1;
    const COEFS: usize = 1;
    const SQUARES: bool = true;
    #[inline(always)]
    fn terms<V: Vector>([pivot, ..]: [V; 3], [x, _]: [V; 2]) -> [V; 2] {
        let d = x.sub(pivot);
        [d, d.mul(d)]
    }
}

/// Values whose mean is the first pivot.
const FIRST_RUN: usize = 128;
const FIRST_ROWS: usize = reduce::CHUNK;

/// Merges `b` into `a`, channel by channel, by Chan's formula. One division serves all channels; blocks of the same
/// length have the exact weight 1/2.
#[inline(always)]
pub(crate) fn merge(a_count: f64, a: [&mut [f64]; 2], b_count: f64, b: [&[f64]; 2]) {
    let b_weight = b_count / (a_count + b_count);
    let [a_mean, a_m2] = a;
    let [b_mean, b_m2] = b;
    for (((a_mean, a_m2), &b_mean), &b_m2) in a_mean.iter_mut().zip(a_m2).zip(b_mean).zip(b_m2) {
        let delta = b_mean - *a_mean;
        *a_mean += delta * b_weight;
        *a_m2 += b_m2 + delta * delta * (a_count * b_weight);
    }
}

/// Mean and M2 of a block from its sums about a pivot.
#[inline(always)]
fn close(n: f64, pivot: f64, s: f64, q: f64) -> [f64; 2] {
    let m2 = q - s * s / n;
    // Rounding of q may take a constant block below zero; NaN goes through.
    [pivot + s / n, if m2 < 0.0 { 0.0 } else { m2 }]
}

/// One channel on its way through its runs.
#[derive(Clone, Copy)]
struct Channel<V: Vector> {
    pivot: V::Scalar,
    acc: [V::Wide; 2],
    /// Values summed in this block, and how many it is to have; 0 before the first value.
    filled: usize,
    block: usize,
    /// Blocks closed so far.
    count: f64,
    mean: f64,
    m2: f64,
}

impl<V: Vector> Channel<V> {
    #[inline(always)]
    fn new() -> Self {
        let zero = V::wide_zero();
        let pivot = V::Scalar::from_f64(0.0);
        Self { pivot, acc: [zero; 2], filled: 0, block: 0, count: 0.0, mean: 0.0, m2: 0.0 }
    }

    /// Sums `len` contiguous values.
    ///
    /// # Safety
    /// They can be read at `x`.
    #[inline(always)]
    unsafe fn feed<L: Load<V = V>>(&mut self, mut x: *const L::Element, mut len: usize) {
        if self.block == 0 {
            // SAFETY: a run has at least one value.
            unsafe { self.first_pivot::<L>(x, len) };
        }
        loop {
            let take = len.min(self.block - self.filled);
            let coefs = [V::splat(self.pivot); 3];
            // SAFETY: `take` is at most `len`.
            unsafe {
                self.acc = reduce::run::<Deviations, L>(coefs, [x; 2], take, self.acc);
                x = x.add(take);
            }
            self.filled += take;
            len -= take;
            if len == 0 {
                return;
            }
            self.close_block();
        }
    }

    /// Starts from the mean of the first values, found from their deviations about the very first: exact for a
    /// constant.
    ///
    /// # Safety
    /// `len` values, at least one, can be read at `x`.
    #[inline(always)]
    unsafe fn first_pivot<L: Load<V = V>>(&mut self, x: *const L::Element, len: usize) {
        self.block = len.min(FIRST_RUN);
        let mut first = [V::Scalar::from_f64(0.0); 16];
        // SAFETY: there is one value; `first` has room for a vector; the block is within `len`.
        let acc = unsafe {
            L::load_first(x, 1).store(first.as_mut_ptr());
            reduce::run::<Deviations, L>([V::splat(first[0]); 3], [x; 2], self.block, self.acc)
        };
        self.pivot = V::Scalar::from_f64(first[0].to_f64() + wide_sum::<V>(acc[0]) / self.block as f64);
    }

    #[inline(always)]
    fn close_block(&mut self) {
        let n = self.filled as f64;
        let [mean, m2] = close(n, self.pivot.to_f64(), wide_sum::<V>(self.acc[0]), wide_sum::<V>(self.acc[1]));
        if self.count == 0.0 {
            (self.mean, self.m2) = (mean, m2);
        } else {
            let total = [slice::from_mut(&mut self.mean), slice::from_mut(&mut self.m2)];
            merge(self.count, total, n, [&[mean], &[m2]]);
        }
        self.count += n;
        self.acc = [V::wide_zero(); 2];
        self.filled = 0;
        self.block = self.count as usize;
        self.pivot = V::Scalar::from_f64(self.mean);
    }
}

/// The pass over one tile: mean and M2 of each of its channels at the tile's positions.
pub(crate) struct Moments<E> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    pub(crate) x: *const E,
    /// Mean and M2 by channel, each `padded(channels)` long.
    pub(crate) out: [*mut f64; 2],
    /// As many values as [`Moments::scratch`] says, for rows.
    pub(crate) scratch: *mut f64,
}

impl<E: Element> Kernel for Moments<E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes a `Moments` promises that its pointers cover the shape.
        unsafe {
            if self.shape.inner() == 1 {
                self.rows::<S>();
            } else {
                self.planes::<S>();
            }
        }
    }
}

impl<E: Element> Moments<E> {
    /// Values of scratch that a tile needs.
    pub(crate) fn scratch(tile: &Tile) -> usize {
        3 * padded(tile.channels.len())
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<S: Simd>(&self) {
        // SAFETY: the caller's promise; channels of the tile are below the shape's.
        unsafe {
            self.planes_of::<E::Native<S>>(self.tile.channels.clone());
            if E::HAS_REDO {
                for c in self.tile.channels.clone() {
                    if !(*self.out[1].add(c)).is_finite() {
                        self.planes_of::<E::Redo<S>>(c..c + 1);
                    }
                }
            }
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes_of<L: Load<Element = E>>(&self, channels: Range<usize>) {
        let (count, inner) = (self.shape.channels(), self.shape.inner());
        let mut slots = [const { MaybeUninit::uninit() }; MAX_GROUP];
        let states = start(&mut slots, channels.len(), Channel::<L::V>::new());
        for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
            for (state, c) in states.iter_mut().zip(channels.clone()) {
                // SAFETY: the run lies within the buffer, by the definition of the shape.
                unsafe { state.feed::<L>(self.x.add((o * count + c) * inner + i), len) };
            }
        }
        for (state, c) in states.iter_mut().zip(channels) {
            state.close_block();
            // SAFETY: `c` is below the number of channels.
            unsafe {
                *self.out[0].add(c) = state.mean;
                *self.out[1].add(c) = state.m2;
            }
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self) {
        let Range { start, end } = self.tile.channels;
        // SAFETY: the caller's promise; channels of the tile are below the shape's.
        unsafe {
            let [mean, m2] = self.out.map(|p| slice::from_raw_parts_mut(p.add(start), end - start));
            self.rows_of::<E::Native<S>>(start..end, [&mut *mean, &mut *m2], self.scratch);
            if !E::HAS_REDO {
                return;
            }
            // Whole vectors are summed again, and only the channels concerned take the new values: a channel's
            // result does not depend on its neighbours.
            const PANEL: usize = 8;
            for (k, (mean, m2)) in mean.chunks_mut(PANEL).zip(m2.chunks_mut(PANEL)).enumerate() {
                if m2.iter().all(|m2| m2.is_finite()) {
                    continue;
                }
                let (width, first) = (m2.len(), start + k * PANEL);
                let (mut new_mean, mut new_m2, mut scratch) = ([0.0; PANEL], [0.0; PANEL], [0.0; 3 * padded(PANEL)]);
                let out = [&mut new_mean[..width], &mut new_m2[..width]];
                self.rows_of::<E::Redo<S>>(first..first + width, out, scratch.as_mut_ptr());
                for c in 0..width {
                    if !m2[c].is_finite() {
                        (mean[c], m2[c]) = (new_mean[c], new_m2[c]);
                    }
                }
            }
        }
    }

    /// # Safety
    /// The pointers cover the shape; `scratch` has room for 3 times the padded number of columns.
    #[inline(always)]
    unsafe fn rows_of<L: Load<Element = E>>(&self, columns: Range<usize>, out: [&mut [f64]; 2], scratch: *mut f64) {
        let width = columns.len();
        let padded = padded(width);
        let [mean, m2] = out;
        // SAFETY: two arrays of f64 and one of the lanes' scalars, which are no larger, fit the scratch, apart from
        // each other; any bits are valid values.
        let mut sums = unsafe {
            Columns::<L::V> {
                width,
                stride: self.shape.channels(),
                pivot: slice::from_raw_parts_mut(scratch.cast(), padded),
                s: slice::from_raw_parts_mut(scratch.add(padded), padded),
                q: slice::from_raw_parts_mut(scratch.add(2 * padded), padded),
            }
        };
        let Range { start, end } = self.tile.positions;
        let x = self.x.wrapping_add(start * sums.stride + columns.start);
        let first = FIRST_ROWS.min(end - start);
        // SAFETY: the tile has at least one row, and the rows summed lie within it.
        unsafe {
            sums.first_pivot::<L>(x, first);
            let (mut row, mut block) = (0, first);
            while row < end - start {
                let rows = block.min(end - start - row);
                sums.sum::<L>(x.wrapping_add(row * sums.stride), rows);
                sums.close_block(row as f64, [&mut mean[..width], &mut m2[..width]], rows as f64);
                row += rows;
                block = row;
            }
        }
    }
}

/// The columns of a block of rows: what [`Channel`] is in planes. Arrays are padded to whole vectors.
struct Columns<'a, V: Vector> {
    width: usize,
    stride: usize,
    pivot: &'a mut [V::Scalar],
    s: &'a mut [f64],
    q: &'a mut [f64],
}

impl<V: Vector> Columns<'_, V> {
    /// # Safety
    /// `rows` rows can be read at `x`.
    #[inline(always)]
    unsafe fn sum<L: Load<V = V>>(&mut self, x: *const L::Element, rows: usize) {
        self.s.fill(0.0);
        self.q.fill(0.0);
        let r = Rows {
            coefs: self.pivot.as_ptr(),
            sums: [self.s.as_mut_ptr(), self.q.as_mut_ptr()],
            padded: self.s.len(),
            columns: self.width,
            stride: self.stride,
        };
        // SAFETY: the caller's promise; the arrays are padded.
        unsafe { reduce::rows::<Deviations, L>(&r, [x; 2], rows) };
    }

    /// As [`Channel::first_pivot`].
    ///
    /// # Safety
    /// `rows` rows, at least one, can be read at `x`.
    #[inline(always)]
    unsafe fn first_pivot<L: Load<V = V>>(&mut self, x: *const L::Element, rows: usize) {
        for c in (0..self.width).step_by(V::LANES) {
            let n = (self.width - c).min(V::LANES);
            // SAFETY: there is a row; `pivot` is padded to whole vectors.
            unsafe { L::load_first(x.wrapping_add(c), n).store(self.pivot.as_mut_ptr().add(c)) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.sum::<L>(x, rows) };
        for (p, s) in self.pivot.iter_mut().zip(&*self.s) {
            *p = Real::from_f64(p.to_f64() + s / rows as f64);
        }
    }

    /// Merges the block that was summed into the `count` rows before it.
    #[inline(always)]
    fn close_block(&mut self, count: f64, total: [&mut [f64]; 2], rows: f64) {
        for ((s, q), pivot) in self.s.iter_mut().zip(&mut *self.q).zip(&*self.pivot) {
            [*s, *q] = close(rows, pivot.to_f64(), *s, *q);
        }
        let [mean, m2] = total;
        let block = [&self.s[..self.width], &self.q[..self.width]];
        if count == 0.0 {
            mean.copy_from_slice(block[0]);
            m2.copy_from_slice(block[1]);
        } else {
            merge(count, [mean, m2], rows, block);
        }
        for (pivot, mean) in self.pivot.iter_mut().zip(mean) {
            *pivot = Real::from_f64(*mean);
        }
    }
}
