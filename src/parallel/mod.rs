//! Work split by index over threads: the only folder that names rayon.

mod pool;
#[cfg(feature = "rayon")]
mod rayon_threads;
mod sync;
mod team;

pub use pool::ThreadPool;
pub(crate) use team::Order;

use std::fmt;
use std::sync::Arc;
use team::{Job, Pass};

/// A caller's own threads.
///
/// An implementation need not be careful: the thread and the order in which an index is run do not affect any result;
/// skipped indices are run by the caller, repeated ones ignored. It is fastest if an index always runs on the same
/// thread, which then finds in its caches what it left there in the pass before.
///
/// ```
/// use batchnorm::{BatchNorm, Executor, Shape, Threads};
/// use std::sync::Arc;
///
/// /// Two scoped threads for every pass.
/// struct Pair;
/// impl Executor for Pair {
///     fn threads(&self) -> usize {
///         2
///     }
///     fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
///         std::thread::scope(|scope| {
///             scope.spawn(|| (0..n).step_by(2).for_each(task));
///             (1..n).step_by(2).for_each(task);
///         });
///     }
/// }
/// let plan = BatchNorm::new(Shape::nc(128, 64)?).threads(Threads::Executor(Arc::new(Pair)));
/// # Ok::<(), batchnorm::Error>(())
/// ```
pub trait Executor: Send + Sync {
    /// The number of threads on which `parallel_for` runs. A pass is split only if this is more than 1.
    fn threads(&self) -> usize;

    /// Calls `task(0)` to `task(n - 1)`, each once, on any threads, and returns when all have ended. n is at most the
    /// number of threads.
    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync));
}

/// Where a plan's passes run. The choice affects speed only: results are bit-identical.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Threads {
    /// The caller's thread.
    #[cfg_attr(not(feature = "rayon"), default)]
    Sequential,
    /// The rayon pool in which the caller runs (`ThreadPool::install`), or the global one. Passes that are too small to
    /// gain from it stay on the caller's thread.
    #[cfg(feature = "rayon")]
    #[default]
    Rayon,
    /// A pool of this crate, which plans can share.
    Pool(Arc<ThreadPool>),
    /// The caller's own threads.
    Executor(Arc<dyn Executor>),
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "Sequential",
            #[cfg(feature = "rayon")]
            Self::Rayon => "Rayon",
            Self::Pool(_) => "Pool",
            Self::Executor(_) => "Executor",
        })
    }
}

/// A pass that walks fewer bytes stays on the caller's thread: to wake a pool costs 10 to 15 µs, in which one core
/// walks about this much of its cache.
const SMALL: usize = 1 << 20;

impl Threads {
    /// The number of threads for a pass that walks `bytes` of memory.
    pub(crate) fn count(&self, bytes: usize) -> usize {
        if bytes < SMALL {
            return 1;
        }
        match self {
            Self::Sequential => 1,
            #[cfg(feature = "rayon")]
            Self::Rayon => rayon_threads::count(),
            Self::Pool(pool) => pool.available(),
            Self::Executor(executor) => executor.threads().max(1),
        }
    }

    /// Runs a pass, which is given a crew of up to so many workers, the caller among them. Helpers are asked for once,
    /// and stay until the pass has ended.
    pub(crate) fn pass(&self, workers: usize, pass: &mut dyn FnMut(&mut Crew<'_>)) {
        match self {
            _ if workers < 2 => pass(&mut Crew::alone()),
            Self::Sequential => pass(&mut Crew::alone()),
            #[cfg(feature = "rayon")]
            Self::Rayon => rayon_threads::pass(workers, pass),
            Self::Pool(pool) => match pool.begin(workers) {
                Some(team) => pass(&mut Crew { workers, hands: Hands::Team(team) }),
                None => pass(&mut Crew::alone()),
            },
            Self::Executor(executor) => pass(&mut Crew { workers, hands: Hands::Executor(&**executor) }),
        }
    }
}

/// Who runs the steps of a pass.
pub(crate) struct Crew<'a> {
    workers: usize,
    hands: Hands<'a>,
}

enum Hands<'a> {
    Caller,
    Team(Pass<'a>),
    Executor(&'a dyn Executor),
}

impl Crew<'_> {
    fn alone() -> Self {
        Self { workers: 1, hands: Hands::Caller }
    }

    /// Runs `task` for every index below `tasks`, once each, and returns when all have ended.
    ///
    /// Each worker has a share of neighbouring indices, which it takes in the given order; workers that finish early
    /// take over remaining tasks. So threads that run late or not at all leave no gap, and an [`Executor`] that
    /// repeats or skips an index cannot make two threads write the same memory. What fits in caches takes down to
    /// half of the time of one queue for all, as a worker that is always the same thread finds the memory of its
    /// share where it left it.
    pub(crate) fn run(&mut self, tasks: usize, order: Order, task: &(dyn Fn(usize) + Sync)) {
        let workers = self.workers.min(tasks);
        let job = Job::new(tasks, workers, order, task);
        match &mut self.hands {
            Hands::Team(pass) if workers > 1 => return pass.run(job),
            Hands::Executor(executor) if workers > 1 => executor.parallel_for(workers, &|worker| job.work(worker)),
            _ => {}
        }
        job.work(0);
    }
}

/// The process, by which a forked child is recognized: of the threads of its parent it has only the one that forked.
fn process() -> u32 {
    if cfg!(unix) { std::process::id() } else { 1 }
}

/// A pointer that tasks share, of which each writes a part of its own.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: the pointer is only dereferenced through `slice`, whose caller promises that parts are disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) const fn new(p: *mut T) -> Self {
        Self(p)
    }

    pub(crate) fn ptr(&self) -> *mut T {
        self.0
    }

    /// # Safety
    /// The range lies within what the pointer was made from, and nothing else uses it while the slice lives.
    #[allow(clippy::mut_from_ref)] // the caller's promise stands in for the borrow
    pub(crate) unsafe fn slice<'a>(&self, range: std::ops::Range<usize>) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        // Wrapping: the pointer may stand for the start of an array of which only a part exists.
        unsafe { std::slice::from_raw_parts_mut(self.0.wrapping_add(range.start), range.len()) }
    }
}
