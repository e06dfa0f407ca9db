//! Work split by index over threads: the only file that names rayon.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A caller's own threads.
///
/// An implementation need not be careful: which call gets which index, on which thread and in what order makes no
/// difference to any result, and indices that it leaves out or repeats are made good for. It is fastest where an index
/// always comes to the same thread, which then finds in its caches what it left there in the pass before.
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
    /// How many threads `parallel_for` works on. A pass is split only where this is more than 1.
    fn threads(&self) -> usize;

    /// Calls `task(0)` to `task(n - 1)`, each once, on any threads, and returns when all have ended. There are no more of
    /// them than threads.
    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync));
}

/// Where a plan's passes run. The choice changes speed only: results have the same bits.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Threads {
    /// The caller's thread.
    #[cfg_attr(not(feature = "rayon"), default)]
    Sequential,
    /// The rayon pool that the caller is in (`ThreadPool::install`), or the global one. Passes too small to gain from
    /// it stay on the caller's thread.
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

/// Bytes to walk below which a pass stays on the caller's thread: waking a pool costs 10 to 15 µs, in which one core
/// walks about this much of its cache.
const SMALL: usize = 1 << 20;

impl Threads {
    /// How many threads to use for a pass that walks `bytes` of memory.
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
    /// Each worker has a share of neighbouring indices, which it takes in the given order, and helps others when it is done:
    /// threads that run late or not at all leave no gap, and an [`Executor`] that repeats or forgets an index cannot make
    /// two threads write the same memory. What fits caches takes up to half as long as with one queue for all, as a worker
    /// that is always the same thread finds the memory of its share where it left it.
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

/// Which of its tasks a worker takes first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    FirstFirst,
    LastFirst,
}

/// Shares that tasks are divided into at most; more workers have one together.
const MAX_SHARES: usize = 64;

/// Tasks, divided among workers.
struct Shares {
    tasks: usize,
    shares: usize,
    order: Order,
    /// How many of a share have been claimed, or more where there are no others.
    claimed: [AtomicUsize; MAX_SHARES],
}

impl Shares {
    fn new(tasks: usize, workers: usize, order: Order) -> Self {
        let shares = workers.clamp(1, MAX_SHARES);
        Self { tasks, shares, order, claimed: [const { AtomicUsize::new(0) }; MAX_SHARES] }
    }

    /// The first tasks of a share and how many it has.
    fn share(&self, k: usize) -> (usize, usize) {
        let (each, more) = (self.tasks / self.shares, self.tasks % self.shares);
        (k * each + k.min(more), each + usize::from(k < more))
    }

    /// A task that nobody has claimed: of the worker's own share or, where that is done, of those after it.
    fn claim(&self, worker: usize) -> Option<usize> {
        (0..self.shares).find_map(|k| {
            let k = (worker % self.shares + k) % self.shares;
            let (first, len) = self.share(k);
            // Relaxed: the counter orders nothing but itself; what tasks write is published by the pool's join. It is read
            // first so that it grows by no more than there are workers.
            let claimed = &self.claimed[k];
            let i = if claimed.load(Ordering::Relaxed) < len { claimed.fetch_add(1, Ordering::Relaxed) } else { len };
            (i < len).then(|| if self.order == Order::FirstFirst { first + i } else { first + len - 1 - i })
        })
    }
}

/// A pointer that tasks share, each to write a part of its own.
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
