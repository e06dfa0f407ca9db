//! The forward pass in training: the statistics of the batch and, if it is wanted, y.

use super::arrays::{ChannelArrays, MOMENTS, Window, stride};
use super::engine::Engine;
use super::inputs::{PassInputs, STREAM_FORWARD};
use super::normalize::Output;
use super::request::Forward;
use super::scratch::Sizes;
use super::tiling::{Grid, MOST_SEGMENTS, MapTile, Steps};
use super::walked::Walked;
use crate::kernels::interleave::InterleavedKernel;
use crate::kernels::moments::{MomentsKernel, MomentsTask, WideMomentsKernel};
use crate::kernels::normalize::{self, Normalize};
use crate::kernels::operands::{Any, Plain, Relu};
use crate::kernels::partials::{MomentsOfAll, Partials, slot};
use crate::kernels::reduce::CHUNK;
use crate::kernels::tile::{PREFETCH_BYTES, Tile, padded};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::shape::Shape;
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
    let Walked { shape, rows, .. } = inputs.walked;
    let interleaves = output.is_some() && weights.values.is_null() && interleaves::<E>(engine, shape);
    let grid = grid::<E>(engine, shape, output.is_some(), interleaves);
    let mut counts = [0.0; MOST_SEGMENTS];
    let counts = &mut counts[..grid.segments()];
    for (segment, count) in counts.iter_mut().enumerate() {
        // SAFETY: weights cover the positions.
        *count = unsafe { weights.sum(grid.positions(segment)) };
    }
    *count = (counts.iter().sum::<f64>() * rows as f64 + inputs.walked.rest_count()) / weights.scale;
    let pass = ForwardPass {
        engine,
        counts,
        mean: Shared::new(mean.as_mut_ptr()),
        var: Shared::new(var.as_mut_ptr()),
        inputs,
        output: output.map(|(parameters, y)| Output { parameters, y: Shared::new(y) }),
        interleaves,
    };
    engine.walk::<E>(&grid, if pass.output.is_some() { 3 } else { 1 }, &pass);
}

/// Whether sums are interleaved with the map of the group before, if nothing else speaks against it: weighted values are
/// summed in lanes of f64, and runs shorter than a chunk leave nothing to interleave with.
fn interleaves<E: Storage>(engine: &Engine, shape: Shape) -> bool {
    shape.inner() >= CHUNK * MAX_LANES && E::INTERLEAVES && engine.isa.isa() != Isa::Portable
}

fn grid<E>(engine: &Engine, shape: Shape, maps: bool, interleaves: bool) -> Grid {
    Grid::new(shape, if maps { size_of::<E>() } else { 0 }, interleaves, engine.l2)
}

/// The arrays of a window.
struct Arrays<P> {
    /// The partial moments of the segments.
    slots: ChannelArrays<f64>,
    /// The coefficients of the map.
    coefs: ChannelArrays<P>,
}

impl<P> Arrays<P> {
    /// In a window, and its length.
    fn new(window: &Window, walked: &Walked, segments: usize) -> (Self, usize) {
        let (arrays, columns) = (MOMENTS * walked.slots(segments), window.columns);
        let (slots, at) = window.arrays(0, arrays, padded(columns));
        let (coefs, end) = window.arrays(at, normalize::COEFS, stride::<P>(walked.shape, columns));
        (Self { slots, coefs }, end)
    }
}

/// The memory that forward passes need at most.
pub(super) fn sizes<E: Storage>(engine: &Engine, walked: &Walked, count: usize) -> Sizes {
    let mut sizes = Sizes::default();
    for interleaves in [false, interleaves::<E>(engine, walked.shape)] {
        let grid = grid::<E>(engine, walked.shape, true, interleaves).for_threads(count);
        let [columns, windows] = grid.windows(count, interleaves);
        let (_, window) = Arrays::<E::Scalar>::new(&Window::of_columns(columns), walked, grid.segments());
        let task = MomentsTask::<E>::scratch(walked.shape);
        sizes = sizes.max(Sizes { window, windows, task, tasks: count.min(grid.tiles()) });
    }
    sizes
}

struct ForwardPass<'a, E: Storage> {
    engine: &'a Engine,
    /// How many values, or which weight, each segment has.
    counts: &'a [f64],
    mean: Shared<f64>,
    var: Shared<f64>,
    inputs: PassInputs<E>,
    output: Option<Output<'a, E>>,
    interleaves: bool,
}

impl<E: Storage> ForwardPass<'_, E> {
    fn arrays(&self, window: &Window) -> Arrays<E::Scalar> {
        let (arrays, _) = Arrays::new(window, &self.inputs.walked, self.counts.len());
        let Some(output) = &self.output else { return arrays };
        Arrays { coefs: arrays.coefs.aligned_with(output.y.ptr()), ..arrays }
    }

    fn moments(
        &self,
        inputs: &PassInputs<E>,
        segment: usize,
        tile: Tile,
        window: &Window,
        scratch: *mut f64,
    ) -> MomentsTask<E> {
        let (shape, x, weights) = (inputs.walked.shape, inputs.sources().inputs[0], inputs.weights());
        let slots = self.arrays(window).slots;
        let out = slot(slots.shared(), segment, slots.stride);
        MomentsTask { shape, tile, x, weights, out, scratch }
    }

    /// Writes the moments of a tile of some inputs to the slot of a segment.
    ///
    /// # Safety
    /// See [`request`](super::request); nothing else uses the tile's part of the slot.
    unsafe fn reduce_of(&self, inputs: &PassInputs<E>, segment: usize, tile: Tile, window: &Window) {
        let isa = self.engine.isa;
        let len = MomentsTask::<E>::scratch(inputs.walked.shape);
        let mut scratch = (len > 0).then(|| self.engine.scratch.task(len));
        let scratch = scratch.as_mut().map_or(null_mut(), |scratch| scratch.take(len));
        let task = self.moments(inputs, segment, tile, window, scratch);
        // SAFETY: the caller's promise; the scratch memory is the task's own. Groups of planes have few enough channels.
        unsafe {
            if inputs.variant.weighted {
                dispatch(isa, WideMomentsKernel::new(task));
            } else {
                dispatch(isa, MomentsKernel::new(task.clone()));
                self.redo_lost(task);
            }
        }
    }

    /// Sums the channels again whose squares have left the range of lanes.
    fn redo_lost(&self, task: MomentsTask<E>) {
        // SAFETY: the slot has the channels of the tile, which were just written.
        if E::LEAVES_RANGE && task.tile.channels.clone().any(|c| unsafe { task.is_lost(c) }) {
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

    fn window(&self, columns: usize) -> usize {
        Arrays::<E::Scalar>::new(&Window::of_columns(columns), &self.inputs.walked, self.counts.len()).1
    }

    fn reduce(&self, segment: usize, tile: Tile, window: &Window) {
        let rest = self.inputs.rest_after(&tile);
        // SAFETY: whoever ran the request promised the pointers; a task has its tile's part of the slot for itself, and
        // the last one that of what is left over.
        unsafe {
            self.reduce_of(&self.inputs, segment, tile, window);
            if let Some(rest) = rest {
                self.reduce_of(&rest, segment + 1, Tile::all(rest.walked.shape), window);
            }
        }
    }

    fn finish(&self, columns: Range<usize>, window: &Window) {
        let (walked, Arrays { slots, coefs }) = (&self.inputs.walked, self.arrays(window));
        let range = walked.channels(columns.clone());
        // SAFETY: tasks have disjoint channels, all below the number of channels.
        let (mean, var) = unsafe { (self.mean.slice(range.clone()), self.var.slice(range.clone())) };
        // SAFETY: as above; all segments of these channels have been reduced.
        let partials = unsafe {
            Partials::new(slots.shared(), slots.stride, columns, self.counts, walked.rows, walked.rest_count())
        };
        dispatch(self.engine.isa, MomentsOfAll { partials, mean: &mut *mean, var: &mut *var });
        if let Some(output) = &self.output {
            // SAFETY: as above; the buffer has as many arrays.
            unsafe { output.finish(self.engine, [mean, var], &range, walked, window, &coefs) };
        }
    }

    fn map(&self, tile: MapTile, window: &Window) {
        let Some(output) = &self.output else { return };
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and their channels are finished.
        unsafe { output.map(self.engine, &self.inputs, tile, &self.arrays(window).coefs) };
    }

    fn reduce_and_map(
        &self,
        segment: usize,
        (tile, window): (Tile, &Window),
        (mut map, map_window): (MapTile, &Window),
    ) {
        let Some(output) = &self.output else { return };
        let engine = self.engine;
        // The reduction wants it now, so it is prefetched earlier.
        map.prefetch_distance = map.prefetch_distance.map(|distance| distance + PREFETCH_BYTES / size_of::<E>());
        let task = self.moments(&self.inputs, segment, tile, window, null_mut());
        let (coefs, out) = (&self.arrays(map_window).coefs, output.pointers());
        // SAFETY: as in `reduce` and in `map`; the walk gives two groups of one length, at the same positions.
        unsafe {
            let sums = MomentsKernel::new(task.clone());
            if !self.inputs.variant.fuses() {
                let map = self.inputs.map_kernel::<Normalize<Plain>>(map, coefs, out);
                dispatch(engine.isa, InterleavedKernel::new(sums, map));
            } else if E::RELU_KIND && self.inputs.variant.is_relu() {
                let map = self.inputs.map_kernel::<Normalize<Relu>>(map, coefs, out);
                dispatch(engine.isa, InterleavedKernel::new(sums, map));
            } else {
                let map = self.inputs.map_kernel::<Normalize<Any>>(map, coefs, out);
                dispatch(engine.isa, InterleavedKernel::new(sums, map));
            }
        }
        self.redo_lost(task);
    }
}
