//! The walk of a map over rows.

use super::map::{MAX_COEFS, Map, MapKernel, Sinks};
use super::operands::{Lanes, Native, Sources};
use super::sink::Streaming;
use super::tile::PREFETCH_BYTES;
use crate::lanes::Storage;
use crate::simd::{Real, Simd, Vector};
use std::ops::Range;
use std::slice;

/// Vectors of a panel of rows: 4 with 5 coefficients each, or 7 with a few more loads, are what 32 registers hold.
const PANEL: usize = 4;
/// Rows that are walked panel by panel.
const BLOCK_ROWS: usize = 8;
/// Bytes of coefficients that fit in L1 next to what is mapped.
const WIDE_BYTES: usize = 9 << 10;

impl<M: Map, E: Storage> MapKernel<M, E> {
    /// In the order of memory, or nearly so, which hardware prefetchers need. Whole rows follow each other without a seam,
    /// and a vector may have the end of one and the start of the next: coefficients begin again after the last.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    pub(super) unsafe fn rows<S: Simd, T: Streaming>(&self, sinks: &mut Sinks<'_, M, E, E::Native<S>, T>) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let (Range { start, end }, channels) = (self.task.tile.channels.clone(), self.task.shape.channels());
        let positions = self.task.tile.positions.clone();
        // Rows with weights have one weight each.
        let whole = end - start == channels && !(M::FUSED && self.task.variant.weighted);
        let (first, len) = (positions.start * channels, positions.len() * channels);
        let wide = channels * M::COEFS * size_of::<E::Scalar>() > WIDE_BYTES;
        let panels = !M::FUSED && whole && channels.is_multiple_of(lanes) && (wide || channels <= PANEL * lanes);
        // SAFETY: the caller's promise; the runs and blocks are the rows of the tile.
        unsafe {
            let unit_factors = self.unit_factors();
            let (mut head, mut blocks) = (0, 0);
            if panels {
                sinks.seek(first);
                head = sinks.room().min(len);
                blocks = (len - head) / channels;
            }
            let after = head + blocks * channels;
            // The code of a run exists once: for each row if they are not whole, for all of them, or before and after
            // the panels.
            let runs = if whole { 1 + usize::from(panels) } else { positions.len() };
            for run in 0..runs {
                let (at, row, len) = match (whole, panels, run) {
                    (false, ..) => ((positions.start + run) * channels + start, positions.start + run, end - start),
                    (true, false, _) => (first, 0, len),
                    (true, true, 0) => (first, 0, head),
                    (true, true, _) => (first + after, 0, len - after),
                };
                self.run_of_rows::<S, T>(at, row, len, unit_factors, sinks);
                if panels && run == 0 {
                    self.blocks::<S, T>(first + head, blocks, sinks);
                }
            }
        }
    }

    /// Maps `len` elements of rows from `first` on, at position `row`.
    ///
    /// # Safety
    /// The pointers cover the shape; the elements belong to the tile, and pass the end of a row only if it has all channels.
    #[inline(always)]
    unsafe fn run_of_rows<S: Simd, T: Streaming>(
        &self,
        first: usize,
        row: usize,
        len: usize,
        unit_factors: bool,
        sinks: &mut Sinks<'_, M, E, E::Native<S>, T>,
    ) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let channels = self.task.tile.channels.clone();
        let all_channels = channels.len() == self.task.shape.channels();
        let (mut x, mut c, mut left) = (self.task.x.advance(first, row), first % self.task.shape.channels(), len);
        // SAFETY: the caller's promise; in whole rows coefficients begin again after the last.
        unsafe {
            sinks.seek(first);
            let mut part = sinks.room().min(left);
            // As in planes, the parts of vectors at both ends share their code.
            loop {
                if part > 0 {
                    let coefs = self.coefs::<S>(c, part, all_channels, unit_factors);
                    Self::vector::<S, T, false>(&self.task, &coefs, &x, part, sinks);
                    c = next_channel(&channels, c + part);
                    x = x.advance(part, 0);
                    left -= part;
                }
                while !M::FUSED && left >= lanes {
                    let coefs = self.coefs::<S>(c, lanes, all_channels, unit_factors);
                    self.prefetch_ahead::<S>(&x);
                    Self::vector::<S, T, true>(&self.task, &coefs, &x, lanes, sinks);
                    c = next_channel(&channels, c + lanes);
                    x = x.advance(lanes, 0);
                    left -= lanes;
                }
                if left == 0 {
                    break;
                }
                part = left.min(lanes);
                if M::FUSED && part == lanes {
                    self.prefetch_ahead::<S>(&x);
                }
            }
        }
    }

    /// Prefetches, as arrays of coefficients next to it mislead the hardware prefetcher: one input into L1; several would
    /// crowd it out, and take 0.94 of the time if they are prefetched into L2.
    #[inline(always)]
    fn prefetch_ahead<S: Simd>(&self, x: &Sources<E>) {
        let distance = PREFETCH_BYTES / size_of::<E>();
        if M::INPUTS == 1 {
            Self::prefetch::<S, true>(&self.task, x, distance);
        } else {
            Self::prefetch::<S, false>(&self.task, x, distance);
        }
    }

    /// Whether all factors of the tile are 1, which then are not read again and again: maps over rows take 0.8 to 0.9 of the
    /// time.
    ///
    /// # Safety
    /// The arrays have the channels of the tile.
    #[inline(always)]
    unsafe fn unit_factors(&self) -> bool {
        let Range { start, end } = self.task.tile.channels;
        let mut unit = true;
        for &k in M::FACTORS {
            if self.needs_coefs(k) {
                let factors = self.task.coefs.wrapping_add(k * self.task.coefs_stride + start);
                // SAFETY: the caller's promise.
                let factors = unsafe { slice::from_raw_parts(factors, end - start) };
                // To the end, as loops that may end early are not vectorized.
                for factor in factors {
                    unit &= *factor == Real::from_f64(1.0);
                }
            }
        }
        unit
    }

    /// Whether the pass needs the `k`-th array of coefficients.
    #[inline(always)]
    fn needs_coefs(&self, k: usize) -> bool {
        k < M::COEFS - M::RECOMPUTE_COEFS || self.task.variant.recomputes() || self.task.variant.double_backward
    }

    /// The coefficients of the `n` channels from `c` on, and of a whole vector if rows are whole.
    ///
    /// # Safety
    /// The arrays have so many channels, or all channels and then the first again.
    #[inline(always)]
    unsafe fn coefs<S: Simd>(
        &self,
        c: usize,
        n: usize,
        whole: bool,
        unit_factors: bool,
    ) -> [<Native<E, S> as Lanes>::V; MAX_COEFS] {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let mut coefs = [Vector::splat(Real::from_f64(0.0)); MAX_COEFS];
        let mut k = 0;
        while k < M::COEFS {
            if unit_factors && M::FACTORS.contains(&k) {
                coefs[k] = Vector::splat(Real::from_f64(1.0));
            } else if self.needs_coefs(k) {
                let p = self.task.coefs.wrapping_add(k * self.task.coefs_stride + c);
                // SAFETY: the caller's promise.
                coefs[k] = unsafe { if whole || n == lanes { Vector::load(p) } else { Vector::load_first(p, n) } };
            }
            k += 1;
        }
        coefs
    }

    /// Maps whole rows from element `first` on by panels of [`PANEL`] vectors, whose coefficients then stay in registers for
    /// a block. If a panel is a row this takes 0.75 to 0.95 of the time, if coefficients exceed L1 0.65 to 0.95; elsewhere
    /// nothing is gained. Wide blocks prefetch the next one, in the order of memory.
    ///
    /// # Safety
    /// The pointers cover the shape, and rows are whole vectors.
    #[inline(always)]
    unsafe fn blocks<S: Simd, T: Streaming>(
        &self,
        first: usize,
        rows: usize,
        sinks: &mut Sinks<'_, M, E, E::Native<S>, T>,
    ) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let channels = self.task.shape.channels();
        let narrow = channels <= PANEL * lanes;
        let block = if narrow { rows } else { BLOCK_ROWS };
        let mut row = 0;
        while row < rows {
            let (at, n) = (first + row * channels, block.min(rows - row));
            let mut next = if narrow { None } else { Some(self.task.x.advance(at + n * channels, 0)) };
            let mut c = 0;
            // SAFETY: panels are parts of the rows, and coefficients begin again after the last.
            unsafe {
                while channels - c >= PANEL * lanes {
                    self.panel::<S, T, PANEL>(at + c, n, sinks, &mut next);
                    c += PANEL * lanes;
                }
                while c < channels {
                    self.panel::<S, T, 1>(at + c, n, sinks, &mut next);
                    c += lanes;
                }
            }
            row += n;
        }
    }

    /// Maps so many vectors of each of some rows, from element `at` on.
    ///
    /// # Safety
    /// As [`blocks`](Self::blocks).
    #[inline(always)]
    unsafe fn panel<S: Simd, T: Streaming, const VECTORS: usize>(
        &self,
        at: usize,
        rows: usize,
        sinks: &mut Sinks<'_, M, E, E::Native<S>, T>,
        next: &mut Option<Sources<E>>,
    ) {
        let (lanes, channels) = (<Native<E, S> as Lanes>::V::LANES, self.task.shape.channels());
        // SAFETY: the caller's promise.
        unsafe {
            let mut coefs = [[Vector::splat(Real::from_f64(0.0)); MAX_COEFS]; VECTORS];
            let mut k = 0;
            while k < VECTORS {
                coefs[k] = self.coefs::<S>(at % channels + k * lanes, lanes, true, false);
                k += 1;
            }
            for row in 0..rows {
                let at = at + row * channels;
                sinks.seek(at);
                let mut k = 0;
                while k < VECTORS {
                    let x = self.task.x.advance(at + k * lanes, 0);
                    if let Some(next) = next {
                        Self::prefetch::<S, false>(&self.task, next, 0);
                        *next = next.advance(lanes, 0);
                    }
                    Self::vector::<S, T, true>(&self.task, &coefs[k], &x, lanes, sinks);
                    k += 1;
                }
            }
        }
    }
}

/// The channel at `c`, which may lie in one of the next rows of the tile.
#[inline(always)]
fn next_channel(channels: &Range<usize>, mut c: usize) -> usize {
    while c >= channels.end {
        c -= channels.len();
    }
    c
}
