//! The calls that change a caller's statistics, sums and running averages.

use crate::arrays::{Access, Arrays};
use crate::constants::{BN_AVERAGE_CUMULATIVE, BN_AVERAGE_EXPONENTIAL};
use crate::read::{choose, read};
use crate::status::guard;
use crate::structs::{bn_gradient_sums, bn_running_statistics, bn_statistics};
use crate::views::{RunningView, STATISTICS, StatisticsView, SumsView};
use batchnorm::Momentum;

const INTO_STATISTICS: [&str; 3] = ["into", "into.mean", "into.var"];
const OTHER_STATISTICS: [&str; 3] = ["other", "other.mean", "other.var"];
const INTO_SUMS: [&str; 3] = ["into", "into.g", "into.gx"];
const OTHER_SUMS: [&str; 3] = ["other", "other.g", "other.gx"];

/// Merges other into `into`, which then has the statistics of the values of both. A count of 0 stands for no values:
/// merging can start from it. The number of channels is the length of into.mean.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_merge_statistics(into: *mut bn_statistics, other: *const bn_statistics) -> i32 {
    guard(|| {
        // SAFETY: the header demands what each of these needs; what is read and written has been checked.
        unsafe {
            let (channels, mut arrays) = (read("into", into)?.mean.len, Arrays::none());
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

/// Adds other to into: the sums of parts of a batch, computed with the same mean, become those of the whole batch. The
/// number of channels is the length of into.g.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_merge_gradient_sums(into: *mut bn_gradient_sums, other: *const bn_gradient_sums) -> i32 {
    guard(|| {
        // SAFETY: the header demands what each of these needs; what is read and written has been checked.
        unsafe {
            let (channels, mut arrays) = (read("into", into)?.g.len, Arrays::none());
            let into = SumsView::new(&mut arrays, INTO_SUMS, into, channels, Access::Write)?;
            let other = SumsView::new(&mut arrays, OTHER_SUMS, other, channels, Access::Read)?;
            arrays.check_overlap(None)?;
            Ok(into.write()?.merge(&other.read()?)?)
        }
    })
}

/// Updates the averages with the statistics of a batch. average is one of BN_AVERAGE_. An empty batch changes nothing.
/// The number of channels is the length of statistics.mean.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_update_running_statistics(
    running: *mut bn_running_statistics,
    statistics: *const bn_statistics,
    average: i32,
    momentum: f64,
) -> i32 {
    guard(|| {
        const { assert!(BN_AVERAGE_EXPONENTIAL == 0 && BN_AVERAGE_CUMULATIVE == 1) };
        let momentum = choose("average", average, &[Momentum::Exponential(momentum), Momentum::Cumulative])?;
        // SAFETY: the header demands what each of these needs; what is read and written has been checked.
        unsafe {
            let (channels, mut arrays) = (read("statistics", statistics)?.mean.len, Arrays::none());
            let mut running = RunningView::new(&mut arrays, running, channels, Access::Write)?;
            let batch = StatisticsView::new(&mut arrays, STATISTICS, statistics.cast_mut(), channels, Access::Read)?;
            arrays.check_overlap(None)?;
            running.update(&batch.read()?, momentum)
        }
    })
}
