//! What can be wrong with a call: one enum for the whole crate.

use crate::activation::Activation;
use crate::shape::Shape;
use crate::simd::Isa;
use std::fmt;

/// What is wrong with the arguments of a call: the expected and the actual value.
///
/// Every function checks its arguments before it writes anything: after an `Err` all outputs are unchanged.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A slice, or the number of channels of an argument, does not fit the shape.
    Length {
        /// The argument.
        argument: &'static str,
        /// Expected number of elements.
        expected: usize,
        /// Actual number of elements.
        actual: usize,
    },
    /// The weights of a layer are not a whole number of rows or blocks, or there are none.
    Multiple {
        /// The argument.
        argument: &'static str,
        /// A multiple of this number of elements was expected.
        of: usize,
        /// Actual number of elements.
        actual: usize,
    },
    /// The number of groups of a layer must divide its inputs and its outputs.
    Groups {
        /// Inputs of the layer.
        inputs: usize,
        /// Outputs of the layer.
        outputs: usize,
        /// Actual number of groups.
        groups: usize,
    },
    /// A buffer of the shape, at 8 bytes per element, would exceed `isize::MAX` bytes.
    ShapeOverflow {
        /// The actual extents.
        dims: Vec<usize>,
    },
    /// The axis of the channels must be one of the axes.
    ChannelAxis {
        /// Number of axes.
        axes: usize,
        /// The actual axis.
        actual: usize,
    },
    /// The elements of a tensor do not follow each other in memory in any order of axes: some are missing in between,
    /// belong to several indices, or go backwards. A copy in standard layout can be used.
    NotDense {
        /// The tensor.
        argument: &'static str,
        /// The innermost axis whose stride is wrong.
        axis: usize,
        /// The stride with which this axis would follow those inside it, in elements.
        expected: isize,
        /// Actual stride.
        actual: isize,
        /// The axes with more than one element in the order of their strides, the largest first.
        order: Vec<usize>,
        /// The strides of a copy in standard layout.
        standard: Vec<isize>,
    },
    /// An array does not have the dims of x.
    Dims {
        /// The array.
        argument: &'static str,
        /// Those of x.
        expected: Vec<usize>,
        /// The actual ones.
        actual: Vec<usize>,
    },
    /// An array does not have the strides of x.
    Strides {
        /// The array.
        argument: &'static str,
        /// Those of x.
        expected: Vec<isize>,
        /// The actual ones.
        actual: Vec<isize>,
    },
    /// The dims and strides of an array do not map onto the shape of the plan.
    Layout {
        /// The array.
        argument: &'static str,
        /// The shape of the plan.
        expected: Shape,
        /// That of the array.
        actual: Shape,
    },
    /// eps must be finite and not negative.
    Eps(f64),
    /// The slope of a leaky ReLU must be finite and not negative.
    Slope(f64),
    /// A weight must be finite and not negative.
    Weight {
        /// Its position `o * inner + i`.
        position: usize,
        /// Actual value.
        value: f64,
    },
    /// The plan's activation does not allow the pass.
    Activation {
        /// The pass.
        pass: &'static str,
        /// The activations that allow it.
        expected: &'static str,
        /// That of the plan.
        actual: Activation,
    },
    /// x cannot be rebuilt from y within the stated bound.
    NotInvertible {
        /// The first channel concerned.
        channel: usize,
        /// Its gamma.
        gamma: f64,
        /// Its beta.
        beta: f64,
        /// The factor by which the plan's activation multiplies negative values; 1 for the identity.
        slope: f64,
        /// The smallest |y| that is allowed at |x̂| = 1, and the largest at the largest possible |x̂|.
        range: [f64; 2],
    },
    /// An exponential momentum must lie in [0, 1].
    Momentum(f64),
    /// An unbiased variance needs more than one value per channel.
    TooFewValues {
        /// Actual number of values per channel.
        count: f64,
    },
    /// Statistics over no values cannot normalize a batch that has some.
    EmptyStatistics,
    /// A count of values must be finite and not negative.
    Count(f64),
    /// A variance is negative, or NaN where a number is required.
    Variance {
        /// The first channel concerned.
        channel: usize,
        /// Its variance.
        value: f64,
    },
    /// The scratch memory is too small for one pass.
    Scratch {
        /// Bytes that are enough at any alignment.
        expected: usize,
        /// Actual number of bytes.
        actual: usize,
    },
    /// This CPU does not have the requested instruction set.
    UnsupportedIsa {
        /// The requested one.
        isa: Isa,
        /// The fastest that this CPU has.
        best: Isa,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { argument, expected, actual } => {
                write!(f, "{argument} has the wrong length: expected {expected} elements, got {actual}")
            }
            Self::Multiple { argument, of, actual } => {
                write!(
                    f,
                    "{argument} has the wrong length: expected a positive multiple of {of} elements, got {actual}"
                )
            }
            Self::Groups { inputs, outputs, groups } => {
                write!(
                    f,
                    "groups is invalid: expected a divisor of {inputs} inputs and {outputs} outputs, got {groups}"
                )
            }
            Self::ShapeOverflow { dims } => {
                write!(f, "shape {dims:?} is too large: expected at most isize::MAX bytes at 8 bytes per element")
            }
            Self::ChannelAxis { axes, actual } => {
                write!(f, "the channel axis is out of range: expected one of {axes} axes, got axis {actual}")
            }
            Self::NotDense { argument, axis, expected, actual, order, standard } => {
                let effect = match actual {
                    ..0 => "which goes backwards",
                    0 => "which repeats elements",
                    _ if actual < expected => "which makes elements overlap",
                    _ => "which leaves gaps",
                };
                write!(
                    f,
                    "{argument} is not dense in memory: expected stride {expected} for axis {axis}, got {actual}, \
                     {effect}; by their strides its axes are in the order {order:?}, and a copy in standard layout has \
                     strides {standard:?}"
                )
            }
            Self::Dims { argument, expected, actual } => {
                write!(f, "{argument} has the wrong dims: expected those of x, {expected:?}, got {actual:?}")
            }
            Self::Strides { argument, expected, actual } => {
                write!(f, "{argument} has the wrong strides: expected those of x, {expected:?}, got {actual:?}")
            }
            Self::Layout { argument, expected, actual } => {
                let [expected, actual] = [expected, actual].map(|shape| {
                    format!("outer {}, channels {} and inner {}", shape.outer(), shape.channels(), shape.inner())
                });
                write!(f, "{argument} does not have the plan's shape: expected {expected}, got {actual}")
            }
            Self::Eps(eps) => write!(f, "eps is out of range: expected a finite number >= 0, got {eps}"),
            Self::Slope(slope) => write!(f, "slope is out of range: expected a finite number >= 0, got {slope}"),
            Self::Weight { position, value } => {
                write!(f, "weight of position {position} is invalid: expected a finite number >= 0, got {value}")
            }
            Self::Activation { pass, expected, actual } => {
                write!(f, "{pass} does not support the plan's activation: expected {expected}, got {actual:?}")
            }
            Self::NotInvertible { channel, gamma, beta, slope, range: [least, most] } => write!(
                f,
                "channel {channel} cannot be rebuilt from its output: expected |beta| <= 64*|gamma| and |output| from \
                 {least:e} to {most:e}, got gamma {gamma:?}, beta {beta:?} and slope {slope:?}"
            ),
            Self::Momentum(m) => write!(f, "momentum is out of range: expected a number in [0, 1], got {m}"),
            Self::TooFewValues { count } => write!(
                f,
                "too few values for an unbiased variance: expected more than 1 value per channel, got {count}"
            ),
            Self::EmptyStatistics => {
                write!(f, "the statistics are empty: expected a count of at least 1 value per channel, got 0")
            }
            Self::Count(n) => write!(f, "count is out of range: expected a finite number >= 0, got {n}"),
            Self::Variance { channel, value } => {
                write!(f, "variance of channel {channel} is invalid: expected a number >= 0, got {value}")
            }
            Self::Scratch { expected, actual } => {
                write!(f, "scratch memory is too small: expected at least {expected} bytes, got {actual}")
            }
            Self::UnsupportedIsa { isa, best } => {
                write!(
                    f,
                    "this CPU does not support {isa:?}: expected one of its own instruction sets, the fastest of which is {best:?}"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// `Ok` if `actual` is the expected length of the argument.
pub(crate) fn check_len(argument: &'static str, expected: usize, actual: usize) -> Result<(), Error> {
    if expected == actual { Ok(()) } else { Err(Error::Length { argument, expected, actual }) }
}

/// [`check_len`] of an argument that may be absent.
pub(crate) fn check_optional<T>(argument: &'static str, expected: usize, actual: Option<&[T]>) -> Result<(), Error> {
    check_len(argument, expected, actual.map_or(expected, <[T]>::len))
}
