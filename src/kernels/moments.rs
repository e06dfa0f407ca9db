//! Mean and variance in one pass over memory: a blocked Welford recurrence.
//!
//! ```text
//! pivot p near the mean of the first values            S = Q = 0
//! for each block, as long as all before it together:   S += Σ (x − p)     Q += Σ (x − p)²
//!     move p near the mean p + S/n of all values so far, and S and Q with it
//! ```
//!
//! Blocks double, so a channel of M values has log2(M) of them, and the cost of closing one cannot be measured.
//! Why this is exact to a few ulps, whatever the order of the data: (x − p)² of f32 fits in f64, which also sums it, so
//! that only x − p is rounded; the result is that of data off by u·|x − p|. A block is no longer than all before it, so
//! by Chan's formula it adds at least half of its Σ(x − p)² to the sum of squared deviations, M2. All these sums
//! together are at most 2·M2, and what is relative to them is relative to M2. Moving p takes no more than half of Q away.
//! [`Moments`] says why results are exact if values lie on a grid. Lanes of f64 keep what sums lose to rounding.
//!
//! Welford, Technometrics 4 (1962); Chan, Golub, LeVeque, The American Statistician 37 (1983).
//!
//! With weights, a block may be much heavier than all before it. If one of its values is, the pivot is the heaviest
//! value: it lies within sqrt(n_b/w)·std of the mean, w being its weight, at most the root of the number of values.
//!
//! If squares leave the range of f32, the channel's segment is summed again in lanes of f64: [`WideMomentsKernel`].

use super::merge::Moments;
use super::operands::{
    Any, INPUTS, Kind, Lanes, Native, Operands, Plain, Sources, Variant, Wide, masked, scaled_weight,
};
use super::reduce::{self, Accumulators, Interleave, MAX_COEFS, Reduce, Rows};
use super::tile::{MAX_GROUP, PlaneRuns, Tile, padded, start};
use super::weights::{Block, Weights};
use crate::lanes::{Load, Storage};
use crate::shape::Shape;
use crate::simd::{Kernel, MAX_LANES, Real, Simd, Vector};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null;

/// The terms d and d², times the weight if there are weights.
pub(super) struct Deviations<K>(PhantomData<K>);

impl<K: Kind> Reduce for Deviations<K> {
    type Kind = K;
    const INPUTS: usize = 1;
    const COEFS: usize = 1;
    #[inline(always)]
    fn terms<V: Vector>(coefs: &[V; MAX_COEFS], operands: &Operands<V>, variant: &Variant) -> [V; 2] {
        let d = operands.inputs[0].sub(coefs[0]);
        if !K::ANY {
            return [d, d.mul(d)];
        }
        let d = masked(variant, operands.weight, d);
        let weighted = d.mul(scaled_weight(variant, operands.weight));
        [weighted, weighted.mul(d)]
    }
}

/// Values in a plane whose mean is the first pivot.
const FIRST_RUN: usize = 128;

/// How many of the first run's values are the first block: all if it is short, so that blocks end where planes do.
#[inline(always)]
fn first_block(len: usize) -> usize {
    if len < 2 * FIRST_RUN { len } else { FIRST_RUN }
}

/// One channel on its way through its runs.
#[derive(Clone, Copy)]
struct Channel<V: Vector> {
    /// The blocks closed so far: their number, values, weight and moments.
    blocks: usize,
    closed: usize,
    count: f64,
    moments: Moments,
    /// The sums of this block about the same pivot.
    acc: Accumulators<V>,
    /// Values summed in this block, and how many it is to have; 0 before the first value.
    filled: usize,
    block: usize,
}

impl<V: Vector> Channel<V> {
    #[inline(always)]
    fn new() -> Self {
        let acc = [V::wide_zero(); 2];
        Self { blocks: 0, closed: 0, count: 0.0, moments: Moments::NONE, acc, filled: 0, block: 0 }
    }

    /// Sums `len` contiguous values of the channel `c` of a task. If they have weights, `blocks` are those of the tile;
    /// otherwise there are none.
    ///
    /// # Safety
    /// They can be read at `x`.
    #[inline(always)]
    unsafe fn feed<L: Lanes<V = V>, K: Kind>(
        &mut self,
        mut x: Sources<L::E>,
        mut len: usize,
        blocks: &[Block],
        task: &MomentsTask<L::E>,
        c: usize,
        interleaved: &mut impl Interleave,
    ) {
        let (weighted, weight_scale) = (K::ANY && !blocks.is_empty(), task.weights.scale);
        let variant = Variant { weighted, weight_scale, ..Variant::PLAIN };
        // The first block is summed twice if it has no weights: first about its first value, to find its mean. It may be
        // far from that value, and for a constant it is that value.
        let mut finds_pivot = false;
        if self.block == 0 {
            self.block = first_block(len);
            if blocks.is_empty() {
                finds_pivot = true;
                // SAFETY: a run has at least one value.
                self.moments.pivot = unsafe { first::<L>(x.inputs[0]) };
            }
        }
        loop {
            if K::ANY
                && self.filled == 0
                && let Some(&Block { pivot: Some(position), .. }) = blocks.get(self.blocks)
            {
                // SAFETY: the position is one of the tile's.
                self.moments = self.moments.about(self.count, unsafe { first::<L>(task.at(c, position)) });
            }
            let take = len.min(self.block - self.filled);
            let coefs = [V::splat(Real::from_wide(self.moments.pivot)); MAX_COEFS];
            // SAFETY: `take` is at most `len`.
            self.acc = unsafe { reduce::run::<Deviations<K>, L, _>(&coefs, &x, &variant, take, self.acc, interleaved) };
            if finds_pivot {
                finds_pivot = false;
                self.add_block();
                let pivot = self.moments.about_mean::<V::Scalar>(take as f64, 1.0 / take as f64).pivot;
                self.moments = Moments { pivot, ..Moments::NONE };
                continue;
            }
            x = x.advance(take, take);
            self.filled += take;
            len -= take;
            if len == 0 {
                return;
            }
            self.close_block(blocks);
        }
    }

    /// Closes a block after which another follows.
    #[inline(always)]
    fn close_block(&mut self, blocks: &[Block]) {
        let n = match blocks.get(self.blocks) {
            Some(block) => block.weight,
            None => self.filled as f64,
        };
        self.count += n;
        self.add_block();
        if self.count > 0.0 {
            self.moments = self.moments.about_mean::<V::Scalar>(self.count, 1.0 / self.count);
        }
        self.blocks += 1;
        self.closed += self.filled;
        self.filled = 0;
        self.block = self.closed;
    }

    /// Adds the sums of the block to the moments.
    #[inline(always)]
    fn add_block(&mut self) {
        self.moments.s += V::wide_sum(self.acc[0]);
        self.moments.q += V::wide_sum(self.acc[1]);
        self.acc = [V::wide_zero(); 2];
    }
}

/// The value at `x`.
///
/// # Safety
/// It can be read.
#[inline(always)]
unsafe fn first<L: Lanes>(x: *const L::E) -> f64 {
    let mut lanes: [<L::V as Vector>::Scalar; MAX_LANES] = [Real::from_wide(0.0); MAX_LANES];
    // SAFETY: the caller's promise; `lanes` has room for a vector.
    unsafe { L::X::load_first(x, 1).store(lanes.as_mut_ptr()) };
    lanes[0].to_wide()
}

/// Whether values differ from 0: how many are positive, and how many negative.
struct Signs;

impl Reduce for Signs {
    const INPUTS: usize = 1;
    const COEFS: usize = 0;
    // Little code, which dead channels alone run.
    type Kind = Any;
    #[inline(always)]
    fn terms<V: Vector>(_: &[V; MAX_COEFS], operands: &Operands<V>, _: &Variant) -> [V; 2] {
        let [x, ..] = operands.inputs;
        let (zero, one) = (V::splat(Real::from_wide(0.0)), V::splat(Real::from_wide(1.0)));
        [x.if_positive(one, zero), zero.sub(x).if_positive(one, zero)]
    }
}

/// If squares of deviations are smaller on average, some may be below 2⁻¹²⁶, where f32 loses bits.
const SMALL_SQUARE: f64 = f64::from_bits((1023 - 120) << 52);
/// Values near a larger pivot differ from it by more than 2⁻⁶⁰, or not at all.
const SMALL_PIVOT: f64 = f64::from_bits((1023 - 35) << 52);

/// The pass over one tile: the moments of each of its channels at the positions of the tile.
#[derive(Clone)]
pub(crate) struct MomentsTask<E: Storage> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    pub(crate) x: *const E,
    /// By position.
    pub(crate) weights: Weights<E::Scalar>,
    /// Pivot, S and Q by channel, each `padded(channels)` long.
    pub(crate) out: [*mut f64; 3],
    /// As many values as [`MomentsTask::scratch`] says, for rows.
    pub(crate) scratch: *mut f64,
}

impl<E: Storage> MomentsTask<E> {
    /// Values of scratch memory that a tile needs.
    pub(crate) fn scratch(shape: Shape) -> usize {
        if shape.inner() == 1 { 3 * padded(shape.channels()) } else { 0 }
    }

    /// Whether squares of deviations of a channel have left the range of lanes.
    ///
    /// # Safety
    /// [`MomentsKernel`] has written the channel's moments.
    #[inline(always)]
    pub(crate) unsafe fn is_lost(&self, c: usize) -> bool {
        // SAFETY: the caller's promise.
        let (pivot, q) = unsafe { (*self.out[0].wrapping_add(c), *self.out[2].wrapping_add(c)) };
        let least = SMALL_SQUARE * self.tile.positions.len() as f64;
        !q.is_finite() || (q < least && pivot.abs() < SMALL_PIVOT)
    }

    /// Whether all values of a channel of planes are 0.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn is_zero<L: Lanes<E = E>>(&self, c: usize) -> bool {
        let coefs = [L::V::splat(Real::from_wide(0.0)); MAX_COEFS];
        let mut acc = [L::V::wide_zero(); 2];
        for run in PlaneRuns::new(self.shape, c..c + 1, self.tile.positions.clone()) {
            let x = self.sources(run.element, run.position);
            // SAFETY: runs lie within the buffer, by the definition of the shape.
            acc = unsafe { reduce::run::<Signs, L, _>(&coefs, &x, &Variant::PLAIN, run.len, acc, &mut ()) };
        }
        L::V::wide_sum(acc[0]) + L::V::wide_sum(acc[1]) == 0.0
    }

    /// Writes how many values of each column of rows are positive to the first array, and how many are negative to the
    /// second.
    ///
    /// # Safety
    /// The pointers cover the shape, and each array has room for the columns of the tile, up to a whole vector.
    #[inline(always)]
    unsafe fn signs_of_rows<L: Lanes<E = E>>(&self, sums: [*mut f64; 2], rests: *mut f64) {
        let (row_stride, Range { start, end }) = (self.shape.channels(), self.tile.channels.clone());
        let (columns, first) = (end - start, self.tile.positions.start);
        let x = self.sources(first * row_stride + start, first);
        let r = Rows { coefs: null(), coefs_stride: 0, sums, rests: [rests; 2], columns, row_stride };
        // SAFETY: the caller's promise; the rows lie within the buffer.
        unsafe {
            for sums in sums {
                sums.write_bytes(0, columns.next_multiple_of(MAX_LANES));
            }
            reduce::rows::<Signs, L>(&r, &x, &Variant { rows: true, ..Variant::PLAIN }, self.tile.positions.len());
        }
    }

    /// The weights of the tile's positions.
    #[inline(always)]
    pub(super) fn tile_weights(&self) -> Weights<E::Scalar> {
        self.weights.from(self.tile.positions.start)
    }

    /// x and its weights from an element and its position on.
    #[inline(always)]
    pub(super) fn sources(&self, element: usize, position: usize) -> Sources<E> {
        let mut inputs = [null(); INPUTS];
        inputs[0] = self.x.wrapping_add(element);
        Sources { inputs, weights: self.weights.values.wrapping_add(position) }
    }

    /// The value of a channel at a position of planes.
    #[inline(always)]
    fn at(&self, c: usize, position: usize) -> *const E {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        self.x.wrapping_add((position / inner * channels + c) * inner + position % inner)
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes_of<L: Lanes<E = E>, K: Kind, I: Interleave>(&self, channels: Range<usize>, interleaved: &mut I) {
        let next_plane = self.shape.channels() * self.shape.inner();
        let mut slots = [const { MaybeUninit::uninit() }; MAX_GROUP];
        let states = start(&mut slots, channels.len(), Channel::<L::V>::new());
        let mut blocks = [Block::EMPTY; Block::MOST];
        // SAFETY: runs and positions lie within the buffers, by the definition of the shape.
        unsafe {
            let used = if K::ANY { self.blocks(&mut blocks) } else { 0 };
            let blocks = &blocks[..used];
            for run in PlaneRuns::new(self.shape, channels.clone(), self.tile.positions.clone()) {
                let x = self.sources(run.element, run.position);
                reduce::prefetch_plane::<L::V, E>(x.inputs[0].wrapping_add(next_plane), run.len);
                interleaved.begin(&run);
                states[run.k].feed::<L, K>(x, run.len, blocks, self, run.c, interleaved);
                interleaved.end();
            }
            let mut k = 0;
            while k < states.len() {
                states[k].add_block();
                let Moments { pivot, s, q } = states[k].moments;
                *self.out[0].wrapping_add(channels.start + k) = pivot;
                *self.out[1].wrapping_add(channels.start + k) = s;
                *self.out[2].wrapping_add(channels.start + k) = q;
                k += 1;
            }
        }
    }

    /// Writes the blocks of the tile's positions in planes, the first no longer than its run, and returns how many
    /// there are: none without weights.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn blocks(&self, room: &mut [Block; Block::MOST]) -> usize {
        let (weights, inner) = (self.tile_weights(), self.shape.inner());
        let Range { start, end } = self.tile.positions;
        let (mut blocks, mut at, mut len, mut count) =
            (0, 0, first_block((inner - start % inner).min(end - start)), 0.0);
        while at < end - start && !weights.values.is_null() {
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
        blocks
    }
}

/// The moments of a tile without weights, in the lanes of its type.
pub(crate) struct MomentsKernel<E: Storage>(MomentsTask<E>);

impl<E: Storage> MomentsKernel<E> {
    /// # Safety
    /// x covers the shape, and nothing else uses the channels of the tile in `out`, nor the scratch memory, while the
    /// kernel runs. A tile of planes has at most [`MAX_GROUP`] channels.
    pub(crate) unsafe fn new(task: MomentsTask<E>) -> Self {
        Self(task)
    }

    /// # Safety
    /// As [`Interleave`] asks for.
    #[inline(always)]
    pub(super) unsafe fn planes<S: Simd, I: Interleave>(&self, interleaved: &mut I) {
        // SAFETY: whoever made the kernel promised that its pointers cover the shape.
        unsafe { self.0.planes_of::<Native<E, S>, Plain, I>(self.0.tile.channels.clone(), interleaved) };
    }
}

impl<E: Storage> Kernel for MomentsKernel<E> {
    const AVX2_SERVES: bool = E::AVX2_SERVES;

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever made the kernel promised that its pointers cover the shape.
        unsafe {
            if self.0.shape.inner() == 1 {
                self.0.rows_of::<Native<E, S>, Plain>(self.0.tile.channels.clone(), self.0.out, self.0.scratch);
            } else {
                self.planes::<S, ()>(&mut ());
            }
        }
    }
}

/// The moments of a tile in lanes of f64: with weights, as blocks that double in length need not double in weight,
/// which lanes of f32 rely on; or, of what [`MomentsKernel`] has summed, of the channels whose squares have left the
/// range of lanes.
pub(crate) struct WideMomentsKernel<E: Storage>(MomentsTask<E>);

impl<E: Storage> WideMomentsKernel<E> {
    /// # Safety
    /// Weights, if there are any, cover the positions; otherwise `out` is what [`MomentsKernel`] has written. For the
    /// rest see [`MomentsKernel::new`].
    pub(crate) unsafe fn new(task: MomentsTask<E>) -> Self {
        Self(task)
    }
}

impl<E: Storage> Kernel for WideMomentsKernel<E> {
    const AVX2_SERVES: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self) {
        let task = &self.0;
        let Range { start, end } = task.tile.channels;
        let redoes = task.weights.values.is_null();
        let planes = task.shape.inner() > 1;
        // With weights all channels at once; else planes one by one, and rows a vector at a time.
        let step = match (redoes, planes) {
            (false, _) => end - start,
            (true, true) => 1,
            (true, false) => S::F64::LANES,
        };
        let signs = [task.scratch, task.scratch.wrapping_add(padded(end - start))];
        if redoes && !planes {
            // The moments of a channel of zeros, of which some networks have many, are right. Of rows all channels are
            // read at once.
            // SAFETY: whoever made the kernel promised that its pointers cover the shape and have so much room.
            unsafe { task.signs_of_rows::<Native<E, S>>(signs, signs[1].wrapping_add(padded(end - start))) };
        }
        let mut c = start;
        while c < end {
            let channels = c..(c + step).min(end);
            c = channels.end;
            // SAFETY: whoever made the kernel promised that its pointers cover the shape.
            unsafe {
                let mut lost = !redoes;
                for c in channels.clone().filter(|_| redoes) {
                    let zero = || *signs[0].wrapping_add(c - start) + *signs[1].wrapping_add(c - start) == 0.0;
                    lost |= task.is_lost(c) && !(if planes { task.is_zero::<Native<E, S>>(c) } else { zero() });
                }
                if !lost {
                    continue;
                }
                if planes {
                    task.planes_of::<Wide<E, S>, Any, ()>(channels, &mut ());
                    continue;
                }
                // A channel keeps what is finite: its result must not depend on its neighbours.
                let mut moments = [0.0; 3 * padded(MAX_LANES)];
                let mut scratch = [0.0; 3 * padded(MAX_LANES)];
                let (mut out, mut room) = (task.out, task.scratch);
                if redoes {
                    for (out, moments) in out.iter_mut().zip(moments.chunks_mut(padded(MAX_LANES))) {
                        *out = moments.as_mut_ptr().wrapping_sub(channels.start);
                    }
                    room = scratch.as_mut_ptr();
                }
                task.rows_of::<Wide<E, S>, Any>(channels.clone(), out, room);
                for c in channels.filter(|_| redoes) {
                    if task.is_lost(c) {
                        for (to, from) in task.out.iter().zip(out) {
                            *to.wrapping_add(c) = *from.wrapping_add(c);
                        }
                    }
                }
            }
        }
    }
}
