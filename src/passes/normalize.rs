//! y with given statistics: inference, or the second half of a forward pass in training.

use super::arrays::{ChannelArrays, stride};
use super::engine::Engine;
use super::inputs::{PassInputs, STREAM_FORWARD};
use super::request::{Normalize, Parameters};
use super::tiling::{Grid, MapTile, Steps};
use super::walked::Walked;
use crate::kernels::coefficients::NormalizeCoefs;
use crate::kernels::normalize;
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::simd::{MAX_LANES, dispatch};
use crate::statistics::WideSource;
use std::ops::Range;
use std::ptr::{null, null_mut};

/// # Safety
/// See [`request`](super::request).
pub(super) unsafe fn normalize<E: Storage>(engine: &Engine, request: Normalize<'_, E, E::Scalar>) {
    let Normalize { x, fusions, source, parameters, y } = request;
    if engine.shape.is_empty() {
        return;
    }
    let mut scratch = engine.scratch.pass();
    let inputs = PassInputs::new(engine.shape, engine.activation, [x, null()], &fusions, STREAM_FORWARD);
    let (grid, stride) = (Grid::for_map(inputs.walked.shape), stride(inputs.walked.shape));
    let buffer = scratch.take(normalize::COEFS * stride + MAX_LANES);
    let pass = NormalizePass {
        engine,
        source,
        inputs,
        output: Output { parameters, coefs: ChannelArrays::aligned_with(buffer, stride, y), y: Shared::new(y) },
    };
    engine.walk::<E>(&grid, 2, &pass);
}

struct NormalizePass<'a, E: Storage> {
    engine: &'a Engine,
    source: WideSource<'a>,
    inputs: PassInputs<E>,
    output: Output<'a, E>,
}

/// y, and what makes it.
pub(super) struct Output<'a, E: Storage> {
    pub(super) parameters: Parameters<'a, E::Scalar>,
    pub(super) coefs: ChannelArrays<E::Scalar>,
    pub(super) y: Shared<E>,
}

impl<E: Storage> Output<'_, E> {
    /// Computes the coefficients of a range of channels from the mean and variance of each.
    ///
    /// # Safety
    /// The buffer has the arrays, and nothing else uses these channels of them.
    pub(super) unsafe fn finish(
        &self,
        engine: &Engine,
        [mean, var]: [&[f64]; 2],
        range: &Range<usize>,
        walked: &Walked,
    ) {
        let channels = engine.channels(mean, var, self.parameters, range);
        // SAFETY: the caller's promise.
        let out = unsafe { self.coefs.slices(range) };
        dispatch(engine.isa, NormalizeCoefs { channels, out });
        // SAFETY: the caller's promise; the slices are gone.
        unsafe { self.coefs.repeat(normalize::COEFS, range, walked) };
    }

    /// Maps a tile of x into y.
    ///
    /// # Safety
    /// See [`request`](super::request); the channels of the tile are finished, and no other task writes it.
    pub(super) unsafe fn map(&self, engine: &Engine, inputs: &PassInputs<E>, tile: MapTile) {
        // SAFETY: the caller's promise.
        unsafe {
            if inputs.variant.fuses() {
                inputs.map::<normalize::Normalize<true>>(engine, tile, &self.coefs, self.pointers());
            } else {
                inputs.map::<normalize::Normalize<false>>(engine, tile, &self.coefs, self.pointers());
            }
        }
    }

    /// Where a map writes.
    pub(super) fn pointers(&self) -> [*mut E; 2] {
        [self.y.ptr(), null_mut()]
    }
}

impl<E: Storage> Steps for NormalizePass<'_, E> {
    fn finish(&self, columns: Range<usize>) {
        let range = self.inputs.walked.channels(columns);
        let statistics = [&self.source.mean[range.clone()], &self.source.var[range.clone()]];
        // SAFETY: the buffer has as many arrays, and tasks have disjoint channels.
        unsafe { self.output.finish(self.engine, statistics, &range, &self.inputs.walked) };
    }

    fn map(&self, tile: MapTile) {
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and their channels are finished.
        unsafe { self.output.map(self.engine, &self.inputs, tile) };
    }
}
