//! [`moments`](super::moments) over rows: a column is a channel.

use super::merge::ChanFactors;
use super::moments::{Deviations, MomentsTask, close};
use super::operands::{Lanes, Sources, Variant};
use super::reduce::{self, CHUNK, Rows};
use super::tile::padded;
use crate::lanes::{Load, Storage};
use crate::simd::{Real, Vector};
use std::ops::Range;
use std::slice;

/// Rows whose mean is the first pivot.
const FIRST_ROWS: usize = CHUNK;

impl<E: Storage> MomentsTask<E> {
    /// Mean and M2 of some channels of the tile, by channel in `out`.
    ///
    /// # Safety
    /// The pointers cover the shape, the tile has at least one row, and `scratch` has room for 3 times the padded
    /// number of columns.
    #[inline(always)]
    pub(super) unsafe fn rows_of<L: Lanes<E = E>, const FUSED: bool>(
        &self,
        columns: Range<usize>,
        out: [*mut f64; 2],
        scratch: *mut f64,
    ) {
        let (width, stride, weights) = (columns.len(), self.shape.channels(), self.tile_weights());
        // SAFETY: the caller's promise; the outputs have the columns.
        let (mut sums, mean, m2) = unsafe {
            let sums = Columns::<<L::V as Vector>::Scalar>::new(scratch, width, stride);
            let [mean, m2] =
                [zeroed(out[0].wrapping_add(columns.start), width), zeroed(out[1].wrapping_add(columns.start), width)];
            (sums, mean, m2)
        };
        let Range { start, end } = self.tile.positions;
        let x = self.sources(start * stride + columns.start, start);
        let weighted = FUSED && !weights.0.is_null();
        let (mut row, mut block, mut count) = (0, FIRST_ROWS.min(end - start), 0.0);
        // The first block is summed twice if it has no weights, as in planes.
        let mut finds_pivots = !weighted;
        // SAFETY: the tile has at least one row, and the rows summed lie within it.
        unsafe {
            if finds_pivots {
                sums.pivots_from::<L>(&x, width);
            }
            while row < end - start {
                let rows = block.min(end - start - row);
                if weighted && let Some(heaviest) = weights.heaviest(row..row + rows, count) {
                    sums.pivots_from::<L>(&x.advance(heaviest * stride, 0), width);
                }
                sums.sum::<L, FUSED>(&x.advance(row * stride, row), weighted, width, rows);
                if finds_pivots {
                    finds_pivots = false;
                    sums.move_pivots(rows);
                    continue;
                }
                let n = weights.sum(row..row + rows);
                sums.close_block(count, mean, m2, n);
                count += n;
                row += rows;
                block = row;
            }
        }
    }
}

/// `len` values, set to 0.
///
/// # Safety
/// They can be written at `p`, and nothing else uses them during `'a`.
#[inline]
unsafe fn zeroed<'a>(p: *mut f64, len: usize) -> &'a mut [f64] {
    // SAFETY: the caller's promise.
    let values = unsafe { slice::from_raw_parts_mut(p, len) };
    values.fill(0.0);
    values
}

/// The columns of a block of rows. Arrays are padded to whole vectors.
struct Columns<'a, P> {
    row_stride: usize,
    pivot: &'a mut [P],
    s: &'a mut [f64],
    q: &'a mut [f64],
}

impl<P: Real> Columns<'_, P> {
    /// Empty sums.
    ///
    /// # Safety
    /// `scratch` has room for 3 times the padded width, which nothing else uses while this lives.
    #[inline]
    unsafe fn new(scratch: *mut f64, width: usize, row_stride: usize) -> Self {
        let padded = padded(width);
        // SAFETY: two arrays of f64 and one of the scalars of lanes, which are no larger, fit in the memory, apart from
        // each other; any bits are valid values.
        unsafe {
            Self {
                row_stride,
                pivot: slice::from_raw_parts_mut(scratch.cast(), padded),
                s: zeroed(scratch.add(padded), padded),
                q: zeroed(scratch.add(2 * padded), padded),
            }
        }
    }

    /// Adds the terms of `rows` rows to the sums.
    ///
    /// # Safety
    /// `rows` rows of `width` columns can be read at `x`.
    #[inline(always)]
    unsafe fn sum<L: Lanes<V: Vector<Scalar = P>>, const FUSED: bool>(
        &mut self,
        x: &Sources<L::E>,
        weighted: bool,
        width: usize,
        rows: usize,
    ) {
        let r = Rows {
            coefs: self.pivot.as_ptr(),
            coefs_stride: 0,
            sums: [self.s.as_mut_ptr(), self.q.as_mut_ptr()],
            columns: width,
            row_stride: self.row_stride,
        };
        let variant = Variant { weighted, rows: true, ..Variant::PLAIN };
        // SAFETY: the caller's promise; the arrays are padded.
        unsafe { reduce::rows::<Deviations<FUSED>, L>(&r, x, &variant, rows) };
    }

    /// Takes the values of a row as pivots.
    ///
    /// # Safety
    /// A row of `width` columns can be read at `x`.
    #[inline(always)]
    unsafe fn pivots_from<L: Lanes<V: Vector<Scalar = P>>>(&mut self, x: &Sources<L::E>, width: usize) {
        let mut c = 0;
        while c < width {
            let n = (width - c).min(L::V::LANES);
            // SAFETY: the caller's promise; `pivot` is padded to whole vectors.
            unsafe { L::X::load_first(x.inputs[0].wrapping_add(c), n).store(self.pivot.as_mut_ptr().add(c)) };
            c += L::V::LANES;
        }
    }

    /// Moves the pivots to the means of the `rows` rows that were summed about them, and leaves empty sums.
    #[inline(always)]
    fn move_pivots(&mut self, rows: usize) {
        for ((p, s), q) in self.pivot.iter_mut().zip(&mut *self.s).zip(&mut *self.q) {
            *p = Real::from_f64(p.to_f64() + *s / rows as f64);
            (*s, *q) = (0.0, 0.0);
        }
    }

    /// Merges the block that was summed, of weight `n`, into what came before it, of weight `count`, and leaves the
    /// sums and pivots from which the next block starts.
    #[inline(always)]
    fn close_block(&mut self, count: f64, mean: &mut [f64], m2: &mut [f64], n: f64) {
        if n == 0.0 {
            return;
        }
        let factors = ChanFactors::new(count, n);
        // One sweep: the arrays of a few thousand channels fill L1.
        for ((((mean, m2), pivot), s), q) in
            mean.iter_mut().zip(m2).zip(&mut *self.pivot).zip(&mut *self.s).zip(&mut *self.q)
        {
            [*mean, *m2] = factors.merge([*mean, *m2], close(n, pivot.to_f64(), *s, *q));
            *pivot = Real::from_f64(*mean);
            (*s, *q) = (0.0, 0.0);
        }
    }
}
