//! What passes take and give apart from activations and statistics, and their checks.

use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, check_optional};
use crate::kernels::weights::Weights;
use crate::passes::request::{Fusions, Parameters};
use crate::shape::Shape;
use crate::statistics::check_count;
use std::mem::MaybeUninit;
use std::ptr::null;

/// gamma and beta, each absent or one value per channel. Absent, gamma is 1 and beta is 0.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, P> {
    /// The scale of x̂.
    pub gamma: Option<&'a [P]>,
    /// The shift, added after scaling.
    pub beta: Option<&'a [P]>,
}

impl<'a, P> Affine<'a, P> {
    /// Both gamma and beta.
    pub fn new(gamma: &'a [P], beta: &'a [P]) -> Self {
        Self { gamma: Some(gamma), beta: Some(beta) }
    }

    pub(crate) fn check(&self, channels: usize) -> Result<(), Error> {
        check_optional("gamma", channels, self.gamma)?;
        check_optional("beta", channels, self.beta)
    }

    pub(crate) fn parameters(&self) -> Parameters<'a, P> {
        Parameters { gamma: self.gamma, beta: self.beta }
    }
}

/// Neither: y = x̂.
impl<P> Default for Affine<'_, P> {
    fn default() -> Self {
        Self { gamma: None, beta: None }
    }
}

/// The largest |beta/gamma| of a channel that is rebuilt from its output.
const LARGEST_SHIFT: f64 = 64.0;

impl<P: Element<Param = P>> Affine<'_, P> {
    /// Checks that an element type `E` with these parameters gives outputs from which x̂ can be rebuilt.
    pub(crate) fn check_invertible<E: Element<Param = P>>(
        &self,
        shape: Shape,
        activation: Activation,
    ) -> Result<(), Error> {
        self.check(shape.channels())?;
        let slope = match activation {
            Activation::Identity => 1.0,
            Activation::LeakyRelu(slope) if slope > 0.0 => slope,
            actual => {
                let (pass, expected) = ("rebuilding x from y", "Identity or a LeakyRelu with a positive slope");
                return Err(Error::Activation { pass, expected, actual });
            }
        };
        let range @ [smallest, largest] = E::RANGE;
        // |x̂| is less than the root of the number of values.
        let root = (shape.values_per_channel() as f64).sqrt();
        for channel in 0..shape.channels() {
            let gamma = self.gamma.map_or(1.0, |gamma| to_f64::<P>(gamma[channel]));
            let beta = self.beta.map_or(0.0, |beta| to_f64::<P>(beta[channel]));
            let (g, b) = (gamma.abs(), beta.abs());
            let well_conditioned = b <= LARGEST_SHIFT * g;
            if !(well_conditioned && g * slope.min(1.0) >= smallest && (g * root + b) * slope.max(1.0) <= largest) {
                return Err(Error::NotInvertible { channel, gamma, beta, slope, range });
            }
        }
        Ok(())
    }
}

/// Further arguments of a pass, each absent or given: see [`BatchNorm::with`](crate::BatchNorm::with).
#[derive(Clone, Copy, Debug)]
pub struct Extras<'a, E: Element> {
    /// Added before the activation; of the plan's shape. Backward passes read it only if they recompute the argument
    /// of the activation.
    pub residual: Option<&'a [E]>,
    /// y as the forward pass wrote it, of the plan's shape: the backward pass of [`Activation::Relu`] and
    /// [`Activation::LeakyRelu`] takes its mask from it. Without it, and for [`Activation::Silu`], it recomputes the
    /// argument of the activation from x, gamma, beta and the residual, which for ReLU and f32 without a residual takes
    /// less time than to read y. Forward passes do not read it.
    pub output: Option<&'a [E]>,
    /// A weight for each position `o * inner + i`, finite and not negative: the same for all channels. Statistics
    /// become weighted means. A position with weight 0 is ignored, even if its value is NaN; y, dx and dresidual are 0
    /// there.
    ///
    /// Gradients follow: dy is the gradient of y as it is, and no weight is applied to it. dbeta and dgamma add g and
    /// g·x̂ of all positions whose weight is not 0, and only the means that dx subtracts are weighted, by w/Σw. A loss
    /// that weighs positions has its weights in dy already.
    pub weights: Option<&'a [E::Param]>,
}

/// No further arguments.
impl<E: Element> Default for Extras<'_, E> {
    fn default() -> Self {
        Self { residual: None, output: None, weights: None }
    }
}

impl<E: Element> Extras<'_, E> {
    pub(crate) fn check(&self, shape: Shape) -> Result<(), Error> {
        check_optional("residual", shape.len(), self.residual)?;
        check_optional("output", shape.len(), self.output)?;
        check_optional("weights", shape.values_per_channel(), self.weights)?;
        let valid = |w: f64| w >= 0.0 && w.is_finite();
        let weights = self.weights.unwrap_or_default();
        if let Some(position) = weights.iter().position(|w| !valid(w.to_f64())) {
            return Err(Error::Weight { position, value: weights[position].to_f64() });
        }
        // Only f64 has weights so large.
        let large = weights.iter().any(|w| w.to_f64() > f64::MAX / weights.len() as f64);
        check_count(if large { weights.iter().map(|w| w.to_f64()).sum() } else { 0.0 })
    }

    /// Whether there are weights, and all of them are 0.
    pub(crate) fn ignores_all(&self) -> bool {
        self.weights.is_some_and(|weights| weights.iter().all(|w| w.to_f64() == 0.0))
    }

    pub(crate) fn fusions(&self) -> Fusions<E, E::Param> {
        Fusions {
            residual: self.residual.map_or(null(), <[E]>::as_ptr),
            output: self.output.map_or(null(), <[E]>::as_ptr),
            weights: self.weights.map_or(Weights::NONE, Weights::new),
        }
    }
}

/// Where the backward pass writes its gradients. Those that are `None` are not computed.
///
/// `E` is the element type and `P` that of gamma and beta; for a pass of [`Uninit`](crate::Uninit) both are
/// [`MaybeUninit`].
///
/// A gradient that is wanted must be `Some`. So do not pass on the `None` of a conversion that failed, such as
/// `as_slice_mut()` of a tensor that is not contiguous: make it an error of yours.
#[derive(Debug)]
pub struct Gradients<'a, E, P = E> {
    /// The gradient of x, of the plan's shape.
    pub dx: Option<&'a mut [E]>,
    /// The gradient of the residual, of the plan's shape: `dy·act'`.
    pub dresidual: Option<&'a mut [E]>,
    /// The gradient of gamma, one value per channel.
    pub dgamma: Option<&'a mut [P]>,
    /// The gradient of beta, one value per channel.
    pub dbeta: Option<&'a mut [P]>,
}

impl<E, P> Default for Gradients<'_, E, P> {
    fn default() -> Self {
        Self { dx: None, dresidual: None, dgamma: None, dbeta: None }
    }
}

impl<'a, E, P> Gradients<'a, E, P> {
    pub(crate) fn check(&self, shape: Shape) -> Result<(), Error> {
        check_optional("dx", shape.len(), self.dx.as_deref())?;
        check_optional("dresidual", shape.len(), self.dresidual.as_deref())?;
        check_optional("dgamma", shape.channels(), self.dgamma.as_deref())?;
        check_optional("dbeta", shape.channels(), self.dbeta.as_deref())
    }

    /// The same memory, for passes that do not need its contents.
    pub(crate) fn into_uninit(self) -> Gradients<'a, MaybeUninit<E>, MaybeUninit<P>> {
        let Self { dx, dresidual, dgamma, dbeta } = self;
        let ([dx, dresidual], [dgamma, dbeta]) =
            ([dx, dresidual].map(|d| d.map(as_uninit)), [dgamma, dbeta].map(|d| d.map(as_uninit)));
        Gradients { dx, dresidual, dgamma, dbeta }
    }
}

/// The same memory. Whoever calls this does not make any of it uninitialized: passes only write values.
pub(crate) fn as_uninit<T>(values: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: the layout is the same, and passes, to which this crate gives it, write nothing but values of T.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<T>]) }
}

/// The gradients of a scalar with respect to the results of the backward pass, the inputs of second derivatives: see
/// [`BatchNorm::double_backward`](crate::BatchNorm::double_backward).
#[derive(Clone, Copy, Debug)]
pub struct Cotangents<'a, E: Element> {
    /// With respect to dx, of the plan's shape.
    pub dx: &'a [E],
    /// With respect to dgamma, one value per channel; 0 if absent.
    pub dgamma: Option<&'a [E::Param]>,
    /// With respect to dbeta, one value per channel; 0 if absent.
    pub dbeta: Option<&'a [E::Param]>,
}

/// Where [`BatchNorm::double_backward`](crate::BatchNorm::double_backward) writes the gradients of that scalar. Those
/// that are `None` are not computed. `E` is the element type and `P` that of gamma.
#[derive(Debug)]
pub struct SecondGradients<'a, E, P = E> {
    /// With respect to x, of the plan's shape.
    pub x: Option<&'a mut [E]>,
    /// With respect to dy, of the plan's shape.
    pub dy: Option<&'a mut [E]>,
    /// With respect to gamma, one value per channel.
    pub gamma: Option<&'a mut [P]>,
}

impl<'a, E, P> SecondGradients<'a, E, P> {
    pub(crate) fn check(&self, shape: Shape) -> Result<(), Error> {
        check_optional("the gradient of x", shape.len(), self.x.as_deref())?;
        check_optional("the gradient of dy", shape.len(), self.dy.as_deref())?;
        check_optional("the gradient of gamma", shape.channels(), self.gamma.as_deref())
    }

    /// The same memory, for passes that do not need its contents.
    pub(crate) fn into_uninit(self) -> SecondGradients<'a, MaybeUninit<E>, MaybeUninit<P>> {
        let [x, dy] = [self.x, self.dy].map(|d| d.map(as_uninit));
        SecondGradients { x, dy, gamma: self.gamma.map(as_uninit) }
    }
}

/// Exact. (The compiler knows that the parameter of an element type is a [`Real`], but not that a type is one if it is
/// its own parameter.)
pub(crate) fn to_f64<E: Element>(v: E::Param) -> f64 {
    v.to_f64()
}
