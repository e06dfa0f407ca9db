//! What is applied to a normalized value in the same sweep.

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
    /// `z` if z is positive, `slope·z` otherwise. The slope is finite and not negative.
    LeakyRelu(f64),
    /// `z / (1 + exp(−z))`, also known as swish.
    Silu,
}
