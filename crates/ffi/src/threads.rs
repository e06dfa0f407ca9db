//! The threads that a plan's passes run on.

use crate::constants::BN_MAX_POOL_THREADS;
use crate::read::choose;
use crate::status::{BN_ERROR_NULL, BN_ERROR_THREADS, Status, fail};
use crate::structs::{bn_plan_desc, bn_task};
use batchnorm::{Executor, Threads};
use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A rayon pool. Dropping it waits until its threads have ended, so that the library can be unloaded afterwards.
struct OwnThreads {
    /// Has one thread fewer than `threads`, since the calling thread also works. None if it was never started.
    pool: Option<rayon::ThreadPool>,
    handles: Vec<JoinHandle<()>>,
    threads: usize,
}

impl OwnThreads {
    /// A number of threads that are not started, and run nothing.
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
        // Relaxed: the counter orders nothing else; what tasks write is published when the scope ends.
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
        // Dropping the pool ends its threads.
        self.pool = None;
        for handle in self.handles.drain(..) {
            // An error means that the thread panicked; it has ended too.
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

impl CallersThreads {
    /// # Safety
    /// As long as the result is used, `parallel_for` can be called with `ctx` on any thread, and on several at once. It
    /// calls its `task` only with the `arg` that it was given, and never after it has returned.
    unsafe fn new(
        parallel_for: unsafe extern "C" fn(*mut c_void, usize, bn_task, *mut c_void),
        ctx: *mut c_void,
        threads: usize,
    ) -> Self {
        Self { parallel_for, ctx, threads }
    }
}

// SAFETY: `new` demands a parallel_for and a ctx that any thread can use.
unsafe impl Send for CallersThreads {}
// SAFETY: `new` demands a parallel_for and a ctx that several threads can use at once.
unsafe impl Sync for CallersThreads {}

/// What a task's `arg` points to.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// # Safety
/// `job` points to the [`Job`] of a `parallel_for` that has not returned.
unsafe extern "C" fn run_task(job: *mut c_void, index: usize) {
    // SAFETY: the caller's promise.
    let job = unsafe { &*job.cast_const().cast::<Job<'_>>() };
    // No panic may unwind through the caller's frames: `parallel_for` resumes it after they have returned.
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
        // SAFETY: `new` demands a function that calls `run_task` only with `arg`, and only while `job` lives.
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

/// Whether the threads of a pool are started, or only counted.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Start {
    Now,
    Never,
}

/// The threads that a descriptor asks for.
///
/// # Safety
/// As long as the result is used, `parallel_for` and its ctx are as the header demands of a bn_parallel_for.
pub(crate) unsafe fn threads(desc: &bn_plan_desc, start: Start) -> Result<Threads, Status> {
    let kind = choose("desc.threads", desc.threads, &[Kind::Sequential, Kind::Pool, Kind::Caller])?;
    let count = desc.thread_count;
    let wrong_count = |expected: fmt::Arguments<'_>| {
        let message = format_args!("desc.thread_count is out of range: expected {expected}, got {count}");
        Err(fail(BN_ERROR_THREADS, message))
    };
    match (kind, desc.parallel_for) {
        (Kind::Sequential, _) if count != 0 => wrong_count(format_args!("0 for BN_THREADS_SEQUENTIAL")),
        (Kind::Pool, _) if count > BN_MAX_POOL_THREADS => {
            wrong_count(format_args!("0 to {BN_MAX_POOL_THREADS} for BN_THREADS_POOL"))
        }
        (Kind::Caller, _) if count == 0 => wrong_count(format_args!("at least 1 for BN_THREADS_CALLER")),
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
            // SAFETY: the caller's promise.
            let threads = unsafe { CallersThreads::new(parallel_for, desc.parallel_for_ctx, count) };
            Ok(Threads::Executor(Arc::new(threads)))
        }
        (Kind::Caller, None) => {
            let message = format_args!("desc.parallel_for is NULL: BN_THREADS_CALLER needs a function");
            Err(fail(BN_ERROR_NULL, message))
        }
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
        // SAFETY: `callers` passes the address of a static atomic.
        unsafe { &*ctx.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
        for i in (0..n).rev() {
            // SAFETY: the arg that came with the task, before this function returns.
            unsafe { task(arg, i) };
        }
    }

    fn callers(calls: &'static AtomicUsize) -> CallersThreads {
        // SAFETY: `backwards` calls its task with its arg before it returns, and takes the address of a static atomic.
        unsafe { CallersThreads::new(backwards, (&raw const *calls).cast_mut().cast(), 2) }
    }

    #[test]
    fn every_index_is_run_once() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let executors: [&dyn Executor; 3] =
            [&OwnThreads::new(2).unwrap(), &OwnThreads::new(5).unwrap(), &callers(&CALLS)];
        for executor in executors {
            for n in [0, 1, 2, 3, 100] {
                let seen: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                executor.parallel_for(n, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{n}");
            }
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_panic_skips_the_callers_frames() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let executor = callers(&CALLS);
        let run = || executor.parallel_for(3, &|i| assert_ne!(i, 1, "task"));
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("task"));
    }
}
