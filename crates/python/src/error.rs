//! What a call fails with: an exception of Python, made without Python's lock.

use batchnorm::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyTypeError, PyValueError};

/// Why a call did nothing.
pub(crate) enum Failure {
    /// A `TypeError`.
    Type(String),
    /// A `ValueError`.
    Value(String),
}

impl Failure {
    pub(crate) fn value(message: String) -> Self {
        Self::Value(message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Value(error.to_string())
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Type(message) => PyTypeError::new_err(message),
            Failure::Value(message) => PyValueError::new_err(message),
        }
    }
}
