//! What a pass reads, and the map of a tile of it.

use super::arrays::ChannelArrays;
use super::engine::Engine;
use super::request::Fusions;
use super::tiling::MapTile;
use super::walked::Walked;
use crate::activation::Activation;
use crate::kernels::map::{Map, MapKernel, MapTask};
use crate::kernels::operands::{COTANGENT, INPUTS, OUTPUT, RESIDUAL, Sources, Variant};
use crate::kernels::tile::{PREFETCH_BYTES, Tile};
use crate::kernels::weights::Weights;
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::shape::Shape;
use crate::simd::{STREAM_ALIGN, dispatch};
use std::ptr::{null, null_mut};

/// Outputs of more bytes than this bypass the caches, in which a later pass would not find them in any case: y, and dx,
/// which is written next to two inputs. Measured with 32 MB of L3 and passes repeated on the same tensors: ordinary
/// stores take 0.8 to 1 of the time below, and 1.2 to 1.7 above.
pub(super) const STREAM_FORWARD: usize = 10 << 20;
pub(super) const STREAM_BACKWARD: usize = 4 << 20;

/// Above this size, and always with one input, maps over planes rely on the hardware prefetcher: to prefetch several
/// inputs takes 0.7 to 0.9 of the time if they are in L3, and 1.1 to 1.3 if they are not.
const PREFETCHED_BYTES: usize = 24 << 20;

/// The inputs of a pass, and the variant that reads them. Tasks share the pointers.
pub(super) struct PassInputs<E: Storage> {
    inputs: [Shared<E>; INPUTS],
    weights: Shared<E::Scalar>,
    pub(super) variant: Variant,
    pub(super) walked: Walked,
    /// Whether outputs bypass the caches, unless the pass is in place.
    streams: bool,
}

impl<E: Storage> PassInputs<E> {
    /// From the pass's own inputs and what may be fused, null if it is not read.
    pub(super) fn new(
        shape: Shape,
        activation: Activation,
        own: [*const E; 2],
        fusions: &Fusions<E, E::Scalar>,
        stream_bytes: usize,
    ) -> Self {
        let walked = Walked::new(shape, !fusions.weights.values.is_null());
        let mut inputs = [const { Shared::new(null_mut()) }; INPUTS];
        inputs[0] = Shared::new(own[0].cast_mut());
        inputs[1] = Shared::new(own[1].cast_mut());
        inputs[RESIDUAL] = Shared::new(fusions.residual.cast_mut());
        inputs[OUTPUT] = Shared::new(fusions.output.cast_mut());
        let variant = Variant {
            activation,
            residual: !fusions.residual.is_null(),
            output: !fusions.output.is_null(),
            weighted: !fusions.weights.values.is_null(),
            weight_scale: fusions.weights.scale,
            rows: walked.shape.inner() == 1,
            ..Variant::PLAIN
        };
        let streams = shape.len() * size_of::<E>() > stream_bytes;
        Self { inputs, weights: Shared::new(fusions.weights.values.cast_mut()), variant, walked, streams }
    }

    /// For second derivatives, with the cotangent of dx.
    pub(super) fn for_double_backward(shape: Shape, own: [*const E; 2], cotangent: *const E) -> Self {
        let mut inputs = Self::new(shape, Activation::Identity, own, &Fusions::NONE, STREAM_FORWARD);
        inputs.inputs[COTANGENT] = Shared::new(cotangent.cast_mut());
        inputs.variant.double_backward = true;
        inputs
    }

    pub(super) fn weights(&self) -> Weights<E::Scalar> {
        Weights { values: self.weights.ptr().cast_const(), scale: self.variant.weight_scale }
    }

    pub(super) fn sources(&self) -> Sources<E> {
        let mut inputs = [null(); INPUTS];
        for (input, shared) in inputs.iter_mut().zip(&self.inputs) {
            *input = shared.ptr().cast_const();
        }
        Sources { inputs, weights: self.weights.ptr().cast_const() }
    }

    /// The inputs of rows that are left over, if there are any and the tile has the last of the others: whatever is done
    /// with the tile is then done with them.
    pub(super) fn rest_after(&self, tile: &Tile) -> Option<Self> {
        let shape = self.walked.rest.filter(|_| tile.positions.end == self.walked.shape.values_per_channel())?;
        let mut inputs = [const { Shared::new(null_mut()) }; INPUTS];
        for (rest, input) in inputs.iter_mut().zip(&self.inputs) {
            *rest = Shared::new(input.ptr().wrapping_add(self.walked.shape.len()));
        }
        Some(Self { inputs, walked: Walked::as_it_is(shape), ..*self })
    }

    /// Maps a tile into the outputs, and rows that are left over with the last tile.
    ///
    /// # Safety
    /// See [`request`](super::request); `coefs` has the arrays that the map needs, filled for the columns of the tile,
    /// and no other task writes this tile of the outputs.
    pub(super) unsafe fn map<M: Map>(
        &self,
        engine: &Engine,
        map: MapTile,
        coefs: &ChannelArrays<E::Scalar>,
        mut out: [*mut E; 2],
    ) {
        let rest = self.rest_after(&map.tile);
        // SAFETY: the caller's promise.
        dispatch(engine.isa, unsafe { self.map_kernel::<M>(map, coefs, out) });
        if let Some(rest) = rest {
            let map = MapTile { tile: Tile::all(rest.walked.shape), prefetch_distance: None };
            for out in out.iter_mut().filter(|out| !out.is_null()) {
                *out = out.wrapping_add(self.walked.shape.len());
            }
            // SAFETY: the caller's promise; the columns begin with the channels.
            dispatch(engine.isa, unsafe { rest.map_kernel::<M>(map, coefs, out) });
        }
    }

    /// The kernel that maps a tile into the outputs.
    ///
    /// # Safety
    /// As [`map`](Self::map).
    pub(super) unsafe fn map_kernel<M: Map>(
        &self,
        MapTile { tile, prefetch_distance }: MapTile,
        coefs: &ChannelArrays<E::Scalar>,
        out: [*mut E; 2],
    ) -> MapKernel<M, E> {
        let task = self.map_task(tile, prefetch_distance, coefs, out, M::INPUTS);
        // SAFETY: the caller's promise.
        unsafe { MapKernel::new(task) }
    }

    fn map_task(
        &self,
        tile: Tile,
        prefetch_distance: Option<usize>,
        coefs: &ChannelArrays<E::Scalar>,
        out: [*mut E; 2],
        inputs: usize,
    ) -> MapTask<E> {
        let (shape, x) = (self.walked.shape, self.sources());
        let in_place = out.iter().any(|p| !p.is_null() && x.inputs.contains(&p.cast_const()));
        // The walk cuts vectors by the places of one output.
        let alike = out.iter().any(|p| p.is_null()) || out[0].addr() % STREAM_ALIGN == out[1].addr() % STREAM_ALIGN;
        let bytes = shape.len() * size_of::<E>();
        MapTask {
            shape,
            tile,
            x,
            variant: self.variant,
            prefetch_distance: prefetch_distance.unwrap_or(if inputs > 1 && bytes <= PREFETCHED_BYTES {
                PREFETCH_BYTES / size_of::<E>()
            } else {
                0
            }),
            coefs: coefs.ptr().cast_const(),
            coefs_stride: coefs.stride,
            out,
            // An output in the place of an input was just read: it lies in cache, and would be evicted first.
            stream: !in_place && alike && self.streams,
        }
    }
}
