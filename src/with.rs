//! The passes of a plan, with all their arguments.

use crate::arguments::{Affine, Extras, Gradients};
use crate::element::Element;
use crate::error::{Error, check_len, check_optional};
use crate::passes::engine::Engine;
use crate::passes::request::{Backward, BackwardOutputs, Forward, Normalize, Parameters, Pass};
use crate::statistics::{GradientSums, Source, Statistics, Values, ValuesMut};

/// A plan with further arguments for its passes, made by [`BatchNorm::with`](crate::BatchNorm::with). Its methods are
/// those of [`BatchNorm`](crate::BatchNorm). Errors are the same, and those of [`Extras`]: [`Error::Length`], and
/// [`Error::Weight`] for a weight that is negative or not finite.
#[derive(Clone, Copy, Debug)]
pub struct With<'a, E: Element> {
    pub(crate) engine: &'a Engine,
    pub(crate) extras: Extras<'a, E>,
}

impl<E: Element> With<'_, E> {
    /// Same as [`BatchNorm::statistics`](crate::BatchNorm::statistics); with weights, the count is their sum.
    ///
    /// # Errors
    /// See [`With`].
    pub fn statistics(&self, x: &[E], statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.extras.check(self.engine.shape)?;
        check_len("statistics", self.engine.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked; slices do not overlap.
        unsafe { self.run_forward(x.as_ptr(), None, statistics) };
        Ok(())
    }

    /// Same as [`BatchNorm::forward_training`](crate::BatchNorm::forward_training): `y = act(gamma·x̂ + beta +
    /// residual)`.
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
        // SAFETY: x and y have the plan's shape and do not overlap.
        unsafe { self.forward_raw(x.as_ptr(), affine, y.as_mut_ptr(), statistics) }
    }

    /// Same as [`BatchNorm::forward_training_in_place`](crate::BatchNorm::forward_training_in_place).
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

    /// Same as [`BatchNorm::normalize`](crate::BatchNorm::normalize): `y = act(gamma·x̂ + beta + residual)`.
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
        // SAFETY: x and y have the plan's shape and do not overlap.
        unsafe { self.normalize_raw(x.as_ptr(), source.into(), affine, y.as_mut_ptr()) }
    }

    /// Same as [`BatchNorm::normalize_in_place`](crate::BatchNorm::normalize_in_place).
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

    /// Same as [`BatchNorm::gradient_sums`](crate::BatchNorm::gradient_sums).
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
        check_len("sums", self.engine.shape.channels(), sums.channels())?;
        let request = Backward {
            sums_out: Some(sums.view_mut()),
            ..self.backward_request(x.as_ptr(), dy.as_ptr(), source, affine, BackwardOutputs::NONE)
        };
        // SAFETY: all arguments have been checked; slices do not overlap.
        unsafe { E::run(self.engine, Pass::Backward(request)) };
        Ok(())
    }

    /// Same as [`BatchNorm::input_gradient`](crate::BatchNorm::input_gradient), with any of the gradients that follow
    /// from the sums.
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
        let out = gradients.check(self.engine.shape)?;
        // SAFETY: dy has the plan's shape; slices do not overlap.
        unsafe { self.backward_raw(x, dy.as_ptr(), Source::from(statistics), affine, Some(sums.view()), out) }
    }

    /// Same as [`BatchNorm::input_gradient_in_place`](crate::BatchNorm::input_gradient_in_place); `gradients` are the
    /// others.
    ///
    /// # Errors
    /// See [`With`]; [`Error::Length`] also if `gradients` have a dx.
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

    /// Same as [`BatchNorm::backward`](crate::BatchNorm::backward).
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
        let out = gradients.check(self.engine.shape)?;
        // SAFETY: dy has the plan's shape; slices do not overlap.
        unsafe { self.backward_raw(x, dy.as_ptr(), source.into(), affine, None, out) }
    }

    /// Same as [`BatchNorm::backward_in_place`](crate::BatchNorm::backward_in_place); `gradients` are the others.
    ///
    /// # Errors
    /// See [`With`]; [`Error::Length`] also if `gradients` have a dx.
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
        check_len(argument, self.engine.shape.len(), len)
    }

    fn check_inputs(&self, source: Source<'_>, affine: Affine<'_, E::Param>) -> Result<(), Error> {
        let shape = self.engine.shape;
        self.extras.check(shape)?;
        source.check(shape.channels(), shape.is_empty() || self.extras.ignores_all())?;
        affine.check(shape.channels())
    }

    /// # Safety
    /// All arguments have been checked; x and y have the plan's shape, and y may be x, but overlaps nothing else.
    unsafe fn run_forward(
        &self,
        x: *const E,
        output: Option<(Parameters<'_, E::Param>, *mut E)>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) {
        let (count, mean, var) = statistics.parts_mut();
        let request = Forward { x, fusions: self.extras.fusions(), count, mean, var, output };
        // SAFETY: the caller's promise.
        unsafe { E::run(self.engine, Pass::Forward(request)) };
    }

    /// # Safety
    /// x and y have the plan's shape; y may be x, and overlaps nothing else.
    unsafe fn forward_raw(
        &self,
        x: *const E,
        affine: Affine<'_, E::Param>,
        y: *mut E,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.extras.check(self.engine.shape)?;
        affine.check(self.engine.shape.channels())?;
        check_len("statistics", self.engine.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked, or are the caller's promise.
        unsafe { self.run_forward(x, Some((affine.parameters(), y)), statistics) };
        Ok(())
    }

    /// # Safety
    /// x and y have the plan's shape; y may be x, and overlaps nothing else.
    unsafe fn normalize_raw(
        &self,
        x: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        y: *mut E,
    ) -> Result<(), Error> {
        self.check_inputs(source, affine)?;
        // SAFETY: all arguments have been checked, or are the caller's promise.
        unsafe {
            let (fusions, parameters) = (self.extras.fusions(), affine.parameters());
            E::run(self.engine, Pass::Normalize(Normalize { x, fusions, source, parameters, y }));
        }
        Ok(())
    }

    /// With dx in place of dy.
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
        let mut out = Gradients { dx: None, ..gradients }.check(self.engine.shape)?;
        let dx = dy.as_mut_ptr();
        out.dx = Some(dx);
        // SAFETY: dy has the plan's shape; dx is dy, and nothing else overlaps.
        unsafe { self.backward_raw(x, dx, source, affine, sums, out) }
    }

    /// # Safety
    /// dy and what is in `out` fit the plan's shape; dx may be dy, and outputs overlap nothing else.
    unsafe fn backward_raw(
        &self,
        x: &[E],
        dy: *const E,
        source: Source<'_>,
        affine: Affine<'_, E::Param>,
        sums: Option<GradientSums<&[f64]>>,
        out: BackwardOutputs<'_, E, E::Param>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.check_inputs(source, affine)?;
        if let Some(sums) = sums {
            check_len("sums", self.engine.shape.channels(), sums.channels())?;
        }
        let request = Backward { sums, ..self.backward_request(x.as_ptr(), dy, source, affine, out) };
        // SAFETY: all arguments have been checked, or are the caller's promise.
        unsafe { E::run(self.engine, Pass::Backward(request)) };
        Ok(())
    }

    /// A backward pass without sums.
    fn backward_request<'r>(
        &self,
        x: *const E,
        dy: *const E,
        source: Source<'r>,
        affine: Affine<'r, E::Param>,
        out: BackwardOutputs<'r, E, E::Param>,
    ) -> Backward<'r, E, E::Param> {
        let (fusions, parameters) = (self.extras.fusions(), affine.parameters());
        Backward { dy, x, rebuild: false, fusions, source, parameters, sums: None, sums_out: None, out }
    }
}
