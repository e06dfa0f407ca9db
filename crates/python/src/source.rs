//! Statistics that a caller gives: of a batch or running ones, in memory of any element type.

use crate::arrays::{Array, Arrays, Raw};
use crate::elements::wrong_types;
use crate::error::Failure;
use batchnorm::{Element, Error, RunningStatistics, Source, Statistics};
use half::{bf16, f16};

/// `(count, element, mean, var)`: the count of values per channel, or None for running statistics, which are constants.
pub(crate) type RawSource = (Option<f64>, usize, Raw, Raw);

/// Statistics whose memory has been checked.
pub(crate) enum Given {
    F64(Option<f64>, Array<f64>, Array<f64>),
    F32(Option<f64>, Array<f32>, Array<f32>),
    Bf16(Option<f64>, Array<bf16>, Array<bf16>),
    F16(Option<f64>, Array<f16>, Array<f16>),
}

/// Statistics that can be read.
pub(crate) enum Read<'a> {
    Batch(Statistics<&'a [f64]>),
    BatchF32(Statistics<&'a [f32]>),
    BatchWidened(Statistics<Vec<f32>>),
    Running(RunningStatistics<&'a [f64]>),
    RunningF32(RunningStatistics<&'a [f32]>),
    RunningWidened(RunningStatistics<Vec<f32>>),
}

impl Given {
    pub(crate) fn new(arrays: &mut Arrays, (count, element, mean, var): RawSource) -> Result<Self, Failure> {
        Ok(match element {
            0 => Self::F32(count, arrays.input("mean", mean)?, arrays.input("var", var)?),
            1 => Self::F64(count, arrays.input("mean", mean)?, arrays.input("var", var)?),
            2 => Self::Bf16(count, arrays.input("mean", mean)?, arrays.input("var", var)?),
            3 => Self::F16(count, arrays.input("mean", mean)?, arrays.input("var", var)?),
            _ => return Err(wrong_types(element, element)),
        })
    }

    /// # Safety
    /// As [`Array::slice`].
    pub(crate) unsafe fn read<'a>(self) -> Result<Read<'a>, Failure> {
        fn widened<E: Element>(values: &[E]) -> Vec<f32> {
            values.iter().map(|v| v.to_f32()).collect()
        }
        // SAFETY: the caller's promise.
        Ok(unsafe {
            match self {
                Self::F64(Some(n), mean, var) => Read::Batch(Statistics::from_parts(n, mean.slice(), var.slice())?),
                Self::F64(None, mean, var) => {
                    Read::Running(RunningStatistics::from_parts(mean.slice(), var.slice(), 0)?)
                }
                Self::F32(Some(n), mean, var) => Read::BatchF32(Statistics::from_parts(n, mean.slice(), var.slice())?),
                Self::F32(None, mean, var) => {
                    Read::RunningF32(RunningStatistics::from_parts(mean.slice(), var.slice(), 0)?)
                }
                Self::Bf16(count, mean, var) => Read::widened(count, widened(mean.slice()), widened(var.slice()))?,
                Self::F16(count, mean, var) => Read::widened(count, widened(mean.slice()), widened(var.slice()))?,
            }
        })
    }
}

impl Read<'_> {
    fn widened(count: Option<f64>, mean: Vec<f32>, var: Vec<f32>) -> Result<Self, Error> {
        Ok(match count {
            Some(count) => Self::BatchWidened(Statistics::from_parts(count, mean, var)?),
            None => Self::RunningWidened(RunningStatistics::from_parts(mean, var, 0)?),
        })
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match self {
            Self::Batch(s) => s.into(),
            Self::BatchF32(s) => s.into(),
            Self::BatchWidened(s) => s.into(),
            Self::Running(s) => s.into(),
            Self::RunningF32(s) => s.into(),
            Self::RunningWidened(s) => s.into(),
        }
    }

    /// The statistics of a batch in f64.
    pub(crate) fn batch(self) -> Result<Statistics<Vec<f64>>, Failure> {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
        Ok(match self {
            Self::Batch(s) => Statistics::from_parts(s.count(), s.mean().to_vec(), s.var().to_vec())?,
            Self::BatchF32(s) => Statistics::from_parts(s.count(), wide(s.mean()), wide(s.var()))?,
            Self::BatchWidened(s) => Statistics::from_parts(s.count(), wide(s.mean()), wide(s.var()))?,
            _ => return Err(Failure::value("expected the statistics of a batch, got running statistics".into())),
        })
    }
}
