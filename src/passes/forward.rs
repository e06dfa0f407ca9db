//! The forward pass in training: the statistics of the batch and, if it is wanted, y.

use super::arrays::{ChannelArrays, MOMENTS, stride};
use super::engine::Engine;
use super::inputs::{PassInputs, STREAM_FORWARD};
use super::normalize::Output;
use super::request::Forward;
use super::tiling::{Grid, MapTile, Steps};
use super::walked::Walked;
use crate::kernels::interleave::InterleavedKernel;
use crate::kernels::moments::{MomentsKernel, MomentsTask, WideMomentsKernel};
use crate::kernels::normalize;
use crate::kernels::partials::{MomentsOfAll, Partials, slot};
use crate::kernels::reduce::CHUNK;
use crate::kernels::tile::{PREFETCH_BYTES, Tile, padded};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::simd::{Isa, MAX_LANES, dispatch};
use std::ops::Range;
use std::ptr::{null, null_mut};

/// # Safety
/// See [`request`](super::request).
pub(super) unsafe fn forward<E: Storage>(engine: &Engine, request: Forward<'_, E, E::Scalar>) {
    let Forward { x, fusions, count, mean, var, output } = request;
    let weights = fusions.weights;
    if engine.shape.is_empty() {
        // SAFETY: weights cover the positions.
        *count = unsafe { weights.sum(0..engine.shape.values_per_channel()) } / weights.scale;
        mean.fill(0.0);
        var.fill(0.0);
        return;
    }
    let inputs = PassInputs::new(engine.shape, engine.activation, [x, null()], &fusions, STREAM_FORWARD);
    let Walked { shape, rows, rest, .. } = inputs.walked;
    // Weighted values are summed in lanes of f64, and runs shorter than a chunk leave nothing to interleave with.
    let interleaves = output.is_some()
        && weights.values.is_null()
        && shape.inner() >= CHUNK * MAX_LANES
        && E::INTERLEAVES
        && engine.isa.isa() != Isa::Portable;
    let grid = Grid::new(shape, if output.is_some() { size_of::<E>() } else { 0 }, interleaves);
    let (partials_stride, stride) = (padded(shape.channels()), stride(shape));
    let mut scratch = engine.scratch.pass();
    let slots = grid.segments() + usize::from(rest.is_some());
    let slots = Shared::new(scratch.take(MOMENTS * partials_stride * slots));
    let buffer = scratch.take(normalize::COEFS * stride + MAX_LANES);
    // SAFETY: the memory has a value for each segment, and weights cover the positions.
    let counts: &[f64] = unsafe {
        let counts = std::slice::from_raw_parts_mut(scratch.take(grid.segments()), grid.segments());
        for (segment, count) in counts.iter_mut().enumerate() {
            *count = weights.sum(grid.positions(segment));
        }
        counts
    };
    *count = (counts.iter().sum::<f64>() * rows as f64 + inputs.walked.rest_count()) / weights.scale;
    let pass = ForwardPass {
        engine,
        slots,
        partials_stride,
        counts,
        mean: Shared::new(mean.as_mut_ptr()),
        var: Shared::new(var.as_mut_ptr()),
        inputs,
        output: output.map(|(parameters, y)| {
            let coefs = ChannelArrays::aligned_with(buffer, stride, y);
            Output { parameters, coefs, y: Shared::new(y) }
        }),
        interleaves,
    };
    engine.walk::<E>(&grid, if pass.output.is_some() { 3 } else { 1 }, &pass);
}

struct ForwardPass<'a, E: Storage> {
    engine: &'a Engine,
    /// The partial moments of the segments, and how many values, or which weight, each has.
    slots: Shared<f64>,
    partials_stride: usize,
    counts: &'a [f64],
    mean: Shared<f64>,
    var: Shared<f64>,
    inputs: PassInputs<E>,
    output: Option<Output<'a, E>>,
    interleaves: bool,
}

impl<E: Storage> ForwardPass<'_, E> {
    fn moments(&self, inputs: &PassInputs<E>, segment: usize, tile: Tile, scratch: *mut f64) -> MomentsTask<E> {
        let (shape, x, weights) = (inputs.walked.shape, inputs.sources().inputs[0], inputs.weights());
        let out = slot(self.slots, segment, self.partials_stride);
        MomentsTask { shape, tile, x, weights, out, scratch }
    }

    /// Writes the moments of a tile of some inputs to the slot of a segment.
    ///
    /// # Safety
    /// See [`request`](super::request); nothing else uses the tile's part of the slot.
    unsafe fn reduce_of(&self, inputs: &PassInputs<E>, segment: usize, tile: Tile) {
        let isa = self.engine.isa;
        let mut scratch = self.engine.scratch.task();
        let scratch = scratch.take(MomentsTask::<E>::scratch(inputs.walked.shape));
        let task = self.moments(inputs, segment, tile, scratch);
        // SAFETY: the caller's promise; the scratch memory is the task's own. Groups of planes have few enough channels.
        unsafe {
            if inputs.variant.weighted {
                dispatch(isa, WideMomentsKernel::new(task));
            } else {
                dispatch(isa, MomentsKernel::new(task.clone()));
                self.redo_overflows(task);
            }
        }
    }

    /// Sums the channels again that have overflowed.
    fn redo_overflows(&self, task: MomentsTask<E>) {
        // SAFETY: the slot has the channels of the tile, which were just written.
        let overflows = |c: usize| unsafe { !(*task.out[2].add(c)).is_finite() };
        if E::OVERFLOWS && task.tile.channels.clone().any(overflows) {
            // SAFETY: as in `reduce`.
            dispatch(self.engine.isa, unsafe { WideMomentsKernel::new(task) });
        }
    }
}

impl<E: Storage> Steps for ForwardPass<'_, E> {
    fn reduces(&self) -> bool {
        true
    }
    fn maps(&self) -> bool {
        self.output.is_some()
    }
    fn interleaves(&self) -> bool {
        self.interleaves
    }

    fn reduce(&self, segment: usize, tile: Tile) {
        let rest = self.inputs.rest().filter(|_| tile.positions.end == self.inputs.walked.shape.values_per_channel());
        // SAFETY: whoever ran the request promised the pointers; a task has its tile's part of the slot for itself, and
        // the last one that of what is left over.
        unsafe {
            self.reduce_of(&self.inputs, segment, tile);
            if let Some(rest) = rest {
                self.reduce_of(&rest, segment + 1, Tile::all(rest.walked.shape));
            }
        }
    }

    fn finish(&self, columns: Range<usize>) {
        let walked = &self.inputs.walked;
        let range = walked.channels(columns.clone());
        // SAFETY: tasks have disjoint channels, all below the number of channels.
        let (mean, var) = unsafe { (self.mean.slice(range.clone()), self.var.slice(range.clone())) };
        // SAFETY: as above; all segments of these channels have been reduced.
        let partials = unsafe {
            Partials::new(self.slots, self.partials_stride, columns, self.counts, walked.rows, walked.rest_count())
        };
        dispatch(self.engine.isa, MomentsOfAll { partials, mean: &mut *mean, var: &mut *var });
        if let Some(output) = &self.output {
            // SAFETY: as above; the buffer has as many arrays.
            unsafe { output.finish(self.engine, [mean, var], &range, walked) };
        }
    }

    fn map(&self, tile: MapTile) {
        let Some(output) = &self.output else { return };
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and their channels are finished.
        unsafe { output.map(self.engine, &self.inputs, tile) };
    }

    fn reduce_and_map(&self, segment: usize, tile: Tile, mut map: MapTile) {
        let Some(output) = &self.output else { return };
        let engine = self.engine;
        // The reduction wants it now, so it is prefetched earlier.
        map.prefetch_distance = map.prefetch_distance.map(|distance| distance + PREFETCH_BYTES / size_of::<E>());
        let task = self.moments(&self.inputs, segment, tile, null_mut());
        let (coefs, out) = (&output.coefs, output.pointers());
        // SAFETY: as in `reduce` and in `map`; the walk gives two groups of one length, at the same positions.
        unsafe {
            let sums = MomentsKernel::new(task.clone());
            if self.inputs.variant.fuses() {
                let map = self.inputs.map_kernel::<normalize::Normalize<true>>(map, coefs, out);
                dispatch(engine.isa, InterleavedKernel::new(sums, map));
            } else {
                let map = self.inputs.map_kernel::<normalize::Normalize<false>>(map, coefs, out);
                dispatch(engine.isa, InterleavedKernel::new(sums, map));
            }
        }
        self.redo_overflows(task);
    }
}
