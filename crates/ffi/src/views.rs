//! Groups of structs and arrays of a call, checked, which the core gets as its own types.

use crate::arrays::{Access, Array, Arrays, slice, slice_mut};
use crate::read::{check_reserved, choose, read};
use crate::status::{BN_ERROR_SOURCE, Status, fail};
use crate::structs::{bn_gradient_sums, bn_running_statistics, bn_scale_shift, bn_slice, bn_slice_mut, bn_statistics};
use batchnorm::{Affine, Element, Extras, Fold, GradientSums, Gradients, RunningStatistics, Shape, Source, Statistics};

pub(crate) const STATISTICS: [&str; 3] = ["statistics", "statistics.mean", "statistics.var"];
pub(crate) const SUMS: [&str; 3] = ["sums", "sums.g", "sums.gx"];

/// A caller's [`bn_statistics`], checked.
pub(crate) struct StatisticsView {
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
        Ok(Self { place: p, count, mean, var })
    }

    /// The statistics, to be read.
    ///
    /// # Safety
    /// [`Arrays::check_overlap`] has found no error. The caller's arrays are as the header demands, and nothing writes
    /// them while the result lives.
    pub(crate) unsafe fn read<'a>(&self) -> Result<Statistics<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Statistics::from_parts(self.count, self.mean.slice(), self.var.slice()) }?)
    }

    /// The statistics, to be changed.
    ///
    /// # Safety
    /// As [`read`](Self::read), and nothing else uses the arrays. The view was made with [`Access::Write`].
    pub(crate) unsafe fn change<'a>(&self) -> Result<Statistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Statistics::from_parts(self.count, self.mean.slice_mut(), self.var.slice_mut()) }?)
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
    mean: Array<f64>,
    var: Array<f64>,
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
        let bn_running_statistics { batches, mean, var, variance, reserved, .. } = unsafe { read("running", p)? };
        check_reserved("running.reserved", reserved)?;
        let biased = choose("running.variance", variance, &[false, true])?;
        if access == Access::Write {
            arrays.written_struct("running", p)?;
        }
        let mean = arrays.doubles("running.mean", mean, channels, access)?;
        let var = arrays.doubles("running.var", var, channels, access)?;
        Ok(Self { place: p, batches, biased, mean, var })
    }

    /// # Safety
    /// As [`StatisticsView::read`].
    pub(crate) unsafe fn read<'a>(&self) -> Result<RunningStatistics<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { RunningStatistics::from_parts(self.mean.slice(), self.var.slice(), self.batches) }?)
    }

    /// # Safety
    /// As [`StatisticsView::read`], and nothing else uses the arrays. The view was made with [`Access::Write`].
    pub(crate) unsafe fn change<'a>(&self) -> Result<RunningStatistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        let (mean, var) = unsafe { (self.mean.slice_mut(), self.var.slice_mut()) };
        Ok(RunningStatistics::from_parts(mean, var, self.batches)?.biased(self.biased))
    }

    /// Stores the number of batches, which is not in the arrays.
    ///
    /// # Safety
    /// As [`change`](Self::change).
    pub(crate) unsafe fn store(&self, running: &RunningStatistics<&mut [f64]>) {
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*self.place).batches).write(running.batches()) };
    }
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
    pub(crate) unsafe fn read<'a>(&self) -> Result<Source<'a>, Status> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Batch(view) => view.read().map(Source::Batch),
                Self::Running(view) => view.read().map(Source::Running),
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
