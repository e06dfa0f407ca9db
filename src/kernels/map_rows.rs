//! The walk of a map over rows.

use super::map::{MAX_COEFS, Map, MapKernel, Sinks};
use super::operands::{Lanes, Native, Sources};
use super::sink::Streaming;
use super::tile::{PREFETCH_BYTES, Tile};
use crate::lanes::Storage;
use crate::simd::{Real, Simd, Vector};
use std::ops::Range;

/// Vectors of a panel of rows: 4 with 5 coefficients each, or 7 with a few more loads, are what 32 registers hold.
const PANEL: usize = 4;
/// Rows that are walked panel by panel.
const BLOCK_ROWS: usize = 8;
/// Bytes of coefficients that fit in L1 next to what is mapped.
const WIDE_BYTES: usize = 9 << 10;

impl<M: Map, E: Storage> MapKernel<M, E> {
    /// In the order of memory, or nearly so, which hardware prefetchers need. Whole rows follow each other without a
    /// seam, and a vector may have the end of one and the start of the next: coefficients begin again after the
    /// last.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    pub(super) unsafe fn rows<S: Simd, T: Streaming>(&self, sinks: &mut Sinks<'_, M, E, E::Native<S>, T>) {
        let (lanes, channels) = (<Native<E, S> as Lanes>::V::LANES, self.task.shape.channels());
        let mut runs = RowRuns::new(&self.task.tile, channels, M::ANY && self.task.variant.weighted);
        let narrow = channels == lanes || channels == PANEL * lanes;
        let wide = T::ALWAYS && channels * M::COEFS * size_of::<E::Scalar>() > WIDE_BYTES;
        let panels = !M::FUSED && S::STREAMS && self.has_all_channels() && channels.is_multiple_of(lanes);
        // SAFETY: the caller's promise; the runs and panels are the rows of the tile.
        unsafe {
            if panels && (narrow || wide) {
                sinks.seek(runs.next.first);
                runs.leave_to_panels(sinks.room(), channels);
            }
            // Factors of 1 are not read again and again: fused maps over rows take 0.8 to 0.9 of the time.
            let unit_factors = M::ANY && self.is_ordinary();
            while let Some(run) = runs.next() {
                self.run_of_rows::<S, T>(run, unit_factors, sinks);
                if !M::FUSED && S::STREAMS && runs.panels > 0 {
                    self.blocks::<S, T>(run.first + run.len, runs.panels, sinks);
                    runs.panels = 0;
                }
            }
        }
    }

    fn has_all_channels(&self) -> bool {
        self.task.tile.channels.len() == self.task.shape.channels()
    }

    /// Maps a run.
    ///
    /// # Safety
    /// The pointers cover the shape; the run is one of the tile.
    #[inline(always)]
    unsafe fn run_of_rows<S: Simd, T: Streaming>(
        &self,
        Run { first, row, len }: Run,
        unit_factors: bool,
        sinks: &mut Sinks<'_, M, E, E::Native<S>, T>,
    ) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        // Copied: through `task` it would be reloaded after every store.
        let variant = self.task.variant;
        let (channels, all_channels) = (self.task.tile.channels.clone(), self.has_all_channels());
        let (mut x, mut c, mut left) = (self.task.x.advance(first, row), first % self.task.shape.channels(), len);
        // SAFETY: the caller's promise; in whole rows coefficients begin again after the last.
        unsafe {
            sinks.seek(first);
            let mut part = sinks.room().min(left);
            // As in planes, the parts of vectors at both ends share their code.
            loop {
                if part > 0 {
                    let coefs = self.coefs::<S>(c, part, all_channels, unit_factors);
                    Self::vector::<S, T, false>(&variant, &coefs, &x, part, sinks);
                    c = next_channel(&channels, c + part);
                    x = x.advance(part, 0);
                    left -= part;
                }
                while left >= lanes {
                    let coefs = self.coefs::<S>(c, lanes, all_channels, unit_factors);
                    self.prefetch_ahead::<S>(&x);
                    Self::vector::<S, T, true>(&variant, &coefs, &x, lanes, sinks);
                    c = next_channel(&channels, c + lanes);
                    x = x.advance(lanes, 0);
                    left -= lanes;
                }
                if left == 0 {
                    break;
                }
                part = left;
            }
        }
    }

    /// Prefetches, as arrays of coefficients next to it mislead the hardware prefetcher: one input into L1; several
    /// would crowd it out, and take 0.94 of the time if they are prefetched into L2.
    #[inline(always)]
    fn prefetch_ahead<S: Simd>(&self, x: &Sources<E>) {
        let distance = PREFETCH_BYTES / size_of::<E>();
        if M::INPUTS == 1 {
            Self::prefetch::<S, true>(&self.task, x, distance);
        } else {
            Self::prefetch::<S, false>(&self.task, x, distance);
        }
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
        let mut coefs = [Vector::splat(Real::from_wide(0.0)); MAX_COEFS];
        let mut k = 0;
        while k < M::COEFS {
            if unit_factors && M::FACTORS.contains(&k) {
                coefs[k] = Vector::splat(Real::from_wide(1.0));
            } else if self.task.needs_coefs::<M>(k) {
                let p = self.task.coefs.wrapping_add(k * self.task.coefs_stride + c);
                // SAFETY: the caller's promise.
                coefs[k] = unsafe { if whole || n == lanes { Vector::load(p) } else { Vector::load_first(p, n) } };
            }
            k += 1;
        }
        coefs
    }

    /// Maps whole rows from element `first` on by panels of [`PANEL`] vectors, whose coefficients then stay in
    /// registers for a block. If a panel is a row this takes 0.75 to 0.95 of the time, if coefficients exceed L1
    /// 0.65 to 0.95; elsewhere nothing is gained, and outputs that stay in caches take up to 1.4 times as long.
    /// Wide blocks prefetch the next one, in the order of memory.
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
        let narrow = !T::ALWAYS || channels <= PANEL * lanes;
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
            let mut coefs = [[Vector::splat(Real::from_wide(0.0)); MAX_COEFS]; VECTORS];
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
                    Self::vector::<S, T, true>(&self.task.variant, &coefs[k], &x, lanes, sinks);
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

/// Contiguous elements of rows.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    /// The position of the first, for rows with weights.
    row: usize,
    len: usize,
}

/// The runs of a tile of rows: one for all rows, one for each, or one before and one after what is left to panels.
struct RowRuns {
    next: Run,
    left: usize,
    /// Elements from the start of one run to that of the next, and the length of the next.
    step: usize,
    next_len: usize,
    /// Rows of panels after the next run.
    panels: usize,
}

impl RowRuns {
    /// Each row is a run if the tile does not have all `channels`, or if rows are `weighted`.
    fn new(tile: &Tile, channels: usize, weighted: bool) -> Self {
        let (row, rows, columns) = (tile.positions.start, tile.positions.len(), tile.channels.len());
        let (left, len) = if weighted || columns < channels { (rows, columns) } else { (1, rows * columns) };
        let next = Run { first: row * channels + tile.channels.start, row, len };
        Self { next, left, step: channels, next_len: len, panels: 0 }
    }

    /// Leaves whole rows to panels, from `head` elements after the start on.
    fn leave_to_panels(&mut self, head: usize, channels: usize) {
        let len = self.next.len;
        self.next.len = head.min(len);
        self.panels = (len - self.next.len) / channels;
        self.step = self.next.len + self.panels * channels;
        self.next_len = len - self.step;
        self.left = 2;
    }
}

impl Iterator for RowRuns {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let run = self.next;
        self.left = self.left.checked_sub(1)?;
        self.next = Run { first: run.first + self.step, row: run.row + 1, len: self.next_len };
        Some(run)
    }
}
