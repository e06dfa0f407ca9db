//! What a pass reads, and the map of a tile of it.

use super::arrays::ChannelArrays;
use super::engine::Engine;
use super::request::Fusions;
use super::tiling::MapTile;
use crate::activation::Activation;
use crate::kernels::map::{Map, MapKernel, MapTask};
use crate::kernels::operands::{COTANGENT, INPUTS, OUTPUT, RESIDUAL, Sources, Variant};
use crate::kernels::tile::{PREFETCH_BYTES, Tile};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::shape::Shape;
use crate::simd::STREAM_ALIGN;
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
    /// Bytes of an output above which it bypasses the caches.
    stream_bytes: usize,
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
        let mut inputs = [const { Shared::new(null_mut()) }; INPUTS];
        inputs[0] = Shared::new(own[0].cast_mut());
        inputs[1] = Shared::new(own[1].cast_mut());
        inputs[RESIDUAL] = Shared::new(fusions.residual.cast_mut());
        inputs[OUTPUT] = Shared::new(fusions.output.cast_mut());
        let variant = Variant {
            activation,
            residual: !fusions.residual.is_null(),
            output: !fusions.output.is_null(),
            weighted: !fusions.weights.is_null(),
            rows: shape.inner() == 1,
            ..Variant::PLAIN
        };
        Self { inputs, weights: Shared::new(fusions.weights.cast_mut()), variant, stream_bytes }
    }

    /// For second derivatives, with the cotangent of dx.
    pub(super) fn for_double_backward(shape: Shape, own: [*const E; 2], cotangent: *const E) -> Self {
        let mut inputs = Self::new(shape, Activation::Identity, own, &Fusions::NONE, STREAM_FORWARD);
        inputs.inputs[COTANGENT] = Shared::new(cotangent.cast_mut());
        inputs.variant.double_backward = true;
        inputs
    }

    pub(super) fn sources(&self) -> Sources<E> {
        let mut inputs = [null(); INPUTS];
        for (input, shared) in inputs.iter_mut().zip(&self.inputs) {
            *input = shared.ptr().cast_const();
        }
        Sources { inputs, weights: self.weights.ptr().cast_const() }
    }

    /// The kernel that maps a tile into the outputs.
    ///
    /// # Safety
    /// See [`request`](super::request); `coefs` has the arrays that the map needs, filled for the channels of the tile,
    /// and no other task writes this tile of the outputs.
    pub(super) unsafe fn map<M: Map>(
        &self,
        engine: &Engine,
        MapTile { tile, prefetch_distance }: MapTile,
        coefs: &ChannelArrays<E::Scalar>,
        out: [*mut E; 2],
    ) -> MapKernel<M, E> {
        let task = self.map_task(engine, tile, prefetch_distance, coefs, out, M::INPUTS);
        // SAFETY: the caller's promise.
        unsafe { MapKernel::new(task) }
    }

    fn map_task(
        &self,
        engine: &Engine,
        tile: Tile,
        prefetch_distance: Option<usize>,
        coefs: &ChannelArrays<E::Scalar>,
        out: [*mut E; 2],
        inputs: usize,
    ) -> MapTask<E> {
        let (shape, x) = (engine.shape, self.sources());
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
            stream: !in_place && alike && bytes > self.stream_bytes,
        }
    }
}
