//! What is applied to a normalized value in the same sweep.

use crate::Error;

/// An activation function, fused to the passes of a plan: `y = act(gamma·x̂ + beta + residual)`.
///
/// NaN gives NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `z`
    #[default]
    Identity,
    /// `max(z, 0)`; its derivative at 0 is 0.
    Relu,
    /// `z` where z is positive, `slope·z` elsewhere. The slope is finite and not negative.
    LeakyRelu(f64),
    /// `z / (1 + exp(−z))`, also known as swish.
    Silu,
}

impl Activation {
    pub(crate) fn check(self) -> Result<Self, Error> {
        match self {
            Self::LeakyRelu(slope) if !(slope >= 0.0 && slope.is_finite()) => Err(Error::Slope(slope)),
            other => Ok(other),
        }
    }
}
