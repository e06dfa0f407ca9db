//! The passes of a plan, with all their arguments.

use crate::arguments::{Affine, Extras, Gradients, as_uninit};
use crate::element::Element;
use crate::error::{Error, check_len, check_optional};
use crate::kernels::tile::padded;
use crate::passes::engine::Engine;
use crate::passes::request::{Backward, BackwardOutputs, Forward, Normalize, Parameters, Pass};
use crate::passes::scratch::Buffer;
use crate::simd::Real;
use crate::statistics::{GradientSums, Precision, Source, Statistics, Values, ValuesMut, WideSource, store};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::slice;

/// A plan with further arguments for its passes, made by [`BatchNorm::with`](crate::BatchNorm::with). Its methods are
/// those of [`BatchNorm`](crate::BatchNorm). Errors are the same, and those of [`Extras`]: [`Error::Length`],
/// [`Error::Weight`] for a weight that is negative or not finite, and [`Error::Count`] if the sum of the weights exceeds
/// the range of f64.
///
/// `P` is the type of gamma, beta and their gradients: [`Element::Param`], or what
/// [`parameters_of`](Self::parameters_of) has set.
#[derive(Clone, Copy, Debug)]
pub struct With<'a, E: Element, P = <E as Element>::Param> {
    pub(crate) engine: &'a Engine,
    pub(crate) extras: Extras<'a, E>,
    parameters: PhantomData<fn(P) -> P>,
}

impl<'a, E: Element> With<'a, E> {
    pub(crate) fn new(engine: &'a Engine, extras: Extras<'a, E>) -> Self {
        Self { engine, extras, parameters: PhantomData }
    }

    /// The same, with gamma, beta and their gradients of another type: any whose [`Element::Param`] is that of `E`. An
    /// engine can so pass 16-bit parameters beside 16-bit or f32 activations. They are widened once per channel;
    /// gradients are computed as usual and rounded once.
    ///
    /// ```
    /// # #[cfg(feature = "half")] {
    /// use batchnorm::{Affine, BatchNorm, Extras, Gradients, Shape, Statistics};
    /// use half::bf16;
    ///
    /// let plan = BatchNorm::new(Shape::nc(4, 1)?);
    /// let [x, dy] = [[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]].map(|v| v.map(bf16::from_f32));
    /// let (gamma, beta) = ([bf16::from_f32(2.0)], [bf16::from_f32(1.0)]);
    /// let affine = Affine::new(&gamma, &beta);
    ///
    /// let with = plan.with(Extras::default()).parameters_of::<bf16>();
    /// let (mut y, mut statistics, mut dgamma) = ([bf16::ZERO; 4], Statistics::new(1), [bf16::ZERO]);
    /// with.forward_training(&x, affine, &mut y, &mut statistics)?;
    /// let gradients = Gradients { dgamma: Some(&mut dgamma), ..Gradients::default() };
    /// with.backward(&x, &dy, &statistics, affine, gradients)?;
    /// assert_eq!(dgamma, [bf16::from_f32(-1.3416354)]);
    /// # }
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn parameters_of<P: Element<Param = E::Param>>(self) -> With<'a, E, P> {
        With { engine: self.engine, extras: self.extras, parameters: PhantomData }
    }
}

impl<E: Element, P: Element<Param = E::Param>> With<'_, E, P> {
    /// Same as [`BatchNorm::statistics`](crate::BatchNorm::statistics); with weights, the count is their sum.
    ///
    /// # Errors
    /// See [`With`].
    pub fn statistics(&self, x: &[E], statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.extras.check(self.engine.shape)?;
        check_len("statistics", self.engine.shape.channels(), statistics.channels())?;
        // SAFETY: all arguments have been checked; slices do not overlap.
        unsafe { self.run_forward(x.as_ptr(), None, statistics, &mut Room::new(self.engine)) };
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
        affine: Affine<'_, P>,
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
        affine: Affine<'_, P>,
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
        affine: Affine<'_, P>,
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
        affine: Affine<'_, P>,
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
        affine: Affine<'_, P>,
        sums: &mut GradientSums<impl ValuesMut<Value = f64>>,
    ) -> Result<(), Error> {
        let source = source.into();
        self.check("x", x.len())?;
        self.check("dy", dy.len())?;
        self.check_inputs(source, affine)?;
        check_len("sums", self.engine.shape.channels(), sums.channels())?;
        let mut room = Room::new(self.engine);
        // SAFETY: the room outlives the request. All arguments have been checked; slices do not overlap.
        unsafe {
            let (source, parameters) = (room.source(source), room.parameters(affine));
            let request = Backward {
                sums_out: Some(sums.view_mut()),
                ..self.backward_request(x.as_ptr(), dy.as_ptr(), source, parameters, BackwardOutputs::NONE)
            };
            E::run(self.engine, Pass::Backward(request));
        }
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
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, P>,
        gradients: Gradients<'_, E, P>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        let (source, gradients) = (Source::from(statistics), gradients.into_uninit());
        // SAFETY: dy has the plan's shape; slices do not overlap.
        unsafe { self.backward_raw(x, dy.as_ptr(), source, affine, Some(sums.view()), gradients, None) }
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
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, P>,
        gradients: Gradients<'_, E, P>,
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
        affine: Affine<'_, P>,
        gradients: Gradients<'_, E, P>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        // SAFETY: dy has the plan's shape; slices do not overlap.
        unsafe { self.backward_raw(x, dy.as_ptr(), source.into(), affine, None, gradients.into_uninit(), None) }
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
        affine: Affine<'_, P>,
        gradients: Gradients<'_, E, P>,
    ) -> Result<(), Error> {
        self.replacing_dy(x, dy, source.into(), affine, None, gradients)
    }

    fn check(&self, argument: &'static str, len: usize) -> Result<(), Error> {
        check_len(argument, self.engine.shape.len(), len)
    }

    fn check_inputs(&self, source: Source<'_>, affine: Affine<'_, P>) -> Result<(), Error> {
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
        room: &mut Room<'_>,
    ) {
        let fusions = self.extras.fusions();
        let (count, mean, var) = statistics.parts_mut();
        // SAFETY: the caller's promise; the room outlives the request.
        unsafe {
            if let (Some(mean), Some(var)) = (Precision::as_f64_mut(mean), Precision::as_f64_mut(var)) {
                E::run(self.engine, Pass::Forward(Forward { x, fusions, count, mean, var, output }));
            } else {
                let (wide_mean, wide_var) = (room.array::<f64>(), room.array::<f64>());
                let request = Forward { x, fusions, count, mean: &mut *wide_mean, var: &mut *wide_var, output };
                E::run(self.engine, Pass::Forward(request));
                store(wide_mean, mean);
                store(wide_var, var);
            }
        }
    }

    /// # Safety
    /// x and y have the plan's shape; y may be x, and overlaps nothing else.
    pub(crate) unsafe fn forward_raw(
        &self,
        x: *const E,
        affine: Affine<'_, P>,
        y: *mut E,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.extras.check(self.engine.shape)?;
        affine.check(self.engine.shape.channels())?;
        check_len("statistics", self.engine.shape.channels(), statistics.channels())?;
        let mut room = Room::new(self.engine);
        // SAFETY: all arguments have been checked, or are the caller's promise; the room outlives the parameters.
        unsafe {
            let parameters = room.parameters(affine);
            self.run_forward(x, Some((parameters, y)), statistics, &mut room);
        }
        Ok(())
    }

    /// # Safety
    /// x and y have the plan's shape; y may be x, and overlaps nothing else.
    pub(crate) unsafe fn normalize_raw(
        &self,
        x: *const E,
        source: Source<'_>,
        affine: Affine<'_, P>,
        y: *mut E,
    ) -> Result<(), Error> {
        self.check_inputs(source, affine)?;
        let mut room = Room::new(self.engine);
        // SAFETY: all arguments have been checked, or are the caller's promise; the room outlives the request.
        unsafe {
            let (fusions, source, parameters) = (self.extras.fusions(), room.source(source), room.parameters(affine));
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
        affine: Affine<'_, P>,
        sums: Option<GradientSums<&[f64]>>,
        gradients: Gradients<'_, E, P>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        check_optional("dx, which takes the place of dy,", 0, gradients.dx.as_deref())?;
        let (dx, gradients) = (dy.as_mut_ptr(), Gradients { dx: None, ..gradients }.into_uninit());
        // SAFETY: dy has the plan's shape; dx is dy, and nothing else overlaps.
        unsafe { self.backward_raw(x, dx, source, affine, sums, gradients, Some(dx)) }
    }

    /// # Safety
    /// dy has the plan's shape. `in_place` is dy, if dx takes its place, and gradients overlap nothing else.
    #[allow(clippy::too_many_arguments)] // those of the passes
    pub(crate) unsafe fn backward_raw(
        &self,
        x: &[E],
        dy: *const E,
        source: Source<'_>,
        affine: Affine<'_, P>,
        sums: Option<GradientSums<&[f64]>>,
        gradients: Gradients<'_, MaybeUninit<E>, MaybeUninit<P>>,
        in_place: Option<*mut E>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        gradients.check(self.engine.shape)?;
        self.check_inputs(source, affine)?;
        if let Some(sums) = sums {
            check_len("sums", self.engine.shape.channels(), sums.channels())?;
        }
        let mut room = Room::new(self.engine);
        // SAFETY: all arguments have been checked, or are the caller's promise; the room outlives the request.
        unsafe {
            let (source, parameters) = (room.source(source), room.parameters(affine));
            room.with_outputs(gradients, |out| {
                let out = BackwardOutputs { dx: out.dx.or(in_place), ..out };
                let request = Backward { sums, ..self.backward_request(x.as_ptr(), dy, source, parameters, out) };
                E::run(self.engine, Pass::Backward(request));
            });
        }
        Ok(())
    }

    /// A backward pass without sums.
    fn backward_request<'r>(
        &self,
        x: *const E,
        dy: *const E,
        source: WideSource<'r>,
        parameters: Parameters<'r, E::Param>,
        out: BackwardOutputs<'r, E, E::Param>,
    ) -> Backward<'r, E, E::Param> {
        let fusions = self.extras.fusions();
        Backward { dy, x, rebuild: false, fusions, source, parameters, sums: None, sums_out: None, out }
    }
}

/// Memory of a plan for what a pass is given, or gives, in another type than it computes with: one value per channel
/// each. It is taken when the first is needed.
pub(crate) struct Room<'e> {
    engine: &'e Engine,
    buffer: Option<Buffer<'e>>,
}

/// # Safety (of all functions)
/// The room outlives the result.
impl<'e> Room<'e> {
    pub(crate) fn new(engine: &'e Engine) -> Self {
        Self { engine, buffer: None }
    }

    /// An array with arbitrary values.
    unsafe fn array<'r, T: Real>(&mut self) -> &'r mut [T] {
        // Mean, variance, gamma, beta and their gradients.
        const ARRAYS: usize = 6;
        let channels = self.engine.shape.channels();
        let buffer = self.buffer.get_or_insert_with(|| self.engine.scratch.conversions(ARRAYS * padded(channels)));
        // SAFETY: so many values of f64 have room for as many of T, of which any bits are values; the caller's promise.
        unsafe { slice::from_raw_parts_mut(buffer.take(padded(channels)).cast(), channels) }
    }

    pub(crate) unsafe fn source<'r>(&mut self, source: Source<'r>) -> WideSource<'r> {
        // SAFETY: the caller's promise.
        source.wide(|| unsafe { [self.array(), self.array()] })
    }

    pub(crate) unsafe fn parameters<'r, P: Element>(&mut self, affine: Affine<'r, P>) -> Parameters<'r, P::Param> {
        // SAFETY: the caller's promise.
        let [gamma, beta] = [affine.gamma, affine.beta].map(|v| v.map(|v| unsafe { self.widen(v) }));
        Parameters { gamma, beta }
    }

    unsafe fn widen<'r, P: Element>(&mut self, values: &'r [P]) -> &'r [P::Param] {
        P::as_params(values).unwrap_or_else(|| {
            // SAFETY: the caller's promise.
            let wide = unsafe { self.array::<P::Param>() };
            // Only values of 16 bits are of another type.
            for (wide, v) in wide.iter_mut().zip(values) {
                *wide = P::Param::from_f32(v.to_f32());
            }
            wide
        })
    }

    /// Runs `pass` with outputs of the types that it computes with, and then rounds those that are of other types.
    pub(crate) unsafe fn with_outputs<E: Element, P: Element<Param = E::Param>>(
        &mut self,
        gradients: Gradients<'_, MaybeUninit<E>, MaybeUninit<P>>,
        pass: impl FnOnce(BackwardOutputs<'_, E, E::Param>),
    ) {
        let Gradients { dx, dresidual, dgamma, dbeta } = gradients;
        let [dx, dresidual] = [dx, dresidual].map(|d| d.map(|d| d.as_mut_ptr().cast()));
        // SAFETY: the caller's promise.
        let ((dgamma, narrow_dgamma), (dbeta, narrow_dbeta)) = unsafe { (self.output(dgamma), self.output(dbeta)) };
        pass(BackwardOutputs { dx, dresidual, dgamma, dbeta });
        for Narrowing { from, to } in [narrow_dgamma, narrow_dbeta].into_iter().flatten() {
            for (c, to) in to.iter_mut().enumerate() {
                // SAFETY: the pass has written all channels of what it was asked for.
                to.write(P::from_f32(unsafe { *from.add(c) }.to_f32()));
            }
        }
    }

    /// An output of the type that passes compute with, and what is to be rounded afterwards.
    unsafe fn output<'r, P: Element>(&mut self, out: Option<&'r mut [MaybeUninit<P>]>) -> Output<'r, P> {
        let Some(to) = out else { return (None, None) };
        if P::as_params(&[]).is_some() {
            return (P::as_params_mut(to), None);
        }
        // SAFETY: the caller's promise.
        let wide = as_uninit(unsafe { self.array::<P::Param>() });
        // The slice is made from the pointer, which is read after the pass has written through the slice.
        let (from, len) = (wide.as_mut_ptr(), wide.len());
        // SAFETY: pointer and length are those of a slice that is not used any more.
        (Some(unsafe { slice::from_raw_parts_mut(from, len) }), Some(Narrowing { from: from.cast(), to }))
    }
}

type Output<'r, P> = (Option<&'r mut [MaybeUninit<<P as Element>::Param>]>, Option<Narrowing<'r, P>>);

/// Values to round, and where to.
struct Narrowing<'r, P: Element> {
    from: *const P::Param,
    to: &'r mut [MaybeUninit<P>],
}
