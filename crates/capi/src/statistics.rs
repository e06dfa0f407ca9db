//! Statistics, averages and sums as a caller keeps them, and the calls that need no activation.

use super::arrays::{Access, Array, Arrays};
use super::descriptors::{
    BN_AVERAGE_CUMULATIVE, BN_AVERAGE_EXPONENTIAL, bn_gradient_sums, bn_running_statistics, bn_statistics,
    check_reserved, choose, plan, read,
};
use super::plan::bn_plan;
use super::status::{BN_ERROR_SOURCE, Status, fail, guard};
use batchnorm::{GradientSums, Momentum, RunningStatistics, Source, Statistics};

/// A caller's [`bn_statistics`], checked.
pub(crate) struct StatisticsView {
    place: *mut bn_statistics,
    count: f64,
    mean: Array<f64>,
    var: Array<f64>,
}

impl StatisticsView {
    /// `names` are those of the struct and its two arrays.
    ///
    /// # Safety
    /// As [`read`]; what `access` says can be done at `p` while the view is used.
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
    /// `check_overlap` has found nothing, and nothing writes the arrays while the result lives.
    pub(crate) unsafe fn read<'a>(&self) -> Result<Statistics<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Statistics::from_parts(self.count, self.mean.slice(), self.var.slice()) }?)
    }

    /// The statistics, to be changed.
    ///
    /// # Safety
    /// As [`read`](Self::read), and the view is one to write to.
    unsafe fn change<'a>(&self) -> Result<Statistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Statistics::from_parts(self.count, self.mean.slice_mut(), self.var.slice_mut()) }?)
    }

    /// Their memory, to be written.
    ///
    /// # Safety
    /// As [`change`](Self::change).
    pub(crate) unsafe fn write<'a>(&self) -> Result<Statistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Statistics::empty(self.mean.slice_mut(), self.var.slice_mut()) }?)
    }

    /// What is not in the arrays.
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

    /// The sums, to be changed or written.
    ///
    /// # Safety
    /// As [`StatisticsView::read`], and the view is one to write to.
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
    unsafe fn read<'a>(&self) -> Result<RunningStatistics<&'a [f64]>, Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { RunningStatistics::from_parts(self.mean.slice(), self.var.slice(), self.batches) }?)
    }

    /// # Safety
    /// As [`StatisticsView::read`], and the view is one to write to.
    unsafe fn change<'a>(&self) -> Result<RunningStatistics<&'a mut [f64]>, Status> {
        // SAFETY: the caller's promise.
        let (mean, var) = unsafe { (self.mean.slice_mut(), self.var.slice_mut()) };
        Ok(RunningStatistics::from_parts(mean, var, self.batches)?.biased(self.biased))
    }

    /// What is not in the arrays.
    ///
    /// # Safety
    /// As [`change`](Self::change).
    unsafe fn store(&self, running: &RunningStatistics<&mut [f64]>) {
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*self.place).batches).write(running.batches()) };
    }
}

/// The one of two that a caller gave.
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
                let came = if neither { "neither" } else { "both" };
                let message = format_args!("expected one of statistics and running, and the other NULL; got {came}");
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

pub(crate) const STATISTICS: [&str; 3] = ["statistics", "statistics.mean", "statistics.var"];
pub(crate) const SUMS: [&str; 3] = ["sums", "sums.g", "sums.gx"];
const INTO_STATISTICS: [&str; 3] = ["into", "into.mean", "into.var"];
const OTHER_STATISTICS: [&str; 3] = ["other", "other.mean", "other.var"];
const INTO_SUMS: [&str; 3] = ["into", "into.g", "into.gx"];
const OTHER_SUMS: [&str; 3] = ["other", "other.g", "other.gx"];

/// Makes into the statistics of its values and those of other together. A count of 0 is where merging starts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_merge_statistics(
    plan: *const bn_plan,
    into: *mut bn_statistics,
    other: *const bn_statistics,
) -> i32 {
    guard(|| {
        // SAFETY: the header asks the caller for what each of these needs; what is read and written has been checked.
        unsafe {
            let plan = self::plan(plan)?;
            let (channels, mut arrays) = (plan.channels(), Arrays::new(plan));
            let into = StatisticsView::new(&mut arrays, INTO_STATISTICS, into, channels, Access::Write)?;
            let other = StatisticsView::new(&mut arrays, OTHER_STATISTICS, other.cast_mut(), channels, Access::Read)?;
            arrays.check_overlap(None)?;
            let mut statistics = into.change()?;
            statistics.merge(&other.read()?)?;
            into.store(&statistics);
            Ok(())
        }
    })
}

/// Adds other to into: sums of parts of a batch, about the same mean, become those of the whole.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_merge_gradient_sums(
    plan: *const bn_plan,
    into: *mut bn_gradient_sums,
    other: *const bn_gradient_sums,
) -> i32 {
    guard(|| {
        // SAFETY: the header asks the caller for what each of these needs; what is read and written has been checked.
        unsafe {
            let plan = self::plan(plan)?;
            let (channels, mut arrays) = (plan.channels(), Arrays::new(plan));
            let into = SumsView::new(&mut arrays, INTO_SUMS, into, channels, Access::Write)?;
            let other = SumsView::new(&mut arrays, OTHER_SUMS, other, channels, Access::Read)?;
            arrays.check_overlap(None)?;
            Ok(into.write()?.merge(&other.read()?)?)
        }
    })
}

/// Takes the statistics of a batch into the averages. average is one of BN_AVERAGE_. An empty batch changes nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_update_running_statistics(
    plan: *const bn_plan,
    running: *mut bn_running_statistics,
    statistics: *const bn_statistics,
    average: i32,
    momentum: f64,
) -> i32 {
    guard(|| {
        const { assert!(BN_AVERAGE_EXPONENTIAL == 0 && BN_AVERAGE_CUMULATIVE == 1) };
        let momentum = choose("average", average, &[Momentum::Exponential(momentum), Momentum::Cumulative])?;
        // SAFETY: the header asks the caller for what each of these needs; what is read and written has been checked.
        unsafe {
            let plan = self::plan(plan)?;
            let (channels, mut arrays) = (plan.channels(), Arrays::new(plan));
            let place = RunningView::new(&mut arrays, running, channels, Access::Write)?;
            let batch = StatisticsView::new(&mut arrays, STATISTICS, statistics.cast_mut(), channels, Access::Read)?;
            arrays.check_overlap(None)?;
            let mut running = place.change()?;
            running.update(&batch.read()?, momentum)?;
            place.store(&running);
            Ok(())
        }
    })
}
