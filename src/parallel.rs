//! Work split by index over threads: the only file that names rayon.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A caller's own threads.
///
/// An implementation need not be careful: which call gets which index, on which thread and in what order makes no
/// difference to any result, and indices that it leaves out or repeats are made good for.
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

    /// Calls `task(0)` to `task(n - 1)`, each once, on any threads, and returns when all have ended.
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
    /// Tasks are claimed from a counter, lowest first: threads that run late or not at all leave no gap, and an
    /// [`Executor`] that repeats or forgets an index cannot make two threads write the same memory.
    pub(crate) fn run(&self, threads: usize, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let claim = || {
            // Relaxed: the counter orders nothing but itself; what tasks write is published by the pool's join.
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i < n {
                task(i);
            }
            i < n
        };
        let helpers = threads.min(n).saturating_sub(1);
        match self {
            _ if helpers == 0 => {}
            Self::Sequential => {}
            #[cfg(feature = "rayon")]
            Self::Rayon => rayon::in_place_scope(|scope| {
                for _ in 0..helpers {
                    scope.spawn(|_| while claim() {});
                }
                while claim() {}
            }),
            Self::Executor(executor) => executor.parallel_for(n, &|_| {
                claim();
            }),
        }
        while claim() {}
    }
}

/// A pointer that tasks share, each to write a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: the pointer is only dereferenced through `slice`, whose caller promises that parts are disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(p: *mut T) -> Self {
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
