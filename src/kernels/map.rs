//! The walks of passes that write: an output an element, or two, from the inputs and the channel's coefficients.

use super::operands::{Fused, INPUTS, Lanes, Native, Operands, Sources, load};
use super::sink::{Line, Sink};
use super::{Runs, Tile};
use crate::Shape;
use crate::element::{Element, Store};
use crate::simd::{Kernel, Real, Simd, Vector};
use std::marker::PhantomData;
use std::ops::Range;

/// The most coefficients a channel may have.
pub(crate) const MAX_COEFS: usize = 12;

/// Vectors of a panel of rows: 4 with 5 coefficients each, or 7 with a few more loads, are what 32 registers hold.
const PANEL: usize = 4;
/// Rows that are walked panel by panel.
const BLOCK_ROWS: usize = 8;
/// Bytes of coefficients that L1 holds beside what is mapped.
const WIDE_BYTES: usize = 9 << 10;

/// The body of an elementwise pass.
pub(crate) trait Map {
    /// How many inputs are read.
    const INPUTS: usize;
    /// How many coefficients a channel has, and how many of them are only needed where the activation's argument is
    /// computed again.
    const COEFS: usize;
    const RECOMPUTE_COEFS: usize = 0;
    /// Whether anything is fused; without, there is one output.
    const FUSED: bool;
    fn apply<V: Vector>(coefs: [V; MAX_COEFS], x: Operands<V>, fused: &Fused) -> [V; 2];
}

/// The pass over one tile.
pub(crate) struct Apply<M, E: Element> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    /// May be equal to an output: each vector is loaded before it is stored.
    pub(crate) x: Sources<E>,
    pub(crate) fused: Fused,
    /// Elements between what is read and what is asked for.
    pub(crate) ahead: usize,
    /// `M::COEFS` arrays of the channels' coefficients, so many values apart.
    pub(crate) coefs: *const E::Param,
    pub(crate) apart: usize,
    /// Null where an output is not wanted; then something is fused.
    pub(crate) out: [*mut E; 2],
    /// Whether to pass the caches by: for outputs too large to be read from them later.
    pub(crate) stream: bool,
    pub(crate) pass: PhantomData<M>,
}

impl<M: Map, E: Element> Kernel for Apply<M, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes an `Apply` promises that its pointers cover the shape.
        unsafe {
            if self.stream {
                self.walk::<S, true>();
                S::fence();
            } else {
                self.walk::<S, false>();
            }
        }
    }
}

/// Where the outputs of a pass go, the second only where something is fused.
struct Sinks<'a, E: Element, L: Store<Element = E>, const STREAM: bool> {
    out: [*mut E; 2],
    first: Sink<'a, L, STREAM>,
    second: Sink<'a, L, STREAM>,
}

impl<E: Element, L: Store<Element = E>, const STREAM: bool> Sinks<'_, E, L, STREAM> {
    #[inline(always)]
    fn writes<M: Map>(&self) -> [bool; 2] {
        if M::FUSED { [!self.out[0].is_null(), !self.out[1].is_null()] } else { [true, false] }
    }

    /// # Safety
    /// What was put before may be written.
    #[inline(always)]
    unsafe fn seek<M: Map>(&mut self, at: usize) {
        let [first, second] = self.writes::<M>();
        // SAFETY: the caller's promise.
        unsafe {
            if first {
                self.first.seek(self.out[0].wrapping_add(at));
            }
            if second {
                self.second.seek(self.out[1].wrapping_add(at));
            }
        }
    }

    /// Elements to the next place of a vector in the first output that is wanted; in the other too, where both stream.
    #[inline(always)]
    fn room<M: Map>(&self) -> usize {
        if self.writes::<M>()[0] { self.first.room() } else { self.second.room() }
    }

    /// # Safety
    /// The first `n` lanes may be written.
    #[inline(always)]
    unsafe fn put<M: Map, const PARTIAL: bool>(&mut self, v: [L::V; 2], n: usize) {
        let [first, second] = self.writes::<M>();
        // SAFETY: the caller's promise.
        unsafe {
            if first {
                self.first.put::<PARTIAL>(v[0], n);
            }
            if second {
                self.second.put::<PARTIAL>(v[1], n);
            }
        }
    }

    /// # Safety
    /// What was put may be written.
    #[inline(always)]
    unsafe fn flush<M: Map>(&mut self) {
        let [first, second] = self.writes::<M>();
        // SAFETY: the caller's promise.
        unsafe {
            if first {
                self.first.flush();
            }
            if second {
                self.second.flush();
            }
        }
    }
}

impl<M: Map, E: Element> Apply<M, E> {
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn walk<S: Simd, const STREAM: bool>(&self) {
        let (mut first, mut second) = (Line::new(), Line::new());
        let (first, second) = (Sink::new(&mut first), Sink::new(&mut second));
        let mut sinks = Sinks::<E, E::Native<S>, STREAM> { out: self.out, first, second };
        // SAFETY: the caller's promise.
        unsafe {
            if self.shape.inner() == 1 {
                self.rows::<S, STREAM>(&mut sinks);
            } else {
                self.planes::<S, STREAM>(&mut sinks);
            }
            sinks.flush::<M>();
        }
    }

    /// Maps one vector, or its first `n` lanes where `PARTIAL`, and asks for what lies at `next`.
    ///
    /// # Safety
    /// The lanes can be read in every input used, and written.
    #[inline(always)]
    unsafe fn vector<S: Simd, const STREAM: bool, const ROWS: bool, const PARTIAL: bool>(
        &self,
        coefs: [<Native<E, S> as Lanes>::V; MAX_COEFS],
        x: Sources<E>,
        n: usize,
        sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>,
        (next, near): (Sources<E>, bool),
    ) {
        for k in 0..INPUTS {
            if self.fused.reads(M::FUSED, k, M::INPUTS) {
                let p = next.inputs[k].cast();
                if near {
                    <Native<E, S> as Lanes>::V::prefetch::<true>(p);
                } else {
                    <Native<E, S> as Lanes>::V::prefetch::<false>(p);
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            let operands = load::<Native<E, S>, ROWS, PARTIAL>(x, M::INPUTS, M::FUSED, &self.fused, n);
            sinks.put::<M, PARTIAL>(M::apply(coefs, operands, &self.fused), n);
        }
    }

    /// Maps `len` elements that follow each other, with a first vector so short that the others have the places of
    /// vectors in the output. Coefficients are `splat` or, in rows, those from channel `c` on.
    ///
    /// No closures here: the compiler may choose not to inline one, and then it lacks the instruction set.
    ///
    /// # Safety
    /// The elements can be read in every input used, and written; `sinks` are where they go.
    #[inline(always)]
    unsafe fn run<S: Simd, const STREAM: bool, const ROWS: bool>(
        &self,
        mut x: Sources<E>,
        mut len: usize,
        splat: [<Native<E, S> as Lanes>::V; MAX_COEFS],
        mut c: usize,
        sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>,
    ) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        // A copy: what is behind `self` the compiler would read again after every store.
        let ahead = self.ahead;
        // One input is asked for into L1; several crowd it out, and take 0.94 of the time where they are asked for into L2.
        let near = M::INPUTS == 1;
        let head = sinks.room::<M>().min(len);
        // SAFETY: every vector lies within `len`.
        unsafe {
            if head > 0 {
                let coefs = self.next_coefs::<S, ROWS>(splat, &mut c, head);
                self.vector::<S, STREAM, ROWS, true>(coefs, x, head, sinks, (x.advance(ahead, 0), near));
                x = x.advance(head, if ROWS { 0 } else { head });
                len -= head;
            }
            while len >= lanes {
                let coefs = self.next_coefs::<S, ROWS>(splat, &mut c, lanes);
                self.vector::<S, STREAM, ROWS, false>(coefs, x, lanes, sinks, (x.advance(ahead, 0), near));
                x = x.advance(lanes, if ROWS { 0 } else { lanes });
                len -= lanes;
            }
            if len > 0 {
                let coefs = self.next_coefs::<S, ROWS>(splat, &mut c, len);
                self.vector::<S, STREAM, ROWS, true>(coefs, x, len, sinks, (x.advance(ahead, 0), near));
            }
        }
    }

    /// `splat` or, in rows, the coefficients of the `n` channels from `c` on, which then goes on by as many.
    ///
    /// # Safety
    /// As [`coefs`](Self::coefs).
    #[inline(always)]
    unsafe fn next_coefs<S: Simd, const ROWS: bool>(
        &self,
        splat: [<Native<E, S> as Lanes>::V; MAX_COEFS],
        c: &mut usize,
        n: usize,
    ) -> [<Native<E, S> as Lanes>::V; MAX_COEFS] {
        if !ROWS {
            return splat;
        }
        let (Range { start, end }, channels) = (self.tile.channels.clone(), self.shape.channels());
        // SAFETY: the caller's promise.
        let coefs = unsafe { self.coefs::<S>(*c, n, end - start == channels) };
        *c += n;
        while *c >= end {
            *c -= end - start;
        }
        coefs
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<S: Simd, const STREAM: bool>(&self, sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
            for c in self.tile.channels.clone() {
                let mut coefs = [Vector::splat(Real::from_f64(0.0)); MAX_COEFS];
                let run = (o * channels + c) * inner + i;
                let x = self.x.advance(run, o * inner + i);
                // SAFETY: the run lies within the buffer, by the definition of the shape; `c` is a channel.
                unsafe {
                    for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
                        *v = Vector::splat(*self.coefs.add(k * self.apart + c));
                    }
                    sinks.seek::<M>(run);
                    self.run::<S, STREAM, false>(x, len, coefs, 0, sinks);
                }
            }
        }
    }

    /// In the order of memory, or nearly so, which hardware prefetchers need. Whole rows follow each other without a seam,
    /// and a vector may have the end of one and the start of the next: coefficients begin again after the last.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<S: Simd, const STREAM: bool>(&self, sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let (Range { start, end }, channels) = (self.tile.channels.clone(), self.shape.channels());
        let positions = self.tile.positions.clone();
        // Rows of weights have a weight each.
        let whole = end - start == channels && !(M::FUSED && self.fused.weighted);
        // SAFETY: the caller's promise; the runs and blocks are the tile's rows.
        unsafe {
            if !whole {
                for row in positions {
                    self.run_rows::<S, STREAM>(row * channels + start, row, end - start, sinks);
                }
                return;
            }
            let (first, len) = (positions.start * channels, positions.len() * channels);
            let wide = channels * M::COEFS * size_of::<E::Param>() > WIDE_BYTES;
            if M::FUSED || channels % lanes > 0 || !(wide || channels <= PANEL * lanes) {
                return self.run_rows::<S, STREAM>(first, 0, len, sinks);
            }
            // As in a run: first what is before the place of a vector, then blocks, then what is left of a row.
            sinks.seek::<M>(first);
            let head = sinks.room::<M>().min(len);
            let rows = (len - head) / channels;
            let after = head + rows * channels;
            self.run_rows::<S, STREAM>(first, 0, head, sinks);
            self.blocks::<S, STREAM>(first + head, rows, sinks);
            self.run_rows::<S, STREAM>(first + after, 0, len - after, sinks);
        }
    }

    /// Maps `len` elements of rows from `first` on, at position `row`.
    ///
    /// # Safety
    /// The pointers cover the shape; the elements are the tile's, and beyond the end of a row only if it has all channels.
    #[inline(always)]
    unsafe fn run_rows<S: Simd, const STREAM: bool>(
        &self,
        first: usize,
        row: usize,
        len: usize,
        sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>,
    ) {
        let splat = [Vector::splat(Real::from_f64(0.0)); MAX_COEFS];
        // SAFETY: the caller's promise; in whole rows coefficients begin again after the last.
        unsafe {
            sinks.seek::<M>(first);
            let (x, c) = (self.x.advance(first, row), first % self.shape.channels());
            self.run::<S, STREAM, true>(x, len, splat, c, sinks);
        }
    }

    /// The coefficients of the `n` channels from `c` on; where rows are `whole`, of a vector from there on.
    ///
    /// # Safety
    /// The arrays have so many channels, or all channels and the first again.
    #[inline(always)]
    unsafe fn coefs<S: Simd>(&self, c: usize, n: usize, whole: bool) -> [<Native<E, S> as Lanes>::V; MAX_COEFS] {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let mut coefs = [Vector::splat(Real::from_f64(0.0)); MAX_COEFS];
        for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
            if k < M::COEFS - M::RECOMPUTE_COEFS || self.fused.recomputes() {
                let p = self.coefs.wrapping_add(k * self.apart + c);
                // SAFETY: the caller's promise.
                *v = unsafe { if whole || n == lanes { Vector::load(p) } else { Vector::load_first(p, n) } };
            }
        }
        coefs
    }

    /// Maps rows of all channels, that begin at any element, in blocks that are walked panel by panel: coefficients stay in
    /// registers for a block. Where a panel is a row this takes 0.75 to 0.95 of the time, where coefficients are beyond L1
    /// 0.65 to 0.95; elsewhere nothing is gained. The block after is asked for in the order of memory.
    ///
    /// # Safety
    /// The pointers cover the shape, and rows are whole vectors.
    #[inline(always)]
    unsafe fn blocks<S: Simd, const STREAM: bool>(
        &self,
        first: usize,
        rows: usize,
        sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>,
    ) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let channels = self.shape.channels();
        let narrow = channels <= PANEL * lanes;
        let block = if narrow { rows } else { BLOCK_ROWS };
        for row in (0..rows).step_by(block.max(1)) {
            let (at, n) = (first + row * channels, block.min(rows - row));
            let mut next = self.x.advance(at + if narrow { self.ahead } else { n * channels }, 0);
            let mut c = 0;
            // SAFETY: panels are parts of the rows, and coefficients begin again after the last.
            unsafe {
                while channels - c >= PANEL * lanes {
                    self.panel::<S, STREAM, PANEL>(at + c, n, sinks, &mut next);
                    c += PANEL * lanes;
                }
                while c < channels {
                    self.panel::<S, STREAM, 1>(at + c, n, sinks, &mut next);
                    c += lanes;
                }
            }
        }
    }

    /// Maps so many vectors of each of some rows, from element `at` on.
    ///
    /// # Safety
    /// As [`blocks`](Self::blocks).
    #[inline(always)]
    unsafe fn panel<S: Simd, const STREAM: bool, const VECTORS: usize>(
        &self,
        at: usize,
        rows: usize,
        sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>,
        next: &mut Sources<E>,
    ) {
        let (lanes, channels) = (<Native<E, S> as Lanes>::V::LANES, self.shape.channels());
        // SAFETY: the caller's promise.
        unsafe {
            let mut coefs = [[Vector::splat(Real::from_f64(0.0)); MAX_COEFS]; VECTORS];
            for (k, coefs) in coefs.iter_mut().enumerate() {
                *coefs = self.coefs::<S>(at % channels + k * lanes, lanes, true);
            }
            for row in 0..rows {
                let at = at + row * channels;
                sinks.seek::<M>(at);
                for (k, coefs) in coefs.iter().enumerate() {
                    let x = self.x.advance(at + k * lanes, 0);
                    self.vector::<S, STREAM, true, false>(*coefs, x, lanes, sinks, (*next, false));
                    *next = next.advance(lanes, 0);
                }
            }
        }
    }
}
