//! The passes behind the plan's methods: per-channel algebra between two walks. Arguments have been checked.

use crate::Shape;
use crate::batch_norm::{Affine, BatchNorm};
use crate::element::Element;
use crate::grid::{self, Grid, Mapped};
use crate::kernels::coefficients::{
    Backward, Center, Channels, Finish, FinishSums, Forward, Frozen, ParameterGradients, Partials, SecondSums,
};
use crate::kernels::gradient_sums::{self, GradientTerms};
use crate::kernels::input_gradient::{self, InputGradient};
use crate::kernels::map::{Apply, Both, Map};
use crate::kernels::moments::Moments;
use crate::kernels::normalize::{self, Normalize};
use crate::kernels::operands::{Fused, INPUTS, Sources, Weights};
use crate::kernels::reduce::CHUNK;
use crate::kernels::second::{self, Second};
use crate::kernels::{AHEAD, Tile, apart, padded};
use crate::parallel::Shared;
use crate::scratch::Sizes;
use crate::simd::{MAX_LANES, Real, STREAM_ALIGN, dispatch};
use crate::statistics::{GradientSums, Source, Statistics};
use crate::{Activation, Extras};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::null;

/// Outputs of more bytes than this are written past the caches, where what is read next would not find them anyway: y, and
/// dx, which is written beside two inputs. Measured with 32 MB of L3, where passes were repeated on the same tensors;
/// ordinary stores below take 0.8 to 1 of the time, above 1.2 to 1.7.
const STREAM_FORWARD: usize = 10 << 20;
const STREAM_BACKWARD: usize = 4 << 20;

/// Inputs of more bytes than this a map over planes leaves to the hardware to foresee, and a single input always: asking
/// for several takes 0.7 to 0.9 of the time where they are in L3, and 1.1 to 1.3 where they are not.
const FORESEEN: usize = 24 << 20;

/// Arrays of partial results, one value a channel each, that a segment has.
const PARTIALS: usize = 2;
/// Arrays of coefficients that the sums of the backward pass take, those to recompute its activation's argument included.
const CENTERED: usize = gradient_sums::COEFS + normalize::COEFS;
/// As these, for the map of the backward pass.
const MAPPED: usize = input_gradient::COEFS + normalize::COEFS;
/// Arrays of coefficients that the pass with most of them takes.
const COEFS: usize = CENTERED + MAPPED;

/// The scratch memory of passes over a shape.
pub(crate) fn scratch_sizes(shape: Shape) -> Sizes {
    let grid = (!shape.is_empty()).then(|| Grid::new(shape, size_of::<f64>(), true));
    let padded = padded(shape.channels());
    let segments = grid.as_ref().map_or(0, Grid::segments);
    Sizes {
        // Coefficients, which may be moved beside an output; two sums and a value for each segment.
        pass: apart(shape)
            .saturating_mul(COEFS)
            .saturating_add(MAX_LANES)
            .saturating_add(padded.saturating_mul(2 + PARTIALS * segments))
            .saturating_add(segments.next_multiple_of(8)),
        task: grid.as_ref().map_or(0, |_| Moments::<f64>::scratch(shape)),
        tasks: grid.as_ref().map_or(1, Grid::tiles),
    }
}

/// The passes of an element type, compiled in this crate: were they generic functions, every crate that calls them
/// would compile all kernels again, at its own level of optimization.
///
/// # Safety (of all functions)
/// Lengths fit the plan's shape: pointers to activations cover it, per-channel arguments have its channels. Outputs
/// overlap nothing else, but may be equal to an input of the same pass.
pub trait Passes<E: Element, P> {
    unsafe fn forward(
        plan: &BatchNorm,
        x: *const E,
        extras: Extras<'_, E>,
        statistics: &mut Statistics<&mut [f64]>,
        output: Option<(Affine<'_, P>, *mut E)>,
    );
    unsafe fn normalize(
        plan: &BatchNorm,
        x: *const E,
        extras: Extras<'_, E>,
        source: Source<'_>,
        affine: Affine<'_, P>,
        y: *mut E,
    );
    unsafe fn gradients(plan: &BatchNorm, gradients: GradientsOf<'_, E, P>, sums_out: Option<GradientSums<&mut [f64]>>);
    unsafe fn second(plan: &BatchNorm, second: SecondOf<'_, E, P>);
}

/// The element types whose passes are compiled.
pub struct Compiled;

macro_rules! passes {
    ($($element:ty),*) => {$(
        impl Passes<$element, <$element as Element>::Param> for Compiled {
            #[inline(never)]
            unsafe fn forward(
                plan: &BatchNorm,
                x: *const $element,
                extras: Extras<'_, $element>,
                statistics: &mut Statistics<&mut [f64]>,
                output: Option<(Affine<'_, <$element as Element>::Param>, *mut $element)>,
            ) {
                plan.forward(x, extras, statistics, output);
            }

            #[inline(never)]
            unsafe fn normalize(
                plan: &BatchNorm,
                x: *const $element,
                extras: Extras<'_, $element>,
                source: Source<'_>,
                affine: Affine<'_, <$element as Element>::Param>,
                y: *mut $element,
            ) {
                plan.normalize_with(x, extras, source, affine, y);
            }

            #[inline(never)]
            unsafe fn second(plan: &BatchNorm, second: SecondOf<'_, $element, <$element as Element>::Param>) {
                plan.second(second);
            }

            #[inline(never)]
            unsafe fn gradients(
                plan: &BatchNorm,
                gradients: GradientsOf<'_, $element, <$element as Element>::Param>,
                sums_out: Option<GradientSums<&mut [f64]>>,
            ) {
                plan.gradients(gradients, sums_out);
            }
        }
    )*};
}

passes!(f32, f64);
#[cfg(feature = "half")]
passes!(half::bf16, half::f16);

/// What any part of the backward pass starts from, and what it makes.
pub struct GradientsOf<'a, E: Element, P> {
    /// Not read where given sums leave nothing to compute from it.
    pub(crate) dy: *const E,
    /// Not read where it is rebuilt from y, nor where nothing depends on it.
    pub(crate) x: *const E,
    /// Whether x̂ is rebuilt from y, which `extras` has then.
    pub(crate) rebuild: bool,
    pub(crate) extras: Extras<'a, E>,
    pub(crate) source: Source<'a>,
    pub(crate) affine: Affine<'a, P>,
    pub(crate) sums: Option<GradientSums<&'a [f64]>>,
    pub(crate) out: RawGradients<'a, E, P>,
}

/// What second derivatives start from, and what of them is made.
pub struct SecondOf<'a, E: Element, P> {
    /// dy, x, and the cotangent of dx.
    pub(crate) inputs: [*const E; 3],
    pub(crate) statistics: Statistics<&'a [f64]>,
    pub(crate) gamma: Option<&'a [P]>,
    /// The cotangents of dgamma and dbeta.
    pub(crate) cotangents: [Option<&'a [P]>; 2],
    /// The gradients of x and dy.
    pub(crate) out: [Option<*mut E>; 2],
    pub(crate) gamma_out: Option<&'a mut [P]>,
}

/// [`Gradients`](crate::Gradients) with pointers to those of the plan's shape; that of dx may be that of dy.
pub(crate) struct RawGradients<'a, E, P> {
    pub(crate) dx: Option<*mut E>,
    pub(crate) dresidual: Option<*mut E>,
    pub(crate) dgamma: Option<&'a mut [P]>,
    pub(crate) dbeta: Option<&'a mut [P]>,
}

impl<E, P> RawGradients<'_, E, P> {
    pub(crate) fn none() -> Self {
        Self { dx: None, dresidual: None, dgamma: None, dbeta: None }
    }
}

/// The inputs of a pass, by what is fused: pointers that tasks share.
struct Reads<E: Element> {
    inputs: [Shared<E>; INPUTS],
    weights: Shared<E::Param>,
    fused: Fused,
    /// Bytes of an output from which on it passes the caches by.
    stream: usize,
}

impl<E: Element> Reads<E> {
    /// From a pass's own inputs and what it may read beside them, null where it does not.
    fn new(activation: Activation, own: [*const E; 3], [residual, output]: [*const E; 2], extras: &Extras<E>) -> Self {
        let inputs = [own[0], own[1], own[2], residual, output];
        let weights = extras.weights.map_or(null(), <[E::Param]>::as_ptr);
        let (residual, output, weighted) = (!residual.is_null(), !output.is_null(), extras.weights.is_some());
        let fused = Fused { activation, residual, output, weighted, rebuild: false, constant: false };
        Self {
            inputs: inputs.map(|p| Shared::new(p.cast_mut())),
            weights: Shared::new(weights.cast_mut()),
            fused,
            stream: STREAM_FORWARD,
        }
    }

    fn sources(&self) -> Sources<E> {
        let inputs = std::array::from_fn(|k| self.inputs[k].ptr().cast_const());
        Sources { inputs, weights: self.weights.ptr().cast_const() }
    }

    /// Whether a pass differs from the plain one.
    fn fuses(&self) -> bool {
        let fused = &self.fused;
        fused.activation != Activation::Identity || fused.residual || fused.weighted || fused.rebuild
    }
}

/// Arrays of coefficients, in a buffer of f64, which hold no less than lanes' scalars do.
struct Coefs<P> {
    base: Shared<P>,
    /// Values from one array to the next.
    apart: usize,
}

impl<P> Coefs<P> {
    fn new(buffer: *mut f64, apart: usize) -> Self {
        const { assert!(size_of::<P>() <= size_of::<f64>()) };
        Self { base: Shared::new(buffer.cast()), apart }
    }

    /// Arrays for a map into `out`, that begin as far behind a vector's place as it does: where rows have whole vectors, those
    /// that end at places in memory then take coefficients from one line each instead of two. The buffer has
    /// `MAX_LANES` values more.
    fn beside<E>(buffer: *mut f64, apart: usize, out: *mut E) -> Self {
        let of = Self::new(buffer, apart);
        let lanes = STREAM_ALIGN / size_of::<P>();
        Self { base: Shared::new(of.base.ptr().wrapping_add(out.addr() / size_of::<E>() % lanes)), apart }
    }

    /// The arrays but the first `k`.
    fn after(&self, k: usize) -> Self {
        Self { base: Shared::new(self.base.ptr().wrapping_add(k * self.apart)), apart: self.apart }
    }

    /// Has the values of a shape's first channels follow those of its last in the first `arrays` arrays, for vectors that
    /// go on with the next row. For whoever has just filled a range of channels.
    ///
    /// # Safety
    /// The buffer has as many arrays, and nothing else uses these channels or the padding.
    unsafe fn repeat(&self, arrays: usize, range: &Range<usize>, shape: Shape)
    where
        P: Copy,
    {
        if range.start > 0 || range.is_empty() || shape.inner() > 1 {
            return;
        }
        let channels = shape.channels();
        for k in 0..arrays {
            let array = self.base.ptr().wrapping_add(k * self.apart);
            for c in 0..MAX_LANES {
                // SAFETY: the caller's promise; the range has the first channels, all of them where they are few.
                unsafe { *array.add(channels + c) = *array.add(c % channels) };
            }
        }
    }

    /// Some channels of the first K arrays.
    ///
    /// # Safety
    /// The buffer has K arrays, and nothing else uses these channels of them while the slices live.
    #[allow(clippy::mut_from_ref)] // the caller's promise stands in for the borrow
    unsafe fn arrays<'a, const K: usize>(&self, channels: &Range<usize>) -> [&'a mut [P]; K] {
        std::array::from_fn(|k| {
            let at = k * self.apart;
            // SAFETY: the caller's promise; arrays are apart.
            unsafe { self.base.slice(at + channels.start..at + channels.end) }
        })
    }
}

/// The two arrays of a slot of partial results.
fn slot(partials: &Shared<f64>, segment: usize, padded: usize) -> [*mut f64; 2] {
    let first = partials.ptr().wrapping_add(2 * segment * padded);
    [first, first.wrapping_add(padded)]
}

/// y, where the activation's derivative follows from its sign.
fn mask<E: Element>(activation: Activation, extras: &Extras<E>) -> Option<*const E> {
    match activation {
        Activation::Relu | Activation::LeakyRelu(_) => extras.output.map(<[E]>::as_ptr),
        Activation::Identity | Activation::Silu => None,
    }
}

impl BatchNorm {
    /// How many threads a pass that walks `sweeps` times over a buffer of the plan's shape is worth.
    fn thread_count<E>(&self, sweeps: usize) -> usize {
        self.threads.count(self.shape.len() * size_of::<E>() * sweeps)
    }

    fn channels<'a, P>(&self, source: Source<'a>, affine: Affine<'a, P>, range: &Range<usize>) -> Channels<'a, P> {
        Channels {
            mean: &source.mean()[range.clone()],
            var: &source.var()[range.clone()],
            eps: self.eps,
            gamma: affine.gamma.map(|gamma| &gamma[range.clone()]),
            beta: affine.beta.map(|beta| &beta[range.clone()]),
            rebuild: false,
        }
    }

    /// Maps a tile of the inputs into the outputs.
    fn apply<M: Map, E: Element>(&self, tile: Mapped, reads: &Reads<E>, coefs: &Coefs<E::Param>, out: [*mut E; 2]) {
        dispatch(self.isa, self.map::<M, E>(tile, reads, coefs, out));
    }

    /// The kernel that does.
    fn map<M: Map, E: Element>(
        &self,
        (tile, next): Mapped,
        reads: &Reads<E>,
        coefs: &Coefs<E::Param>,
        out: [*mut E; 2],
    ) -> Apply<M, E> {
        let x = reads.sources();
        let in_place = out.iter().any(|p| !p.is_null() && x.inputs.contains(&p.cast_const()));
        // The walk cuts vectors by the places of one output.
        let alike = out.iter().any(|p| p.is_null()) || out[0].addr() % STREAM_ALIGN == out[1].addr() % STREAM_ALIGN;
        // What was just read lies in cache and would have to be thrown out of it to be written past it.
        let bytes = self.shape.len() * size_of::<E>();
        let stream = !in_place && alike && bytes > reads.stream;
        let (apart, coefs) = (coefs.apart, coefs.base.ptr().cast_const());
        let (shape, fused, pass) = (self.shape, reads.fused, PhantomData::<M>);
        let ahead = next.unwrap_or(if M::INPUTS > 1 && bytes <= FORESEEN { AHEAD / size_of::<E>() } else { 0 });
        Apply { shape, tile, x, fused, ahead, coefs, apart, out, stream, pass }
    }

    /// [`apply`](Self::apply), for y, beside sums if there are any.
    fn apply_normalize<E: Element>(
        &self,
        tile: Mapped,
        reads: &Reads<E>,
        coefs: &Coefs<E::Param>,
        y: *mut E,
        sums: Option<Moments<E>>,
    ) {
        let out = [y, std::ptr::null_mut()];
        if reads.fuses() {
            self.beside(self.map::<Normalize<true>, E>(tile, reads, coefs, out), sums);
        } else {
            self.beside(self.map::<Normalize<false>, E>(tile, reads, coefs, out), sums);
        }
    }

    fn beside<M: Map, E: Element>(&self, map: Apply<M, E>, sums: Option<Moments<E>>) {
        match sums {
            Some(sums) => dispatch(self.isa, Both { sums, map }),
            None => dispatch(self.isa, map),
        }
    }

    /// Statistics and, where there is an output, y.
    pub(crate) fn forward<E: Element>(
        &self,
        x: *const E,
        extras: Extras<'_, E>,
        statistics: &mut Statistics<&mut [f64]>,
        output: Option<(Affine<'_, E::Param>, *mut E)>,
    ) {
        let weights = Weights(extras.weights.map_or(null(), <[E::Param]>::as_ptr));
        if self.shape.is_empty() {
            // SAFETY: weights cover the positions.
            statistics.count = unsafe { weights.sum(0..self.shape.values_per_channel()) };
            statistics.mean.fill(0.0);
            statistics.var.fill(0.0);
            return;
        }
        // Sums of weighted values take lanes of f64; runs shorter than a chunk leave no time beside them.
        let beside = output.is_some() && weights.0.is_null() && self.shape.inner() >= CHUNK * MAX_LANES;
        let grid = Grid::new(self.shape, if output.is_some() { size_of::<E>() } else { 0 }, beside);
        let padded = padded(self.shape.channels());
        let mut scratch = self.scratch.pass();
        let slots = Shared::new(scratch.take(PARTIALS * padded * grid.segments()));
        let out = output.as_ref().map_or(std::ptr::null_mut(), |(_, y)| *y);
        let apart = apart(self.shape);
        let coefs = Coefs::<E::Param>::beside(scratch.take(normalize::COEFS * apart + MAX_LANES), apart, out);
        // SAFETY: the memory has a value for each segment, and weights cover the positions.
        let counts: &[f64] = unsafe {
            let counts = std::slice::from_raw_parts_mut(scratch.take(grid.segments()), grid.segments());
            for (segment, count) in counts.iter_mut().enumerate() {
                *count = weights.sum(grid.positions(segment));
            }
            counts
        };
        statistics.count = counts.iter().sum();
        let (mean, var) = (Shared::new(statistics.mean.as_mut_ptr()), Shared::new(statistics.var.as_mut_ptr()));
        let residual = extras.residual.map_or(null(), <[E]>::as_ptr);
        let reads = Reads::new(self.activation, [x, null(), null()], [residual, null()], &extras);
        let (affine, y) = output.map(|(affine, y)| (affine, Shared::new(y))).unzip();

        let moments = |tile, out, scratch| {
            let Sources { inputs: [x, ..], weights } = reads.sources();
            Moments { shape: self.shape, tile, x, weights, out, scratch }
        };
        let reduce = |segment: usize, tile: Tile| {
            let mut scratch = self.scratch.task();
            let (out, scratch) = (slot(&slots, segment, padded), scratch.take(Moments::<E>::scratch(self.shape)));
            dispatch(self.isa, moments(tile, out, scratch));
        };
        let finish = |channels: Range<usize>| {
            // SAFETY: tasks have disjoint channels, all below the number of channels.
            let (mean, var) = unsafe { (mean.slice(channels.clone()), var.slice(channels.clone())) };
            let partials = Partials { slots: &slots, padded, channels: channels.clone(), counts };
            dispatch(self.isa, Finish { partials, mean, var });
            if let Some(affine) = affine {
                let gamma = affine.gamma.map(|gamma| &gamma[channels.clone()]);
                let beta = affine.beta.map(|beta| &beta[channels.clone()]);
                // SAFETY: tasks have disjoint channels; the buffer has as many arrays.
                let out = unsafe { coefs.arrays(&channels) };
                let of = Channels { mean, var, eps: self.eps, gamma, beta, rebuild: false };
                dispatch(self.isa, Forward { channels: of, out });
                // SAFETY: as above, and the slices are gone.
                unsafe { coefs.repeat(normalize::COEFS, &channels, self.shape) };
            }
        };
        match y {
            None => grid.walk((&self.threads, self.thread_count::<E>(1)), Some(&reduce), &finish, None, None),
            Some(y) => {
                let map = |tile: Mapped| self.apply_normalize(tile, &reads, &coefs, y.ptr(), None);
                let both = |segment: usize, tile: Tile, (mapped, next): Mapped| {
                    // The sums want it now, so memory is asked earlier.
                    let mapped = (mapped, next.map(|next| next + AHEAD / size_of::<E>()));
                    let sums = moments(tile, slot(&slots, segment, padded), std::ptr::null_mut());
                    self.apply_normalize(mapped, &reads, &coefs, y.ptr(), Some(sums));
                };
                let both: Option<&grid::Both> = beside.then_some(&both);
                grid.walk((&self.threads, self.thread_count::<E>(3)), Some(&reduce), &finish, Some(&map), both);
            }
        }
    }

    /// y with given statistics.
    pub(crate) fn normalize_with<E: Element>(
        &self,
        x: *const E,
        extras: Extras<'_, E>,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        y: *mut E,
    ) {
        if self.shape.is_empty() {
            return;
        }
        let grid = Grid::for_map(self.shape);
        let apart = apart(self.shape);
        let mut scratch = self.scratch.pass();
        let coefs = Coefs::<E::Param>::beside(scratch.take(normalize::COEFS * apart + MAX_LANES), apart, y);
        let residual = extras.residual.map_or(null(), <[E]>::as_ptr);
        let reads = Reads::new(self.activation, [x, null(), null()], [residual, null()], &extras);
        let y = Shared::new(y);
        let finish = |range: Range<usize>| {
            // SAFETY: tasks have disjoint channels; the buffer has as many arrays.
            let out = unsafe { coefs.arrays(&range) };
            dispatch(self.isa, Forward { channels: self.channels(source, affine, &range), out });
            // SAFETY: as above, and the slices are gone.
            unsafe { coefs.repeat(normalize::COEFS, &range, self.shape) };
        };
        let map = |tile: Mapped| self.apply_normalize(tile, &reads, &coefs, y.ptr(), None);
        grid.walk((&self.threads, self.thread_count::<E>(2)), None, &finish, Some(&map), None);
    }

    /// Any part of the backward pass. `sums_out` receives the sums.
    pub(crate) fn gradients<E: Element>(
        &self,
        gradients: GradientsOf<'_, E, E::Param>,
        sums_out: Option<GradientSums<&mut [f64]>>,
    ) {
        let GradientsOf { dy, x, rebuild, extras, source, affine, sums: given, out } = gradients;
        let RawGradients { dx, dresidual, dgamma, dbeta } = out;
        let channels = self.shape.channels();
        let (padded, apart) = (padded(channels), apart(self.shape));
        let all = 0..channels;
        let walks = !self.shape.is_empty();
        // dx through the batch's statistics, or with constant ones.
        let batch = match source {
            Source::Batch(statistics) => Some(statistics.count),
            Source::Running(_) => None,
        };
        let needed = sums_out.is_some() || dgamma.is_some() || dbeta.is_some() || (dx.is_some() && batch.is_some());
        let reduces = walks && needed && given.is_none();
        let maps = dx.is_some() || dresidual.is_some();

        let mask = mask(self.activation, &extras);
        let recompute = self.activation != Activation::Identity && mask.is_none() && !rebuild;
        let residual = extras.residual.filter(|_| recompute).map_or(null(), <[E]>::as_ptr);
        let output = if rebuild { extras.output.map(<[E]>::as_ptr) } else { mask }.unwrap_or(null());
        let reads = |x: *const E| {
            let mut reads = Reads::new(self.activation, [dy, x, null()], [residual, output], &extras);
            reads.fused.rebuild = rebuild;
            reads.fused.constant = batch.is_none();
            reads.stream = STREAM_BACKWARD;
            reads
        };
        // Where x is not needed the kernels find what is in cache already.
        let reduce_reads = reads(if rebuild { dy } else { x });
        let map_reads = reads(if rebuild || (batch.is_none() && !recompute) { dy } else { x });
        let fuses = reduce_reads.fuses() || dresidual.is_some();
        let seen = |affine, range: &Range<usize>| Channels { rebuild, ..self.channels(source, affine, range) };

        let mut scratch = self.scratch.pass();
        let sums = Coefs::<f64>::new(scratch.take(2 * padded), padded);
        // SAFETY: the buffer has two arrays, and nothing else uses them yet.
        let [g, gx] = unsafe { sums.arrays(&all) };
        match given {
            Some(given) => {
                g.copy_from_slice(given.g);
                gx.copy_from_slice(given.gx);
            }
            None => {
                g.fill(0.0);
                gx.fill(0.0);
            }
        }

        let center = Coefs::<E::Param>::new(scratch.take(CENTERED * apart), apart);
        if reduces {
            // SAFETY: the buffer has as many arrays, and nothing else uses them yet.
            let out = unsafe { center.arrays(&all) };
            dispatch(self.isa, Center { channels: seen(affine, &all), out });
            if recompute {
                // SAFETY: as above; these arrays come after the others.
                let out = unsafe { center.after(gradient_sums::COEFS).arrays(&all) };
                dispatch(self.isa, Forward { channels: self.channels(source, affine, &all), out });
            }
        }
        let first = dx.or(dresidual).unwrap_or(std::ptr::null_mut());
        let coefs = Coefs::<E::Param>::beside(scratch.take(MAPPED * apart + MAX_LANES), apart, first);

        let again = if reduces && maps { 2 * size_of::<E>() } else { 0 };
        let grid = walks.then(|| Grid::new(self.shape, again, false));
        let segments = grid.as_ref().filter(|_| reduces).map_or(0, Grid::segments);
        let slots = Shared::new(scratch.take(PARTIALS * padded * segments));
        // SAFETY: the memory has as many values; sums are merged without regard to what they count.
        let counts: &[f64] = unsafe { std::slice::from_raw_parts(scratch.take(segments), segments) };
        let dgamma = dgamma.map(|d| Shared::new(d.as_mut_ptr()));
        let dbeta = dbeta.map(|d| Shared::new(d.as_mut_ptr()));
        let out = [dx, dresidual].map(|p| Shared::new(p.unwrap_or(std::ptr::null_mut())));

        let reduce = |segment: usize, tile: Tile| {
            let (out, coefs) = (slot(&slots, segment, padded), center.base.ptr().cast_const());
            let (shape, x, fused) = (self.shape, reduce_reads.sources(), reduce_reads.fused);
            if fuses {
                dispatch(self.isa, GradientTerms::<E, true> { shape, tile, x, fused, coefs, apart, out });
            } else {
                dispatch(self.isa, GradientTerms::<E, false> { shape, tile, x, fused, coefs, apart, out });
            }
        };
        let finish = |range: Range<usize>| {
            // SAFETY: tasks have disjoint channels; the buffer has two arrays.
            let [g, gx] = unsafe { sums.arrays(&range) };
            let channels = seen(affine, &range);
            if reduces {
                let partials = Partials { slots: &slots, padded, channels: range.clone(), counts };
                // SAFETY: tasks have disjoint channels; the buffer has this array.
                let [prescale] = unsafe { center.arrays(&range) };
                dispatch(self.isa, FinishSums { channels, partials, prescale, g, gx });
            }
            // SAFETY: tasks have disjoint channels, all below the number of channels.
            let [dgamma, dbeta] = [&dgamma, &dbeta].map(|d| d.as_ref().map(|d| unsafe { d.slice(range.clone()) }));
            dispatch(self.isa, ParameterGradients { channels, g, gx, dgamma, dbeta });
            if !maps {
                return;
            }
            let mut arrays = if batch.is_some() || fuses {
                // SAFETY: tasks have disjoint channels; the buffer has as many arrays.
                let out = unsafe { coefs.arrays(&range) };
                dispatch(self.isa, Backward { channels, count: batch, g, gx, out });
                input_gradient::COEFS
            } else {
                // SAFETY: as above.
                let out = unsafe { coefs.arrays(&range) };
                dispatch(self.isa, Frozen { channels, out });
                normalize::COEFS
            };
            if recompute {
                // SAFETY: as above; these arrays come after the others.
                let out = unsafe { coefs.after(arrays).arrays(&range) };
                dispatch(self.isa, Forward { channels: self.channels(source, affine, &range), out });
                arrays += normalize::COEFS;
            }
            // SAFETY: as above, and the slices are gone.
            unsafe { coefs.repeat(arrays, &range, self.shape) };
        };
        match &grid {
            None => finish(all),
            Some(grid) => {
                let map = |tile: Mapped| {
                    let out = [out[0].ptr(), out[1].ptr()];
                    if fuses {
                        self.apply::<InputGradient<true>, E>(tile, &map_reads, &coefs, out);
                    } else if batch.is_some() {
                        self.apply::<InputGradient<false>, E>(tile, &map_reads, &coefs, out);
                    } else {
                        // Constant statistics: a scale alone, of dy, which is the first input.
                        self.apply::<Normalize<false>, E>(tile, &map_reads, &coefs, out);
                    }
                };
                let sweeps = if reduces { 2 } else { 0 } + if maps { 3 } else { 0 };
                let (reduce, map): (&grid::Reduce, &grid::MapTile) = (&reduce, &map);
                grid.walk(
                    (&self.threads, self.thread_count::<E>(sweeps)),
                    reduces.then_some(reduce),
                    &finish,
                    maps.then_some(map),
                    None,
                );
            }
        }
        if let Some(out) = sums_out {
            // SAFETY: the buffer has two arrays, and all tasks are done with them.
            let [g, gx] = unsafe { sums.arrays(&(0..channels)) };
            out.g.copy_from_slice(g);
            out.gx.copy_from_slice(gx);
        }
    }

    /// Second derivatives. A pass that few need: it is made of others and takes memory for itself.
    pub(crate) fn second<E: Element>(&self, second: SecondOf<'_, E, E::Param>) {
        let SecondOf { inputs, statistics, gamma, cotangents, out, gamma_out } = second;
        let channels = self.shape.channels();
        let [dy, x, v] = inputs;
        let sums = |x: *const E, dy: *const E, source: Source<'_>| {
            let (extras, affine, out) = (Extras::default(), Affine::default(), RawGradients::none());
            let gradients = GradientsOf { dy, x, rebuild: false, extras, source, affine, sums: None, out };
            let mut sums = GradientSums::new(channels);
            self.gradients(gradients, Some(sums.view_mut()));
            sums
        };
        let (of_dy, of_v) = (sums(x, dy, Source::from(&statistics)), sums(x, v, Source::from(&statistics)));
        let count = statistics.count.max(f64::MIN_POSITIVE);
        // Centred, or a mean of v would cancel against Σdy·v.
        let mean_v: Vec<f64> = of_v.g().iter().map(|sum| sum / count).collect();
        let ones = vec![1.0; channels];
        let products = sums(v, dy, Source::Batch(Statistics { count, mean: &mean_v, var: &ones }));

        let apart = apart(self.shape);
        let mut coefs = [vec![0.0f64; second::COEFS * apart], vec![0.0f64; second::COEFS * apart]];
        let coefs = coefs.each_mut().map(|coefs| Coefs::<E::Param>::new(coefs.as_mut_ptr(), apart));
        let all = 0..channels;
        let of = self.channels(Source::from(&statistics), Affine { gamma, beta: None }, &all);
        // SAFETY: the buffers have as many arrays, and nothing else uses them yet.
        let mut arrays = unsafe { [coefs[0].arrays::<{ second::COEFS }>(&all), coefs[1].arrays(&all)] };
        let mut gamma_out = gamma_out;
        for c in 0..channels {
            let [dgamma, dbeta] = cotangents.map(|v| v.map_or(0.0, |v| v[c].to_f64()));
            let sums = [of_dy.g()[c], of_dy.gx()[c], of_v.g()[c], of_v.gx()[c], products.gx()[c]];
            let (values, gamma) = of.second(c, SecondSums { count, sums, dgamma, dbeta });
            for (arrays, values) in arrays.iter_mut().zip(values) {
                arrays.iter_mut().zip(values).for_each(|(array, value)| array[c] = value);
            }
            if let Some(out) = &mut gamma_out {
                out[c] = gamma;
            }
        }
        if self.shape.is_empty() {
            return;
        }
        for coefs in &coefs {
            // SAFETY: the buffers have as many arrays, and the slices are gone.
            unsafe { coefs.repeat(second::COEFS, &all, self.shape) };
        }
        let grid = Grid::for_map(self.shape);
        // The gradient of dy has nothing of dy in it.
        for ((own, coefs), out) in [[dy, x, v], [v, x, v]].into_iter().zip(&coefs).zip(out) {
            let Some(out) = out.map(Shared::new) else { continue };
            let reads = Reads::new(Activation::Identity, own, [null(); 2], &Extras::default());
            let map = |tile: Mapped| {
                self.apply::<Second, E>(tile, &reads, coefs, [out.ptr(), std::ptr::null_mut()]);
            };
            grid.walk((&self.threads, self.thread_count::<E>(4)), None, &|_| {}, Some(&map), None);
        }
    }
}
