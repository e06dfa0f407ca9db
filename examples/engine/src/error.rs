//! What can go wrong in the engine.

use std::fmt;

/// The engine's error.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// A tensor does not have the dimensions that an operation needs.
    Dims {
        /// The tensor, and what is wrong with it.
        expected: &'static str,
        /// Its dimensions.
        actual: Vec<usize>,
    },
    /// A kernel of batch normalization refused its arguments.
    BatchNorm(batchnorm::Error),
}

/// A result of the engine.
pub type Result<T> = std::result::Result<T, Error>;

impl From<batchnorm::Error> for Error {
    fn from(error: batchnorm::Error) -> Self {
        Self::BatchNorm(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dims { expected, actual } => write!(f, "wrong dimensions: expected {expected}, got {actual:?}"),
            Self::BatchNorm(error) => write!(f, "batch normalization: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Dims { .. } => None,
            Self::BatchNorm(error) => Some(error),
        }
    }
}
