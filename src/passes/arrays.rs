//! Per-channel arrays in scratch memory, and how much of it passes need.

use super::scratch::Sizes;
use super::tiling::Grid;
use super::walked::Walked;
use crate::kernels::gradient_sums::GradientSumsTask;
use crate::kernels::moments::MomentsTask;
use crate::kernels::tile::padded;
use crate::kernels::{gradient_sums, input_gradient, map, normalize};
use crate::parallel::Shared;
use crate::shape::Shape;
use crate::simd::{MAX_LANES, STREAM_ALIGN};
use std::ops::Range;

/// Arrays of partial moments of a segment, one value per channel each, and of partial sums.
pub(super) const MOMENTS: usize = 3;
pub(super) const SUMS: usize = 2;
/// Arrays of coefficients of the gradient sums, including those that recompute the argument of the activation.
pub(super) const CENTERED: usize = gradient_sums::COEFS + normalize::COEFS;
/// The same for the input gradient.
pub(super) const MAPPED: usize = input_gradient::COEFS + normalize::COEFS;

/// The scratch memory of passes over a shape.
pub(super) fn scratch_sizes(shape: Shape) -> Sizes {
    let [plain, weighted] = [false, true].map(|weighted| scratch_sizes_of(&Walked::new(shape, weighted)));
    Sizes {
        pass: plain.pass.max(weighted.pass),
        task: plain.task.max(weighted.task),
        tasks: plain.tasks.max(weighted.tasks),
        conversions: plain.conversions,
    }
}

fn scratch_sizes_of(walked: &Walked) -> Sizes {
    const { assert!(MAPPED <= map::MAX_COEFS) };
    let shape = walked.shape;
    let grid = (!shape.is_empty()).then(|| Grid::new(shape, size_of::<f64>(), true));
    let array = padded(shape.channels());
    let segments = grid.as_ref().map_or(0, Grid::segments);
    let slots = segments + usize::from(walked.rest.is_some());
    Sizes {
        // The pass with most coefficients, which may be aligned with an output; moments and a count for each segment.
        pass: stride(shape)
            .saturating_mul(CENTERED + MAPPED)
            .saturating_add(MAX_LANES)
            .saturating_add(array.saturating_mul(2 + MOMENTS * slots))
            .saturating_add(segments.next_multiple_of(8)),
        task: grid
            .as_ref()
            .map_or(0, |_| MomentsTask::<f64>::scratch(shape).max(GradientSumsTask::<f64>::scratch(shape))),
        tasks: grid.as_ref().map_or(1, Grid::tiles),
        // Mean, variance, gamma, beta and their gradients.
        conversions: padded(walked.channels(0..shape.channels()).len()).saturating_mul(6),
    }
}

/// Elements from one array of coefficients to the next: in rows, which are walked with all arrays at once, a page more
/// than an array. Several streams in a page mislead the hardware prefetcher, and maps from memory then take 1.3 to 1.5
/// times as long. What fits in a cache does without.
pub(super) fn stride(shape: Shape) -> usize {
    const PAGE: usize = 4096 / size_of::<f32>();
    const LARGE: usize = 1 << 16;
    padded(shape.channels()) + if shape.inner() == 1 && shape.len() > LARGE { PAGE } else { 0 }
}

/// Arrays of one value per channel, in a buffer of f64, which are no smaller than the scalars of lanes.
pub(super) struct ChannelArrays<P> {
    base: Shared<P>,
    /// Values from one array to the next.
    pub(super) stride: usize,
}

impl<P> ChannelArrays<P> {
    pub(super) fn new(buffer: *mut f64, stride: usize) -> Self {
        const { assert!(size_of::<P>() <= size_of::<f64>()) };
        Self { base: Shared::new(buffer.cast()), stride }
    }

    /// Arrays for a map into `out`, offset to share its misalignment, so that an aligned store loads its coefficients
    /// from one cache line, not two. The buffer has `MAX_LANES` values more.
    pub(super) fn aligned_with<E>(buffer: *mut f64, stride: usize, out: *mut E) -> Self {
        let arrays = Self::new(buffer, stride);
        let lanes = STREAM_ALIGN / size_of::<P>();
        Self { base: Shared::new(arrays.ptr().wrapping_add(out.addr() / size_of::<E>() % lanes)), stride }
    }

    /// The arrays after the first `k`.
    pub(super) fn after(&self, k: usize) -> Self {
        Self { base: Shared::new(self.ptr().wrapping_add(k * self.stride)), stride: self.stride }
    }

    pub(super) fn ptr(&self) -> *mut P {
        self.base.ptr()
    }

    /// Repeats the channels in the other columns, and the first columns after the last, in the first `arrays` arrays, so
    /// that a vector may continue with the next row. To be called after filling `range`.
    ///
    /// # Safety
    /// The buffer has as many arrays, and nothing else uses these columns or the padding.
    pub(super) unsafe fn repeat(&self, arrays: usize, range: &Range<usize>, walked: &Walked)
    where
        P: Copy,
    {
        if range.start > 0 || range.is_empty() || walked.shape.inner() > 1 {
            return;
        }
        let columns = walked.shape.channels();
        let channels = columns / walked.rows;
        let first = if walked.rows == 1 { columns } else { channels };
        for k in 0..arrays {
            let array = self.ptr().wrapping_add(k * self.stride);
            for c in first..columns + MAX_LANES {
                // SAFETY: the caller's promise; the range has the first channels, all of them if they are few.
                unsafe { *array.add(c) = *array.add(c - channels) };
            }
        }
    }

    /// Some channels of the first K arrays.
    ///
    /// # Safety
    /// The buffer has K arrays, and nothing else uses these channels of them while the slices live.
    #[allow(clippy::mut_from_ref)] // the caller's promise stands in for the borrow
    pub(super) unsafe fn slices<'a, const K: usize>(&self, channels: &Range<usize>) -> [&'a mut [P]; K] {
        std::array::from_fn(|k| {
            let at = k * self.stride;
            // SAFETY: the caller's promise; arrays are a stride apart.
            unsafe { self.base.slice(at + channels.start..at + channels.end) }
        })
    }
}
