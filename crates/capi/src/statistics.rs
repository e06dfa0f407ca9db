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

    /// # Safety
    /// `check_overlap` has found nothing.
    pub(crate) unsafe fn load(&self, statistics: &mut Statistics) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        let (mean, var) = unsafe { (self.mean.slice(), self.var.slice()) };
        Ok(statistics.set_parts(self.count, mean, var)?)
    }

    /// # Safety
    /// As [`load`](Self::load); the view is one to write to, and the statistics have its number of channels.
    pub(crate) unsafe fn store(&self, statistics: &Statistics) {
        // SAFETY: the caller's promise.
        unsafe {
            self.mean.slice_mut().copy_from_slice(statistics.mean());
            self.var.slice_mut().copy_from_slice(statistics.var());
            (&raw mut (*self.place).count).write(statistics.count());
        }
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

    /// # Safety
    /// As [`StatisticsView::load`].
    pub(crate) unsafe fn load(&self, sums: &mut GradientSums) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        Ok(unsafe { sums.set_parts(self.g.slice(), self.gx.slice()) }?)
    }

    /// # Safety
    /// As [`StatisticsView::store`].
    pub(crate) unsafe fn store(&self, sums: &GradientSums) {
        // SAFETY: the caller's promise.
        unsafe {
            self.g.slice_mut().copy_from_slice(sums.g());
            self.gx.slice_mut().copy_from_slice(sums.gx());
        }
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
    /// As [`StatisticsView::load`].
    unsafe fn load(&self, running: &mut RunningStatistics) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        let (mean, var) = unsafe { (self.mean.slice(), self.var.slice()) };
        running.set_parts(mean, var, self.batches)?;
        *running = std::mem::replace(running, RunningStatistics::new(0)).biased(self.biased);
        Ok(())
    }

    /// # Safety
    /// As [`StatisticsView::store`].
    unsafe fn store(&self, running: &RunningStatistics) {
        // SAFETY: the caller's promise.
        unsafe {
            self.mean.slice_mut().copy_from_slice(running.mean());
            self.var.slice_mut().copy_from_slice(running.var());
            (&raw mut (*self.place).batches).write(running.batches());
        }
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
    /// As [`StatisticsView::load`].
    pub(crate) unsafe fn load<'a>(
        &self,
        statistics: &'a mut Statistics,
        running: &'a mut RunningStatistics,
    ) -> Result<Source<'a>, Status> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Batch(view) => view.load(statistics).map(|()| Source::Batch(statistics)),
                Self::Running(view) => view.load(running).map(|()| Source::Running(running)),
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
        // SAFETY: the header asks the caller for what each of these needs; what is loaded and stored has been checked.
        unsafe {
            let plan = self::plan(plan)?;
            let (channels, mut arrays) = (plan.channels(), Arrays::new());
            let into = StatisticsView::new(&mut arrays, INTO_STATISTICS, into, channels, Access::Write)?;
            let other = StatisticsView::new(&mut arrays, OTHER_STATISTICS, other.cast_mut(), channels, Access::Read)?;
            arrays.check_overlap(None)?;
            plan.with_workspace(|workspace| {
                into.load(&mut workspace.statistics)?;
                other.load(&mut workspace.other_statistics)?;
                workspace.statistics.merge(&workspace.other_statistics)?;
                into.store(&workspace.statistics);
                Ok(())
            })
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
        // SAFETY: the header asks the caller for what each of these needs; what is loaded and stored has been checked.
        unsafe {
            let plan = self::plan(plan)?;
            let (channels, mut arrays) = (plan.channels(), Arrays::new());
            let into = SumsView::new(&mut arrays, INTO_SUMS, into, channels, Access::Write)?;
            let other = SumsView::new(&mut arrays, OTHER_SUMS, other, channels, Access::Read)?;
            arrays.check_overlap(None)?;
            plan.with_workspace(|workspace| {
                into.load(&mut workspace.sums)?;
                other.load(&mut workspace.other_sums)?;
                workspace.sums.merge(&workspace.other_sums)?;
                into.store(&workspace.sums);
                Ok(())
            })
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
        // SAFETY: the header asks the caller for what each of these needs; what is loaded and stored has been checked.
        unsafe {
            let plan = self::plan(plan)?;
            let (channels, mut arrays) = (plan.channels(), Arrays::new());
            let running = RunningView::new(&mut arrays, running, channels, Access::Write)?;
            let batch = StatisticsView::new(&mut arrays, STATISTICS, statistics.cast_mut(), channels, Access::Read)?;
            arrays.check_overlap(None)?;
            plan.with_workspace(|workspace| {
                running.load(&mut workspace.running)?;
                batch.load(&mut workspace.statistics)?;
                workspace.running.update(&workspace.statistics, momentum)?;
                running.store(&workspace.running);
                Ok(())
            })
        }
    })
}
