//! Groups of structs and arrays of a call, checked, which the core gets as its own types.

use crate::arrays::{Access, Array, Arrays, slice, slice_mut};
use crate::read::{check_reserved, choose, read};
use crate::status::{BN_ERROR_COUNT, BN_ERROR_SOURCE, BN_ERROR_VARIANCE, Status, fail};
use crate::structs::{bn_gradient_sums, bn_running_statistics, bn_scale_shift, bn_slice, bn_slice_mut, bn_statistics};
use batchnorm::{
    Affine, Element, Error, Extras, Fold, GradientSums, Gradients, Momentum, Precision, RunningStatistics, Shape,
    Source, Statistics,
};

pub(crate) const STATISTICS: [&str; 3] = ["statistics", "statistics.mean", "statistics.var"];
pub(crate) const SUMS: [&str; 3] = ["sums", "sums.g", "sums.gx"];

/// A caller's [`bn_statistics`], checked.
pub(crate) struct StatisticsView {
    names: [&'static str; 3],
    place: *mut bn_statistics,
    count: f64,
    mean: Array<f64>,
    var: Array<f64>,
}

impl StatisticsView {
    /// `names` are those of the struct and of its two arrays.
    ///
    /// # Safety
    /// As [`read`]. As long as the view is used, `p` allows the `access`.
    pub(crate) unsafe fn new(
        arrays: &mut Arrays,
        names: [&'static str; 3],
        p: *mut bn_statistics,
        channels: usize,
        access: Access,
    ) -> Result<Self, Status> {
        // SAFETY: the caller's promise.
        let bn_statistics { count, mean, var, .. } = unsafe { read(names[0], p)? };
        if access == Access::Write {
            arrays.written_struct(names[0], p)?;
        }
        let mean = arrays.doubles(names[1], mean, channels, access)?;
        let var = arrays.doubles(names[2], var, channels, access)?;
        Ok(Self { names, place: p, count, mean, var })
    }

    /// The statistics, to be read.
    ///
    /// # Safety
    /// [`Arrays::check_overlap`] has found no error. The caller's arrays are as the header demands, and nothing writes
    /// them while the result lives.
    pub(crate) unsafe fn read<'a>(&self) -> Result<Statistics<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        unsafe { Statistics::from_parts(self.count, self.mean.slice(), self.var.slice()) }.map_err(|e| self.name(e))
    }

    /// The statistics, to be changed.
    ///
    /// # Safety
    /// As [`read`](Self::read), and nothing else uses the arrays. The view was made with [`Access::Write`].
    pub(crate) unsafe fn change<'a>(&self) -> Result<Statistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        let (mean, var) = unsafe { (self.mean.slice_mut(), self.var.slice_mut()) };
        Statistics::from_parts(self.count, mean, var).map_err(|e| self.name(e))
    }

    /// An error in the values, which says where they are.
    fn name(&self, error: Error) -> Status {
        let [statistics, _, var] = self.names;
        match error {
            Error::Count(count) => fail(
                BN_ERROR_COUNT,
                format_args!("{statistics}.count is out of range: expected a finite number >= 0, got {count}"),
            ),
            Error::Variance { channel, value } => fail(
                BN_ERROR_VARIANCE,
                format_args!("{var}[{channel}] is invalid: expected a number >= 0 or NaN, got {value}"),
            ),
            error => error.into(),
        }
    }

    /// Their memory, to be overwritten.
    ///
    /// # Safety
    /// As [`change`](Self::change).
    pub(crate) unsafe fn write<'a>(&self) -> Result<Statistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Statistics::empty(self.mean.slice_mut(), self.var.slice_mut()) }?)
    }

    /// Stores the count, which is not in the arrays.
    ///
    /// # Safety
    /// As [`change`](Self::change).
    pub(crate) unsafe fn store(&self, statistics: &Statistics<&mut [f64]>) {
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*self.place).count).write(statistics.count()) };
    }
}

/// A caller's [`bn_gradient_sums`], checked.
pub(crate) struct SumsView {
    g: Array<f64>,
    gx: Array<f64>,
}

impl SumsView {
    /// # Safety
    /// As [`StatisticsView::new`].
    pub(crate) unsafe fn new(
        arrays: &mut Arrays,
        names: [&'static str; 3],
        p: *const bn_gradient_sums,
        channels: usize,
        access: Access,
    ) -> Result<Self, Status> {
        // SAFETY: the caller's promise.
        let bn_gradient_sums { g, gx, .. } = unsafe { read(names[0], p)? };
        let g = arrays.doubles(names[1], g, channels, access)?;
        let gx = arrays.doubles(names[2], gx, channels, access)?;
        Ok(Self { g, gx })
    }

    /// The sums, to be read.
    ///
    /// # Safety
    /// As [`StatisticsView::read`].
    pub(crate) unsafe fn read<'a>(&self) -> Result<GradientSums<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { GradientSums::from_parts(self.g.slice(), self.gx.slice()) }?)
    }

    /// The sums, to be changed or overwritten.
    ///
    /// # Safety
    /// As [`StatisticsView::read`], and nothing else uses the arrays. The view was made with [`Access::Write`].
    pub(crate) unsafe fn write<'a>(&self) -> Result<GradientSums<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { GradientSums::from_parts(self.g.slice_mut(), self.gx.slice_mut()) }?)
    }
}

/// A caller's [`bn_running_statistics`], checked.
pub(crate) struct RunningView {
    place: *mut bn_running_statistics,
    batches: u64,
    biased: bool,
    averages: Averages,
}

/// The arrays of means and variances.
enum Averages {
    Doubles([Array<f64>; 2]),
    Floats([Array<f32>; 2]),
}

impl RunningView {
    /// # Safety
    /// As [`StatisticsView::new`].
    pub(crate) unsafe fn new(
        arrays: &mut Arrays,
        p: *mut bn_running_statistics,
        channels: usize,
        access: Access,
    ) -> Result<Self, Status> {
        // SAFETY: the caller's promise.
        let running = unsafe { read("running", p)? };
        check_reserved("running.reserved", running.reserved)?;
        let biased = choose("running.variance", running.variance, &[false, true])?;
        if access == Access::Write {
            arrays.written_struct("running", p)?;
        }
        let bn_running_statistics { batches, mean, var, float_mean, float_var, .. } = running;
        let doubles = given(mean.data, mean.len) || given(var.data, var.len);
        let floats = given(float_mean.data, float_mean.len) || given(float_var.data, float_var.len);
        let averages = match (doubles, floats) {
            (true, true) => {
                let message = format_args!(
                    "expected running.mean and running.var, or running.float_mean and running.float_var, the others \
                     absent; got some of both"
                );
                return Err(fail(BN_ERROR_SOURCE, message));
            }
            (false, true) => {
                let mean = arrays.floats("running.float_mean", float_mean, channels, access)?;
                let var = arrays.floats("running.float_var", float_var, channels, access)?;
                Averages::Floats([mean, var])
            }
            _ => {
                let mean = arrays.doubles("running.mean", mean, channels, access)?;
                let var = arrays.doubles("running.var", var, channels, access)?;
                Averages::Doubles([mean, var])
            }
        };
        Ok(Self { place: p, batches, biased, averages })
    }

    /// # Safety
    /// As [`StatisticsView::read`].
    pub(crate) unsafe fn read<'a>(&self) -> Result<Source<'a>, Status> {
        // SAFETY: the caller's promise.
        unsafe {
            Ok(match self.averages {
                Averages::Doubles([mean, var]) => {
                    Source::Running(RunningStatistics::from_parts(mean.slice(), var.slice(), self.batches)?)
                }
                Averages::Floats([mean, var]) => {
                    Source::RunningF32(RunningStatistics::from_parts(mean.slice(), var.slice(), self.batches)?)
                }
            })
        }
    }

    /// Updates the averages, and their number of batches, which is not in the arrays.
    ///
    /// # Safety
    /// As [`StatisticsView::read`], and nothing else uses the arrays. The view was made with [`Access::Write`].
    pub(crate) unsafe fn update(&mut self, batch: &Statistics<&[f64]>, momentum: Momentum) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.averages {
                Averages::Doubles(arrays) => self.update_arrays(arrays, batch, momentum),
                Averages::Floats(arrays) => self.update_arrays(arrays, batch, momentum),
            }
        }
    }

    /// # Safety
    /// As [`update`](Self::update).
    unsafe fn update_arrays<P: Precision>(
        &self,
        [mean, var]: [Array<P>; 2],
        batch: &Statistics<&[f64]>,
        momentum: Momentum,
    ) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        unsafe {
            let running = RunningStatistics::from_parts(mean.slice_mut(), var.slice_mut(), self.batches)?;
            let mut running = running.biased(self.biased);
            running.update(batch, momentum)?;
            (&raw mut (*self.place).batches).write(running.batches());
        }
        Ok(())
    }
}

/// Whether an array is not absent.
fn given<T>(data: *mut T, len: usize) -> bool {
    !data.is_null() || len > 0
}

/// The statistics or the running statistics, whichever the caller gave.
pub(crate) enum SourceView {
    Batch(StatisticsView),
    Running(RunningView),
}

impl SourceView {
    /// # Safety
    /// As [`StatisticsView::new`].
    pub(crate) unsafe fn new(
        arrays: &mut Arrays,
        statistics: *const bn_statistics,
        running: *const bn_running_statistics,
        channels: usize,
    ) -> Result<Self, Status> {
        match (statistics.is_null(), running.is_null()) {
            // SAFETY: the caller's promise.
            (false, true) => unsafe {
                StatisticsView::new(arrays, STATISTICS, statistics.cast_mut(), channels, Access::Read).map(Self::Batch)
            },
            // SAFETY: as above.
            (true, false) => unsafe {
                RunningView::new(arrays, running.cast_mut(), channels, Access::Read).map(Self::Running)
            },
            (neither, _) => {
                let actual = if neither { "neither" } else { "both" };
                let message =
                    format_args!("expected exactly one of statistics and running, the other NULL; got {actual}");
                Err(fail(BN_ERROR_SOURCE, message))
            }
        }
    }

    /// # Safety
    /// As [`StatisticsView::read`].
    pub(crate) unsafe fn read(&self) -> Result<Source<'_>, Status> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Batch(view) => view.read().map(Source::Batch),
                Self::Running(view) => view.read(),
            }
        }
    }
}

/// A caller's [`bn_scale_shift`], checked.
pub(crate) struct FoldView {
    scale: Array<f64>,
    shift: Array<f64>,
}

impl FoldView {
    /// # Safety
    /// As [`read`]. As long as the view is used, `p` allows the `access`.
    pub(crate) unsafe fn new(
        arrays: &mut Arrays,
        p: *const bn_scale_shift,
        channels: usize,
        access: Access,
    ) -> Result<Self, Status> {
        // SAFETY: the caller's promise.
        let bn_scale_shift { scale, shift, .. } = unsafe { read("scale_shift", p)? };
        let scale = arrays.doubles("scale_shift.scale", scale, channels, access)?;
        let shift = arrays.doubles("scale_shift.shift", shift, channels, access)?;
        Ok(Self { scale, shift })
    }

    /// The fold, to be read.
    ///
    /// # Safety
    /// As [`StatisticsView::read`].
    pub(crate) unsafe fn read<'a>(&self) -> Result<Fold<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Fold::from_parts(self.scale.slice(), self.shift.slice()) }?)
    }

    /// The fold, to be written.
    ///
    /// # Safety
    /// As [`StatisticsView::read`], and nothing else uses the arrays. The view was made with [`Access::Write`].
    pub(crate) unsafe fn write<'a>(&self) -> Result<Fold<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Fold::from_parts(self.scale.slice_mut(), self.shift.slice_mut()) }?)
    }
}

/// A caller's gamma and beta, checked.
pub(crate) struct AffineView<P> {
    gamma: Option<Array<P>>,
    beta: Option<Array<P>>,
}

impl<P> AffineView<P> {
    pub(crate) fn new(arrays: &mut Arrays, gamma: bn_slice, beta: bn_slice, channels: usize) -> Result<Self, Status> {
        let gamma = arrays.input_or_absent("gamma", gamma, channels)?;
        let beta = arrays.input_or_absent("beta", beta, channels)?;
        Ok(Self { gamma, beta })
    }

    /// # Safety
    /// As [`Array::slice`].
    pub(crate) unsafe fn read<'a>(self) -> Affine<'a, P> {
        // SAFETY: the caller's promise.
        unsafe { Affine { gamma: slice(self.gamma), beta: slice(self.beta) } }
    }
}

/// A caller's residual, output and weights, checked.
pub(crate) struct ExtrasView<E: Element> {
    residual: Option<Array<E>>,
    output: Option<Array<E>>,
    weights: Option<Array<E::Param>>,
}

impl<E: Element> ExtrasView<E> {
    pub(crate) fn new(
        arrays: &mut Arrays,
        residual: bn_slice,
        output: bn_slice,
        weights: bn_slice,
        shape: Shape,
    ) -> Result<Self, Status> {
        let residual = arrays.input_or_absent("residual", residual, shape.len())?;
        let output = arrays.input_or_absent("output", output, shape.len())?;
        let weights = arrays.input_or_absent("weights", weights, shape.values_per_channel())?;
        Ok(Self { residual, output, weights })
    }

    /// # Safety
    /// As [`Array::slice`].
    pub(crate) unsafe fn read<'a>(self) -> Extras<'a, E> {
        // SAFETY: the caller's promise.
        unsafe { Extras { residual: slice(self.residual), output: slice(self.output), weights: slice(self.weights) } }
    }
}

/// A caller's arrays for parameter gradients, checked.
pub(crate) struct ParametersView<P> {
    dgamma: Option<Array<P>>,
    dbeta: Option<Array<P>>,
}

impl<P> ParametersView<P> {
    pub(crate) fn new(
        arrays: &mut Arrays,
        dgamma: bn_slice_mut,
        dbeta: bn_slice_mut,
        channels: usize,
    ) -> Result<Self, Status> {
        let dgamma = arrays.output_or_absent("dgamma", dgamma, channels)?;
        let dbeta = arrays.output_or_absent("dbeta", dbeta, channels)?;
        Ok(Self { dgamma, dbeta })
    }

    /// # Safety
    /// As [`Array::slice_mut`].
    pub(crate) unsafe fn write<'a, E: Element<Param = P>>(self) -> Gradients<'a, E, P> {
        // SAFETY: the caller's promise.
        let (dgamma, dbeta) = unsafe { (slice_mut(self.dgamma), slice_mut(self.dbeta)) };
        Gradients { dgamma, dbeta, ..Gradients::default() }
    }
}
