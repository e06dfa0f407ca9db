//! The plan and its methods: what a user calls. Arguments are checked here; `passes` does the rest.

use crate::Shape;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, check_len, check_optional};
use crate::parallel::Threads;
use crate::passes::{GradientsOf, Passes, RawGradients, SecondOf, scratch_sizes};
use crate::scratch::Scratch;
use crate::simd::{Isa, Real};
use crate::statistics::{GradientSums, Source, Statistics, Values, ValuesMut};
use std::mem::MaybeUninit;

/// gamma and beta, each absent or one value a channel. Absent, gamma is 1 and beta is 0.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, P> {
    /// What x̂ is multiplied by.
    pub gamma: Option<&'a [P]>,
    /// What is added then.
    pub beta: Option<&'a [P]>,
}

impl<'a, P> Affine<'a, P> {
    /// Both.
    pub fn new(gamma: &'a [P], beta: &'a [P]) -> Self {
        Self { gamma: Some(gamma), beta: Some(beta) }
    }

    pub(crate) fn check(&self, channels: usize) -> Result<(), Error> {
        check_optional("gamma", channels, self.gamma)?;
        check_optional("beta", channels, self.beta)
    }
}

/// Neither: y = x̂.
impl<P> Default for Affine<'_, P> {
    fn default() -> Self {
        Self { gamma: None, beta: None }
    }
}

/// What a pass takes beside its usual arguments, each absent or given: see [`BatchNorm::with`].
#[derive(Clone, Copy, Debug)]
pub struct Extras<'a, E: Element> {
    /// What is added before the activation, of the plan's shape. Backward passes read it only where they compute the
    /// activation's argument again.
    pub residual: Option<&'a [E]>,
    /// y as the forward pass wrote it, of the plan's shape: the backward pass of [`Activation::Relu`] and
    /// [`Activation::LeakyRelu`] takes its mask from it. Without, and for [`Activation::Silu`], it computes the
    /// activation's argument again, from x and the residual. Forward passes do not read it.
    pub output: Option<&'a [E]>,
    /// A weight for each position `o * inner + i`, finite and not negative: the same for all channels. Statistics are
    /// weighted means; gradients follow. A position of weight 0 does not exist: it counts nowhere, whatever is there,
    /// NaN too, and y, dx and dresidual are 0 there.
    pub weights: Option<&'a [E::Param]>,
}

/// Nothing beside the usual arguments.
impl<E: Element> Default for Extras<'_, E> {
    fn default() -> Self {
        Self { residual: None, output: None, weights: None }
    }
}

impl<E: Element> Extras<'_, E> {
    fn check(&self, shape: Shape) -> Result<(), Error> {
        check_optional("residual", shape.len(), self.residual)?;
        check_optional("output", shape.len(), self.output)?;
        check_optional("weights", shape.values_per_channel(), self.weights)?;
        let valid = |w: f64| w >= 0.0 && w.is_finite();
        let weights = self.weights.unwrap_or_default();
        match weights.iter().position(|w| !valid(w.to_f64())) {
            Some(position) => Err(Error::Weight { position, value: weights[position].to_f64() }),
            None => Ok(()),
        }
    }
}

/// Where the backward pass writes its gradients. What is `None` is not computed.
#[derive(Debug)]
pub struct Gradients<'a, E: Element> {
    /// The gradient of x, of the plan's shape.
    pub dx: Option<&'a mut [E]>,
    /// The gradient of the residual, of the plan's shape: `dy·act'`.
    pub dresidual: Option<&'a mut [E]>,
    /// The gradient of gamma, one value a channel.
    pub dgamma: Option<&'a mut [E::Param]>,
    /// The gradient of beta, one value a channel.
    pub dbeta: Option<&'a mut [E::Param]>,
}

impl<E: Element> Default for Gradients<'_, E> {
    fn default() -> Self {
        Self { dx: None, dresidual: None, dgamma: None, dbeta: None }
    }
}

impl<'a, E: Element> Gradients<'a, E> {
    fn check(self, shape: Shape) -> Result<RawGradients<'a, E, E::Param>, Error> {
        let Self { dx, dresidual, dgamma, dbeta } = self;
        check_optional("dx", shape.len(), dx.as_deref())?;
        check_optional("dresidual", shape.len(), dresidual.as_deref())?;
        check_optional("dgamma", shape.channels(), dgamma.as_deref())?;
        check_optional("dbeta", shape.channels(), dbeta.as_deref())?;
        let [dx, dresidual] = [dx, dresidual].map(|d| d.map(<[E]>::as_mut_ptr));
        Ok(RawGradients { dx, dresidual, dgamma, dbeta })
    }
}

/// The gradients of a scalar with respect to what the backward pass made: see [`BatchNorm::double_backward`].
#[derive(Clone, Copy, Debug)]
pub struct Cotangents<'a, E: Element> {
    /// With respect to dx, of the plan's shape.
    pub dx: &'a [E],
    /// With respect to dgamma, one value a channel; 0 where absent.
    pub dgamma: Option<&'a [E::Param]>,
    /// With respect to dbeta, one value a channel; 0 where absent.
    pub dbeta: Option<&'a [E::Param]>,
}

/// Where [`BatchNorm::double_backward`] writes the gradients of that scalar. What is `None` is not computed.
#[derive(Debug)]
pub struct SecondGradients<'a, E: Element> {
    /// With respect to x, of the plan's shape.
    pub x: Option<&'a mut [E]>,
    /// With respect to dy, of the plan's shape.
    pub dy: Option<&'a mut [E]>,
    /// With respect to gamma, one value a channel.
    pub gamma: Option<&'a mut [E::Param]>,
}

/// A plan: a shape, how to normalize it and where to run. Its methods are the passes.
///
/// The fused passes and their halves give the same bits:
///
/// | fused | first half | second half |
/// |---|---|---|
/// | [`forward_training`](Self::forward_training) | [`statistics`](Self::statistics) | [`normalize`](Self::normalize), also inference |
/// | [`backward`](Self::backward) | [`gradient_sums`](Self::gradient_sums) | [`input_gradient`](Self::input_gradient) |
///
/// The halves are for engines that put statistics together from several parts of a batch in between.
///
/// Groups of a batch that are normalized on their own, as ghost batches are, need nothing of the kind: a plan for a
/// group's shape and a slice of each. Groups of examples follow each other in all layouts, which have the examples
/// outermost.
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
/// Activations are slices of an [`Element`] type in the plan's [`Shape`]; a pass named `_in_place` overwrites its input.
/// A plan keeps some scratch memory for its next pass, for each channel some dozen to some hundred values, or the memory
/// that [`scratch`](Self::scratch) gives it. So make it once and use it again; it can be shared between threads.
///
/// # Errors
/// All passes return [`Error::Length`] for a slice, [`Affine`], [`Statistics`] or [`GradientSums`] that does not fit
/// the shape, and find every error before they write anything.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    pub(crate) shape: Shape,
    pub(crate) eps: f64,
    pub(crate) activation: Activation,
    pub(crate) isa: Isa,
    pub(crate) threads: Threads,
    pub(crate) scratch: Scratch,
}

/// The largest |beta/gamma| of a channel that is rebuilt from its output.
const LARGEST_SHIFT: f64 = 64.0;

impl BatchNorm {
    /// A plan with eps 1e-5, no activation, the best [`Isa`] of this CPU, and the default [`Threads`].
    pub fn new(shape: Shape) -> Self {
        let (isa, threads, scratch) = (Isa::best(), Threads::default(), Scratch::new(scratch_sizes(shape)));
        Self { shape, eps: 1e-5, activation: Activation::Identity, isa, threads, scratch }
    }

    /// With another eps, which is added to the variance before its root is taken. It may be 0: a channel without
    /// variance then has x̂ = 0.
    ///
    /// # Errors
    /// [`Error::Eps`] where it is negative or not finite.
    pub fn eps(mut self, eps: f64) -> Result<Self, Error> {
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(Error::Eps(eps));
        }
        self.eps = eps;
        Ok(self)
    }

    /// With an activation, in the same sweep: `y = act(gamma·x̂ + beta)`. Backward passes then take the gradient of y.
    ///
    /// # Errors
    /// [`Error::Slope`] where a slope is negative or not finite.
    pub fn activation(mut self, activation: Activation) -> Result<Self, Error> {
        self.activation = activation.check()?;
        Ok(self)
    }

    /// With the code of another instruction set.
    ///
    /// # Errors
    /// [`Error::UnsupportedIsa`] where this CPU lacks it.
    pub fn isa(mut self, isa: Isa) -> Result<Self, Error> {
        self.isa = isa.check()?;
        Ok(self)
    }

    /// On other threads.
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// With scratch memory of the caller's, so that no pass allocates: as many passes at once as the memory has room
    /// for, on no more threads than the plan has now. What is beyond that takes memory from the heap, as plans do
    /// without: when they first run, and again where more passes run at once than ever before.
    ///
    /// ```
    /// use batchnorm::{BatchNorm, Shape, Threads};
    ///
    /// let plan = BatchNorm::new(Shape::nc(128, 64)?).threads(Threads::Sequential);
    /// let memory = Box::leak(Box::new_uninit_slice(plan.scratch_bytes(1)));
    /// let plan = plan.scratch(memory)?;
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Scratch`] where there is not enough for one pass.
    pub fn scratch(mut self, memory: &'static mut [MaybeUninit<u8>]) -> Result<Self, Error> {
        let (expected, actual) = (self.scratch_bytes(1), memory.len());
        if self.scratch.give(memory, self.most_threads()) { Ok(self) } else { Err(Error::Scratch { expected, actual }) }
    }

    /// Bytes of [`scratch`](Self::scratch) memory, aligned or not, with which `calls` passes can run at once.
    pub fn scratch_bytes(&self, calls: usize) -> usize {
        self.scratch.bytes(calls, self.most_threads())
    }

    fn most_threads(&self) -> usize {
        self.threads.count(usize::MAX)
    }

    /// The shape that the passes work on.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The passes with more arguments: a residual, y kept from the forward pass, or weights of positions.
    ///
    /// ```
    /// use batchnorm::{Activation, Affine, BatchNorm, Extras, Gradients, Shape, Statistics};
    ///
    /// // The end of a residual block: y = relu(gamma·x̂ + beta + residual), and its gradients, a sweep each.
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
    /// Weights make a mask of a batch of sequences that were padded to one length:
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
        With { plan: self, extras }
    }

    fn plain<E: Element>(&self) -> With<'_, E> {
        self.with(Extras::default())
    }

    /// Mean and variance of each channel of x, in one pass over it: the first half of a forward pass in training.
    ///
    /// # Errors
    /// See [`BatchNorm`].
    pub fn statistics<E: Element>(&self, x: &[E], statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.plain().statistics(x, statistics)
    }

    /// `y = gamma·(x − mean)/sqrt(var + eps) + beta`, with the batch's own statistics, which are returned too.
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

    /// [`forward_training`](Self::forward_training) with y in the place of x.
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
    /// for the second half of a forward pass in training.
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

    /// [`normalize`](Self::normalize) with y in the place of x.
    ///
    /// # Errors
    /// As there.
    pub fn normalize_in_place<'s, E: Element>(
        &self,
        x: &mut [E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
    ) -> Result<(), Error> {
        self.plain().normalize_in_place(x, source, affine)
    }

    /// Σg and Σg·(x − mean) of each channel, where `g = dy·act'`: the first half of the backward pass. `affine` matters
    /// where the plan has an activation, to compute its argument again.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn gradient_sums<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        sums: &mut GradientSums<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.plain().gradient_sums(x, dy, source, affine, sums)
    }

    /// dx from the sums over the whole batch: the second half of the backward pass in training. `statistics` are those
    /// of the whole batch too; x and dy may be a part of it.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn input_gradient<E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values>,
        affine: Affine<'_, E::Param>,
        dx: &mut [E],
    ) -> Result<(), Error> {
        let gradients = Gradients { dx: Some(dx), ..Gradients::default() };
        self.plain().input_gradient(x, dy, statistics, sums, affine, gradients)
    }

    /// [`input_gradient`](Self::input_gradient) with dx in the place of dy.
    ///
    /// # Errors
    /// As there.
    pub fn input_gradient_in_place<E: Element>(
        &self,
        x: &[E],
        dy: &mut [E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values>,
        affine: Affine<'_, E::Param>,
    ) -> Result<(), Error> {
        self.plain().input_gradient_in_place(x, dy, statistics, sums, affine, Gradients::default())
    }

    /// gamma's and beta's gradients from the sums: `dgamma = Σg·x̂`, `dbeta = Σg`.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn parameter_gradients<'s, P: Element<Param = P>>(
        &self,
        source: impl Into<Source<'s>>,
        sums: &GradientSums<impl Values>,
        dgamma: Option<&mut [P]>,
        dbeta: Option<&mut [P]>,
    ) -> Result<(), Error> {
        let source = source.into();
        source.check(self.shape.channels(), true)?;
        check_len("sums", self.shape.channels(), sums.channels())?;
        let out = Gradients { dgamma, dbeta, ..Gradients::default() }.check(self.shape)?;
        let (dy, x, extras, affine) = (std::ptr::null(), std::ptr::null(), Extras::default(), Affine::default());
        let gradients = GradientsOf { dy, x, rebuild: false, extras, source, affine, sums: Some(sums.view()), out };
        // SAFETY: all arguments have been checked; with sums given and dx not asked for inputs are not read.
        unsafe { P::Passes::gradients(self, gradients, None) };
        Ok(())
    }

    /// The gradients of `y = act(gamma·(x − mean)/sqrt(var + eps) + beta)`, those that are asked for.
    ///
    /// With a batch's statistics they flow through mean and var; with running ones these are constants, and where only
    /// dx is asked for x is not read, unless for an activation.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn backward<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        self.plain().backward(x, dy, source, affine, gradients)
    }

    /// [`backward`](Self::backward) with dx in the place of dy.
    ///
    /// # Errors
    /// As there.
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

    /// [`forward_training_in_place`](Self::forward_training_in_place) of a layer that keeps y alone for its backward
    /// pass, which [`backward_from_output`](Self::backward_from_output) is: one activation less in memory.
    ///
    /// x̂ comes back from y with an error of at most `10·u·(1 + |x̂| + |beta/gamma|)`, u being half an ulp of 1 in the
    /// element type.
    ///
    /// Rota Bulò, Porzi, Kontschieder, "In-Place Activated BatchNorm" (2018).
    ///
    /// # Errors
    /// See [`BatchNorm`]; [`Error::Activation`] where the activation has no inverse; [`Error::NotInvertible`] for a
    /// channel with |beta| > 64·|gamma|, or a gamma or slope so small or large that y may leave the normal range of its
    /// type, or 2^±500 for f64. x is then as it was.
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
        self.check_invertible::<E>(affine)?;
        self.forward_training_in_place(x, affine, statistics)
    }

    /// [`backward`](Self::backward) from y in the place of x, after
    /// [`forward_training_invertible`](Self::forward_training_invertible).
    ///
    /// # Errors
    /// As there, and [`Error::EmptyStatistics`] for a batch without values.
    pub fn backward_from_output<E: Element>(
        &self,
        y: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        check_len("y", self.shape.len(), y.len())?;
        check_len("dy", self.shape.len(), dy.len())?;
        self.check_invertible::<E>(affine)?;
        let source = Source::from(statistics);
        source.check(self.shape.channels(), self.shape.is_empty())?;
        let out = gradients.check(self.shape)?;
        let extras = Extras { output: Some(y), ..Extras::default() };
        let (dy, x) = (dy.as_ptr(), std::ptr::null());
        let gradients = GradientsOf { dy, x, rebuild: true, extras, source, affine, sums: None, out };
        // SAFETY: all arguments have been checked; slices are apart from each other.
        unsafe { E::Passes::gradients(self, gradients, None) };
        Ok(())
    }

    /// The derivatives of the backward pass, for gradient penalties: the gradients of
    /// `Σ dx_cotangent·dx + Σ dgamma_cotangent·dgamma + Σ dbeta_cotangent·dbeta`, where dx, dgamma and dbeta are what
    /// [`backward`](Self::backward) makes of x and dy in training. `statistics` are those of x.
    ///
    /// A pass that few need: it sweeps more often than one made for it would, and allocates a little.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize); [`Error::Activation`] where the plan has one: compose it outside.
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
    /// // dx does not change where all dy grow alike.
    /// assert!(of_dy.iter().sum::<f64>().abs() < 1e-12);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn double_backward<E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        affine: Affine<'_, E::Param>,
        cotangents: Cotangents<'_, E>,
        gradients: SecondGradients<'_, E>,
    ) -> Result<(), Error> {
        let (len, channels) = (self.shape.len(), self.shape.channels());
        if self.activation != Activation::Identity {
            let (pass, expected) = ("double_backward", "Identity");
            return Err(Error::Activation { pass, expected, actual: self.activation });
        }
        check_len("x", len, x.len())?;
        check_len("dy", len, dy.len())?;
        check_len("the cotangent of dx", len, cotangents.dx.len())?;
        check_optional("the cotangent of dgamma", channels, cotangents.dgamma)?;
        check_optional("the cotangent of dbeta", channels, cotangents.dbeta)?;
        Source::from(statistics).check(channels, self.shape.is_empty())?;
        affine.check(channels)?;
        check_optional("the gradient of x", len, gradients.x.as_deref())?;
        check_optional("the gradient of dy", len, gradients.dy.as_deref())?;
        check_optional("the gradient of gamma", channels, gradients.gamma.as_deref())?;
        let second = SecondOf {
            inputs: [dy.as_ptr(), x.as_ptr(), cotangents.dx.as_ptr()],
            statistics: Statistics { count: statistics.count(), mean: statistics.mean(), var: statistics.var() },
            gamma: affine.gamma,
            cotangents: [cotangents.dgamma, cotangents.dbeta],
            out: [gradients.x, gradients.dy].map(|d| d.map(<[E]>::as_mut_ptr)),
            gamma_out: gradients.gamma,
        };
        // SAFETY: all arguments have been checked; slices are apart from each other.
        unsafe { E::Passes::second(self, second) };
        Ok(())
    }

    fn check_invertible<E: Element>(&self, affine: Affine<'_, E::Param>) -> Result<(), Error> {
        affine.check(self.shape.channels())?;
        let slope = match self.activation {
            Activation::Identity => 1.0,
            Activation::LeakyRelu(slope) if slope > 0.0 => slope,
            actual => {
                let (pass, expected) = ("rebuilding x from y", "Identity or a LeakyRelu with a positive slope");
                return Err(Error::Activation { pass, expected, actual });
            }
        };
        let range @ [smallest, largest] = E::RANGE;
        // |x̂| is less than the root of the number of values.
        let root = (self.shape.values_per_channel() as f64).sqrt();
        for channel in 0..self.shape.channels() {
            let gamma = affine.gamma.map_or(1.0, |gamma| gamma[channel].to_f64());
            let beta = affine.beta.map_or(0.0, |beta| beta[channel].to_f64());
            let (g, b) = (gamma.abs(), beta.abs());
            let well_conditioned = b <= LARGEST_SHIFT * g;
            if !(well_conditioned && g * slope.min(1.0) >= smallest && (g * root + b) * slope.max(1.0) <= largest) {
                return Err(Error::NotInvertible { channel, gamma, beta, slope, range });
            }
        }
        Ok(())
    }
}

/// A plan with more arguments for its passes, which [`BatchNorm::with`] makes. Its methods are those of [`BatchNorm`],
/// and have the same errors beside those of [`Extras`]: [`Error::Length`], and [`Error::Weight`] for a weight that is
/// negative or not finite.
#[derive(Clone, Copy, Debug)]
pub struct With<'a, E: Element> {
    plan: &'a BatchNorm,
    extras: Extras<'a, E>,
}

impl<E: Element> With<'_, E> {
    /// As [`BatchNorm::statistics`]; with weights, the count is their sum.
    ///
    /// # Errors
    /// See [`With`].
    pub fn statistics(&self, x: &[E], statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.extras.check(self.plan.shape)?;
        check_len("statistics", self.plan.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked; slices are apart from each other.
        statistics.lend(|statistics| unsafe {
            E::Passes::forward(self.plan, x.as_ptr(), self.extras, statistics, None);
        });
        Ok(())
    }

    /// As [`BatchNorm::forward_training`]: `y = act(gamma·x̂ + beta + residual)`.
    ///
    /// # Errors
    /// See [`With`].
    pub fn forward_training(
        &self,
        x: &[E],
        affine: Affine<'_, E::Param>,
        y: &mut [E],
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.check("y", y.len())?;
        // SAFETY: x and y have the plan's shape and are apart.
        unsafe { self.forward_raw(x.as_ptr(), affine, y.as_mut_ptr(), statistics) }
    }

    /// As [`BatchNorm::forward_training_in_place`].
    ///
    /// # Errors
    /// See [`With`].
    pub fn forward_training_in_place(
        &self,
        x: &mut [E],
        affine: Affine<'_, E::Param>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        let y = x.as_mut_ptr();
        // SAFETY: x has the plan's shape, and y is x.
        unsafe { self.forward_raw(y, affine, y, statistics) }
    }

    /// As [`BatchNorm::normalize`]: `y = act(gamma·x̂ + beta + residual)`.
    ///
    /// # Errors
    /// See [`With`].
    pub fn normalize<'s>(
        &self,
        x: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        y: &mut [E],
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.check("y", y.len())?;
        // SAFETY: x and y have the plan's shape and are apart.
        unsafe { self.normalize_raw(x.as_ptr(), source.into(), affine, y.as_mut_ptr()) }
    }

    /// As [`BatchNorm::normalize_in_place`].
    ///
    /// # Errors
    /// See [`With`].
    pub fn normalize_in_place<'s>(
        &self,
        x: &mut [E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        let y = x.as_mut_ptr();
        // SAFETY: x has the plan's shape, and y is x.
        unsafe { self.normalize_raw(y, source.into(), affine, y) }
    }

    /// As [`BatchNorm::gradient_sums`].
    ///
    /// # Errors
    /// See [`With`].
    pub fn gradient_sums<'s>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        sums: &mut GradientSums<impl ValuesMut>,
    ) -> Result<(), Error> {
        let source = source.into();
        self.check("x", x.len())?;
        self.check("dy", dy.len())?;
        self.check_inputs(source, affine)?;
        check_len("sums", self.plan.shape.channels(), sums.channels())?;
        let (dy, x, extras, out) = (dy.as_ptr(), x.as_ptr(), self.extras, RawGradients::none());
        let gradients = GradientsOf { dy, x, rebuild: false, extras, source, affine, sums: None, out };
        // SAFETY: all arguments have been checked; slices are apart from each other.
        unsafe { E::Passes::gradients(self.plan, gradients, Some(sums.view_mut())) };
        Ok(())
    }

    /// As [`BatchNorm::input_gradient`], with any of the gradients that follow from the sums.
    ///
    /// # Errors
    /// See [`With`].
    pub fn input_gradient(
        &self,
        x: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        let out = gradients.check(self.plan.shape)?;
        // SAFETY: dy has the plan's shape; slices are apart from each other.
        unsafe { self.backward_raw(x, dy.as_ptr(), Source::from(statistics), affine, Some(sums.view()), out) }
    }

    /// As [`BatchNorm::input_gradient_in_place`]; `gradients` are those beside dx.
    ///
    /// # Errors
    /// See [`With`]; [`Error::Length`] also where `gradients` have a dx.
    pub fn input_gradient_in_place(
        &self,
        x: &[E],
        dy: &mut [E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        self.replacing_dy(x, dy, Source::from(statistics), affine, Some(sums.view()), gradients)
    }

    /// As [`BatchNorm::backward`].
    ///
    /// # Errors
    /// See [`With`].
    pub fn backward<'s>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        let out = gradients.check(self.plan.shape)?;
        // SAFETY: dy has the plan's shape; slices are apart from each other.
        unsafe { self.backward_raw(x, dy.as_ptr(), source.into(), affine, None, out) }
    }

    /// As [`BatchNorm::backward_in_place`]; `gradients` are those beside dx.
    ///
    /// # Errors
    /// See [`With`]; [`Error::Length`] also where `gradients` have a dx.
    pub fn backward_in_place<'s>(
        &self,
        x: &[E],
        dy: &mut [E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        self.replacing_dy(x, dy, source.into(), affine, None, gradients)
    }

    fn check(&self, argument: &'static str, len: usize) -> Result<(), Error> {
        check_len(argument, self.plan.shape.len(), len)
    }

    fn check_inputs(&self, source: Source<'_>, affine: Affine<'_, E::Param>) -> Result<(), Error> {
        let shape = self.plan.shape;
        self.extras.check(shape)?;
        let none = |weights: &[E::Param]| weights.iter().all(|w| w.to_f64() == 0.0);
        source.check(shape.channels(), shape.is_empty() || self.extras.weights.is_some_and(none))?;
        affine.check(shape.channels())
    }

    /// # Safety
    /// x and y have the plan's shape; y may be x, and is apart from everything else.
    unsafe fn forward_raw(
        &self,
        x: *const E,
        affine: Affine<'_, E::Param>,
        y: *mut E,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.extras.check(self.plan.shape)?;
        affine.check(self.plan.shape.channels())?;
        check_len("statistics", self.plan.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked, or are the caller's promise.
        statistics.lend(|statistics| unsafe {
            E::Passes::forward(self.plan, x, self.extras, statistics, Some((affine, y)));
        });
        Ok(())
    }

    /// # Safety
    /// x and y have the plan's shape; y may be x, and is apart from everything else.
    unsafe fn normalize_raw(
        &self,
        x: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        y: *mut E,
    ) -> Result<(), Error> {
        self.check_inputs(source, affine)?;
        // SAFETY: all arguments have been checked, or are the caller's promise.
        unsafe { E::Passes::normalize(self.plan, x, self.extras, source, affine, y) };
        Ok(())
    }

    /// With dx in the place of dy.
    fn replacing_dy(
        &self,
        x: &[E],
        dy: &mut [E],
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        sums: Option<GradientSums<&[f64]>>,
        gradients: Gradients<'_, E>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        check_optional("dx, which takes the place of dy,", 0, gradients.dx.as_deref())?;
        let mut out = Gradients { dx: None, ..gradients }.check(self.plan.shape)?;
        let dx = dy.as_mut_ptr();
        out.dx = Some(dx);
        // SAFETY: dy has the plan's shape; dx is dy, and everything else is apart.
        unsafe { self.backward_raw(x, dx, source, affine, sums, out) }
    }

    /// # Safety
    /// dy and what is in `out` fit the plan's shape; dx may be dy, and outputs are apart from everything else.
    unsafe fn backward_raw(
        &self,
        x: &[E],
        dy: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        sums: Option<GradientSums<&[f64]>>,
        out: RawGradients<'_, E, E::Param>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.check_inputs(source, affine)?;
        if let Some(sums) = sums {
            check_len("sums", self.plan.shape.channels(), sums.channels())?;
        }
        let (x, extras) = (x.as_ptr(), self.extras);
        let gradients = GradientsOf { dy, x, rebuild: false, extras, source, affine, sums, out };
        // SAFETY: all arguments have been checked, or are the caller's promise.
        unsafe { E::Passes::gradients(self.plan, gradients, None) };
        Ok(())
    }
}
