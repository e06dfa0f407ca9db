//! The plan: what a user builds and calls.

use crate::activation::Activation;
use crate::arguments::{Affine, Cotangents, Extras, Gradients, SecondGradients};
use crate::element::Element;
use crate::error::{Error, check_len, check_optional};
use crate::fold::Fold;
use crate::parallel::Threads;
use crate::passes::engine::Engine;
use crate::passes::request::{Backward, DoubleBackward, Fusions, Pass};
use crate::passes::scratch::{Memory, Scratch};
use crate::shape::Shape;
use crate::simd::Isa;
use crate::statistics::{GradientSums, Source, Statistics, Values, ValuesMut};
use crate::with::{Room, With};
use std::mem::MaybeUninit;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::null;

/// A plan: a shape, how to normalize it and where to run. Its methods are the passes.
///
/// The fused passes and their halves give the same bits:
///
/// | fused | first half | second half |
/// |---|---|---|
/// | [`forward_training`](Self::forward_training) | [`statistics`](Self::statistics) | [`normalize`](Self::normalize), also inference |
/// | [`backward`](Self::backward) | [`gradient_sums`](Self::gradient_sums) | [`input_gradient`](Self::input_gradient) |
///
/// The halves are for engines that merge the statistics of several parts of a batch in between.
///
/// Groups of a batch that are normalized separately, such as ghost batches, need no special support: use a plan of the
/// group's shape and a slice per group. Groups of examples follow each other in memory in all layouts, as examples are
/// the outermost extent.
///
/// ```
/// use batchnorm::{Affine, BatchNorm, Gradients, Momentum, RunningStatistics, Shape, Statistics};
///
/// // 4 examples of 2 channels with 2 values each, in 2 groups.
/// let group = BatchNorm::new(Shape::ncl(2, 2, 2)?);
/// let len = group.shape().len();
/// let x: [f32; 16] = std::array::from_fn(|k| (k * k % 11) as f32);
/// let (gamma, beta) = ([2.0, 1.0], [0.0, 0.5]);
/// let affine = Affine::new(&gamma, &beta);
///
/// let (mut y, mut running) = ([0.0; 16], RunningStatistics::new(2));
/// let mut statistics = vec![Statistics::new(2); 2];
/// for ((x, y), statistics) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)).zip(&mut statistics) {
///     group.forward_training(x, affine, y, statistics)?;
///     running.update(statistics, Momentum::Exponential(0.1))?;
/// }
///
/// // Each group's gradients flow through its own statistics; those of gamma and beta add up.
/// let (dy, mut dx, mut dgamma) = ([1.0, -2.0].repeat(8), [0.0; 16], [0.0; 2]);
/// for (g, statistics) in statistics.iter().enumerate() {
///     let (part, mut of_group) = (g * len..(g + 1) * len, [0.0; 2]);
///     let dx = Some(&mut dx[part.clone()]);
///     let gradients = Gradients { dx, dgamma: Some(&mut of_group), ..Gradients::default() };
///     group.backward(&x[part.clone()], &dy[part], statistics, affine, gradients)?;
///     dgamma.iter_mut().zip(of_group).for_each(|(sum, of_group)| *sum += of_group);
/// }
///
/// // A group's y is what the group alone gives.
/// let mut alone = [0.0; 8];
/// group.normalize(&x[len..], &statistics[1], affine, &mut alone)?;
/// assert_eq!(y[len..], alone);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// Activations are slices of an [`Element`] type in the plan's [`Shape`]; a pass whose name ends in `_in_place`
/// overwrites its input. A pass takes at most 32 KB of the calling thread's stack, and at most 512 KB if this crate is
/// compiled without optimization. A plan keeps scratch memory for its next pass, or uses the memory given by
/// [`scratch`](Self::scratch): over planes some ten KB a thread, over rows about 140 bytes a channel and, if a tensor has
/// more than 2^18 elements, 80 KB more. So make it once and reuse it; threads can share it. Clones share its memory, and
/// so do plans made by [`reshape`](Self::reshape).
///
/// # Errors
/// All passes return [`Error::Length`] for a slice, [`Affine`], [`Statistics`] or [`GradientSums`] that does not fit
/// the shape. They check all arguments before they write anything.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    engine: Engine,
}

// A pass that panics, in an [`Executor`](crate::Executor) of the caller, leaves nothing behind that another would find.
impl UnwindSafe for BatchNorm {}
impl RefUnwindSafe for BatchNorm {}

impl BatchNorm {
    /// A plan with eps 1e-5, no activation, the best [`Isa`] of this CPU, and the default [`Threads`].
    pub fn new(shape: Shape) -> Self {
        Self { engine: Engine::new(shape) }
    }

    /// Sets eps, which is added to the variance before the square root. It may be 0: a channel without variance then
    /// has x̂ = 0.
    ///
    /// # Errors
    /// [`Error::Eps`] if it is negative or not finite.
    pub fn eps(mut self, eps: f64) -> Result<Self, Error> {
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(Error::Eps(eps));
        }
        self.engine.eps = eps;
        Ok(self)
    }

    /// Sets the activation, applied in the same sweep: `y = act(gamma·x̂ + beta)`. Backward passes then take the
    /// gradient of that y.
    ///
    /// # Errors
    /// [`Error::Slope`] if a slope is negative or not finite.
    pub fn activation(mut self, activation: Activation) -> Result<Self, Error> {
        match activation {
            Activation::LeakyRelu(slope) if !(slope >= 0.0 && slope.is_finite()) => Err(Error::Slope(slope)),
            activation => {
                self.engine.activation = activation;
                Ok(self)
            }
        }
    }

    /// Sets the instruction set.
    ///
    /// # Errors
    /// [`Error::UnsupportedIsa`] if this CPU does not have it.
    pub fn isa(mut self, isa: Isa) -> Result<Self, Error> {
        self.engine.isa = isa.detect().ok_or(Error::UnsupportedIsa { isa, best: Isa::best() })?;
        Ok(self)
    }

    /// Sets the threads.
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.engine.threads = threads;
        self
    }

    /// Sets scratch memory of the caller, a `Box` or a `&'static mut`, so that no pass over elements of type `E`
    /// allocates, unless its parameters or statistics need to be converted. Its size decides how many passes can run at
    /// once without allocating, on at most as many threads as the plan has now. Beyond that a pass allocates, as every
    /// plan does without this call: on first use, and when more passes than ever before run at once.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Shape, Threads};
    ///
    /// let plan = BatchNorm::new(Shape::nc(128, 64)?).threads(Threads::Sequential);
    /// let memory = Box::new_uninit_slice(plan.scratch_bytes::<f32>(1));
    /// let plan = plan.scratch::<f32>(memory)?;
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Scratch`] if it is too small for one pass.
    pub fn scratch<E: Element>(mut self, memory: impl Into<Memory>) -> Result<Self, Error> {
        let (memory, sizes) = (memory.into(), E::scratch_sizes(&self.engine));
        let (expected, actual) = (sizes.bytes_for(1), memory.len());
        self.engine.scratch = Scratch::given(memory, sizes).ok_or(Error::Scratch { expected, actual })?;
        Ok(self)
    }

    /// Bytes of [`scratch`](Self::scratch) memory, at any alignment, with which `calls` passes over elements of type `E`
    /// can run at once, on as many threads as the plan has.
    pub fn scratch_bytes<E: Element>(&self, calls: usize) -> usize {
        E::scratch_sizes(&self.engine).bytes_for(calls)
    }

    /// A plan for another shape, such as a last, smaller batch, with the settings, the threads and the scratch memory of
    /// this one. The two share the memory, as clones do: if both run at once, one of them may allocate.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Shape};
    ///
    /// let plan = BatchNorm::new(Shape::nchw(32, 64, 28, 28)?).eps(1e-3)?;
    /// let last = plan.reshape(Shape::nchw(17, 64, 28, 28)?);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    #[must_use]
    pub fn reshape(&self, shape: Shape) -> Self {
        Self { engine: Engine { shape, ..self.engine.clone() } }
    }

    /// The shape that the passes work on.
    pub fn shape(&self) -> Shape {
        self.engine.shape
    }

    /// The passes with further arguments: a residual, y kept from the forward pass, or weights of positions.
    ///
    /// ```
    /// use batchnorm::{Activation, Affine, BatchNorm, Extras, Gradients, Shape, Statistics};
    ///
    /// // The end of a residual block: y = relu(gamma·x̂ + beta + residual), and its gradients, one sweep each.
    /// let plan = BatchNorm::new(Shape::nc(4, 1)?).activation(Activation::Relu)?;
    /// let (x, residual) = ([1.0f32, 2.0, 3.0, 4.0], [0.5, 0.5, -9.0, 0.5]);
    /// let (mut y, mut statistics) = ([0.0; 4], Statistics::new(1));
    /// let extras = Extras { residual: Some(&residual), ..Extras::default() };
    /// plan.with(extras).forward_training(&x, Affine::default(), &mut y, &mut statistics)?;
    /// assert_eq!((y[0], y[2]), (0.0, 0.0));
    ///
    /// let (dy, mut dx, mut dresidual) = ([1.0; 4], [0.0; 4], [0.0; 4]);
    /// let extras = Extras { output: Some(&y), ..Extras::default() };
    /// let gradients = Gradients { dx: Some(&mut dx), dresidual: Some(&mut dresidual), ..Gradients::default() };
    /// plan.with(extras).backward(&x, &dy, &statistics, Affine::default(), gradients)?;
    /// assert_eq!(dresidual, [0.0, 1.0, 0.0, 1.0]);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// Weights can mask the padding of a batch of sequences:
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Extras, Shape, Statistics};
    ///
    /// let plan = BatchNorm::new(Shape::ncl(2, 1, 3)?); // lengths 3 and 1
    /// let (x, mask) = ([1.0f32, 2.0, 3.0, 6.0, f32::NAN, f32::NAN], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    /// let mut statistics = Statistics::new(1);
    /// plan.with(Extras { weights: Some(&mask), ..Extras::default() }).statistics(&x, &mut statistics)?;
    /// assert_eq!((statistics.count(), statistics.mean()), (4.0, &[3.0][..]));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn with<'a, E: Element>(&'a self, extras: Extras<'a, E>) -> With<'a, E> {
        With::new(&self.engine, extras)
    }

    fn plain<E: Element>(&self) -> With<'_, E> {
        self.with(Extras::default())
    }

    /// Mean and variance of each channel of x, in one pass over it: the first half of the forward pass in training.
    ///
    /// # Errors
    /// See [`BatchNorm`].
    pub fn statistics<E: Element>(&self, x: &[E], statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.plain().statistics(x, statistics)
    }

    /// `y = gamma·(x − mean)/sqrt(var + eps) + beta`, with the batch's own statistics, which are also returned.
    ///
    /// # Errors
    /// See [`BatchNorm`].
    pub fn forward_training<E: Element>(
        &self,
        x: &[E],
        affine: Affine<'_, E::Param>,
        y: &mut [E],
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.plain().forward_training(x, affine, y, statistics)
    }

    /// [`forward_training`](Self::forward_training) with y in place of x.
    ///
    /// # Errors
    /// See [`BatchNorm`].
    pub fn forward_training_in_place<E: Element>(
        &self,
        x: &mut [E],
        affine: Affine<'_, E::Param>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.plain().forward_training_in_place(x, affine, statistics)
    }

    /// `y = gamma·(x − mean)/sqrt(var + eps) + beta`, with given statistics: running ones for inference, the batch's
    /// for the second half of the forward pass in training.
    ///
    /// # Errors
    /// See [`BatchNorm`]; [`Error::EmptyStatistics`] for a batch without values, [`Error::Variance`] for a running
    /// variance that is negative or NaN.
    pub fn normalize<'s, E: Element>(
        &self,
        x: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        y: &mut [E],
    ) -> Result<(), Error> {
        self.plain().normalize(x, source, affine, y)
    }

    /// [`normalize`](Self::normalize) with y in place of x.
    ///
    /// # Errors
    /// Same as [`normalize`](Self::normalize).
    pub fn normalize_in_place<'s, E: Element>(
        &self,
        x: &mut [E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
    ) -> Result<(), Error> {
        self.plain().normalize_in_place(x, source, affine)
    }

    /// Σg and Σg·(x − mean) of each channel, with `g = dy·act'`: the first half of the backward pass. `affine` matters
    /// if the plan has an activation, whose argument is recomputed.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn gradient_sums<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        sums: &mut GradientSums<impl ValuesMut<Value = f64>>,
    ) -> Result<(), Error> {
        self.plain().gradient_sums(x, dy, source, affine, sums)
    }

    /// dx from the sums over the whole batch: the second half of the backward pass in training. `statistics` are also
    /// those of the whole batch; x and dy may be a part of it.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn input_gradient<E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, E::Param>,
        dx: &mut [E],
    ) -> Result<(), Error> {
        let gradients = Gradients { dx: Some(dx), ..Gradients::default() };
        self.plain().input_gradient(x, dy, statistics, sums, affine, gradients)
    }

    /// [`input_gradient`](Self::input_gradient) with dx in place of dy.
    ///
    /// # Errors
    /// Same as [`input_gradient`](Self::input_gradient).
    pub fn input_gradient_in_place<E: Element>(
        &self,
        x: &[E],
        dy: &mut [E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, E::Param>,
    ) -> Result<(), Error> {
        self.plain().input_gradient_in_place(x, dy, statistics, sums, affine, Gradients::default())
    }

    /// The gradients of gamma and beta from the sums: `dgamma = Σg·x̂`, `dbeta = Σg`.
    ///
    /// Sums of a part of the batch give this part's share; those of all parts add up to the gradients. An engine that
    /// adds gradients over its processes anyway passes its own sums, and one that does not passes the merged ones.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn parameter_gradients<'s, P: Element<Param = P>>(
        &self,
        source: impl Into<Source<'s>>,
        sums: &GradientSums<impl Values<Value = f64>>,
        dgamma: Option<&mut [P]>,
        dbeta: Option<&mut [P]>,
    ) -> Result<(), Error> {
        let (source, shape) = (source.into(), self.shape());
        source.check(shape.channels(), true)?;
        check_len("sums", shape.channels(), sums.channels())?;
        let gradients: Gradients<'_, P> = Gradients { dgamma, dbeta, ..Gradients::default() };
        gradients.check(shape)?;
        let mut room = Room::new(&self.engine);
        // SAFETY: all arguments have been checked, and the room outlives the request. Inputs are not read, as sums are
        // given and dx is not wanted.
        unsafe {
            let source = room.source(source);
            room.with_outputs(gradients.into_uninit(), |out| {
                let request = Backward {
                    dy: null(),
                    x: null(),
                    rebuild: false,
                    fusions: Fusions::NONE,
                    source,
                    parameters: Affine::default().parameters(),
                    sums: Some(sums.view()),
                    sums_out: None,
                    out,
                };
                P::run(&self.engine, Pass::Backward(request));
            });
        }
        Ok(())
    }

    /// The wanted gradients of `y = act(gamma·(x − mean)/sqrt(var + eps) + beta)`.
    ///
    /// With a batch's statistics they flow through mean and var. Running statistics are constants: if only dx is
    /// wanted, x is then not read, except for an activation.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn backward<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E, E::Param>,
    ) -> Result<(), Error> {
        self.plain().backward(x, dy, source, affine, gradients)
    }

    /// [`backward`](Self::backward) with dx in place of dy.
    ///
    /// # Errors
    /// Same as [`backward`](Self::backward).
    pub fn backward_in_place<'s, E: Element>(
        &self,
        x: &[E],
        dy: &mut [E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        dgamma: Option<&mut [E::Param]>,
        dbeta: Option<&mut [E::Param]>,
    ) -> Result<(), Error> {
        let gradients = Gradients { dgamma, dbeta, ..Gradients::default() };
        self.plain().backward_in_place(x, dy, source, affine, gradients)
    }

    /// [`forward_training_in_place`](Self::forward_training_in_place) for a layer that keeps only y for
    /// [`backward_from_output`](Self::backward_from_output): one tensor fewer in memory.
    ///
    /// x̂ is rebuilt from y with an error of at most `10·u·(1 + |x̂| + |beta/gamma|)`, u being half an ulp of 1 in the
    /// element type.
    ///
    /// Rota Bulò, Porzi, Kontschieder, "In-Place Activated BatchNorm" (2018).
    ///
    /// # Errors
    /// See [`BatchNorm`]; [`Error::Activation`] if the activation has no inverse; [`Error::NotInvertible`] for a
    /// channel with |beta| > 64·|gamma|, or with a gamma or slope so small or large that y may leave the normal range
    /// of its type, or 2^±500 for f64. x is then unchanged.
    ///
    /// ```
    /// use batchnorm::{Activation, Affine, BatchNorm, Gradients, Shape, Statistics};
    ///
    /// let plan = BatchNorm::new(Shape::nc(4, 1)?).activation(Activation::LeakyRelu(0.01))?;
    /// let (mut x, mut statistics) = ([1.0f32, 2.0, 3.0, 4.0], Statistics::new(1));
    /// plan.forward_training_invertible(&mut x, Affine::default(), &mut statistics)?;
    /// let (y, dy, mut dx) = (x, [0.0, 0.0, 0.0, 1.0], [0.0; 4]);
    /// let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
    /// plan.backward_from_output(&y, &dy, &statistics, Affine::default(), gradients)?;
    /// assert!(dx[3] > 0.0);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn forward_training_invertible<E: Element>(
        &self,
        x: &mut [E],
        affine: Affine<'_, E::Param>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        affine.check_invertible::<E>(self.shape(), self.engine.activation)?;
        self.forward_training_in_place(x, affine, statistics)
    }

    /// [`backward`](Self::backward) from y in place of x, after
    /// [`forward_training_invertible`](Self::forward_training_invertible).
    ///
    /// # Errors
    /// Same as [`forward_training_invertible`](Self::forward_training_invertible), and [`Error::EmptyStatistics`] for a
    /// batch without values.
    pub fn backward_from_output<E: Element>(
        &self,
        y: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E, E::Param>,
    ) -> Result<(), Error> {
        self.backward_from_output_uninit(y, dy, statistics, affine, gradients.into_uninit())
    }

    /// [`backward_from_output`](Self::backward_from_output) with gradients that need not be initialized: see
    /// [`Uninit`](crate::Uninit).
    ///
    /// # Errors
    /// Same as [`backward_from_output`](Self::backward_from_output).
    pub fn backward_from_output_uninit<E: Element>(
        &self,
        y: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, MaybeUninit<E>, MaybeUninit<E::Param>>,
    ) -> Result<(), Error> {
        let shape = self.shape();
        check_len("y", shape.len(), y.len())?;
        check_len("dy", shape.len(), dy.len())?;
        affine.check_invertible::<E>(shape, self.engine.activation)?;
        let source = Source::from(statistics);
        source.check(shape.channels(), shape.is_empty())?;
        gradients.check(shape)?;
        let mut room = Room::new(&self.engine);
        // SAFETY: all arguments have been checked, and the room outlives the request; slices do not overlap.
        unsafe {
            let source = room.source(source);
            room.with_outputs(gradients, |out| {
                let request = Backward {
                    dy: dy.as_ptr(),
                    x: null(),
                    rebuild: true,
                    fusions: Fusions { output: y.as_ptr(), ..Fusions::NONE },
                    source,
                    parameters: affine.parameters(),
                    sums: None,
                    sums_out: None,
                    out,
                };
                E::run(&self.engine, Pass::Backward(request));
            });
        }
        Ok(())
    }

    /// The derivatives of the backward pass, for gradient penalties: the gradients of
    /// `Σ dx_cotangent·dx + Σ dgamma_cotangent·dgamma + Σ dbeta_cotangent·dbeta`, where dx, dgamma and dbeta are what
    /// [`backward`](Self::backward) makes of x and dy. Batch statistics are those of x, and gradients flow through them;
    /// running ones are constants.
    ///
    /// Rarely needed, so it is composed of other passes: it makes more sweeps than a dedicated one, and allocates.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize); [`Error::Activation`] if the plan has an activation: apply the activation
    /// outside the plan.
    ///
    /// ```
    /// use batchnorm::{Affine, BatchNorm, Cotangents, SecondGradients, Shape, Statistics};
    ///
    /// let plan = BatchNorm::new(Shape::nc(4, 1)?);
    /// let (x, dy, v) = ([1.0, 2.0, 3.0, 5.0], [1.0, 0.0, -1.0, 0.5], [0.1, 0.2, 0.3, -0.4]);
    /// let mut statistics = Statistics::new(1);
    /// plan.statistics(&x, &mut statistics)?;
    /// let (mut of_x, mut of_dy) = ([0.0; 4], [0.0; 4]);
    /// let cotangents = Cotangents { dx: &v, dgamma: None, dbeta: None };
    /// let out = SecondGradients { x: Some(&mut of_x), dy: Some(&mut of_dy), gamma: None };
    /// plan.double_backward(&x, &dy, &statistics, Affine::default(), cotangents, out)?;
    /// // dx does not change if the same number is added to all dy.
    /// assert!(of_dy.iter().sum::<f64>().abs() < 1e-12);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn double_backward<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        cotangents: Cotangents<'_, E>,
        gradients: SecondGradients<'_, E, E::Param>,
    ) -> Result<(), Error> {
        self.double_backward_uninit(x, dy, source, affine, cotangents, gradients.into_uninit())
    }

    /// [`double_backward`](Self::double_backward) with gradients that need not be initialized: see
    /// [`Uninit`](crate::Uninit).
    ///
    /// # Errors
    /// Same as [`double_backward`](Self::double_backward).
    pub fn double_backward_uninit<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        cotangents: Cotangents<'_, E>,
        gradients: SecondGradients<'_, MaybeUninit<E>, MaybeUninit<E::Param>>,
    ) -> Result<(), Error> {
        let (shape, actual) = (self.shape(), self.engine.activation);
        let (len, channels, source) = (shape.len(), shape.channels(), source.into());
        if actual != Activation::Identity {
            return Err(Error::Activation { pass: "double_backward", expected: "Identity", actual });
        }
        check_len("x", len, x.len())?;
        check_len("dy", len, dy.len())?;
        check_len("the cotangent of dx", len, cotangents.dx.len())?;
        check_optional("the cotangent of dgamma", channels, cotangents.dgamma)?;
        check_optional("the cotangent of dbeta", channels, cotangents.dbeta)?;
        source.check(channels, shape.is_empty())?;
        affine.check(channels)?;
        gradients.check(shape)?;
        let mut room = Room::new(&self.engine);
        let request = DoubleBackward {
            dy: dy.as_ptr(),
            x: x.as_ptr(),
            v: cotangents.dx.as_ptr(),
            // SAFETY: the room outlives the request.
            source: unsafe { room.source(source) },
            gamma: affine.gamma,
            dgamma_cotangent: cotangents.dgamma,
            dbeta_cotangent: cotangents.dbeta,
            of_x: gradients.x.map(|x| x.as_mut_ptr().cast()),
            of_dy: gradients.dy.map(|dy| dy.as_mut_ptr().cast()),
            of_gamma: gradients.gamma,
        };
        // SAFETY: all arguments have been checked; slices do not overlap.
        unsafe { E::run(&self.engine, Pass::DoubleBackward(request)) };
        Ok(())
    }

    /// The scale and shift to which [`normalize`](Self::normalize) with these statistics amounts. The plan's activation
    /// and a residual are not part of it and stay after the folded layer. A channel without variance has scale 0 if
    /// eps is 0.
    ///
    /// # Errors
    /// Same as [`normalize`](Self::normalize); [`Error::Length`] if `fold` has another number of channels.
    pub fn fold<'s, P: Element<Param = P>>(
        &self,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, P>,
        fold: &mut Fold<impl ValuesMut<Value = f64>>,
    ) -> Result<(), Error> {
        let (source, channels) = (source.into(), self.shape().channels());
        source.check(channels, false)?;
        affine.check(channels)?;
        check_len("fold", channels, fold.channels())?;
        fold.set(source, affine, self.engine.eps);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Planes are grouped by the size of a cache.
    #[test]
    fn no_bit_depends_on_the_caches() {
        let shape = Shape::new(3, 70, 300).unwrap();
        let x: Vec<f32> = (0..shape.len()).map(|i| (i * 2_654_435_761 % 65_536) as f32 / 1e3 - 7.0).collect();
        let mut plan = BatchNorm::new(shape);
        assert!(plan.engine.l2 >= 1 << 17);
        let mut seen = None;
        for l2 in [1, 1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 30] {
            plan.engine.l2 = l2;
            let (mut y, mut dx, mut batch) = (x.clone(), x.clone(), Statistics::new(shape.channels()));
            plan.forward_training(&x, Affine::default(), &mut y, &mut batch).unwrap();
            let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
            plan.backward(&x, &y, &batch, Affine::default(), gradients).unwrap();
            assert_eq!(seen.get_or_insert_with(|| (y.clone(), dx.clone(), batch.clone())), &(y, dx, batch), "{l2}");
        }
    }
}
