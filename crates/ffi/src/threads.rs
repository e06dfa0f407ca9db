//! Where a plan's passes run.

use crate::constants::BN_MAX_POOL_THREADS;
use crate::read::choose;
use crate::status::{BN_ERROR_NULL, BN_ERROR_THREADS, Status, fail};
use crate::structs::{bn_parallel_for, bn_plan_desc, bn_task};
use batchnorm::{Executor, Threads};
use std::any::Any;
use std::ffi::c_void;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A rayon pool whose threads have ended when it is dropped: the library may be unloaded then.
struct OwnThreads {
    /// One fewer than there are threads: the calling one works too.
    pool: Option<rayon::ThreadPool>,
    handles: Vec<JoinHandle<()>>,
    threads: usize,
}

impl OwnThreads {
    /// None yet.
    fn none(threads: usize) -> Self {
        Self { pool: None, handles: Vec::new(), threads }
    }

    fn new(threads: usize) -> Result<Self, Status> {
        let mut own = Self::none(threads);
        let spawn = |worker: rayon::ThreadBuilder| {
            own.handles.push(thread::Builder::new().name("batchnorm".into()).spawn(|| worker.run())?);
            Ok(())
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads - 1).spawn_handler(spawn).build();
        own.pool =
            Some(pool.map_err(|e| fail(BN_ERROR_THREADS, format_args!("could not start {threads} threads: {e}")))?);
        Ok(own)
    }
}

impl Executor for OwnThreads {
    fn threads(&self) -> usize {
        self.threads
    }

    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        // Relaxed: the counter orders nothing but itself; what tasks write is published by the scope's join.
        let work =
            || std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|&i| i < n).for_each(task);
        let Some(pool) = &self.pool else { return };
        pool.in_place_scope(|scope| {
            for _ in 1..self.threads.min(n) {
                scope.spawn(|_| work());
            }
            work();
        });
    }
}

impl Drop for OwnThreads {
    fn drop(&mut self) {
        // Without the pool its threads end.
        self.pool = None;
        for handle in self.handles.drain(..) {
            // A worker that panicked has ended too.
            let _ = handle.join();
        }
    }
}

/// The caller's `parallel_for`.
struct CallersThreads {
    parallel_for: unsafe extern "C" fn(*mut c_void, usize, bn_task, *mut c_void),
    ctx: *mut c_void,
    threads: usize,
}

// SAFETY: the header asks for a parallel_for and a ctx that can be used by the threads that use the plan.
unsafe impl Send for CallersThreads {}
// SAFETY: as above.
unsafe impl Sync for CallersThreads {}

/// What a task's `arg` points to.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// # Safety
/// `job` is that of a `parallel_for` which has not returned.
unsafe extern "C" fn run_task(job: *mut c_void, index: usize) {
    // SAFETY: the caller's promise.
    let job = unsafe { &*job.cast_const().cast::<Job<'_>>() };
    // No panic may pass through the caller's frames: it goes on once they are gone.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.task)(index))) {
        *job.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

impl Executor for CallersThreads {
    fn threads(&self) -> usize {
        self.threads
    }

    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let job = Job { task, panic: Mutex::new(None) };
        let arg = (&raw const job).cast_mut().cast();
        // SAFETY: the header asks for a function that calls `run_task` with `arg`, and no more once it has returned.
        unsafe { (self.parallel_for)(self.ctx, n, run_task, arg) };
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Sequential,
    Pool,
    Caller,
}

/// Whether a plan's own threads are started, or only counted.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Start {
    Now,
    Never,
}

/// The threads that a descriptor asks for.
pub(crate) fn threads(desc: &bn_plan_desc, start: Start) -> Result<Threads, Status> {
    let kind = choose("desc.threads", desc.threads, &[Kind::Sequential, Kind::Pool, Kind::Caller])?;
    let expected = match kind {
        Kind::Sequential => 0..=0,
        Kind::Pool => 0..=BN_MAX_POOL_THREADS,
        Kind::Caller => 1..=usize::MAX,
    };
    let count = desc.thread_count;
    if !expected.contains(&count) {
        let (from, to) = expected.into_inner();
        let message = format_args!("desc.thread_count is out of range: expected {from} to {to}, got {count}");
        return Err(fail(BN_ERROR_THREADS, message));
    }
    let parallel_for: bn_parallel_for = desc.parallel_for;
    match (kind, parallel_for) {
        (Kind::Sequential, None) => Ok(Threads::Sequential),
        (Kind::Pool, None) => {
            let count = if count > 0 { count } else { thread::available_parallelism().map_or(1, NonZero::get) };
            Ok(match start {
                _ if count == 1 => Threads::Sequential,
                Start::Now => Threads::Executor(Arc::new(OwnThreads::new(count)?)),
                Start::Never => Threads::Executor(Arc::new(OwnThreads::none(count))),
            })
        }
        (Kind::Caller, Some(parallel_for)) => {
            let ctx = desc.parallel_for_ctx;
            Ok(Threads::Executor(Arc::new(CallersThreads { parallel_for, ctx, threads: count })))
        }
        (Kind::Caller, None) => Err(fail(BN_ERROR_NULL, format_args!("desc.parallel_for is NULL"))),
        (_, Some(_)) => {
            let message = format_args!("desc.parallel_for is given, but desc.threads is not BN_THREADS_CALLER");
            Err(fail(BN_ERROR_THREADS, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn backwards(ctx: *mut c_void, n: usize, task: bn_task, arg: *mut c_void) {
        // SAFETY: the tests give the address of an atomic.
        unsafe { &*ctx.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
        for i in (0..n).rev() {
            // SAFETY: as the library asks for.
            unsafe { task(arg, i) };
        }
    }

    fn callers(calls: &AtomicUsize) -> CallersThreads {
        CallersThreads { parallel_for: backwards, ctx: (&raw const *calls).cast_mut().cast(), threads: 2 }
    }

    #[test]
    fn every_index_is_run_once() {
        let calls = AtomicUsize::new(0);
        let executors: [&dyn Executor; 3] =
            [&OwnThreads::new(2).unwrap(), &OwnThreads::new(5).unwrap(), &callers(&calls)];
        for executor in executors {
            for n in [0, 1, 2, 3, 100] {
                let seen: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                executor.parallel_for(n, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{n}");
            }
        }
        assert_eq!(calls.into_inner(), 5);
    }

    #[test]
    fn a_panic_goes_around_the_callers_frames() {
        let calls = AtomicUsize::new(0);
        let executor = callers(&calls);
        let run = || executor.parallel_for(3, &|i| assert_ne!(i, 1, "task"));
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("task"));
    }
}
