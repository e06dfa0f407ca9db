//! Work split by index over threads: the only file that names rayon.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    /// The caller's own threads.
    Executor(Arc<dyn Executor>),
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "Sequential",
            #[cfg(feature = "rayon")]
            Self::Rayon => "Rayon",
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
            Self::Rayon => rayon::current_num_threads(),
            Self::Executor(executor) => executor.threads().max(1),
        }
    }

    /// Runs `task` for every index below `n`, once each, on up to `threads` threads, the caller's among them.
    ///
    /// Each worker has a share of neighbouring indices, which it takes in the given order; workers that finish early
    /// take over remaining tasks. So threads that run late or not at all leave no gap, and an [`Executor`] that
    /// repeats or skips an index cannot make two threads write the same memory. What fits in caches takes down to
    /// half of the time of one queue for all, as a worker that is always the same thread finds the memory of its
    /// share where it left it.
    pub(crate) fn run(&self, threads: usize, n: usize, order: Order, task: &(dyn Fn(usize) + Sync)) {
        let workers = threads.min(n);
        let shares = Shares::new(n, workers, order);
        let work = |worker| {
            while let Some(i) = shares.claim(worker) {
                task(i);
            }
        };
        match self {
            _ if workers < 2 => {}
            Self::Sequential => {}
            #[cfg(feature = "rayon")]
            Self::Rayon => rayon::in_place_scope(|scope| {
                for worker in 1..workers {
                    scope.spawn(move |_| work(worker));
                }
                work(0);
            }),
            Self::Executor(executor) => executor.parallel_for(workers, &work),
        }
        work(0);
    }
}

/// The task that a worker takes first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    FirstFirst,
    LastFirst,
}

/// The most shares into which tasks are divided; more workers use one together.
const MAX_SHARES: usize = 64;

/// Tasks, divided among workers.
struct Shares {
    tasks: usize,
    shares: usize,
    order: Order,
    /// How many tasks of a share have been claimed, or more if none are left.
    claimed: [AtomicUsize; MAX_SHARES],
}

impl Shares {
    fn new(tasks: usize, workers: usize, order: Order) -> Self {
        let shares = workers.clamp(1, MAX_SHARES);
        Self { tasks, shares, order, claimed: [const { AtomicUsize::new(0) }; MAX_SHARES] }
    }

    /// The first task of a share and the number of its tasks.
    fn share(&self, k: usize) -> (usize, usize) {
        let (each, more) = (self.tasks / self.shares, self.tasks % self.shares);
        (k * each + k.min(more), each + usize::from(k < more))
    }

    /// A task that nobody has claimed: of the worker's own share or, if that is done, of the next ones.
    fn claim(&self, worker: usize) -> Option<usize> {
        (0..self.shares).find_map(|k| {
            let k = (worker % self.shares + k) % self.shares;
            let (first, len) = self.share(k);
            // Relaxed: the counter orders nothing but itself; what tasks write is published by the join of the pool. It
            // is read first, so that it exceeds the length by no more than the number of workers.
            let claimed = &self.claimed[k];
            let i = if claimed.load(Ordering::Relaxed) < len { claimed.fetch_add(1, Ordering::Relaxed) } else { len };
            (i < len).then(|| if self.order == Order::FirstFirst { first + i } else { first + len - 1 - i })
        })
    }
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
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}
