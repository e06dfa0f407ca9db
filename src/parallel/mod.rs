//! Work split by index over threads: the only folder that names rayon.

mod pool;
mod process;
#[cfg(feature = "rayon")]
mod rayon_threads;
mod sync;
mod team;

pub use pool::ThreadPool;
pub(crate) use team::Order;

use pool::AWAKE;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
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
///
/// A pass runs on the thread that calls it. Threads of a pool that are free join it and take over parts. The pass never
/// waits for one that has not joined, and never runs anything else in the meantime. So
///
/// - it ends although all threads of a pool are busy or blocked, and takes no longer than on one thread;
/// - it may be called while a lock is held for which other tasks of the same pool wait;
/// - it ends in a child of `fork`, which has none of its parent's threads: with [`Rayon`](Self::Rayon), and with a
///   [`Pool`](Self::Pool) of the parent's, the passes of a child run on the calling thread alone. A child may make a
///   pool of its own, unless another thread of its parent was starting or ending a thread at that moment: Rust's
///   standard library then starts no threads in the child. With `Rayon` a child is recognized if its parent had called
///   a pass on rayon that is not small, or had asked for the size of its scratch memory.
///
/// With an [`Executor`] all of this is up to its `parallel_for`.
///
/// Passes that walk less than 1 MB stay on the calling thread, or less than 512 KB with an [`Executor`]. Those that walk
/// less than 6 MB ask a pool for help only within 50 µs of such a pass by the same thread: threads that sleep take too
/// long to wake.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Threads {
    /// The caller's thread.
    #[cfg_attr(not(feature = "rayon"), default)]
    Sequential,
    /// The rayon pool in which the caller runs (`ThreadPool::install`), or the global one.
    #[cfg(feature = "rayon")]
    #[default]
    Rayon,
    /// A pool of this crate, which plans can share, for programs that do not use rayon.
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

/// A pass that walks fewer bytes stays on the caller's thread.
const SMALL: usize = 1 << 20;
/// The same on a caller's own threads, which may spin and answer within a few microseconds.
const SMALL_FOR_EXECUTORS: usize = SMALL / 2;
/// A pass that walks fewer bytes asks a pool for helpers only if they may be awake. To wake them takes 10 to 50 µs, in
/// which one core walks about half as much of its cache: after a pause, smaller passes would take up to 1.7 times as
/// long.
const WAKES: usize = 6 << 20;

thread_local! {
    /// When the last pass ended that this thread called and that was not small. It has no destructor, which a thread
    /// might run after a C library has been unloaded.
    static ENDED: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Threads {
    /// A pass that walks fewer bytes stays on the caller's thread.
    fn small(&self) -> usize {
        if matches!(self, Self::Executor(_)) { SMALL_FOR_EXECUTORS } else { SMALL }
    }

    /// The number of threads for a pass that walks `bytes` of memory.
    pub(crate) fn count(&self, bytes: usize) -> usize {
        if bytes < self.small() {
            return 1;
        }
        let threads = match self {
            Self::Sequential => 1,
            #[cfg(feature = "rayon")]
            Self::Rayon => rayon_threads::count(),
            Self::Pool(pool) => pool.available(),
            Self::Executor(executor) => return executor.threads().max(1),
        };
        let wakes = bytes >= WAKES || ENDED.get().is_some_and(|ended| ended.elapsed() < AWAKE);
        if wakes { threads } else { 1 }
    }

    /// To be called after a pass that walked `bytes` of memory.
    pub(crate) fn ended(&self, bytes: usize) {
        // This target has no clock, which would panic.
        let has_clock = cfg!(not(all(target_family = "wasm", target_os = "unknown")));
        if bytes >= SMALL && has_clock && !matches!(self, Self::Sequential | Self::Executor(_)) {
            ENDED.set(Some(Instant::now()));
        }
    }

    /// Runs a pass, which is given a crew of up to so many workers, the caller among them. Helpers are asked for once,
    /// and stay until the pass has ended.
    pub(crate) fn pass(&self, workers: usize, pass: &mut dyn FnMut(&mut Crew<'_>)) {
        match self {
            _ if workers < 2 => pass(&mut Crew::alone()),
            Self::Sequential => pass(&mut Crew::alone()),
            #[cfg(feature = "rayon")]
            Self::Rayon => rayon_threads::pass(workers, &mut |team| pass(&mut Crew::new(workers, team))),
            Self::Pool(pool) => pass(&mut Crew::new(workers, pool.begin(workers))),
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

impl<'a> Crew<'a> {
    fn alone() -> Self {
        Self { workers: 1, hands: Hands::Caller }
    }

    fn new(workers: usize, team: Option<Pass<'a>>) -> Self {
        team.map_or_else(Self::alone, |pass| Self { workers, hands: Hands::Team(pass) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// Scoped threads for every step.
    struct Scoped;
    impl Executor for Scoped {
        fn threads(&self) -> usize {
            2
        }
        fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
            thread::scope(|scope| {
                let threads: Vec<_> = (1..n).map(|i| scope.spawn(move || task(i))).collect();
                task(0);
                threads.into_iter().for_each(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            });
        }
    }

    /// Calls `f` on every kind of threads, where a helper is free to come.
    fn with_a_helper(f: impl Fn(&Threads) + Sync) {
        f(&Threads::Executor(Arc::new(Scoped)));
        f(&Threads::Pool(Arc::new(ThreadPool::new(2).unwrap())));
        #[cfg(feature = "rayon")]
        rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| f(&Threads::Rayon));
    }

    /// Runs steps of several numbers of tasks in one pass, and checks that each task runs once.
    fn check_pass(threads: &Threads, workers: usize) {
        threads.pass(workers, &mut |crew| {
            for (tasks, order) in
                [(7, Order::FirstFirst), (1, Order::FirstFirst), (0, Order::LastFirst), (100, Order::LastFirst)]
            {
                let seen: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                crew.run(tasks, order, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{threads:?}, {workers} workers, {tasks}");
            }
        });
    }

    /// On a thread that has called no pass yet, after which helpers could be awake.
    #[test]
    fn large_passes_wake_helpers() {
        let pool = Threads::Pool(Arc::new(ThreadPool::new(3).unwrap()));
        let executor = Threads::Executor(Arc::new(Scoped));
        let counts = |threads: Threads| {
            let bytes = [SMALL_FOR_EXECUTORS - 1, SMALL_FOR_EXECUTORS, SMALL, WAKES - 1, WAKES, usize::MAX];
            let count = move || bytes.map(|bytes| threads.count(bytes));
            thread::spawn(count).join().unwrap()
        };
        assert_eq!(counts(Threads::Sequential), [1; 6]);
        assert_eq!(counts(pool), [1, 1, 1, 1, 3, 3]);
        assert_eq!(counts(executor), [1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn every_task_of_every_step_runs_once() {
        with_a_helper(|threads| (1..70).for_each(|workers| check_pass(threads, workers)));
    }

    #[test]
    fn helpers_come() {
        with_a_helper(|threads| {
            // Neither of two tasks ends before both have begun, in each of three steps.
            let both = Barrier::new(2);
            threads.pass(2, &mut |crew| {
                for _ in 0..3 {
                    crew.run(2, Order::FirstFirst, &|_| {
                        both.wait();
                    });
                }
            });
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_threads_usable() {
        with_a_helper(|threads| {
            let caller = thread::current().id();
            for caller_panics in [true, false] {
                let both = Barrier::new(2);
                let run = || {
                    threads.pass(2, &mut |crew| {
                        crew.run(2, Order::FirstFirst, &|i| {
                            both.wait();
                            assert!((thread::current().id() == caller) != caller_panics, "task {i}");
                        });
                    });
                };
                let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
                let message = panic.downcast_ref::<String>().unwrap();
                assert!(message.starts_with("task "), "{message}");
                check_pass(threads, 2);
            }
        });
    }

    /// While one pass keeps the only helper busy, others end; and so do more passes than a pool has teams for.
    #[test]
    fn a_busy_pool_is_not_waited_for() {
        let threads = Threads::Pool(Arc::new(ThreadPool::new(2).unwrap()));
        let (begun, others_ended) = (Barrier::new(3), Barrier::new(3));
        let both_wait = || {
            threads.pass(2, &mut |crew| {
                crew.run(2, Order::FirstFirst, &|_| {
                    begun.wait();
                    others_ended.wait();
                });
            });
        };
        thread::scope(|scope| {
            scope.spawn(both_wait);
            begun.wait();
            for _ in 0..100 {
                check_pass(&threads, 2);
                // A pass within a pass: both of the pool's teams are taken.
                threads.pass(2, &mut |crew| crew.run(3, Order::FirstFirst, &|_| check_pass(&threads, 2)));
            }
            others_ended.wait();
        });
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn a_busy_rayon_pool_is_not_waited_for_and_comes_too_late() {
        const THREADS: usize = 4;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().unwrap();
        let (begun, passes_ended) = (Arc::new(Barrier::new(THREADS)), Arc::new(Barrier::new(THREADS)));
        pool.install(|| {
            for _ in 1..THREADS {
                let (begun, passes_ended) = (begun.clone(), passes_ended.clone());
                rayon::spawn(move || {
                    begun.wait();
                    passes_ended.wait();
                });
            }
            begun.wait();
            let caller = thread::current().id();
            for _ in 0..100 {
                check_pass(&Threads::Rayon, THREADS);
                Threads::Rayon.pass(THREADS, &mut |crew| {
                    crew.run(100, Order::FirstFirst, &|_| assert_eq!(thread::current().id(), caller));
                });
            }
            passes_ended.wait();
        });
        // Runs what is left in the queues: helpers whose passes have ended.
        drop(pool);
    }

    #[test]
    fn a_helper_that_is_late_runs_nothing() {
        let team = team::Team::new();
        team.help(1);
        let count = AtomicUsize::new(0);
        let task = |_| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let mut pass = team.begin().unwrap();
        assert!(team.begin().is_none());
        pass.run(Job::new(5, 2, Order::FirstFirst, &task));
        drop(pass);
        team.help(1);
        assert_eq!(count.load(Ordering::Relaxed), 5);
    }
}
