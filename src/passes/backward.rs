//! The backward pass, any part of it:
//!
//! ```text
//! reduce   Σg, Σg·(x − mean)                                          g = dy·act'
//! finish   dgamma = inv_std·Σg·(x − mean), dbeta = Σg, the coefficients of dx
//! map      dx = (g − mean(g) + (x − mean)·slope)·scale, dresidual = g
//! ```

use super::arrays::{CENTERED, ChannelArrays, MAPPED, SUMS, Window, stride};
use super::engine::Engine;
use super::inputs::{PassInputs, STREAM_BACKWARD};
use super::request::{Backward, Fusions, Parameters};
use super::scratch::Sizes;
use super::tiling::{Grid, MOST_SEGMENTS, MapTile, Steps};
use super::walked::Walked;
use crate::activation::Activation;
use crate::kernels::coefficients::{
    CenterCoefs, Channels, ConstantCoefs, InputGradientCoefs, NormalizeCoefs, ParameterGradients, SumsOfAll,
};
use crate::kernels::gradient_sums::{self, GradientSumsKernel, GradientSumsTask};
use crate::kernels::input_gradient::{self, InputGradient};
use crate::kernels::normalize::{self, Normalize};
use crate::kernels::operands::{Any, Mask, Plain, Relu};
use crate::kernels::partials::{Partials, slot};
use crate::kernels::tile::{Tile, padded};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::shape::Shape;
use crate::simd::dispatch;
use crate::statistics::{GradientSums, WideSource};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{null, null_mut};

/// # Safety
/// See [`request`](super::request).
pub(super) unsafe fn backward<E: Storage>(engine: &Engine, request: Backward<'_, E, E::Scalar>) {
    let (shape, channels) = (engine.shape, engine.shape.channels());
    let needs = Needs::of(engine, &request);
    let Backward { dy, x, rebuild, fusions, source, parameters, sums, sums_out, out } = request;

    let inputs = |x: *const E| {
        // y gives the mask of the activation, or x itself; the residual serves to recompute the activation's argument.
        let residual = if needs.recomputes { fusions.residual } else { null() };
        let output = if rebuild || needs.has_mask { fusions.output } else { null() };
        let fusions = Fusions { residual, output, weights: fusions.weights };
        let mut inputs = PassInputs::new(shape, engine.activation, [dy, x], &fusions, STREAM_BACKWARD);
        inputs.variant.rebuild = rebuild;
        inputs.variant.constant = needs.count.is_none();
        inputs
    };
    // What does not need x reads dy instead, which is in cache already.
    let reduce_inputs = inputs(if rebuild { dy } else { x });
    let map_inputs = inputs(if rebuild || (needs.count.is_none() && !needs.recomputes) { dy } else { x });

    let walked = map_inputs.walked;
    let grid = (!shape.is_empty()).then(|| grid::<E>(engine, walked.shape, needs.sums && needs.maps));
    let segments = grid.as_ref().filter(|_| needs.sums).map_or(0, Grid::segments);
    let fuses = reduce_inputs.variant.fuses() || out.dresidual.is_some();
    let pass = BackwardPass {
        engine,
        needs,
        fuses,
        rebuild,
        source,
        parameters,
        reduce_inputs,
        map_inputs,
        counts: &[0.0; MOST_SEGMENTS][..segments],
        sums,
        sums_out: sums_out.map(|out| [out.g, out.gx].map(|sums| Shared::new(sums.as_mut_ptr()))),
        out: [Shared::new(out.dx.unwrap_or(null_mut())), Shared::new(out.dresidual.unwrap_or(null_mut()))],
        dgamma: out.dgamma.map(|d| Shared::new(d.as_mut_ptr())),
        dbeta: out.dbeta.map(|d| Shared::new(d.as_mut_ptr())),
    };
    match &grid {
        None => {
            let len = pass.window(channels);
            let mut buffer = engine.scratch.window(len);
            pass.finish(0..channels, &Window::new(buffer.take(len), 0, channels));
        }
        Some(grid) => {
            let sweeps = if pass.needs.sums { 2 } else { 0 } + if pass.needs.maps { 3 } else { 0 };
            engine.walk::<E>(grid, sweeps, &pass);
        }
    }
}

fn grid<E>(engine: &Engine, shape: Shape, reads_again: bool) -> Grid {
    Grid::new(shape, if reads_again { 2 * size_of::<E>() } else { 0 }, false, engine.l2)
}

/// The arrays of a window.
struct Arrays<P> {
    /// The partial sums of the segments.
    slots: ChannelArrays<f64>,
    /// Σg and Σg·(x − mean) of all segments.
    totals: ChannelArrays<f64>,
    /// Coefficients of the reduction, and of the map.
    center: ChannelArrays<P>,
    coefs: ChannelArrays<P>,
}

impl<P> Arrays<P> {
    /// In a window, and its length.
    fn new(window: &Window, walked: &Walked, segments: usize, sums: bool, recomputes: bool) -> (Self, usize) {
        let (columns, stride) = (window.columns, stride::<P>(walked.shape, window.columns));
        // Over planes, whose windows are small, kernels of any variant read all arrays, whether they need them or not.
        let all = recomputes || walked.shape.inner() > 1;
        let [center, coefs] = if all { [CENTERED, MAPPED] } else { [gradient_sums::COEFS, input_gradient::COEFS] };
        let slots = if sums { SUMS * walked.slots(segments) } else { 0 };
        let (slots, at) = window.arrays(0, slots, padded(columns));
        let (totals, at) = window.arrays(at, 2, padded(columns));
        let (center, at) = window.arrays(at, if sums { center } else { 0 }, stride);
        let (coefs, end) = window.arrays(at, coefs, stride);
        (Self { slots, totals, center, coefs }, end)
    }
}

/// The memory of a plan without elements, whose gradients are those of given sums.
pub(super) fn sizes_without_elements<E: Storage>(walked: &Walked) -> Sizes {
    let window = Window::of_columns(walked.shape.channels());
    let (_, window) = Arrays::<E::Scalar>::new(&window, walked, 0, false, true);
    Sizes { window, windows: 1, ..Sizes::default() }
}

/// The memory that backward passes need at most.
pub(super) fn sizes<E: Storage>(engine: &Engine, walked: &Walked, count: usize) -> Sizes {
    let mut sizes = Sizes::default();
    for (sums, reads_again) in [(true, true), (true, false), (false, false)] {
        let grid = grid::<E>(engine, walked.shape, reads_again).for_threads(count);
        let [columns, windows] = grid.windows(count, false);
        let (_, window) = Arrays::<E::Scalar>::new(&Window::of_columns(columns), walked, grid.segments(), sums, true);
        let task = GradientSumsTask::<E>::scratch(walked.shape);
        sizes = sizes.max(Sizes { window, windows, task, tasks: count.min(grid.tiles()) });
    }
    sizes
}

/// What a backward pass has to do.
struct Needs {
    /// Whether it reduces.
    sums: bool,
    /// Whether it maps.
    maps: bool,
    /// Values per channel in the batch's statistics, through which gradients flow, in the unit of the weights; `None` if
    /// the statistics are constants.
    count: Option<f64>,
    /// Whether y is given and the derivative of the activation follows from its sign.
    has_mask: bool,
    /// Whether it recomputes the argument of the activation.
    recomputes: bool,
}

impl Needs {
    fn of<E: Storage>(engine: &Engine, request: &Backward<'_, E, E::Scalar>) -> Self {
        let out = &request.out;
        let count = request.source.count.map(|count| count * request.fusions.weights.scale);
        let uses_sums = request.sums_out.is_some()
            || out.dgamma.is_some()
            || out.dbeta.is_some()
            || (out.dx.is_some() && count.is_some());
        let has_mask = match engine.activation {
            Activation::Relu | Activation::LeakyRelu(_) => !request.fusions.output.is_null(),
            Activation::Identity | Activation::Silu => false,
        };
        Self {
            sums: !engine.shape.is_empty() && uses_sums && request.sums.is_none(),
            maps: out.dx.is_some() || out.dresidual.is_some(),
            count,
            has_mask,
            recomputes: engine.activation != Activation::Identity && !has_mask && !request.rebuild,
        }
    }
}

struct BackwardPass<'a, E: Storage> {
    engine: &'a Engine,
    needs: Needs,
    /// Whether anything is fused.
    fuses: bool,
    rebuild: bool,
    source: WideSource<'a>,
    parameters: Parameters<'a, E::Scalar>,
    reduce_inputs: PassInputs<E>,
    map_inputs: PassInputs<E>,
    /// One value for each segment: sums are merged without regard to counts.
    counts: &'a [f64],
    /// The sums, if they are known, and where to write them.
    sums: Option<GradientSums<&'a [f64]>>,
    sums_out: Option<[Shared<f64>; 2]>,
    /// dx and dresidual, null if not wanted.
    out: [Shared<E>; 2],
    dgamma: Option<Shared<MaybeUninit<E::Scalar>>>,
    dbeta: Option<Shared<MaybeUninit<E::Scalar>>>,
}

impl<E: Storage> BackwardPass<'_, E> {
    fn channels(&self, range: &Range<usize>) -> Channels<'_, E::Scalar> {
        let (mean, var) = (&self.source.mean[range.clone()], &self.source.var[range.clone()]);
        self.engine.channels(mean, var, self.parameters, range)
    }

    /// The channels as the gradients see them.
    fn seen_channels(&self, range: &Range<usize>) -> Channels<'_, E::Scalar> {
        Channels { rebuild: self.rebuild, ..self.channels(range) }
    }

    /// Whether ReLU alone is fused, and its mask is known.
    fn is_masked(&self) -> bool {
        self.map_inputs.variant.is_relu() && self.needs.has_mask
    }

    /// Whether ReLU alone is fused, and its argument follows from x.
    fn is_relu(&self) -> bool {
        self.map_inputs.variant.is_relu() && !self.needs.has_mask && !self.map_inputs.variant.residual
    }

    fn arrays(&self, window: &Window) -> Arrays<E::Scalar> {
        let (walked, Needs { sums, recomputes, .. }) = (&self.map_inputs.walked, &self.needs);
        let (arrays, _) = Arrays::new(window, walked, self.counts.len(), *sums, *recomputes);
        let [dx, dresidual] = [self.out[0].ptr(), self.out[1].ptr()];
        Arrays { coefs: arrays.coefs.aligned_with(if dx.is_null() { dresidual } else { dx }), ..arrays }
    }

    /// Writes the sums of a tile of some inputs to the slot of a segment.
    ///
    /// # Safety
    /// See [`request`](super::request); nothing else uses the tile's part of the slot, and coefficients are computed.
    unsafe fn reduce_of(&self, inputs: &PassInputs<E>, segment: usize, tile: Tile, window: &Window) {
        let (isa, shape) = (self.engine.isa, inputs.walked.shape);
        let Arrays { slots, center, .. } = self.arrays(window);
        let len = GradientSumsTask::<E>::scratch(shape);
        let mut scratch = (len > 0).then(|| self.engine.scratch.task(len));
        let task = GradientSumsTask {
            shape,
            tile,
            x: inputs.sources(),
            variant: inputs.variant,
            coefs: center.ptr().cast_const(),
            coefs_stride: center.stride,
            out: slot(slots.shared(), segment, slots.stride),
            scratch: scratch.as_mut().map_or(null_mut(), |scratch| scratch.take(len)),
        };
        // SAFETY: the caller's promise; the scratch memory is the task's own, and groups of planes have few enough
        // channels.
        unsafe {
            if E::RELU_KIND && self.is_masked() {
                dispatch(isa, GradientSumsKernel::<Mask, E>::new(task));
            } else if E::RELU_KIND && self.is_relu() {
                dispatch(isa, GradientSumsKernel::<Relu, E>::new(task));
            } else if self.fuses {
                dispatch(isa, GradientSumsKernel::<Any, E>::new(task));
            } else {
                dispatch(isa, GradientSumsKernel::<Plain, E>::new(task));
            }
        }
    }

    /// Computes the coefficients of the map from Σg and Σg·(x − mean).
    ///
    /// # Safety
    /// Nothing else uses these channels of the coefficients.
    unsafe fn finish_map(
        &self,
        range: &Range<usize>,
        [g, gx]: [&[f64]; 2],
        window: &Window,
        coefs: &ChannelArrays<E::Scalar>,
    ) {
        let (isa, channels, count) = (self.engine.isa, self.seen_channels(range), self.needs.count);
        let mut arrays = if count.is_some() || self.fuses {
            // SAFETY: the caller's promise; the window has as many arrays.
            let out = unsafe { coefs.slices(range) };
            dispatch(isa, InputGradientCoefs { channels, count, g, gx, out });
            input_gradient::COEFS
        } else {
            // SAFETY: the same.
            let out = unsafe { coefs.slices(range) };
            dispatch(isa, ConstantCoefs { channels, out });
            normalize::COEFS
        };
        if self.needs.recomputes {
            // SAFETY: the same; these arrays come after the others.
            let out = unsafe { coefs.after(arrays).slices(range) };
            dispatch(isa, NormalizeCoefs { channels: self.channels(range), out });
            arrays += normalize::COEFS;
        }
        // SAFETY: the same, and the slices are gone.
        unsafe { coefs.repeat(arrays, range, &self.map_inputs.walked, window) };
    }
}

impl<E: Storage> Steps for BackwardPass<'_, E> {
    fn reduces(&self) -> bool {
        self.needs.sums
    }
    fn maps(&self) -> bool {
        self.needs.maps
    }

    fn window(&self, columns: usize) -> usize {
        let (walked, Needs { sums, recomputes, .. }) = (&self.map_inputs.walked, &self.needs);
        let window = Window::of_columns(columns);
        Arrays::<E::Scalar>::new(&window, walked, self.counts.len(), *sums, *recomputes).1
    }

    fn prepare(&self, columns: Range<usize>, window: &Window) {
        let (isa, walked, center) = (self.engine.isa, &self.reduce_inputs.walked, self.arrays(window).center);
        let range = walked.channels(columns);
        // SAFETY: tasks have disjoint channels; the window has as many arrays.
        let out = unsafe { center.slices(&range) };
        dispatch(isa, CenterCoefs { channels: self.seen_channels(&range), out });
        let mut arrays = gradient_sums::COEFS;
        if self.needs.recomputes {
            // SAFETY: the same; these arrays come after the others.
            let out = unsafe { center.after(arrays).slices(&range) };
            dispatch(isa, NormalizeCoefs { channels: self.channels(&range), out });
            arrays += normalize::COEFS;
        }
        // SAFETY: the same, and the slices are gone.
        unsafe { center.repeat(arrays, &range, walked, window) };
    }

    fn reduce(&self, segment: usize, tile: Tile, window: &Window) {
        let inputs = &self.reduce_inputs;
        let rest = inputs.rest_after(&tile);
        // SAFETY: whoever ran the request promised the pointers; coefficients were computed before, a task has its
        // tile's part of the slot for itself, and the last one that of what is left over.
        unsafe {
            self.reduce_of(inputs, segment, tile, window);
            if let Some(rest) = rest {
                self.reduce_of(&rest, segment + 1, Tile::all(rest.walked.shape), window);
            }
        }
    }

    fn finish(&self, columns: Range<usize>, window: &Window) {
        let (isa, walked) = (self.engine.isa, &self.map_inputs.walked);
        let range = walked.channels(columns.clone());
        let Arrays { slots, totals, center, coefs } = self.arrays(window);
        // SAFETY: tasks have disjoint channels; the window has two arrays.
        let [g, gx] = unsafe { totals.slices(&range) };
        let channels = self.seen_channels(&range);
        if self.needs.sums {
            // SAFETY: tasks have disjoint channels, all segments of which have been reduced.
            let partials = unsafe {
                Partials::new(slots.shared(), slots.stride, columns, self.counts, walked.rows, walked.rest_count())
            };
            // SAFETY: tasks have disjoint channels; the window has these arrays.
            let [_, prescale] = unsafe { center.slices(&range) };
            dispatch(isa, SumsOfAll { channels, partials, prescale, g: &mut *g, gx: &mut *gx });
        } else if let Some(sums) = self.sums {
            g.copy_from_slice(&sums.g[range.clone()]);
            gx.copy_from_slice(&sums.gx[range.clone()]);
        } else {
            g.fill(0.0);
            gx.fill(0.0);
        }
        if let Some(out) = &self.sums_out {
            // SAFETY: tasks have disjoint channels, all below the number of channels.
            let out = unsafe { [out[0].slice(range.clone()), out[1].slice(range.clone())] };
            out[0].copy_from_slice(g);
            out[1].copy_from_slice(gx);
        }
        // SAFETY: tasks have disjoint channels, all below the number of channels.
        let dgamma = self.dgamma.as_ref().map(|d| unsafe { d.slice(range.clone()) });
        // SAFETY: the same.
        let dbeta = self.dbeta.as_ref().map(|d| unsafe { d.slice(range.clone()) });
        dispatch(isa, ParameterGradients { channels, g, gx, dgamma, dbeta });
        if self.needs.maps {
            // SAFETY: tasks have disjoint channels.
            unsafe { self.finish_map(&range, [g, gx], window, &coefs) };
        }
    }

    fn map(&self, tile: MapTile, window: &Window) {
        let (engine, inputs, coefs) = (self.engine, &self.map_inputs, &self.arrays(window).coefs);
        let out = [self.out[0].ptr(), self.out[1].ptr()];
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and their channels are finished.
        unsafe {
            if E::RELU_KIND && self.is_masked() && !out[0].is_null() {
                inputs.map::<InputGradient<Mask>>(engine, tile, coefs, out);
            } else if E::RELU_KIND && self.is_relu() && !out[0].is_null() {
                inputs.map::<InputGradient<Relu>>(engine, tile, coefs, out);
            } else if self.fuses {
                inputs.map::<InputGradient<Any>>(engine, tile, coefs, out);
            } else if self.needs.count.is_some() {
                inputs.map::<InputGradient<Plain>>(engine, tile, coefs, out);
            } else {
                // Constant statistics: just a scale, of dy, which is the first input.
                inputs.map::<Normalize<Plain>>(engine, tile, coefs, out);
            }
        }
    }
}
