//! The plan and its methods: what a user calls. Arguments are checked here; `passes` does the rest.

use crate::Shape;
use crate::element::Element;
use crate::error::{Error, check_len, check_optional};
use crate::parallel::Threads;
use crate::passes::{Passes, RawGradients, scratch_sizes};
use crate::scratch::Scratch;
use crate::simd::Isa;
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

/// Where the backward pass writes its gradients. What is `None` is not computed.
#[derive(Debug)]
pub struct Gradients<'a, E: Element> {
    /// The gradient of x, of the plan's shape.
    pub dx: Option<&'a mut [E]>,
    /// The gradient of gamma, one value a channel.
    pub dgamma: Option<&'a mut [E::Param]>,
    /// The gradient of beta, one value a channel.
    pub dbeta: Option<&'a mut [E::Param]>,
}

impl<E: Element> Default for Gradients<'_, E> {
    fn default() -> Self {
        Self { dx: None, dgamma: None, dbeta: None }
    }
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
/// Activations are slices of `f32` or `f64` in the plan's [`Shape`]; a pass named `_in_place` overwrites its input.
/// A plan keeps some scratch memory for its next pass, for each channel a dozen to some hundred values, or the memory
/// that [`scratch`](Self::scratch) gives it. So make it once and use it again; it can be shared between threads.
///
/// # Errors
/// All passes return [`Error::Length`] for a slice, [`Affine`], [`Statistics`] or [`GradientSums`] that does not fit
/// the shape, and find every error before they write anything.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    pub(crate) shape: Shape,
    pub(crate) eps: f64,
    pub(crate) isa: Isa,
    pub(crate) threads: Threads,
    pub(crate) scratch: Scratch,
}

impl BatchNorm {
    /// A plan with eps 1e-5, the best [`Isa`] of this CPU, and the default [`Threads`].
    pub fn new(shape: Shape) -> Self {
        let scratch = Scratch::new(scratch_sizes(shape));
        Self { shape, eps: 1e-5, isa: Isa::best(), threads: Threads::default(), scratch }
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

    /// Mean and variance of each channel of x, in one pass over it: the first half of a forward pass in training.
    ///
    /// # Errors
    /// See [`BatchNorm`].
    pub fn statistics<E: Element>(&self, x: &[E], statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.check("x", x.len())?;
        check_len("statistics", self.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked; slices are apart from each other.
        statistics.lend(|statistics| unsafe { E::Passes::forward(self, x.as_ptr(), statistics, None) });
        Ok(())
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
        self.check("x", x.len())?;
        self.check("y", y.len())?;
        affine.check(self.shape.channels())?;
        check_len("statistics", self.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked; slices are apart from each other.
        statistics.lend(|statistics| unsafe {
            E::Passes::forward(self, x.as_ptr(), statistics, Some((affine, y.as_mut_ptr())));
        });
        Ok(())
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
        self.check("x", x.len())?;
        affine.check(self.shape.channels())?;
        check_len("statistics", self.shape.channels(), statistics.channels())?;
        let y = x.as_mut_ptr();
        // SAFETY: all arguments have been checked; y is x, and everything else is apart.
        statistics.lend(|statistics| unsafe { E::Passes::forward(self, y, statistics, Some((affine, y))) });
        Ok(())
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
        self.check("x", x.len())?;
        self.check("y", y.len())?;
        self.normalize_checked(x.as_ptr(), source.into(), affine, y.as_mut_ptr())
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
        self.check("x", x.len())?;
        let y = x.as_mut_ptr();
        self.normalize_checked(y, source.into(), affine, y)
    }

    /// Σdy and Σdy·(x − mean) of each channel: the first half of the backward pass.
    ///
    /// # Errors
    /// See [`normalize`](Self::normalize).
    pub fn gradient_sums<'s, E: Element>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        sums: &mut GradientSums<impl ValuesMut>,
    ) -> Result<(), Error> {
        let source = source.into();
        self.check("x", x.len())?;
        self.check("dy", dy.len())?;
        source.check(self.shape.channels(), self.shape.is_empty())?;
        check_len("sums", self.shape.channels(), sums.channels())?;
        // SAFETY: all arguments have been checked; slices are apart from each other.
        unsafe {
            let (inputs, sums) = ([dy.as_ptr(), x.as_ptr()], Some(sums.view_mut()));
            E::Passes::gradients(self, inputs, source, None, None, RawGradients::none(), sums);
        }
        Ok(())
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
        self.check("dy", dy.len())?;
        self.check("dx", dx.len())?;
        self.input_gradient_checked(x, dy.as_ptr(), statistics, sums, affine, dx.as_mut_ptr())
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
        self.check("dy", dy.len())?;
        let dx = dy.as_mut_ptr();
        self.input_gradient_checked(x, dx, statistics, sums, affine, dx)
    }

    /// gamma's and beta's gradients from the sums: `dgamma = Σdy·x̂`, `dbeta = Σdy`.
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
        let (source, channels) = (source.into(), self.shape.channels());
        source.check(channels, true)?;
        check_len("sums", channels, sums.channels())?;
        check_optional("dgamma", channels, dgamma.as_deref())?;
        check_optional("dbeta", channels, dbeta.as_deref())?;
        let gradients = RawGradients { dx: None, dgamma, dbeta };
        // SAFETY: all arguments have been checked; with sums given and dx not asked for inputs are not read.
        unsafe { P::Passes::gradients(self, [std::ptr::null(); 2], source, None, Some(sums.view()), gradients, None) };
        Ok(())
    }

    /// The gradients of `y = gamma·(x − mean)/sqrt(var + eps) + beta`, those that are asked for.
    ///
    /// With a batch's statistics they flow through mean and var; with running ones these are constants, and where only
    /// dx is asked for x is not read.
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
        self.check("dy", dy.len())?;
        check_optional("dx", self.shape.len(), gradients.dx.as_deref())?;
        let Gradients { dx, dgamma, dbeta } = gradients;
        let gradients = RawGradients { dx: dx.map(<[E]>::as_mut_ptr), dgamma, dbeta };
        self.backward_checked(x, dy.as_ptr(), source.into(), affine, gradients)
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
        self.check("dy", dy.len())?;
        let dx = dy.as_mut_ptr();
        self.backward_checked(x, dx, source.into(), affine, RawGradients { dx: Some(dx), dgamma, dbeta })
    }

    fn check(&self, argument: &'static str, len: usize) -> Result<(), Error> {
        check_len(argument, self.shape.len(), len)
    }

    fn normalize_checked<E: Element>(
        &self,
        x: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        y: *mut E,
    ) -> Result<(), Error> {
        source.check(self.shape.channels(), self.shape.is_empty())?;
        affine.check(self.shape.channels())?;
        // SAFETY: all arguments have been checked; y may be x, and everything else is apart.
        unsafe { E::Passes::normalize(self, x, source, affine, y) };
        Ok(())
    }

    fn input_gradient_checked<E: Element>(
        &self,
        x: &[E],
        dy: *const E,
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values>,
        affine: Affine<'_, E::Param>,
        dx: *mut E,
    ) -> Result<(), Error> {
        let channels = self.shape.channels();
        let source = Source::from(statistics);
        self.check("x", x.len())?;
        source.check(channels, self.shape.is_empty())?;
        check_len("sums", channels, sums.channels())?;
        affine.check(channels)?;
        let gradients = RawGradients { dx: Some(dx), dgamma: None, dbeta: None };
        // SAFETY: all arguments have been checked; dx may be dy, and everything else is apart.
        unsafe {
            E::Passes::gradients(self, [dy, x.as_ptr()], source, affine.gamma, Some(sums.view()), gradients, None);
        }
        Ok(())
    }

    fn backward_checked<E: Element>(
        &self,
        x: &[E],
        dy: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        gradients: RawGradients<'_, E, E::Param>,
    ) -> Result<(), Error> {
        let channels = self.shape.channels();
        self.check("x", x.len())?;
        source.check(channels, self.shape.is_empty())?;
        affine.check(channels)?;
        check_optional("dgamma", channels, gradients.dgamma.as_deref())?;
        check_optional("dbeta", channels, gradients.dbeta.as_deref())?;
        // SAFETY: all arguments have been checked; dx may be dy, and everything else is apart.
        unsafe { E::Passes::gradients(self, [dy, x.as_ptr()], source, affine.gamma, None, gradients, None) };
        Ok(())
    }
}
