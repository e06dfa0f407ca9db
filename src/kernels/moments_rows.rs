//! [`moments`](super::moments) over rows: a column is a channel.

use super::merge::Moments;
use super::moments::{Deviations, MomentsTask};
use super::operands::{Kind, Lanes, Sources, Variant};
use super::reduce::{self, CHUNK, Rows};
use super::tile::padded;
use crate::lanes::{Load, Storage};
use crate::simd::{MAX_LANES, Real, Vector, with_rest};
use std::ops::Range;
use std::slice;

/// Rows whose mean is the first pivot.
const FIRST_ROWS: usize = CHUNK;

impl<E: Storage> MomentsTask<E> {
    /// The moments of some channels of the tile, by channel in `out`.
    ///
    /// # Safety
    /// The pointers cover the shape, the tile has at least one row, and `scratch` has room for 3 times the padded
    /// number of columns. Columns start at a whole vector of the tile, and what `out` has up to the next one after them
    /// is not used by others.
    #[inline(always)]
    pub(super) unsafe fn rows_of<L: Lanes<E = E>, K: Kind>(
        &self,
        columns: Range<usize>,
        out: [*mut f64; 3],
        scratch: *mut f64,
    ) {
        let (width, stride, weights) = (columns.len(), self.shape.channels(), self.tile_weights());
        let [pivot, s, q] = out;
        let out = [pivot.wrapping_add(columns.start), s.wrapping_add(columns.start), q.wrapping_add(columns.start)];
        // SAFETY: the caller's promise; the outputs have the columns.
        let mut sums = unsafe { Columns::<<L::V as Vector>::Scalar>::new(out, scratch, width, stride) };
        let Range { start, end } = self.tile.positions;
        let x = self.sources(start * stride + columns.start, start);
        let weighted = K::ANY && !weights.values.is_null();
        let variant = Variant { weighted, weight_scale: weights.scale, rows: true, ..Variant::PLAIN };
        let (mut row, mut block, mut count) = (0, FIRST_ROWS.min(end - start), 0.0);
        // The first block is summed twice if it has no weights, as in planes.
        let mut finds_pivots = !weighted;
        // SAFETY: the tile has at least one row, and the rows summed lie within it.
        unsafe {
            if finds_pivots {
                sums.pivots_from::<L>(&x, 0.0);
            }
            while row < end - start {
                let rows = block.min(end - start - row);
                if weighted && let Some(heaviest) = weights.heaviest(row..row + rows, count) {
                    sums.pivots_from::<L>(&x.advance(heaviest * stride, 0), count);
                }
                sums.add_rows::<L, K>(&x.advance(row * stride, row), &variant, rows);
                sums.add_rests();
                if finds_pivots {
                    finds_pivots = false;
                    sums.move_pivots(rows as f64);
                    sums.clear();
                    continue;
                }
                count += weights.sum(row..row + rows);
                row += rows;
                block = row;
                if row < end - start && count > 0.0 {
                    sums.move_pivots(count);
                }
            }
        }
        sums.keep_pivots();
    }
}

/// The columns of some rows, each with [`Moments`] in arrays that are padded to whole vectors.
struct Columns<'a, P> {
    width: usize,
    row_stride: usize,
    /// Pivots, where lanes load them, and where the result is wanted.
    pivot: &'a mut [P],
    pivot_out: &'a mut [f64],
    /// The two sums, and what their roundings have lost in this block.
    sums: [&'a mut [f64]; 2],
    rests: [&'a mut [f64]; 2],
}

impl<P: Real> Columns<'_, P> {
    /// Empty sums.
    ///
    /// # Safety
    /// `scratch` has room for 3 times the padded width, and each of `out` for the width rounded up to whole vectors,
    /// which nothing else uses while this lives.
    #[inline]
    unsafe fn new(out: [*mut f64; 3], scratch: *mut f64, width: usize, row_stride: usize) -> Self {
        let (padded, whole) = (padded(width), width.next_multiple_of(MAX_LANES));
        // SAFETY: the caller's promise; lanes have scalars no larger than f64, and any bits are valid values.
        unsafe {
            let mut columns = Self {
                width,
                row_stride,
                pivot: slice::from_raw_parts_mut(scratch.cast(), whole),
                pivot_out: slice::from_raw_parts_mut(out[0], width),
                sums: [slice::from_raw_parts_mut(out[1], whole), slice::from_raw_parts_mut(out[2], whole)],
                rests: [
                    slice::from_raw_parts_mut(scratch.add(padded), whole),
                    slice::from_raw_parts_mut(scratch.add(2 * padded), whole),
                ],
            };
            columns.clear();
            columns
        }
    }

    /// Empties the sums.
    #[inline]
    fn clear(&mut self) {
        for values in self.sums.iter_mut().chain(&mut self.rests) {
            values.fill(0.0);
        }
    }

    /// Adds the terms of `rows` rows to the sums.
    ///
    /// # Safety
    /// `rows` rows can be read at `x`.
    #[inline(always)]
    unsafe fn add_rows<L: Lanes<V: Vector<Scalar = P>>, K: Kind>(
        &mut self,
        x: &Sources<L::E>,
        variant: &Variant,
        rows: usize,
    ) {
        let r = Rows {
            coefs: self.pivot.as_ptr(),
            coefs_stride: 0,
            sums: [self.sums[0].as_mut_ptr(), self.sums[1].as_mut_ptr()],
            rests: [self.rests[0].as_mut_ptr(), self.rests[1].as_mut_ptr()],
            columns: self.width,
            row_stride: self.row_stride,
        };
        // SAFETY: the caller's promise; the arrays are padded.
        unsafe { reduce::rows::<Deviations<K>, L>(&r, x, variant, rows) };
    }

    /// Takes the values of a row as pivots, for rows of weight `count`.
    ///
    /// # Safety
    /// A row can be read at `x`.
    #[inline(always)]
    unsafe fn pivots_from<L: Lanes<V: Vector<Scalar = P>>>(&mut self, x: &Sources<L::E>, count: f64) {
        let [s, q] = &mut self.sums;
        let mut first = 0;
        while first < self.width {
            let n = (self.width - first).min(L::V::LANES);
            let mut pivots = [P::from_wide(0.0); MAX_LANES];
            // SAFETY: the caller's promise; there is room for a vector.
            unsafe { L::X::load_first(x.inputs[0].wrapping_add(first), n).store(pivots.as_mut_ptr()) };
            for (c, pivot) in (first..first + n).zip(pivots) {
                if count > 0.0 {
                    let moments = Moments { pivot: self.pivot[c].to_wide(), s: s[c], q: q[c] };
                    Moments { s: s[c], q: q[c], .. } = moments.about(count, pivot.to_wide());
                }
                self.pivot[c] = pivot;
            }
            first += L::V::LANES;
        }
    }

    /// Adds to the sums what their roundings have lost.
    #[inline(always)]
    fn add_rests(&mut self) {
        if size_of::<P>() < size_of::<f64>() {
            return;
        }
        for (sums, rests) in self.sums.iter_mut().zip(&mut self.rests) {
            for (sum, rest) in sums.iter_mut().zip(rests.iter_mut()) {
                *sum = with_rest(*sum, *rest);
                *rest = 0.0;
            }
        }
    }

    /// Moves the pivots of rows of weight `n` near their means.
    #[inline(always)]
    fn move_pivots(&mut self, n: f64) {
        let (inverse, [s, q]) = (1.0 / n, &mut self.sums);
        // One sweep: the arrays of a few thousand channels fill L1.
        for ((pivot, s), q) in self.pivot.iter_mut().zip(s.iter_mut()).zip(q.iter_mut()) {
            let moments = Moments { pivot: pivot.to_wide(), s: *s, q: *q }.about_mean::<P>(n, inverse);
            (*pivot, *s, *q) = (P::from_wide(moments.pivot), moments.s, moments.q);
        }
    }

    /// Writes the pivots to where they are wanted.
    #[inline(always)]
    fn keep_pivots(&mut self) {
        for (out, pivot) in self.pivot_out.iter_mut().zip(&*self.pivot) {
            *out = pivot.to_wide();
        }
    }
}
