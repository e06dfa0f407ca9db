//! The threads that plans run on.

use crate::constants::BN_MAX_POOL_THREADS;
use crate::read::{check_alignment, check_pointer, choose};
use crate::status::{BN_ERROR_NULL, BN_ERROR_THREADS, Status, fail, guard};
use crate::structs::{bn_plan_desc, bn_pool, bn_task};
use batchnorm::{Executor, ThreadPool, Threads};
use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Threads that are only counted: the caller runs what they skip.
struct Counted(usize);

impl Executor for Counted {
    fn threads(&self) -> usize {
        self.0
    }

    fn parallel_for(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {}
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

/// Starts the threads of a pool; 0 stands for one per core.
fn new_pool(threads: usize) -> Result<Arc<ThreadPool>, Status> {
    let threads = number(threads);
    let failed = |e| fail(BN_ERROR_THREADS, format_args!("could not start {threads} threads: {e}"));
    Ok(Arc::new(ThreadPool::new(threads).map_err(failed)?))
}

/// The number of threads that a caller means: 0 is one per core.
fn number(threads: usize) -> usize {
    const { assert!(BN_MAX_POOL_THREADS == ThreadPool::MAX_THREADS) };
    let per_core = || thread::available_parallelism().map_or(1, NonZero::get).min(BN_MAX_POOL_THREADS);
    if threads > 0 { threads } else { per_core() }
}

/// The threads that a descriptor asks for.
///
/// # Safety
/// As long as the result is used, `parallel_for` and its ctx are as the header demands of a bn_parallel_for. A pool
/// that is not NULL and is aligned comes from `bn_pool_create`, and is not destroyed during the call.
pub(crate) unsafe fn threads(desc: &bn_plan_desc, start: Start) -> Result<Threads, Status> {
    let kind = choose("desc.threads", desc.threads, &[Kind::Sequential, Kind::Pool, Kind::Caller])?;
    let (count, has_pool) = (desc.thread_count, !desc.pool.is_null());
    let wrong_count = |expected: fmt::Arguments<'_>| {
        let message = format_args!("desc.thread_count is out of range: expected {expected}, got {count}");
        Err(fail(BN_ERROR_THREADS, message))
    };
    let not_for = |field: &str, threads: &str| {
        Err(fail(BN_ERROR_THREADS, format_args!("desc.{field} is given, but desc.threads is not {threads}")))
    };
    match (kind, desc.parallel_for) {
        (Kind::Sequential, _) if count != 0 => wrong_count(format_args!("0 for BN_THREADS_SEQUENTIAL")),
        (Kind::Pool, _) if has_pool && count != 0 => wrong_count(format_args!("0 with desc.pool")),
        (Kind::Pool, _) if count > BN_MAX_POOL_THREADS => {
            wrong_count(format_args!("0 to {BN_MAX_POOL_THREADS} for BN_THREADS_POOL"))
        }
        (Kind::Caller, _) if count == 0 => wrong_count(format_args!("at least 1 for BN_THREADS_CALLER")),
        (Kind::Sequential | Kind::Pool, Some(_)) => not_for("parallel_for", "BN_THREADS_CALLER"),
        (Kind::Sequential | Kind::Caller, _) if has_pool => not_for("pool", "BN_THREADS_POOL"),
        (Kind::Sequential, None) => Ok(Threads::Sequential),
        (Kind::Pool, None) if has_pool => {
            check_alignment("desc.pool", desc.pool)?;
            // SAFETY: the caller's promise.
            Ok(Threads::Pool(unsafe { &*desc.pool }.0.clone()))
        }
        (Kind::Pool, None) => Ok(match start {
            Start::Now => Threads::Pool(new_pool(count)?),
            Start::Never => Threads::Executor(Arc::new(Counted(number(count)))),
        }),
        (Kind::Caller, Some(parallel_for)) => {
            // SAFETY: the caller's promise.
            let threads = unsafe { CallersThreads::new(parallel_for, desc.parallel_for_ctx, count) };
            Ok(Threads::Executor(Arc::new(threads)))
        }
        (Kind::Caller, None) => {
            let message = format_args!("desc.parallel_for is NULL: BN_THREADS_CALLER needs a function");
            Err(fail(BN_ERROR_NULL, message))
        }
    }
}

/// Creates a pool of threads for any number of plans. threads is at most BN_MAX_POOL_THREADS, including the thread that
/// calls a pass, or 0 for one thread per core. After an error *pool is unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_pool_create(threads: usize, pool: *mut *mut bn_pool) -> i32 {
    guard(|| {
        check_pointer("pool", pool)?;
        if threads > BN_MAX_POOL_THREADS {
            let message = format_args!("threads is out of range: expected 0 to {BN_MAX_POOL_THREADS}, got {threads}");
            return Err(fail(BN_ERROR_THREADS, message));
        }
        let made = Box::new(bn_pool(new_pool(threads)?));
        // SAFETY: the header demands a pointer to room for a pointer; it is not null and is aligned.
        unsafe { pool.write(Box::into_raw(made)) };
        Ok(())
    })
}

/// Destroys a pool. Its threads end when the last plan that uses it is destroyed as well. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_pool_destroy(pool: *mut bn_pool) -> i32 {
    guard(|| {
        if !pool.is_null() {
            check_pointer("pool", pool)?;
            // SAFETY: the header demands a handle from `bn_pool_create` that is not used any more.
            drop(unsafe { Box::from_raw(pool) });
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constants::{BN_THREADS_CALLER, BN_THREADS_POOL, BN_THREADS_SEQUENTIAL};
    use crate::read::sized;
    use crate::status::bn_last_error_message;
    use std::ffi::CStr;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
        let executor = callers(&CALLS);
        for n in [0, 1, 2, 3, 100] {
            let seen: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            executor.parallel_for(n, &|i| {
                seen[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{n}");
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

    /// The codes and messages of descriptors whose pool does not match the rest.
    #[test]
    fn pools_that_do_not_match() {
        let pool = bn_pool(new_pool(2).unwrap());
        let desc = bn_plan_desc { threads: BN_THREADS_POOL, pool: &pool, ..sized() };
        let wrong = [
            (bn_plan_desc { threads: BN_THREADS_SEQUENTIAL, ..desc }, "desc.threads is not BN_THREADS_POOL"),
            (
                bn_plan_desc { threads: BN_THREADS_CALLER, thread_count: 2, parallel_for: Some(backwards), ..desc },
                "desc.threads is not BN_THREADS_POOL",
            ),
            (
                bn_plan_desc { thread_count: 3, ..desc },
                "desc.thread_count is out of range: expected 0 with desc.pool, got 3",
            ),
            (bn_plan_desc { parallel_for: Some(backwards), ..desc }, "desc.threads is not BN_THREADS_CALLER"),
            (bn_plan_desc { pool: (&raw const pool).wrapping_byte_add(1), ..desc }, "desc.pool is misaligned"),
        ];
        for (desc, message) in wrong {
            for start in [Start::Now, Start::Never] {
                // SAFETY: nothing runs on the threads; a pool that is aligned is the one above.
                assert!(unsafe { threads(&desc, start) }.is_err(), "{message}");
                // SAFETY: it points to the message of this thread, which ends with a 0.
                let actual = unsafe { CStr::from_ptr(bn_last_error_message()) }.to_str().unwrap();
                assert!(actual.contains(message), "{actual}");
            }
        }
        // SAFETY: nothing runs on the threads; the pool is the one above.
        let made = unsafe { threads(&desc, Start::Now) }.unwrap();
        assert!(matches!(&made, Threads::Pool(threads) if Arc::ptr_eq(threads, &pool.0)));
    }
}
