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
//! Where values have weights a block may be much heavier than all before it. If one of its values is, the pivot is the
//! heaviest: that lies within sqrt(n_b/w)·std of the mean, w being its weight, at most the root of the number of values.
//!
//! Where x − p leaves the range of f32 the channel's segment is summed again with lanes of f64.

use super::operands::{Fused, INPUTS, Lanes, Native, Operands, Redo, Sources, Weights, existing};
use super::reduce::{self, Beside, MAX_COEFS, PlaneSums, Reduce, Rows, Wide};
use super::{MAX_GROUP, Runs, Tile, padded, start};
use crate::element::{Element, Load};
use crate::simd::{Kernel, Real, Simd, Vector};
use crate::{Activation, Shape};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

/// The terms d and d², times the weight where `FUSED` and there are weights.
struct Deviations<const FUSED: bool>;

impl<const FUSED: bool> Reduce for Deviations<FUSED> {
    const INPUTS: usize = 1;
    const COEFS: usize = 1;
    const FUSED: bool = FUSED;
    const SQUARES: bool = !FUSED;
    #[inline(always)]
    fn terms<V: Vector>([pivot, ..]: [V; MAX_COEFS], operands: Operands<V>, fused: &Fused) -> [V; 2] {
        let d = operands.inputs[0].sub(pivot);
        if !FUSED {
            return [d, d.mul(d)];
        }
        let d = existing(fused, operands.weight, d);
        let weighted = d.mul(operands.weight);
        [weighted, weighted.mul(d)]
    }
}

/// What is fused to [`Deviations`].
#[inline(always)]
fn fused(weighted: bool) -> Fused {
    let (residual, output, rebuild, constant) = (false, false, false, false);
    Fused { activation: Activation::Identity, residual, output, weighted, rebuild, constant }
}

#[inline(always)]
fn sources<E: Element>(x: *const E, weights: *const E::Param) -> Sources<E> {
    let mut inputs = [std::ptr::null(); INPUTS];
    inputs[0] = x;
    Sources { inputs, weights }
}

/// Values whose mean is the first pivot.
const FIRST_RUN: usize = 128;
const FIRST_ROWS: usize = reduce::CHUNK;

/// Chan's formula for two parts of given counts, the second not empty. One division serves all channels; blocks of the
/// same length have the exact weight 1/2.
#[derive(Clone, Copy)]
struct Chan {
    /// Whether the first part is empty.
    first: bool,
    /// The share of the second part, and the product of the count of one with the share of the other.
    share: f64,
    product: f64,
}

impl Chan {
    #[inline(always)]
    fn new(a_count: f64, b_count: f64) -> Self {
        let share = b_count / (a_count + b_count);
        Self { first: a_count == 0.0, share, product: a_count * share }
    }

    /// Mean and M2 of both.
    #[inline(always)]
    fn merge(self, [a_mean, a_m2]: [f64; 2], [b_mean, b_m2]: [f64; 2]) -> [f64; 2] {
        if self.first {
            return [b_mean, b_m2];
        }
        let delta = b_mean - a_mean;
        [a_mean + delta * self.share, a_m2 + (b_m2 + delta * delta * self.product)]
    }
}

/// Merges `b` into `a`, channel by channel.
#[inline(always)]
pub(crate) fn merge(a_count: f64, a: [&mut [f64]; 2], b_count: f64, b: [&[f64]; 2]) {
    let [a_mean, a_m2] = a;
    let [b_mean, b_m2] = b;
    if b_count == 0.0 {
        return;
    }
    let chan = Chan::new(a_count, b_count);
    for (((a_mean, a_m2), &b_mean), &b_m2) in a_mean.iter_mut().zip(a_m2).zip(b_mean).zip(b_m2) {
        [*a_mean, *a_m2] = chan.merge([*a_mean, *a_m2], [b_mean, b_m2]);
    }
}

/// Mean and M2 of a block from its sums about a pivot.
#[inline(always)]
fn close(n: f64, pivot: f64, s: f64, q: f64) -> [f64; 2] {
    let mean = s / n;
    let m2 = q - s * mean;
    // Rounding of q may take a constant block below zero; NaN goes through.
    [pivot + mean, if m2 < 0.0 { 0.0 } else { m2 }]
}

/// A block of weighted positions, which all channels of a tile share.
#[derive(Clone, Copy)]
struct Block {
    weight: f64,
    /// The position whose value is the pivot, if not the mean of the blocks before.
    pivot: Option<usize>,
}

/// One channel on its way through its runs.
#[derive(Clone, Copy)]
struct Channel<V: Vector> {
    pivot: V::Scalar,
    acc: Wide<V>,
    /// Values summed in this block, and how many it is to have; 0 before the first value.
    filled: usize,
    block: usize,
    /// Blocks closed so far, the values in them, and their weight.
    blocks: usize,
    closed: usize,
    count: f64,
    mean: f64,
    m2: f64,
}

impl<V: Vector> Channel<V> {
    #[inline(always)]
    fn new() -> Self {
        let zero = V::wide_zero();
        let pivot = V::Scalar::from_f64(0.0);
        Self { pivot, acc: [zero; 2], filled: 0, block: 0, blocks: 0, closed: 0, count: 0.0, mean: 0.0, m2: 0.0 }
    }

    /// Sums `len` contiguous values. Where they have weights `blocks` are those of the tile, and `value` gives the one at
    /// a position; elsewhere there are none.
    ///
    /// # Safety
    /// They can be read at `x`.
    #[inline(always)]
    unsafe fn feed<L: Lanes<V = V>, const FUSED: bool>(
        &mut self,
        mut x: Sources<L::E>,
        mut len: usize,
        blocks: &[Block],
        value: impl Fn(usize) -> V::Scalar,
        beside: &mut impl Beside,
    ) {
        if self.block == 0 {
            self.block = len.min(FIRST_RUN);
            if blocks.is_empty() {
                // SAFETY: a run has at least one value; the block is within `len`.
                unsafe { self.first_pivot::<L, FUSED>(x) };
            }
        }
        loop {
            if self.filled == 0
                && let Some(&Block { pivot: Some(position), .. }) = blocks.get(self.blocks)
            {
                self.pivot = value(position);
            }
            let take = len.min(self.block - self.filled);
            let coefs = [V::splat(self.pivot); MAX_COEFS];
            // SAFETY: `take` is at most `len`.
            self.acc = unsafe {
                reduce::run::<Deviations<FUSED>, L, _>(coefs, x, &fused(!blocks.is_empty()), take, self.acc, beside)
            };
            x = x.advance(take, take);
            self.filled += take;
            len -= take;
            if len == 0 {
                return;
            }
            self.close_block(blocks);
        }
    }

    /// Starts from the mean of the first block's values, found from their deviations about the very first: exact for a
    /// constant.
    ///
    /// # Safety
    /// The block's values, at least one, can be read at `x`.
    #[inline(always)]
    unsafe fn first_pivot<L: Lanes<V = V>, const FUSED: bool>(&mut self, x: Sources<L::E>) {
        // SAFETY: the caller's promise.
        let (first, acc) = unsafe {
            let first = first::<L>(x.inputs[0]);
            let coefs = [V::splat(first); MAX_COEFS];
            (first, reduce::run::<Deviations<FUSED>, L, _>(coefs, x, &fused(false), self.block, self.acc, &mut ()))
        };
        self.pivot = V::Scalar::from_f64(first.to_f64() + V::wide_sum(acc[0]) / self.block as f64);
    }

    #[inline(always)]
    fn close_block(&mut self, blocks: &[Block]) {
        let n = blocks.get(self.blocks).map_or(self.filled as f64, |block| block.weight);
        if n > 0.0 {
            let block = close(n, self.pivot.to_f64(), V::wide_sum(self.acc[0]), V::wide_sum(self.acc[1]));
            [self.mean, self.m2] = Chan::new(self.count, n).merge([self.mean, self.m2], block);
            self.count += n;
        }
        self.blocks += 1;
        self.closed += self.filled;
        self.acc = [V::wide_zero(); 2];
        self.filled = 0;
        self.block = self.closed;
        if self.count > 0.0 {
            self.pivot = V::Scalar::from_f64(self.mean);
        }
    }
}

/// The value at `x`, as lanes hold it.
///
/// # Safety
/// It can be read.
#[inline(always)]
unsafe fn first<L: Lanes>(x: *const L::E) -> <L::V as Vector>::Scalar {
    let mut lanes = [Real::from_f64(0.0); 16];
    // SAFETY: the caller's promise; `lanes` has room for a vector.
    unsafe { L::X::load_first(x, 1).store(lanes.as_mut_ptr()) };
    lanes[0]
}

/// The pass over one tile: mean and M2 of each of its channels at the tile's positions.
pub(crate) struct Moments<E: Element> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    pub(crate) x: *const E,
    /// By position, null where there are none.
    pub(crate) weights: *const E::Param,
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
                self.planes::<S, _>(&mut ());
            }
        }
    }
}

impl<E: Element> PlaneSums for Moments<E> {
    #[inline(always)]
    unsafe fn planes<S: Simd, B: Beside>(&self, beside: &mut B) {
        let channels = self.tile.channels.clone();
        // SAFETY: the caller's promise; channels of the tile are below the shape's.
        unsafe {
            // Weights in f64: blocks that double in length need not double in weight, and f32 lanes rely on that.
            let weighted = !self.weights.is_null();
            if !weighted {
                self.planes_of::<Native<E, S>, false, B>(channels.clone(), beside);
            }
            let step = if weighted { channels.len() } else { 1 };
            for c in channels.clone().step_by(step) {
                if weighted || E::HAS_REDO && !(*self.out[1].add(c)).is_finite() {
                    self.planes_of::<Redo<E, S>, true, ()>(c..(c + step).min(channels.end), &mut ());
                }
            }
        }
    }
}

impl<E: Element> Moments<E> {
    /// Values of scratch that a tile needs.
    pub(crate) fn scratch(shape: Shape) -> usize {
        if shape.inner() == 1 { 3 * padded(shape.channels()) } else { 0 }
    }

    /// The weights of the tile's positions.
    #[inline(always)]
    fn tile_weights(&self) -> Weights<E::Param> {
        let first = self.weights.wrapping_add(self.tile.positions.start);
        Weights(if self.weights.is_null() { self.weights } else { first })
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes_of<L: Lanes<E = E>, const FUSED: bool, B: Beside>(&self, channels: Range<usize>, beside: &mut B) {
        let (count, inner) = (self.shape.channels(), self.shape.inner());
        let mut slots = [const { MaybeUninit::uninit() }; MAX_GROUP];
        let states = start(&mut slots, channels.len(), Channel::<L::V>::new());
        let mut blocks = [Block { weight: 0.0, pivot: None }; usize::BITS as usize];
        // SAFETY: runs and positions lie within the buffers, by the definition of the shape.
        unsafe {
            let blocks = if FUSED { self.blocks(&mut blocks) } else { &[] };
            for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
                for (k, (state, c)) in states.iter_mut().zip(channels.clone()).enumerate() {
                    let x = sources(self.x.add((o * count + c) * inner + i), self.weights.wrapping_add(o * inner + i));
                    reduce::prefetch_plane::<L::V, E>(x.inputs[0].wrapping_add(count * inner), len);
                    let value = |p: usize| first::<L>(self.x.add((p / inner * count + c) * inner + p % inner));
                    beside.begin(k, o, i, len);
                    state.feed::<L, FUSED>(x, len, blocks, value, beside);
                    beside.end();
                }
            }
            for (state, c) in states.iter_mut().zip(channels) {
                state.close_block(blocks);
                *self.out[0].add(c) = state.mean;
                *self.out[1].add(c) = state.m2;
            }
        }
    }

    /// The blocks of the tile's positions in planes, the first no longer than its run, if they have weights.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn blocks<'a>(&self, room: &'a mut [Block]) -> &'a [Block] {
        let (weights, inner) = (self.tile_weights(), self.shape.inner());
        let Range { start, end } = self.tile.positions;
        let (mut blocks, mut at, mut len, mut count) = (0, 0, (inner - start % inner).min(FIRST_RUN), 0.0);
        while at < end - start && !weights.0.is_null() {
            let positions = at..(at + len).min(end - start);
            at = positions.end;
            len = at;
            // SAFETY: the caller's promise; the positions are the tile's.
            unsafe {
                let pivot = weights.heaviest(positions.clone(), count).map(|p| start + p);
                room[blocks] = Block { weight: weights.sum(positions), pivot };
            }
            count += room[blocks].weight;
            blocks += 1;
        }
        &room[..blocks]
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self) {
        let Range { start, end } = self.tile.channels;
        // SAFETY: the caller's promise; channels of the tile are below the shape's.
        unsafe {
            let [mean, m2] = self.out.map(|p| slice::from_raw_parts_mut(p.add(start), end - start));
            if !self.weights.is_null() {
                return self.rows_of::<Redo<E, S>, true>(start..end, [mean, m2], self.scratch);
            }
            self.rows_of::<Native<E, S>, false>(start..end, [&mut *mean, &mut *m2], self.scratch);
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
                self.rows_of::<Redo<E, S>, true>(first..first + width, out, scratch.as_mut_ptr());
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
    unsafe fn rows_of<L: Lanes<E = E>, const FUSED: bool>(
        &self,
        columns: Range<usize>,
        out: [&mut [f64]; 2],
        scratch: *mut f64,
    ) {
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
        let (stride, weights) = (sums.stride, self.tile_weights());
        let Range { start, end } = self.tile.positions;
        let x = sources(self.x.wrapping_add(start * stride + columns.start), weights.0);
        let first = FIRST_ROWS.min(end - start);
        sums.s.fill(0.0);
        sums.q.fill(0.0);
        // SAFETY: the tile has at least one row, and the rows summed lie within it.
        unsafe {
            if weights.0.is_null() {
                sums.first_pivot::<L, FUSED>(x, first);
            }
            mean.fill(0.0);
            m2.fill(0.0);
            let (mut row, mut block, mut count) = (0, first, 0.0);
            while row < end - start {
                let rows = block.min(end - start - row);
                if FUSED && let Some(heaviest) = weights.heaviest(row..row + rows, count) {
                    sums.pivot_from::<L>(x.advance(heaviest * stride, 0));
                }
                sums.sum::<L, FUSED>(x.advance(row * stride, row), !weights.0.is_null(), rows);
                let n = weights.sum(row..row + rows);
                sums.close_block(count, [&mut mean[..width], &mut m2[..width]], n);
                count += n;
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
    /// Adds the terms of `rows` rows to the sums.
    ///
    /// # Safety
    /// `rows` rows can be read at `x`.
    #[inline(always)]
    unsafe fn sum<L: Lanes<V = V>, const FUSED: bool>(&mut self, x: Sources<L::E>, weighted: bool, rows: usize) {
        let r = Rows {
            coefs: self.pivot.as_ptr(),
            sums: [self.s.as_mut_ptr(), self.q.as_mut_ptr()],
            apart: 0,
            columns: self.width,
            stride: self.stride,
        };
        // SAFETY: the caller's promise; the arrays are padded.
        unsafe { reduce::rows::<Deviations<FUSED>, L>(&r, x, &fused(weighted), rows) };
    }

    /// Takes a row's values as pivots.
    ///
    /// # Safety
    /// A row can be read at `x`.
    #[inline(always)]
    unsafe fn pivot_from<L: Lanes<V = V>>(&mut self, x: Sources<L::E>) {
        for c in (0..self.width).step_by(V::LANES) {
            let n = (self.width - c).min(V::LANES);
            // SAFETY: the caller's promise; `pivot` is padded to whole vectors.
            unsafe { L::X::load_first(x.inputs[0].wrapping_add(c), n).store(self.pivot.as_mut_ptr().add(c)) };
        }
    }

    /// As [`Channel::first_pivot`].
    ///
    /// # Safety
    /// `rows` rows, at least one, can be read at `x`.
    #[inline(always)]
    unsafe fn first_pivot<L: Lanes<V = V>, const FUSED: bool>(&mut self, x: Sources<L::E>, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.pivot_from::<L>(x);
            self.sum::<L, FUSED>(x, false, rows);
        }
        for ((p, s), q) in self.pivot.iter_mut().zip(&mut *self.s).zip(&mut *self.q) {
            *p = Real::from_f64(p.to_f64() + *s / rows as f64);
            (*s, *q) = (0.0, 0.0);
        }
    }

    /// Merges the block that was summed, of weight `n`, into what came before it, of weight `count`, and leaves the sums
    /// and pivots that the next block starts from.
    #[inline(always)]
    fn close_block(&mut self, count: f64, total: [&mut [f64]; 2], n: f64) {
        if n == 0.0 {
            return;
        }
        let chan = Chan::new(count, n);
        let [mean, m2] = total;
        // One sweep: the arrays of a few thousand channels fill L1.
        for ((((mean, m2), pivot), s), q) in
            mean.iter_mut().zip(m2).zip(&mut *self.pivot).zip(&mut *self.s).zip(&mut *self.q)
        {
            [*mean, *m2] = chan.merge([*mean, *m2], close(n, pivot.to_f64(), *s, *q));
            *pivot = Real::from_f64(*mean);
            (*s, *q) = (0.0, 0.0);
        }
    }
}
