//! Running averages in a caller's memory, of any element type.

use crate::arrays::{Arrays, Raw};
use crate::elements::wrong_types;
use crate::error::Failure;
use crate::source::{Given, RawSource};
use batchnorm::{Element, Momentum, RunningStatistics};
use half::{bf16, f16};

/// What averages are updated with.
pub(crate) struct Update {
    pub(crate) mean: Raw,
    pub(crate) var: Raw,
    /// Batches so far.
    pub(crate) batches: u64,
    /// The statistics of a batch.
    pub(crate) batch: RawSource,
    /// None is the plain average over all batches.
    pub(crate) momentum: Option<f64>,
    pub(crate) biased: bool,
    /// Whether a momentum outside [0, 1] is used as it is, as PyTorch does, instead of being an error.
    pub(crate) any_momentum: bool,
}

impl Update {
    /// Updates averages of the element type of this number. Returns the number of batches.
    ///
    /// # Safety
    /// All arrays are as in [`Array::slice_mut`](crate::arrays::Array::slice_mut).
    pub(crate) unsafe fn run(&self, element: usize) -> Result<u64, Failure> {
        // SAFETY: the caller's promise.
        unsafe {
            match element {
                0 => self.averages::<f32>(),
                1 => self.averages::<f64>(),
                2 => self.averages::<bf16>(),
                3 => self.averages::<f16>(),
                _ => Err(wrong_types(element, element)),
            }
        }
    }

    unsafe fn averages<E: Element>(&self) -> Result<u64, Failure> {
        let mut arrays = Arrays::new();
        let (mean, var) =
            (arrays.output::<E>("running mean", self.mean)?, arrays.output::<E>("running var", self.var)?);
        let batch = Given::new(&mut arrays, self.batch)?;
        arrays.check_overlap(None)?;
        // SAFETY: the caller's promise; what becomes a slice has been checked.
        let (mean, var, batch) = unsafe { (mean.slice_mut(), var.slice_mut(), batch.read()?.batch()?) };
        let wide = |values: &[E]| values.iter().map(|&v| Element::to_f64(v)).collect::<Vec<_>>();
        let mut running = RunningStatistics::from_parts(wide(mean), wide(var), self.batches)?.biased(self.biased);
        let outside = self.momentum.filter(|m| self.any_momentum && !(0.0..=1.0).contains(m));
        // A momentum of 1 gives the new values, which are then weighed here.
        let momentum = outside.map_or(self.momentum, |_| Some(1.0));
        running.update(&batch, momentum.map_or(Momentum::Cumulative, Momentum::Exponential))?;
        for (averages, new) in [(mean, running.mean()), (var, running.var())] {
            for (average, &new) in averages.iter_mut().zip(new) {
                let weigh = |momentum: f64| (1.0 - momentum) * Element::to_f64(*average) + momentum * new;
                *average = E::from_f64(outside.map_or(new, weigh));
            }
        }
        Ok(running.batches())
    }
}
