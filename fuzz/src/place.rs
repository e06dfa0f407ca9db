//! The threads, instruction set, alignment and way of calling of a pass, which must not change a bit.

use arbitrary::Arbitrary;
use batchnorm::{BatchNorm, Executor, Isa, Shape, Threads};
use batchnorm_testing::Way;
use std::sync::{Arc, LazyLock};

/// The threads of a pass. Most are executors, and some of these break their contract.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Runner {
    Sequential,
    Rayon,
    /// Two threads, one for even and one for odd indices.
    Pair,
    Backwards,
    /// Runs each index twice.
    Repeating,
    /// Runs no index at all.
    Forgetful,
    /// Runs all indices, and claims the largest number of threads.
    Boundless,
}

impl Executor for Runner {
    fn threads(&self) -> usize {
        if matches!(self, Self::Boundless) { usize::MAX } else { 3 }
    }

    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Self::Pair => std::thread::scope(|scope| {
                scope.spawn(|| (0..n).step_by(2).for_each(task));
                (1..n).step_by(2).for_each(task);
            }),
            Self::Backwards => (0..n).rev().for_each(task),
            Self::Repeating => (0..n).chain(0..n).for_each(task),
            Self::Forgetful => {}
            _ => (0..n).for_each(task),
        }
    }
}

static POOL: LazyLock<rayon::ThreadPool> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads"));

/// A way to run a pass.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Place {
    pub runner: Runner,
    offset: u8,
    in_place: bool,
    halves: bool,
}

/// The plan that the others are compared with.
pub fn baseline(shape: Shape, eps: f64) -> BatchNorm {
    let plan = BatchNorm::new(shape).eps(eps).expect("a valid eps");
    plan.isa(Isa::Portable).expect("every machine has it").threads(Threads::Sequential)
}

impl Place {
    /// Runs `f` with a plan like `plan` for each instruction set.
    pub fn each_isa(self, plan: &BatchNorm, f: impl Fn(&BatchNorm, Isa) + Sync) {
        for &isa in Isa::available() {
            let plan = plan.clone().isa(isa).expect("an available Isa");
            match self.runner {
                Runner::Sequential => f(&plan, isa),
                Runner::Rayon => POOL.install(|| f(&plan.threads(Threads::Rayon), isa)),
                runner => f(&plan.threads(Threads::Executor(Arc::new(runner))), isa),
            }
        }
    }

    /// How its passes are called.
    pub fn way(self) -> Way {
        match (self.halves, self.in_place) {
            (false, false) => Way::Fused,
            (false, true) => Way::FusedInPlace,
            (true, false) => Way::Halves,
            (true, true) => Way::HalvesInPlace,
        }
    }

    /// The elements that its buffers are misaligned by.
    pub fn offset(self) -> usize {
        self.offset.into()
    }
}
