//! The walks of passes that write: an output an element, or two, from the inputs and the channel's coefficients.
//!
//! No closures over vectors here: the compiler may choose not to inline one, and then it lacks the instruction set.

use super::operands::{Fused, INPUTS, Lanes, Native, Operands, Sources, load};
use super::reduce::{Beside, CHUNK, PlaneSums};
use super::sink::{Line, Sink};
use super::{AHEAD, Runs, Tile};
use crate::Shape;
use crate::element::{Element, Store};
use crate::simd::{Kernel, Real, Simd, Vector};
use std::marker::PhantomData;
use std::ops::Range;
use std::slice;

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
    /// Those of them that are 1 but in channels of huge or tiny values.
    const FACTORS: &'static [usize];
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
    /// In planes, elements from what is read to what memory is asked for; 0 where the hardware foresees what comes: asking
    /// beside it takes up to 1.3 times as long.
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

impl<'a, E: Element, L: Store<Element = E>, const STREAM: bool> Sinks<'a, E, L, STREAM> {
    #[inline(always)]
    fn new(out: [*mut E; 2], [first, second]: &'a mut [Line; 2]) -> Self {
        Self { out, first: Sink::new(first), second: Sink::new(second) }
    }

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

/// A map over planes, on its way through a run.
struct Plane<'a, M, E: Element, S: Simd, const STREAM: bool> {
    apply: &'a Apply<M, E>,
    sinks: Sinks<'a, E, E::Native<S>, STREAM>,
    /// What is left of the run.
    x: Sources<E>,
    len: usize,
    coefs: [<Native<E, S> as Lanes>::V; MAX_COEFS],
    /// A copy: what is behind `apply` the compiler would read again after every store.
    ahead: usize,
}

impl<M: Map, E: Element, S: Simd, const STREAM: bool> Plane<'_, M, E, S, STREAM> {
    /// Maps `n` elements, a vector unless `PARTIAL`.
    ///
    /// # Safety
    /// They are left of the run.
    #[inline(always)]
    unsafe fn next<const PARTIAL: bool>(&mut self, n: usize) {
        if self.ahead > 0 {
            self.apply.ask::<S, false>(self.x.advance(self.ahead, 0));
        }
        // SAFETY: the caller's promise.
        unsafe { self.apply.vector::<S, STREAM, false, PARTIAL>(self.coefs, self.x, n, &mut self.sinks) };
        self.x = self.x.advance(n, n);
        self.len -= n;
    }
}

impl<M: Map, E: Element, S: Simd, const STREAM: bool> Beside for Plane<'_, M, E, S, STREAM> {
    /// The first vector is so short that the others have the places of vectors in the output.
    #[inline(always)]
    unsafe fn begin(&mut self, k: usize, o: usize, i: usize, len: usize) {
        let (channels, inner) = (self.apply.shape.channels(), self.apply.shape.inner());
        let c = self.apply.tile.channels.start + k;
        let run = (o * channels + c) * inner + i;
        // SAFETY: the run lies within the buffer, by the definition of the shape; `c` is a channel.
        unsafe {
            for (k, v) in self.coefs.iter_mut().enumerate().take(M::COEFS) {
                *v = Vector::splat(*self.apply.coefs.add(k * self.apply.apart + c));
            }
            self.x = self.apply.x.advance(run, o * inner + i);
            self.len = len;
            self.sinks.seek::<M>(run);
            let head = self.sinks.room::<M>().min(len);
            if head > 0 {
                self.next::<true>(head);
            }
        }
    }

    #[inline(always)]
    unsafe fn chunk(&mut self) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        if self.len >= CHUNK * lanes {
            for _ in 0..CHUNK {
                // SAFETY: so much is left.
                unsafe { self.next::<false>(lanes) };
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        // SAFETY: so much is left.
        unsafe {
            while self.len >= lanes {
                self.next::<false>(lanes);
            }
            if self.len > 0 {
                self.next::<true>(self.len);
            }
        }
    }
}

/// The walk of a map over planes with no sum to be beside.
struct Alone<'a, M, E: Element>(&'a Apply<M, E>);

impl<M: Map, E: Element> PlaneSums for Alone<'_, M, E> {
    #[inline(always)]
    unsafe fn planes<S: Simd, B: Beside>(&self, map: &mut B) {
        for (o, i, len) in Runs::new(self.0.shape, &self.0.tile.positions) {
            for k in 0..self.0.tile.channels.len() {
                // SAFETY: the caller's promise.
                unsafe {
                    map.begin(k, o, i, len);
                    map.end();
                }
            }
        }
    }
}

/// A sum over planes and, beside it, the map of as many planes at the same positions.
pub(crate) struct Both<R, M, E: Element> {
    pub(crate) sums: R,
    pub(crate) map: Apply<M, E>,
}

impl<R: PlaneSums, M: Map, E: Element> Kernel for Both<R, M, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes its parts promises that their pointers cover the shape.
        unsafe {
            if self.map.stream {
                self.map.planes::<S, true, R>(&self.sums);
                S::fence();
            } else {
                self.map.planes::<S, false, R>(&self.sums);
            }
        }
    }
}

impl<M: Map, E: Element> Apply<M, E> {
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn walk<S: Simd, const STREAM: bool>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.shape.inner() == 1 {
                let mut lines = [Line::new(), Line::new()];
                let mut sinks = Sinks::new(self.out, &mut lines);
                self.rows::<S, STREAM>(&mut sinks);
                sinks.flush::<M>();
            } else {
                self.planes::<S, STREAM, _>(&Alone(self));
            }
        }
    }

    /// Asks memory for a vector of every input.
    #[inline(always)]
    fn ask<S: Simd, const L1: bool>(&self, x: Sources<E>) {
        for k in 0..INPUTS {
            if self.fused.reads(M::FUSED, k, M::INPUTS) {
                <Native<E, S> as Lanes>::V::prefetch::<L1>(x.inputs[k].cast());
            }
        }
    }

    /// Maps one vector, or its first `n` lanes where `PARTIAL`.
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
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let operands = load::<Native<E, S>, ROWS, PARTIAL>(x, M::INPUTS, M::FUSED, &self.fused, n);
            sinks.put::<M, PARTIAL>(M::apply(coefs, operands, &self.fused), n);
        }
    }

    /// The coefficients of the `n` channels from `c` on, which then goes on by as many.
    ///
    /// # Safety
    /// As [`coefs`](Self::coefs).
    #[inline(always)]
    unsafe fn next_coefs<S: Simd>(
        &self,
        c: &mut usize,
        n: usize,
        ordinary: bool,
    ) -> [<Native<E, S> as Lanes>::V; MAX_COEFS] {
        let (Range { start, end }, channels) = (self.tile.channels.clone(), self.shape.channels());
        // SAFETY: the caller's promise.
        let coefs = unsafe { self.coefs::<S>(*c, n, end - start == channels, ordinary) };
        *c += n;
        while *c >= end {
            *c -= end - start;
        }
        coefs
    }

    /// Maps the tile's planes as `walk` leads.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<S: Simd, const STREAM: bool, W: PlaneSums>(&self, walk: &W) {
        let mut lines = [Line::new(), Line::new()];
        let coefs = [Vector::splat(Real::from_f64(0.0)); MAX_COEFS];
        let sinks = Sinks::new(self.out, &mut lines);
        let mut plane = Plane::<M, E, S, STREAM> { apply: self, sinks, x: self.x, len: 0, coefs, ahead: self.ahead };
        // SAFETY: the caller's promise.
        unsafe {
            walk.planes::<S, _>(&mut plane);
            plane.sinks.flush::<M>();
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
            let ordinary = self.ordinary();
            if !whole {
                for row in positions {
                    self.run_rows::<S, STREAM>(row * channels + start, row, end - start, ordinary, sinks);
                }
                return;
            }
            let (first, len) = (positions.start * channels, positions.len() * channels);
            let wide = channels * M::COEFS * size_of::<E::Param>() > WIDE_BYTES;
            if M::FUSED || channels % lanes > 0 || !(wide || channels <= PANEL * lanes) {
                return self.run_rows::<S, STREAM>(first, 0, len, ordinary, sinks);
            }
            // As in a run: first what is before the place of a vector, then blocks, then what is left of a row.
            sinks.seek::<M>(first);
            let head = sinks.room::<M>().min(len);
            let rows = (len - head) / channels;
            let after = head + rows * channels;
            self.run_rows::<S, STREAM>(first, 0, head, ordinary, sinks);
            self.blocks::<S, STREAM>(first + head, rows, sinks);
            self.run_rows::<S, STREAM>(first + after, 0, len - after, ordinary, sinks);
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
        ordinary: bool,
        sinks: &mut Sinks<'_, E, E::Native<S>, STREAM>,
    ) {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let (mut x, mut c, mut len) = (self.x.advance(first, row), first % self.shape.channels(), len);
        // SAFETY: the caller's promise; in whole rows coefficients begin again after the last.
        unsafe {
            sinks.seek::<M>(first);
            let head = sinks.room::<M>().min(len);
            if head > 0 {
                let coefs = self.next_coefs::<S>(&mut c, head, ordinary);
                self.vector::<S, STREAM, true, true>(coefs, x, head, sinks);
                x = x.advance(head, 0);
                len -= head;
            }
            while len >= lanes {
                let coefs = self.next_coefs::<S>(&mut c, lanes, ordinary);
                // Asked for, as arrays of coefficients beside it mislead the hardware: one input into L1; several crowd it
                // out, and take 0.94 of the time where they are asked for into L2.
                let next = x.advance(AHEAD / size_of::<E>(), 0);
                if M::INPUTS == 1 {
                    self.ask::<S, true>(next);
                } else {
                    self.ask::<S, false>(next);
                }
                self.vector::<S, STREAM, true, false>(coefs, x, lanes, sinks);
                x = x.advance(lanes, 0);
                len -= lanes;
            }
            if len > 0 {
                let coefs = self.next_coefs::<S>(&mut c, len, ordinary);
                self.vector::<S, STREAM, true, true>(coefs, x, len, sinks);
            }
        }
    }

    /// Whether the tile's factors are all 1, which is then not read again and again: maps over rows take 0.8 to 0.9 of the
    /// time.
    ///
    /// # Safety
    /// The arrays have the tile's channels.
    #[inline(always)]
    unsafe fn ordinary(&self) -> bool {
        let Range { start, end } = self.tile.channels;
        let mut ordinary = true;
        for &k in M::FACTORS {
            if k < M::COEFS - M::RECOMPUTE_COEFS || self.fused.recomputes() {
                // SAFETY: the caller's promise.
                let factors = unsafe { slice::from_raw_parts(self.coefs.add(k * self.apart + start), end - start) };
                // To the end, as loops that may end early are not vectorized.
                for factor in factors {
                    ordinary &= *factor == Real::from_f64(1.0);
                }
            }
        }
        ordinary
    }

    /// The coefficients of the `n` channels from `c` on; where rows are `whole`, of a vector from there on.
    ///
    /// # Safety
    /// The arrays have so many channels, or all channels and the first again.
    #[inline(always)]
    unsafe fn coefs<S: Simd>(
        &self,
        c: usize,
        n: usize,
        whole: bool,
        ordinary: bool,
    ) -> [<Native<E, S> as Lanes>::V; MAX_COEFS] {
        let lanes = <Native<E, S> as Lanes>::V::LANES;
        let mut coefs = [Vector::splat(Real::from_f64(0.0)); MAX_COEFS];
        for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
            if ordinary && M::FACTORS.contains(&k) {
                *v = Vector::splat(Real::from_f64(1.0));
            } else if k < M::COEFS - M::RECOMPUTE_COEFS || self.fused.recomputes() {
                let p = self.coefs.wrapping_add(k * self.apart + c);
                // SAFETY: the caller's promise.
                *v = unsafe { if whole || n == lanes { Vector::load(p) } else { Vector::load_first(p, n) } };
            }
        }
        coefs
    }

    /// Maps rows of all channels, that begin at any element, in blocks that are walked panel by panel: coefficients stay in
    /// registers for a block. Where a panel is a row this takes 0.75 to 0.95 of the time, where coefficients are beyond L1
    /// 0.65 to 0.95; elsewhere nothing is gained. Wide blocks ask for the one after, in the order of memory.
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
            let mut next = if narrow { None } else { Some(self.x.advance(at + n * channels, 0)) };
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
        next: &mut Option<Sources<E>>,
    ) {
        let (lanes, channels) = (<Native<E, S> as Lanes>::V::LANES, self.shape.channels());
        // SAFETY: the caller's promise.
        unsafe {
            let mut coefs = [[Vector::splat(Real::from_f64(0.0)); MAX_COEFS]; VECTORS];
            for (k, coefs) in coefs.iter_mut().enumerate() {
                *coefs = self.coefs::<S>(at % channels + k * lanes, lanes, true, false);
            }
            for row in 0..rows {
                let at = at + row * channels;
                sinks.seek::<M>(at);
                for (k, coefs) in coefs.iter().enumerate() {
                    let x = self.x.advance(at + k * lanes, 0);
                    if let Some(next) = next {
                        self.ask::<S, false>(*next);
                        *next = next.advance(lanes, 0);
                    }
                    self.vector::<S, STREAM, true, false>(*coefs, x, lanes, sinks);
                }
            }
        }
    }
}
