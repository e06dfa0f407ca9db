//! The passes behind the plan's methods: per-channel algebra between two walks. Arguments have been checked.

use crate::Shape;
use crate::batch_norm::{Affine, BatchNorm};
use crate::element::Element;
use crate::grid::{self, Grid};
use crate::kernels::coefficients::{
    Backward, Center, Channels, Finish, FinishSums, Forward, Frozen, ParameterGradients, Partials,
};
use crate::kernels::gradient_sums::GradientTerms;
use crate::kernels::input_gradient::InputGradient;
use crate::kernels::map::{Apply, Map};
use crate::kernels::moments::Moments;
use crate::kernels::normalize::Normalize;
use crate::kernels::{Tile, padded};
use crate::parallel::Shared;
use crate::scratch::Sizes;
use crate::simd::dispatch;
use crate::statistics::{GradientSums, Source, Statistics};
use std::marker::PhantomData;
use std::ops::Range;

/// Outputs of more bytes than this are written past the caches: what is read next would not find them there.
const STREAM_BYTES: usize = 1 << 22;

/// Arrays of partial results, one value a channel each, that a segment has.
const PARTIALS: usize = 2;
/// Other arrays, coefficients and sums, that the pass with most of them takes.
const ARRAYS: usize = 2 + 3 + 7;

/// The scratch memory of passes over a shape.
pub(crate) fn scratch_sizes(shape: Shape) -> Sizes {
    // An empty shape may have any number of channels.
    let grid = (!shape.is_empty()).then(|| Grid::new(shape, size_of::<f64>()));
    let padded = padded(shape.channels().min(usize::MAX / 2));
    let segments = grid.as_ref().map_or(0, Grid::segments);
    Sizes {
        pass: padded.saturating_mul(ARRAYS + PARTIALS * segments),
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
pub trait Passes<E, P> {
    unsafe fn forward(
        plan: &BatchNorm,
        x: *const E,
        statistics: &mut Statistics<&mut [f64]>,
        output: Option<(Affine<'_, P>, *mut E)>,
    );
    unsafe fn normalize(plan: &BatchNorm, x: *const E, source: Source<'_>, affine: Affine<'_, P>, y: *mut E);
    unsafe fn gradients(
        plan: &BatchNorm,
        inputs: [*const E; 2],
        source: Source<'_>,
        gamma: Option<&[P]>,
        given: Option<GradientSums<&[f64]>>,
        gradients: RawGradients<'_, E, P>,
        sums_out: Option<GradientSums<&mut [f64]>>,
    );
}

/// The element types whose passes are compiled.
pub struct Compiled;

macro_rules! passes {
    ($($element:ty),*) => {$(
        impl Passes<$element, $element> for Compiled {
            #[inline(never)]
            unsafe fn forward(
                plan: &BatchNorm,
                x: *const $element,
                statistics: &mut Statistics<&mut [f64]>,
                output: Option<(Affine<'_, $element>, *mut $element)>,
            ) {
                plan.forward(x, statistics, output);
            }

            #[inline(never)]
            unsafe fn normalize(
                plan: &BatchNorm,
                x: *const $element,
                source: Source<'_>,
                affine: Affine<'_, $element>,
                y: *mut $element,
            ) {
                plan.normalize_with(x, source, affine, y);
            }

            #[inline(never)]
            unsafe fn gradients(
                plan: &BatchNorm,
                inputs: [*const $element; 2],
                source: Source<'_>,
                gamma: Option<&[$element]>,
                given: Option<GradientSums<&[f64]>>,
                gradients: RawGradients<'_, $element, $element>,
                sums_out: Option<GradientSums<&mut [f64]>>,
            ) {
                plan.gradients(inputs, source, gamma, given, gradients, sums_out);
            }
        }
    )*};
}

passes!(f32, f64);

/// [`Gradients`](crate::Gradients) with dx as a pointer, which may be that of dy.
pub struct RawGradients<'a, E, P> {
    pub(crate) dx: Option<*mut E>,
    pub(crate) dgamma: Option<&'a mut [P]>,
    pub(crate) dbeta: Option<&'a mut [P]>,
}

impl<E, P> RawGradients<'_, E, P> {
    pub(crate) fn none() -> Self {
        Self { dx: None, dgamma: None, dbeta: None }
    }
}

/// Arrays of coefficients, each `padded` long, in a buffer of f64, which hold no less than lanes' scalars do.
struct Coefs<P> {
    base: Shared<P>,
    padded: usize,
}

impl<P> Coefs<P> {
    fn new(buffer: *mut f64, padded: usize) -> Self {
        const { assert!(size_of::<P>() <= size_of::<f64>()) };
        Self { base: Shared::new(buffer.cast()), padded }
    }

    /// Some channels of the first K arrays.
    ///
    /// # Safety
    /// The buffer has K arrays, and nothing else uses these channels of them while the slices live.
    #[allow(clippy::mut_from_ref)] // the caller's promise stands in for the borrow
    unsafe fn arrays<const K: usize>(&self, channels: &Range<usize>) -> [&mut [P]; K] {
        std::array::from_fn(|k| {
            let at = k * self.padded;
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

fn partials<'a>(grid: &Grid, slots: &'a Shared<f64>, padded: usize, channels: Range<usize>) -> Partials<'a> {
    Partials { slots, padded, channels, segment: grid.segment, values: grid.values }
}

impl BatchNorm {
    /// How many threads a pass that walks `sweeps` times over a buffer of the plan's shape is worth.
    fn thread_count<E>(&self, sweeps: usize) -> usize {
        self.threads.count(self.shape.len() * size_of::<E>() * sweeps)
    }

    fn channels<'a, P>(&self, source: Source<'a>, gamma: Option<&'a [P]>, range: &Range<usize>) -> Channels<'a, P> {
        Channels {
            mean: &source.mean()[range.clone()],
            var: &source.var()[range.clone()],
            eps: self.eps,
            gamma: gamma.map(|gamma| &gamma[range.clone()]),
        }
    }

    /// Maps a tile of the inputs into `out`.
    fn apply<M: Map, E: Element>(&self, tile: Tile, x: [*const E; 2], coefs: &Coefs<E::Param>, out: *mut E) {
        let in_place = x.contains(&out.cast_const());
        // What was just read lies in cache and would have to be thrown out of it to be written past it.
        let stream = !in_place && self.shape.len() * size_of::<E>() > STREAM_BYTES;
        let (padded, coefs) = (coefs.padded, coefs.base.ptr().cast_const());
        let pass = PhantomData::<M>;
        dispatch(self.isa, Apply { shape: self.shape, tile, x, coefs, padded, out, stream, pass });
    }

    /// Statistics and, where there is an output, y.
    pub(crate) fn forward<E: Element>(
        &self,
        x: *const E,
        statistics: &mut Statistics<&mut [f64]>,
        output: Option<(Affine<'_, E::Param>, *mut E)>,
    ) {
        statistics.count = self.shape.values_per_channel() as f64;
        if self.shape.is_empty() {
            statistics.mean.fill(0.0);
            statistics.var.fill(0.0);
            return;
        }
        let grid = Grid::new(self.shape, size_of::<E>());
        let padded = padded(self.shape.channels());
        let mut scratch = self.scratch.pass();
        let slots = Shared::new(scratch.take(PARTIALS * padded * grid.segments()));
        let coefs = Coefs::<E::Param>::new(scratch.take(5 * padded), padded);
        let (mean, var) = (Shared::new(statistics.mean.as_mut_ptr()), Shared::new(statistics.var.as_mut_ptr()));
        let x = Shared::new(x.cast_mut());
        let (affine, y) = output.map(|(affine, y)| (affine, Shared::new(y))).unzip();

        let reduce = |segment: usize, tile: Tile| {
            let mut scratch = self.scratch.task();
            let (out, scratch) = (slot(&slots, segment, padded), scratch.take(Moments::<E>::scratch(self.shape)));
            dispatch(self.isa, Moments { shape: self.shape, tile, x: x.ptr().cast_const(), out, scratch });
        };
        let finish = |channels: Range<usize>| {
            // SAFETY: tasks have disjoint channels, all below the number of channels.
            let (mean, var) = unsafe { (mean.slice(channels.clone()), var.slice(channels.clone())) };
            let partials = partials(&grid, &slots, padded, channels.clone());
            dispatch(self.isa, Finish { partials, mean, var });
            if let Some(affine) = affine {
                let gamma = affine.gamma.map(|gamma| &gamma[channels.clone()]);
                let beta = affine.beta.map(|beta| &beta[channels.clone()]);
                // SAFETY: tasks have disjoint channels; the buffer has five arrays.
                let out = unsafe { coefs.arrays(&channels) };
                dispatch(self.isa, Forward { channels: Channels { mean, var, eps: self.eps, gamma }, beta, out });
            }
        };
        match y {
            None => grid.walk((&self.threads, self.thread_count::<E>(1)), Some(&reduce), &finish, None),
            Some(y) => {
                let map = |tile| {
                    self.apply::<Normalize, E>(tile, [x.ptr().cast_const(); 2], &coefs, y.ptr());
                };
                grid.walk((&self.threads, self.thread_count::<E>(3)), Some(&reduce), &finish, Some(&map));
            }
        }
    }

    /// y with given statistics.
    pub(crate) fn normalize_with<E: Element>(
        &self,
        x: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        y: *mut E,
    ) {
        if self.shape.is_empty() {
            return;
        }
        let grid = Grid::for_map(self.shape);
        let padded = padded(self.shape.channels());
        let mut scratch = self.scratch.pass();
        let coefs = Coefs::<E::Param>::new(scratch.take(5 * padded), padded);
        let (x, y) = (Shared::new(x.cast_mut()), Shared::new(y));
        let finish = |range: Range<usize>| {
            let channels = self.channels(source, affine.gamma, &range);
            let beta = affine.beta.map(|beta| &beta[range.clone()]);
            // SAFETY: tasks have disjoint channels; the buffer has five arrays.
            let out = unsafe { coefs.arrays(&range) };
            dispatch(self.isa, Forward { channels, beta, out });
        };
        let map = |tile| self.apply::<Normalize, E>(tile, [x.ptr().cast_const(); 2], &coefs, y.ptr());
        grid.walk((&self.threads, self.thread_count::<E>(2)), None, &finish, Some(&map));
    }

    /// Any part of the backward pass. `inputs` are dy and x; they are not read where `given` sums leave nothing to
    /// compute from them. `sums_out` receives the sums.
    pub(crate) fn gradients<E: Element>(
        &self,
        inputs: [*const E; 2],
        source: Source<'_>,
        gamma: Option<&[E::Param]>,
        given: Option<GradientSums<&[f64]>>,
        gradients: RawGradients<'_, E, E::Param>,
        sums_out: Option<GradientSums<&mut [f64]>>,
    ) {
        let RawGradients { dx, dgamma, dbeta } = gradients;
        let channels = self.shape.channels();
        let padded = padded(channels);
        let all = 0..channels;
        let walks = !self.shape.is_empty();
        // dx through the batch's statistics, or with constant ones and the number of values that does not matter then.
        let batch = match source {
            Source::Batch(statistics) => Some(statistics.count),
            Source::Running(_) => None,
        };
        let needed = sums_out.is_some() || dgamma.is_some() || dbeta.is_some() || (dx.is_some() && batch.is_some());
        let reduces = walks && needed && given.is_none();

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

        let center = Coefs::<E::Param>::new(scratch.take(3 * padded), padded);
        if reduces {
            // SAFETY: the buffer has three arrays, and nothing else uses them yet.
            let out = unsafe { center.arrays(&all) };
            dispatch(self.isa, Center { channels: self.channels(source, None, &all), out });
        }
        let coefs = Coefs::<E::Param>::new(scratch.take(7 * padded), padded);
        let [dy, x] = inputs.map(|p| Shared::new(p.cast_mut()));

        let grid = walks.then(|| Grid::new(self.shape, size_of::<E>()));
        let segments = grid.as_ref().filter(|_| reduces).map_or(0, Grid::segments);
        let slots = Shared::new(scratch.take(PARTIALS * padded * segments));
        let dgamma = dgamma.map(|d| Shared::new(d.as_mut_ptr()));
        let dbeta = dbeta.map(|d| Shared::new(d.as_mut_ptr()));
        let dx = dx.map(Shared::new);

        let reduce = |segment: usize, tile: Tile| {
            let (out, coefs) = (slot(&slots, segment, padded), center.base.ptr().cast_const());
            let x = [dy.ptr().cast_const(), x.ptr().cast_const()];
            dispatch(self.isa, GradientTerms::<E> { shape: self.shape, tile, x, coefs, out });
        };
        let finish = |range: Range<usize>| {
            // SAFETY: tasks have disjoint channels; the buffer has two arrays.
            let [g, gx] = unsafe { sums.arrays(&range) };
            if let (true, Some(grid)) = (reduces, &grid) {
                let partials = partials(grid, &slots, padded, range.clone());
                // SAFETY: tasks have disjoint channels; the buffer has three arrays.
                let [prescale, ..] = unsafe { center.arrays::<3>(&range) };
                dispatch(self.isa, FinishSums { partials, prescale, g, gx });
            }
            // SAFETY: tasks have disjoint channels, all below the number of channels.
            let [dgamma, dbeta] = [&dgamma, &dbeta].map(|d| d.as_ref().map(|d| unsafe { d.slice(range.clone()) }));
            let channels = self.channels(source, gamma, &range);
            dispatch(self.isa, ParameterGradients { channels, g, gx, dgamma, dbeta });
            match batch {
                _ if dx.is_none() => {}
                Some(count) => {
                    // SAFETY: tasks have disjoint channels; the buffer has seven arrays.
                    let out = unsafe { coefs.arrays(&range) };
                    dispatch(self.isa, Backward { channels, count, g, gx, out });
                }
                None => {
                    // SAFETY: as above.
                    let out = unsafe { coefs.arrays(&range) };
                    dispatch(self.isa, Frozen { channels, out });
                }
            }
        };
        match &grid {
            None => finish(all),
            Some(grid) => {
                let map = |tile| {
                    let (dy, x) = (dy.ptr().cast_const(), x.ptr().cast_const());
                    match (&dx, batch) {
                        (Some(dx), Some(_)) => self.apply::<InputGradient, E>(tile, [dy, x], &coefs, dx.ptr()),
                        (Some(dx), None) => self.apply::<Normalize, E>(tile, [dy, dy], &coefs, dx.ptr()),
                        (None, _) => {}
                    }
                };
                let sweeps = if reduces { 2 } else { 0 } + if dx.is_some() { 3 } else { 0 };
                let (reduce, map): (&grid::Reduce, &grid::MapTile) = (&reduce, &map);
                grid.walk(
                    (&self.threads, self.thread_count::<E>(sweeps)),
                    reduces.then_some(reduce),
                    &finish,
                    dx.is_some().then_some(map),
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
}
