//! Per-channel arrays in scratch memory.

use super::walked::Walked;
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
pub(super) const MAPPED: usize = {
    let arrays = input_gradient::COEFS + normalize::COEFS;
    assert!(arrays <= map::MAX_COEFS);
    arrays
};

/// Elements from one array of coefficients to the next, for so many columns of a shape: in rows, which are walked with
/// all arrays at once, a page more than an array. Several streams in a page mislead the hardware prefetcher, and maps
/// from memory then take 1.3 to 1.5 times as long. What fits in a cache does without.
pub(super) fn stride<P>(shape: Shape, columns: usize) -> usize {
    const PAGE: usize = 4096;
    const LARGE: usize = 1 << 18;
    padded(columns) + if shape.inner() == 1 && shape.len() > LARGE { PAGE / size_of::<P>() } else { 0 }
}

/// Memory for arrays of one value per column: of a group of columns, or of all.
pub(super) struct Window {
    memory: Shared<f64>,
    /// The first column.
    first: usize,
    pub(super) columns: usize,
}

impl Window {
    pub(super) fn new(memory: *mut f64, first: usize, columns: usize) -> Self {
        Self { memory: Shared::new(memory), first, columns }
    }

    /// Without memory, to find out how much it needs.
    pub(super) fn of_columns(columns: usize) -> Self {
        Self::new(std::ptr::null_mut(), 0, columns)
    }

    /// The arrays that lie after so much of the window, and where they end.
    pub(super) fn arrays<P>(&self, at: usize, arrays: usize, stride: usize) -> (ChannelArrays<P>, usize) {
        const { assert!(size_of::<P>() <= size_of::<f64>()) };
        let base = self.memory.ptr().wrapping_add(at).cast::<P>().wrapping_sub(self.first);
        (ChannelArrays { base: Shared::new(base), stride }, at.saturating_add(arrays_len::<P>(arrays, stride)))
    }
}

/// The length of so many arrays in a window, in values of f64: whole cache lines, and room to move them by a vector.
fn arrays_len<P>(arrays: usize, stride: usize) -> usize {
    let bytes = arrays.saturating_mul(stride).saturating_add(MAX_LANES).saturating_mul(size_of::<P>());
    bytes.div_ceil(size_of::<f64>()).checked_next_multiple_of(8).unwrap_or(usize::MAX)
}

/// Arrays of one value per column.
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

    /// The same for a map into `out`, moved to share its misalignment, so that an aligned store loads its coefficients
    /// from one cache line, not two.
    pub(super) fn aligned_with<E>(self, out: *mut E) -> Self {
        let lanes = STREAM_ALIGN / size_of::<P>();
        Self { base: Shared::new(self.ptr().wrapping_add(out.addr() / size_of::<E>() % lanes)), ..self }
    }

    /// The arrays after the first `k`.
    pub(super) fn after(&self, k: usize) -> Self {
        Self { base: Shared::new(self.ptr().wrapping_add(k * self.stride)), stride: self.stride }
    }

    pub(super) fn ptr(&self) -> *mut P {
        self.base.ptr()
    }

    pub(super) fn shared(&self) -> Shared<P> {
        self.base
    }

    /// Repeats the channels in the other columns, and the first columns after the last, in the first `arrays` arrays, so
    /// that a vector may continue with the next row. To be called after filling `range`.
    ///
    /// # Safety
    /// The buffer has as many arrays, and nothing else uses these columns or the padding.
    pub(super) unsafe fn repeat(&self, arrays: usize, range: &Range<usize>, walked: &Walked, window: &Window)
    where
        P: Copy,
    {
        let columns = walked.shape.channels();
        if range.start > 0 || range.is_empty() || walked.shape.inner() > 1 || window.columns < columns {
            return;
        }
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
