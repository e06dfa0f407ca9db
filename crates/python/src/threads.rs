//! The threads that passes run on: those of the OpenMP runtime of the process if it was found, or a pool.

use batchnorm::{ThreadPool, Threads};
use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::{process, thread};

#[cfg(target_os = "linux")]
use crate::openmp;

/// The pool that calls share, its number of threads, and the process that started them.
static POOL: Mutex<Option<(usize, u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Threads for a pass: 1 is the calling thread alone, 0 is a pool with a thread for each core, and any other number is
/// so many threads of the OpenMP runtime that [`use_openmp_of`](crate::use_openmp_of) found, or else of the pool.
pub(crate) fn threads(count: usize) -> Threads {
    if count == 1 {
        return Threads::Sequential;
    }
    #[cfg(target_os = "linux")]
    if count > 1
        && let Some(threads) = openmp::threads(count)
    {
        return threads;
    }
    pool(count)
}

/// A pool of so many threads. A call that cannot have it at once runs on its own thread: it may be in a forked child,
/// in which nobody would ever release the lock.
fn pool(count: usize) -> Threads {
    let per_core = || thread::available_parallelism().map_or(1, NonZero::get);
    let count = if count == 0 { per_core() } else { count }.min(ThreadPool::MAX_THREADS);
    let Ok(mut shared) = POOL.try_lock() else { return Threads::Sequential };
    if let Some((threads, process, pool)) = &*shared
        && *threads == count
        && *process == process::id()
    {
        return Threads::Pool(pool.clone());
    }
    match ThreadPool::new(count) {
        Ok(pool) => {
            let pool = Arc::new(pool);
            *shared = Some((count, process::id(), pool.clone()));
            Threads::Pool(pool)
        }
        // The system has no threads left: results are the same on one.
        Err(_) => Threads::Sequential,
    }
}
