//! Do passes end, with the right results, whatever the threads of a pool are doing: while they wait for the caller's
//! lock, in other passes, in a forked child that does not have them?
//!
//! A test that hangs is killed: `within` says which one it was.
#![cfg(not(miri))]

use batchnorm::{Affine, BatchNorm, Executor, Shape, Statistics, ThreadPool, Threads};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How often a test repeats what could hang.
const ROUNDS: usize = 300;

/// Ends the process if `f` takes longer than any machine should.
fn within<R>(name: &str, f: impl FnOnce() -> R) -> R {
    let (ended, watched) = channel::<()>();
    let name = name.to_owned();
    let watchdog = thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(300)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs");
            std::process::abort();
        }
    });
    let result = f();
    drop(ended);
    watchdog.join().unwrap();
    result
}

/// Whether threads are asked for.
struct Asked(AtomicBool);

impl Executor for Asked {
    fn threads(&self) -> usize {
        2
    }
    fn parallel_for(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A plan, its input, and its output on one thread.
struct Case {
    plan: BatchNorm,
    x: Vec<f32>,
    expected: Vec<u32>,
}

impl Case {
    /// A shape that is not much larger than it must be for a pass to wake a pool.
    fn new(outer: usize) -> Self {
        let case = Self::of(Shape::new(outer, 64, 400).unwrap());
        let asked = Arc::new(Asked(AtomicBool::new(false)));
        case.check(&case.plan.clone().threads(Threads::Executor(asked.clone())));
        assert!(asked.0.load(Ordering::Relaxed), "a pass of this size is not split");
        case
    }

    fn of(shape: Shape) -> Self {
        let plan = BatchNorm::new(shape);
        let x = (0..shape.len()).map(|k| (k * k % 101) as f32).collect();
        let mut case = Self { plan, x, expected: vec![] };
        case.expected = case.run(&case.plan.clone().threads(Threads::Sequential));
        case
    }

    /// The bits of the output. The pass reduces and maps.
    fn run(&self, plan: &BatchNorm) -> Vec<u32> {
        let mut y = vec![0.0; self.x.len()];
        let mut statistics = Statistics::new(plan.shape().channels());
        plan.forward_training(&self.x, Affine::default(), &mut y, &mut statistics).unwrap();
        y.into_iter().map(f32::to_bits).collect()
    }

    fn check(&self, plan: &BatchNorm) {
        assert!(self.run(plan) == self.expected, "{:?}", plan);
    }
}

fn pool(threads: usize) -> Threads {
    Threads::Pool(Arc::new(ThreadPool::new(threads).unwrap()))
}

#[cfg(feature = "rayon")]
#[test]
fn passes_under_a_lock_end() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let case = Case::new(21);
    let plan = case.plan.clone().threads(Threads::Rayon);
    let lock = std::sync::Mutex::new(());
    within("passes_under_a_lock_end", || {
        for _ in 0..ROUNDS {
            pool.scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|_| {
                        case.check(&plan);
                        let _guard = lock.lock().unwrap();
                        case.check(&plan);
                    });
                }
            });
        }
    });
}

#[test]
fn plans_and_callers_share_a_pool() {
    let threads = pool(3);
    let cases = [Case::new(21), Case::new(22)];
    let plans = cases.each_ref().map(|case| case.plan.clone().threads(threads.clone()));
    within("plans_and_callers_share_a_pool", || {
        thread::scope(|scope| {
            for caller in 0..5 {
                let (cases, plans) = (&cases, &plans);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let k = (caller + round) % 2;
                        cases[k].check(&plans[k]);
                    }
                });
            }
        });
    });
}

#[test]
fn pools_end_after_any_work() {
    let case = Case::new(21);
    within("pools_end_after_any_work", || {
        for round in 0..ROUNDS {
            let plan = case.plan.clone().threads(pool(1 + round % 5));
            (0..round % 3).for_each(|_| case.check(&plan));
        }
    });
}

#[test]
fn numbers_of_threads_out_of_range() {
    for threads in [0, ThreadPool::MAX_THREADS + 1, usize::MAX] {
        let error = ThreadPool::new(threads).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("a pool has 1 to 1024 threads, got {threads}"));
    }
    assert_eq!(ThreadPool::new(3).unwrap().threads(), 3);
}

#[cfg(unix)]
mod forked {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Runs `f` in a forked child, which is killed if it hangs.
    fn in_a_child(f: impl FnOnce()) -> Result<(), String> {
        // SAFETY: the child only calls `f` and leaves. Other threads, and the locks that they hold, are what is tested.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error().to_string()),
            0 => {
                // SAFETY: no signal handler is installed, so that the signal ends the child.
                unsafe { libc::alarm(60) };
                let ended = catch_unwind(AssertUnwindSafe(f)).is_ok();
                // SAFETY: ends the child without running what the parent registered.
                unsafe { libc::_exit(i32::from(!ended)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: a pointer to an int.
                let waited = unsafe { libc::waitpid(child, &mut status, 0) };
                assert_eq!(waited, child);
                if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGALRM {
                    Err("the child hung".into())
                } else if status != 0 {
                    Err(format!("the child ended with status {status}"))
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Forks while other threads are in passes of the same plan, after a pass of the thread that forks.
    fn check_children(case: &Case, threads: Threads) {
        let plan = case.plan.clone().threads(threads);
        case.check(&plan);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        case.check(&plan);
                    }
                });
            }
            let results: Vec<_> = (0..ROUNDS).map(|_| in_a_child(|| case.check(&plan))).collect();
            done.store(true, Ordering::Relaxed);
            let failed = results.iter().filter(|result| result.is_err()).count();
            assert_eq!(failed, 0, "{plan:?}: {:?}", results.iter().find(|result| result.is_err()));
        });
        case.check(&plan);
    }

    #[test]
    fn children_run_passes() {
        let case = Case::new(21);
        check_children(&case, pool(3));
        #[cfg(feature = "rayon")]
        check_children(&case, Threads::Rayon);
    }

    /// Short passes take and return their memory most often.
    #[test]
    fn children_run_passes_on_one_thread() {
        check_children(&Case::of(Shape::nc(2, 3).unwrap()), Threads::Sequential);
    }

    /// A child can drop its copy of a pool, whose threads it does not have.
    #[test]
    fn children_drop_pools() {
        let case = Case::new(21);
        let mut plan = Some(case.plan.clone().threads(pool(3)));
        for _ in 0..ROUNDS {
            plan.iter().for_each(|plan| case.check(plan));
            assert_eq!(in_a_child(|| drop(plan.take())), Ok(()));
        }
        plan.iter().for_each(|plan| case.check(plan));
    }
}
