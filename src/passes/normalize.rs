//! y with given statistics: inference, or the second half of a forward pass in training.

use super::arrays::{ChannelArrays, Window, stride};
use super::engine::Engine;
use super::inputs::{PassInputs, STREAM_FORWARD};
use super::request::{Normalize, Parameters};
use super::scratch::Sizes;
use super::tiling::{Grid, MapTile, Steps};
use super::walked::Walked;
use crate::kernels::coefficients::NormalizeCoefs;
use crate::kernels::normalize;
use crate::kernels::operands::{Any, Plain, Relu};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::shape::Shape;
use crate::simd::dispatch;
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
    let inputs = PassInputs::new(engine.shape, engine.activation, [x, null()], &fusions, STREAM_FORWARD);
    let grid = Grid::for_map(inputs.walked.shape);
    let pass = NormalizePass { engine, source, inputs, output: Output { parameters, y: Shared::new(y) } };
    engine.walk::<E>(&grid, 2, &pass);
}

/// The coefficients of a window, and its length.
fn coefs<P>(window: &Window, shape: Shape) -> (ChannelArrays<P>, usize) {
    window.arrays(0, normalize::COEFS, stride::<P>(shape, window.columns))
}

/// The memory that the pass needs.
pub(super) fn sizes<E: Storage>(walked: &Walked, count: usize) -> Sizes {
    let [columns, windows] = Grid::for_map(walked.shape).for_threads(count).windows(count, false);
    let (_, window) = coefs::<E::Scalar>(&Window::of_columns(columns), walked.shape);
    Sizes { window, windows, ..Sizes::default() }
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
    pub(super) y: Shared<E>,
}

impl<E: Storage> Output<'_, E> {
    /// Computes the coefficients of a range of channels from the mean and variance of each.
    ///
    /// # Safety
    /// `coefs` lie in the window, and nothing else uses these channels of them.
    pub(super) unsafe fn finish(
        &self,
        engine: &Engine,
        [mean, var]: [&[f64]; 2],
        range: &Range<usize>,
        walked: &Walked,
        window: &Window,
        coefs: &ChannelArrays<E::Scalar>,
    ) {
        let channels = engine.channels(mean, var, self.parameters, range);
        // SAFETY: the caller's promise.
        let out = unsafe { coefs.slices(range) };
        dispatch(engine.isa, NormalizeCoefs { channels, out });
        // SAFETY: the caller's promise; the slices are gone.
        unsafe { coefs.repeat(normalize::COEFS, range, walked, window) };
    }

    /// Maps a tile of x into y.
    ///
    /// # Safety
    /// See [`request`](super::request); the channels of the tile are finished, and no other task writes it.
    pub(super) unsafe fn map(
        &self,
        engine: &Engine,
        inputs: &PassInputs<E>,
        tile: MapTile,
        coefs: &ChannelArrays<E::Scalar>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if E::RELU_KIND && inputs.variant.is_relu() {
                inputs.map::<normalize::Normalize<Relu>>(engine, tile, coefs, self.pointers());
            } else if inputs.variant.fuses() {
                inputs.map::<normalize::Normalize<Any>>(engine, tile, coefs, self.pointers());
            } else {
                inputs.map::<normalize::Normalize<Plain>>(engine, tile, coefs, self.pointers());
            }
        }
    }

    /// Where a map writes.
    pub(super) fn pointers(&self) -> [*mut E; 2] {
        [self.y.ptr(), null_mut()]
    }
}

impl<E: Storage> NormalizePass<'_, E> {
    fn coefs(&self, window: &Window) -> ChannelArrays<E::Scalar> {
        coefs(window, self.inputs.walked.shape).0.aligned_with(self.output.y.ptr())
    }
}

impl<E: Storage> Steps for NormalizePass<'_, E> {
    fn window(&self, columns: usize) -> usize {
        coefs::<E::Scalar>(&Window::of_columns(columns), self.inputs.walked.shape).1
    }

    fn finish(&self, columns: Range<usize>, window: &Window) {
        let range = self.inputs.walked.channels(columns);
        let statistics = [&self.source.mean[range.clone()], &self.source.var[range.clone()]];
        // SAFETY: the buffer has as many arrays, and tasks have disjoint channels.
        unsafe {
            self.output.finish(self.engine, statistics, &range, &self.inputs.walked, window, &self.coefs(window));
        }
    }

    fn map(&self, tile: MapTile, window: &Window) {
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and their channels are finished.
        unsafe { self.output.map(self.engine, &self.inputs, tile, &self.coefs(window)) };
    }
}
