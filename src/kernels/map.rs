//! Passes that write, and their walk over planes: one output per element, or two, from the inputs and the coefficients
//! of the channel.

use super::operands::{INPUTS, Kind, Lanes, Native, Operands, Sources, Variant, load};
use super::scale::all_ones;
use super::sink::{Cached, Line, Sink, Streamed, Streaming};
use super::tile::{PlaneRun, PlaneRuns, Tile};
use crate::lanes::{Storage, Store};
use crate::shape::Shape;
use crate::simd::{Kernel, Real, Simd, Vector};
use std::marker::PhantomData;
use std::slice;

/// The most coefficients of a channel.
pub(crate) const MAX_COEFS: usize = 10;

/// The body of an elementwise pass.
pub(crate) trait Map {
    /// How many inputs are read.
    const INPUTS: usize;
    /// How many coefficients a channel has, and how many of them, the last, serve only to recompute the argument of the
    /// activation.
    const COEFS: usize;
    const RECOMPUTE_COEFS: usize = 0;
    /// Which coefficients are 1 except in channels of huge or tiny values. Only the body of any variant has them: tiles
    /// with such channels take that one.
    const FACTORS: &'static [usize];
    /// The variants that it serves.
    type Kind: Kind;
    /// Whether these are any variants, whose body is much code.
    const ANY: bool = <Self::Kind as Kind>::ANY;
    /// Whether anything is fused; without, there is one output.
    const FUSED: bool = <Self::Kind as Kind>::FUSED;
    /// The body of the same pass for any variant.
    type Any: Map;
    fn apply<V: Vector>(coefs: &[V; MAX_COEFS], x: &Operands<V>, variant: &Variant) -> [V; 2];
}

/// What a map does: the pass over one tile.
pub(crate) struct MapTask<E: Storage> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    /// May be equal to an output: each vector is loaded before it is stored.
    pub(crate) x: Sources<E>,
    pub(crate) variant: Variant,
    /// In planes, elements from what is read to what is prefetched; 0 leaves it to the hardware prefetcher, next to
    /// which prefetching takes up to 1.3 times as long.
    pub(crate) prefetch_distance: usize,
    /// Arrays of coefficients per channel, a stride apart.
    pub(crate) coefs: *const E::Scalar,
    pub(crate) coefs_stride: usize,
    /// Null if an output is not wanted; then something is fused. The first is wanted unless the kernel is of any variant.
    pub(crate) out: [*mut E; 2],
    /// Whether to bypass the caches: for outputs too large to be read from them later.
    pub(crate) stream: bool,
}

impl<E: Storage> MapTask<E> {
    /// Whether the body needs the `k`-th array of coefficients.
    #[inline(always)]
    pub(super) fn needs_coefs<M: Map>(&self, k: usize) -> bool {
        k < M::COEFS - M::RECOMPUTE_COEFS || self.variant.recomputes() || self.variant.double_backward
    }
}

/// The kernel of a map.
pub(crate) struct MapKernel<M, E: Storage> {
    pub(super) task: MapTask<E>,
    pass: PhantomData<M>,
}

impl<M: Map, E: Storage> MapKernel<M, E> {
    /// # Safety
    /// Inputs that the variant names and wanted outputs cover the shape, and nothing else uses the elements of the tile
    /// in the outputs while the kernel runs. There are as many arrays of coefficients as a kernel of any variant has, with
    /// the channels of the tile, of which the pass has filled those that it needs; if the tile has rows with all
    /// channels, the first ones are repeated after the last.
    pub(crate) unsafe fn new(task: MapTask<E>) -> Self {
        Self { task, pass: PhantomData }
    }

    /// The same, by the code of any variant. Its first coefficients are the same; what it loads after them, whatever that
    /// is, enters no result.
    pub(super) fn any(self) -> MapKernel<M::Any, E> {
        MapKernel { task: self.task, pass: PhantomData }
    }
}

impl<M: Map, E: Storage> Kernel for MapKernel<M, E> {
    const AVX2_SERVES: bool = E::AVX2_SERVES;

    #[inline(always)]
    fn run<S: Simd>(self) {
        let stream = S::STREAMS && self.task.stream;
        // SAFETY: whoever made the kernel promised that the coefficients are computed.
        if !(M::ANY || S::ALL_KINDS && unsafe { self.is_ordinary() }) {
            // SAFETY: this code runs in the tier.
            unsafe { S::enter(self.any()) };
        } else if M::FUSED || !S::STREAMS || self.task.shape.inner() > 1 {
            self.walk::<S>(stream);
        } else if stream {
            self.walk_rows::<S, Streamed>(Streamed);
        } else {
            self.walk_rows::<S, Cached>(Cached);
        }
    }
}

impl<M: Map, E: Storage> MapKernel<M, E> {
    /// Walks the tile, streaming or not as is known at run time.
    #[inline(always)]
    fn walk<S: Simd>(&self, streaming: bool) {
        let mut lines = [Line::new(), Line::new()];
        let mut sinks = Sinks::<M, E, E::Native<S>, bool>::new(self.task.out, &mut lines, streaming);
        // SAFETY: whoever made the kernel promised that its pointers cover the shape.
        unsafe {
            if (M::FUSED || !S::STREAMS) && self.task.shape.inner() == 1 {
                self.rows::<S, bool>(&mut sinks);
            } else {
                walk_planes(&mut Plane::<M, E, S, bool>::new(&self.task, &mut sinks));
            }
            sinks.flush();
        }
        if streaming {
            S::fence();
        }
    }

    /// Walks a tile of rows, streaming or not as is known when it is compiled.
    #[inline(always)]
    fn walk_rows<S: Simd, T: Streaming>(&self, streaming: T) {
        let mut lines = [Line::new(), Line::new()];
        let mut sinks = Sinks::<M, E, E::Native<S>, T>::new(self.task.out, &mut lines, streaming);
        // SAFETY: whoever made the kernel promised that its pointers cover the shape.
        unsafe {
            self.rows::<S, T>(&mut sinks);
            sinks.flush();
        }
        if streaming.on() {
            S::fence();
        }
    }

    /// Whether all factors of the tile are 1.
    ///
    /// # Safety
    /// The arrays have the channels of the tile.
    #[inline(always)]
    pub(super) unsafe fn is_ordinary(&self) -> bool {
        let channels = &self.task.tile.channels;
        let mut ordinary = true;
        for &k in M::FACTORS {
            if self.task.needs_coefs::<M::Any>(k) {
                let factors = self.task.coefs.wrapping_add(k * self.task.coefs_stride + channels.start);
                // SAFETY: the caller's promise.
                ordinary &= all_ones(unsafe { slice::from_raw_parts(factors, channels.len()) });
            }
        }
        ordinary
    }

    /// Prefetches a vector of every input.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd, const L1: bool>(task: &MapTask<E>, x: &Sources<E>, distance: usize) {
        let mut k = 0;
        while k < INPUTS {
            if task.variant.reads::<M::Kind>(k, M::INPUTS) {
                <Native<E, S> as Lanes>::V::prefetch::<L1>(x.inputs[k].wrapping_add(distance).cast());
            }
            k += 1;
        }
    }

    /// The outputs of the first `n` lanes of a vector, of all of them if `WHOLE`.
    ///
    /// # Safety
    /// The lanes can be read in every input used.
    #[inline(always)]
    unsafe fn mapped<S: Simd, const WHOLE: bool>(
        variant: &Variant,
        coefs: &[<Native<E, S> as Lanes>::V; MAX_COEFS],
        x: &Sources<E>,
        n: usize,
    ) -> [<Native<E, S> as Lanes>::V; 2] {
        // SAFETY: the caller's promise.
        let operands = unsafe { load::<Native<E, S>, M::Kind, WHOLE>(x, M::INPUTS, variant, n) };
        M::apply(coefs, &operands, variant)
    }

    /// Maps the first `n` lanes of a vector, all of them if `WHOLE`.
    ///
    /// # Safety
    /// The lanes can be read in every input used, and written.
    #[inline(always)]
    pub(super) unsafe fn vector<S: Simd, T: Streaming, const WHOLE: bool>(
        variant: &Variant,
        coefs: &[<Native<E, S> as Lanes>::V; MAX_COEFS],
        x: &Sources<E>,
        n: usize,
        sinks: &mut Sinks<'_, M, E, E::Native<S>, T>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let v = Self::mapped::<S, WHOLE>(variant, coefs, x, n);
            if WHOLE {
                sinks.put(v);
            } else {
                sinks.put_first(v, n);
            }
        }
    }
}

/// Where the outputs of a pass go, the second only if something is fused.
pub(super) struct Sinks<'a, M, E: Storage, L: Store<Element = E>, T> {
    out: [*mut E; 2],
    first: Sink<'a, L, T>,
    second: Sink<'a, L, T>,
    pass: PhantomData<M>,
}

impl<'a, M: Map, E: Storage, L: Store<Element = E>, T: Streaming> Sinks<'a, M, E, L, T> {
    #[inline(always)]
    pub(super) fn new(out: [*mut E; 2], [first, second]: &'a mut [Line; 2], streaming: T) -> Self {
        Self { out, first: Sink::new(first, streaming), second: Sink::new(second, streaming), pass: PhantomData }
    }

    #[inline(always)]
    fn writes(&self, k: usize) -> bool {
        if M::FUSED && (M::ANY || k > 0) { !self.out[k].is_null() } else { k == 0 }
    }

    /// Whether outputs bypass the caches.
    #[inline(always)]
    fn streams(&self) -> bool {
        self.first.streams()
    }

    /// Stores vectors so many elements after the place of the next ones.
    ///
    /// # Safety
    /// They may be written there.
    #[inline(always)]
    unsafe fn store(&self, v: [L::V; 2], at: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.writes(0) {
                L::store(v[0], self.first.position().wrapping_add(at));
            }
            if self.writes(1) {
                L::store(v[1], self.second.position().wrapping_add(at));
            }
        }
    }

    /// # Safety
    /// What was put before may be written.
    #[inline(always)]
    pub(super) unsafe fn seek(&mut self, at: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.writes(0) {
                self.first.seek(self.out[0].wrapping_add(at));
            }
            if self.writes(1) {
                self.second.seek(self.out[1].wrapping_add(at));
            }
        }
    }

    /// Elements to the next place of a vector in the first output that is wanted; in the other too, if both stream.
    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        if self.writes(0) { self.first.room() } else { self.second.room() }
    }

    /// # Safety
    /// The lanes may be written.
    #[inline(always)]
    unsafe fn put(&mut self, v: [L::V; 2]) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.writes(0) {
                self.first.put(v[0]);
            }
            if self.writes(1) {
                self.second.put(v[1]);
            }
        }
    }

    /// # Safety
    /// The first `n` lanes may be written.
    #[inline(always)]
    unsafe fn put_first(&mut self, v: [L::V; 2], n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.writes(0) {
                self.first.put_first(v[0], n);
            }
            if self.writes(1) {
                self.second.put_first(v[1], n);
            }
        }
    }

    /// # Safety
    /// What was put may be written.
    #[inline(always)]
    pub(super) unsafe fn flush(&mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.writes(0) {
                self.first.flush();
            }
            if self.writes(1) {
                self.second.flush();
            }
        }
    }
}

/// A map over planes, on its way through a run.
pub(super) struct Plane<'a, 'b, M, E: Storage, S: Simd, T> {
    pub(super) task: &'a MapTask<E>,
    sinks: &'a mut Sinks<'b, M, E, E::Native<S>, T>,
    /// What is left of the run.
    x: Sources<E>,
    pub(super) len: usize,
    coefs: [<Native<E, S> as Lanes>::V; MAX_COEFS],
    /// Copied: through `task` they would be reloaded after every store.
    variant: Variant,
    prefetch_distance: usize,
}

impl<'a, 'b, M: Map, E: Storage, S: Simd, T: Streaming> Plane<'a, 'b, M, E, S, T> {
    pub(super) const LANES: usize = <Native<E, S> as Lanes>::V::LANES;
    /// Elements of runs so short that to align their vectors takes more time than it saves.
    const SHORT: usize = 16 * Self::LANES;

    #[inline(always)]
    pub(super) fn new(task: &'a MapTask<E>, sinks: &'a mut Sinks<'b, M, E, E::Native<S>, T>) -> Self {
        let coefs = [Vector::splat(Real::from_wide(0.0)); MAX_COEFS];
        Self { task, sinks, x: task.x, len: 0, coefs, variant: task.variant, prefetch_distance: task.prefetch_distance }
    }

    /// Goes to a run, and returns how many of its elements lie before the place of a vector in the output, where the
    /// first vector is cut short.
    ///
    /// # Safety
    /// The run belongs to the tile, and whoever made the kernel promised that it covers it.
    #[inline(always)]
    pub(super) unsafe fn seek(&mut self, run: &PlaneRun) -> usize {
        // SAFETY: the run lies within the buffer, and its channel is one of the shape's.
        unsafe {
            let mut k = 0;
            while k < M::COEFS {
                self.coefs[k] = Vector::splat(*self.task.coefs.wrapping_add(k * self.task.coefs_stride + run.c));
                k += 1;
            }
            self.x = self.task.x.advance(run.element, run.position);
            self.len = run.len;
            self.sinks.seek(run.element);
        }
        self.sinks.room().min(run.len)
    }

    /// Whether the run can be mapped by whole vectors alone.
    #[inline(always)]
    fn overlaps(&self) -> bool {
        !self.sinks.streams() && self.len >= Self::LANES
    }

    /// Maps what is left of the run, by whole vectors: the first `part` elements, which lie before the place of a
    /// vector, and those after the last vector, are mapped with others next to them, which are mapped again. All of
    /// these are loaded before anything is stored, as the output may be the input.
    ///
    /// # Safety
    /// The run has at least a vector.
    #[inline(always)]
    unsafe fn overlapping(&mut self, part: usize) {
        let (x, len) = (self.x, self.len);
        // SAFETY: the caller's promise: all vectors lie within the run.
        unsafe {
            let first = MapKernel::<M, E>::mapped::<S, true>(&self.variant, &self.coefs, &x, Self::LANES);
            let end = x.advance(len - Self::LANES, 0);
            let last = MapKernel::<M, E>::mapped::<S, true>(&self.variant, &self.coefs, &end, Self::LANES);
            let mut at = if len > Self::SHORT { part } else { 0 };
            let head = at > 0;
            while at + Self::LANES <= len {
                let x = x.advance(at, 0);
                if self.prefetch_distance > 0 {
                    MapKernel::<M, E>::prefetch::<S, false>(self.task, &x, self.prefetch_distance);
                }
                let v = MapKernel::<M, E>::mapped::<S, true>(&self.variant, &self.coefs, &x, Self::LANES);
                self.sinks.store(v, at);
                at += Self::LANES;
            }
            if head {
                self.sinks.store(first, 0);
            }
            if at < len {
                self.sinks.store(last, len - Self::LANES);
            }
        }
        self.len = 0;
    }

    /// Maps `n` elements, a vector if `WHOLE`.
    ///
    /// # Safety
    /// They are left of the run.
    #[inline(always)]
    pub(super) unsafe fn next<const WHOLE: bool>(&mut self, n: usize) {
        if self.prefetch_distance > 0 {
            MapKernel::<M, E>::prefetch::<S, false>(self.task, &self.x, self.prefetch_distance);
        }
        // SAFETY: the caller's promise.
        unsafe { MapKernel::<M, E>::vector::<S, T, WHOLE>(&self.variant, &self.coefs, &self.x, n, self.sinks) };
        self.x = self.x.advance(n, n);
        self.len -= n;
    }
}

/// Maps the planes of a tile.
///
/// # Safety
/// Whoever made the kernel promised that it covers the tile.
#[inline(always)]
unsafe fn walk_planes<M: Map, E: Storage, S: Simd, T: Streaming>(plane: &mut Plane<'_, '_, M, E, S, T>) {
    let task = plane.task;
    for run in PlaneRuns::new(task.shape, task.tile.channels.clone(), task.tile.positions.clone()) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut part = plane.seek(&run);
            if M::ANY {
                // The parts of vectors at both ends share their code, of which there is much.
                loop {
                    if part > 0 {
                        plane.next::<false>(part);
                    }
                    while plane.len >= Plane::<M, E, S, T>::LANES {
                        plane.next::<true>(Plane::<M, E, S, T>::LANES);
                    }
                    part = plane.len;
                    if part == 0 {
                        break;
                    }
                }
                continue;
            }
            if plane.overlaps() {
                plane.overlapping(part);
                continue;
            }
            if part > 0 {
                plane.next::<false>(part);
            }
            while plane.len >= Plane::<M, E, S, T>::LANES {
                plane.next::<true>(Plane::<M, E, S, T>::LANES);
            }
            if plane.len > 0 {
                plane.next::<false>(plane.len);
            }
        }
    }
}
