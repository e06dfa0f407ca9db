//! The backward pass, any part of it:
//!
//! ```text
//! reduce   Σg, Σg·(x − mean)                                          g = dy·act'
//! finish   dgamma = inv_std·Σg·(x − mean), dbeta = Σg, the coefficients of dx
//! map      dx = (g − mean(g) + (x − mean)·slope)·scale, dresidual = g
//! ```

use super::arrays::{CENTERED, ChannelArrays, MAPPED, SUMS, stride};
use super::engine::Engine;
use super::inputs::{PassInputs, STREAM_BACKWARD};
use super::request::{Backward, Fusions, Parameters};
use super::tiling::{Grid, MapTile, Steps};
use crate::activation::Activation;
use crate::kernels::coefficients::{
    CenterCoefs, Channels, ConstantCoefs, InputGradientCoefs, NormalizeCoefs, ParameterGradients, SumsOfAll,
};
use crate::kernels::gradient_sums::{self, GradientSumsKernel, GradientSumsTask};
use crate::kernels::input_gradient::{self, InputGradient};
use crate::kernels::normalize::{self, Normalize};
use crate::kernels::partials::{Partials, slot};
use crate::kernels::tile::{Tile, padded};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::simd::{MAX_LANES, dispatch};
use crate::statistics::WideSource;
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
    let (partials_stride, stride) = (padded(walked.shape.channels()), stride(walked.shape));
    let mut scratch = engine.scratch.pass();
    let totals = ChannelArrays::<f64>::new(scratch.take(2 * partials_stride), partials_stride);
    // SAFETY: the buffer has two arrays, and nothing else uses them yet.
    let [g, gx] = unsafe { totals.slices(&(0..channels)) };
    match sums {
        Some(sums) => {
            g.copy_from_slice(sums.g);
            gx.copy_from_slice(sums.gx);
        }
        None => {
            g.fill(0.0);
            gx.fill(0.0);
        }
    }
    let center = ChannelArrays::new(scratch.take(CENTERED * stride), stride);
    let first_output = out.dx.or(out.dresidual).unwrap_or(null_mut());
    let coefs = ChannelArrays::aligned_with(scratch.take(MAPPED * stride + MAX_LANES), stride, first_output);

    let read_again = if needs.sums && needs.maps { 2 * size_of::<E>() } else { 0 };
    let grid = (!shape.is_empty()).then(|| Grid::new(walked.shape, read_again, false));
    let segments = grid.as_ref().filter(|_| needs.sums).map_or(0, Grid::segments);
    let slots = segments + usize::from(needs.sums && walked.rest.is_some());
    let slots = Shared::new(scratch.take(SUMS * partials_stride * slots));
    // SAFETY: the memory has as many values. Sums are merged without regard to counts.
    let counts: &[f64] = unsafe { std::slice::from_raw_parts(scratch.take(segments), segments) };

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
        slots,
        partials_stride,
        counts,
        totals,
        center,
        coefs,
        out: [Shared::new(out.dx.unwrap_or(null_mut())), Shared::new(out.dresidual.unwrap_or(null_mut()))],
        dgamma: out.dgamma.map(|d| Shared::new(d.as_mut_ptr())),
        dbeta: out.dbeta.map(|d| Shared::new(d.as_mut_ptr())),
    };
    match &grid {
        None => pass.finish(0..channels),
        Some(grid) => {
            if pass.needs.sums {
                // SAFETY: nothing else uses the buffers yet.
                unsafe { pass.center_channels() };
            }
            let sweeps = if pass.needs.sums { 2 } else { 0 } + if pass.needs.maps { 3 } else { 0 };
            engine.walk::<E>(grid, sweeps, &pass);
        }
    }
    if let Some(out) = sums_out {
        // SAFETY: the buffer has two arrays, and all tasks are done with them.
        let [g, gx] = unsafe { pass.totals.slices(&(0..channels)) };
        out.g.copy_from_slice(g);
        out.gx.copy_from_slice(gx);
    }
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
    /// The partial sums of the segments, and one count for each.
    slots: Shared<f64>,
    partials_stride: usize,
    counts: &'a [f64],
    /// Σg and Σg·(x − mean) of all segments.
    totals: ChannelArrays<f64>,
    /// Coefficients of the reduction, and of the map.
    center: ChannelArrays<E::Scalar>,
    coefs: ChannelArrays<E::Scalar>,
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

    /// Computes the coefficients of the reduction.
    ///
    /// # Safety
    /// Nothing else uses them.
    unsafe fn center_channels(&self) {
        let (isa, all) = (self.engine.isa, 0..self.engine.shape.channels());
        // SAFETY: the caller's promise; the buffer has as many arrays.
        let out = unsafe { self.center.slices(&all) };
        dispatch(isa, CenterCoefs { channels: self.seen_channels(&all), out });
        let mut arrays = gradient_sums::COEFS;
        if self.needs.recomputes {
            // SAFETY: the same; these arrays come after the others.
            let out = unsafe { self.center.after(arrays).slices(&all) };
            dispatch(isa, NormalizeCoefs { channels: self.channels(&all), out });
            arrays += normalize::COEFS;
        }
        // SAFETY: the same, and the slices are gone.
        unsafe { self.center.repeat(arrays, &all, &self.reduce_inputs.walked) };
    }

    /// Writes the sums of a tile of some inputs to the slot of a segment.
    ///
    /// # Safety
    /// See [`request`](super::request); nothing else uses the tile's part of the slot, and coefficients are computed.
    unsafe fn reduce_of(&self, inputs: &PassInputs<E>, segment: usize, tile: Tile) {
        let (isa, shape) = (self.engine.isa, inputs.walked.shape);
        let mut scratch = self.engine.scratch.task();
        let task = GradientSumsTask {
            shape,
            tile,
            x: inputs.sources(),
            variant: inputs.variant,
            coefs: self.center.ptr().cast_const(),
            coefs_stride: self.center.stride,
            out: slot(self.slots, segment, self.partials_stride),
            scratch: scratch.take(GradientSumsTask::<E>::scratch(shape)),
        };
        // SAFETY: the caller's promise; the scratch memory is the task's own, and groups of planes have few enough
        // channels.
        unsafe {
            if self.fuses {
                dispatch(isa, GradientSumsKernel::<E, true>::new(task));
            } else {
                dispatch(isa, GradientSumsKernel::<E, false>::new(task));
            }
        }
    }

    /// Computes the coefficients of the map from Σg and Σg·(x − mean).
    ///
    /// # Safety
    /// Nothing else uses these channels of the coefficients.
    unsafe fn finish_map(&self, range: &Range<usize>, g: &[f64], gx: &[f64]) {
        let (isa, channels, count) = (self.engine.isa, self.seen_channels(range), self.needs.count);
        let mut arrays = if count.is_some() || self.fuses {
            // SAFETY: the caller's promise; the buffer has as many arrays.
            let out = unsafe { self.coefs.slices(range) };
            dispatch(isa, InputGradientCoefs { channels, count, g, gx, out });
            input_gradient::COEFS
        } else {
            // SAFETY: the same.
            let out = unsafe { self.coefs.slices(range) };
            dispatch(isa, ConstantCoefs { channels, out });
            normalize::COEFS
        };
        if self.needs.recomputes {
            // SAFETY: the same; these arrays come after the others.
            let out = unsafe { self.coefs.after(arrays).slices(range) };
            dispatch(isa, NormalizeCoefs { channels: self.channels(range), out });
            arrays += normalize::COEFS;
        }
        // SAFETY: the same, and the slices are gone.
        unsafe { self.coefs.repeat(arrays, range, &self.map_inputs.walked) };
    }
}

impl<E: Storage> Steps for BackwardPass<'_, E> {
    fn reduces(&self) -> bool {
        self.needs.sums
    }
    fn maps(&self) -> bool {
        self.needs.maps
    }

    fn reduce(&self, segment: usize, tile: Tile) {
        let inputs = &self.reduce_inputs;
        let rest = inputs.rest().filter(|_| tile.positions.end == inputs.walked.shape.values_per_channel());
        // SAFETY: whoever ran the request promised the pointers; coefficients were computed before, a task has its
        // tile's part of the slot for itself, and the last one that of what is left over.
        unsafe {
            self.reduce_of(inputs, segment, tile);
            if let Some(rest) = rest {
                self.reduce_of(&rest, segment + 1, Tile::all(rest.walked.shape));
            }
        }
    }

    fn finish(&self, columns: Range<usize>) {
        let (isa, walked) = (self.engine.isa, &self.map_inputs.walked);
        let range = walked.channels(columns.clone());
        // SAFETY: tasks have disjoint channels; the buffer has two arrays.
        let [g, gx] = unsafe { self.totals.slices(&range) };
        let channels = self.seen_channels(&range);
        if self.needs.sums {
            // SAFETY: tasks have disjoint channels, all segments of which have been reduced.
            let partials = unsafe {
                Partials::new(self.slots, self.partials_stride, columns, self.counts, walked.rows, walked.rest_count())
            };
            // SAFETY: tasks have disjoint channels; the buffer has this array.
            let [prescale] = unsafe { self.center.slices(&range) };
            dispatch(isa, SumsOfAll { channels, partials, prescale, g: &mut *g, gx: &mut *gx });
        }
        // SAFETY: tasks have disjoint channels, all below the number of channels.
        let dgamma = self.dgamma.as_ref().map(|d| unsafe { d.slice(range.clone()) });
        // SAFETY: the same.
        let dbeta = self.dbeta.as_ref().map(|d| unsafe { d.slice(range.clone()) });
        dispatch(isa, ParameterGradients { channels, g, gx, dgamma, dbeta });
        if self.needs.maps {
            // SAFETY: tasks have disjoint channels.
            unsafe { self.finish_map(&range, g, gx) };
        }
    }

    fn map(&self, tile: MapTile) {
        let (engine, inputs, coefs) = (self.engine, &self.map_inputs, &self.coefs);
        let out = [self.out[0].ptr(), self.out[1].ptr()];
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and their channels are finished.
        unsafe {
            if self.fuses {
                inputs.map::<InputGradient<true>>(engine, tile, coefs, out);
            } else if self.needs.count.is_some() {
                inputs.map::<InputGradient<false>>(engine, tile, coefs, out);
            } else {
                // Constant statistics: just a scale, of dy, which is the first input.
                inputs.map::<Normalize<false>>(engine, tile, coefs, out);
            }
        }
    }
}
