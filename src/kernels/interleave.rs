//! A reduction over planes and the map of planes that were reduced before, eight vectors of each in turn. On its own
//! the reduction, with twice the arithmetic of the map, leaves memory bandwidth unused.

use super::map::{Map, MapKernel, Plane, Sinks};
use super::moments::MomentsKernel;
use super::reduce::{CHUNK, Interleave};
use super::sink::{Line, Streaming};
use super::tile::PlaneRun;
use crate::lanes::Storage;
use crate::simd::{Kernel, Simd};

/// The moments of a tile of planes and the map of as many planes at the same positions.
pub(crate) struct InterleavedKernel<M, E: Storage> {
    sums: MomentsKernel<E>,
    map: MapKernel<M, E>,
}

impl<M: Map, E: Storage> InterleavedKernel<M, E> {
    /// # Safety
    /// The tiles of the two have the same positions and as many channels, of which none is in both.
    pub(crate) unsafe fn new(sums: MomentsKernel<E>, map: MapKernel<M, E>) -> Self {
        Self { sums, map }
    }
}

impl<M: Map, E: Storage> Kernel for InterleavedKernel<M, E> {
    const AVX2_SERVES: bool = E::AVX2_SERVES;

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever made the two kernels promised that the coefficients are computed.
        if !(S::STREAMS && E::INTERLEAVES && (M::ANY || unsafe { self.map.is_ordinary() })) {
            // SAFETY: this code runs in the tier.
            unsafe {
                S::enter(self.map);
                S::enter(self.sums);
            }
            return;
        }
        let stream = self.map.task.stream;
        let mut lines = [Line::new(), Line::new()];
        let mut sinks = Sinks::<M, E, E::Native<S>, bool>::new(self.map.task.out, &mut lines, stream);
        // SAFETY: whoever made the two kernels promised that their pointers cover the shape.
        unsafe {
            self.sums.planes::<S, _>(&mut Plane::<M, E, S, bool>::new(&self.map.task, &mut sinks));
            sinks.flush();
        }
        if stream {
            S::fence();
        }
    }
}

impl<M: Map, E: Storage, S: Simd, T: Streaming> Interleave for Plane<'_, '_, M, E, S, T> {
    #[inline(always)]
    unsafe fn begin(&mut self, run: &PlaneRun) {
        let channels = &self.task.tile.channels;
        // The run of the channel of the same index.
        let c = channels.start + run.k;
        let element = run.element + c * self.task.shape.inner() - run.c * self.task.shape.inner();
        // SAFETY: the caller's promise.
        unsafe {
            let part = self.seek(&PlaneRun { c, element, ..*run });
            if part > 0 {
                self.next::<false>(part);
            }
        }
    }

    #[inline(always)]
    unsafe fn chunk(&mut self) {
        if self.len >= CHUNK * Self::LANES {
            for _ in 0..CHUNK {
                // SAFETY: so much is left.
                unsafe { self.next::<true>(Self::LANES) };
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self) {
        // SAFETY: so much is left.
        unsafe {
            while self.len >= Self::LANES {
                self.next::<true>(Self::LANES);
            }
            if self.len > 0 {
                self.next::<false>(self.len);
            }
        }
    }
}
