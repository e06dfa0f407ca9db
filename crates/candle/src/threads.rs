//! candle's own thread pool, as an executor of passes.

use batchnorm as bn;
use candle_core::utils::barrier_pool;
use std::sync::{Arc, OnceLock};

struct CandlePool;

impl bn::Executor for CandlePool {
    fn threads(&self) -> usize {
        barrier_pool().n_workers() + 1
    }

    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        // Unlike `execute`, this does not deadlock if the caller is a thread of the pool.
        barrier_pool().execute_chunked(n, |indices| indices.for_each(task));
    }
}

/// A plan on candle's threads. All plans share scratch memory, whatever their shapes.
pub(crate) fn plan(shape: bn::Shape) -> bn::BatchNorm {
    static FIRST: OnceLock<bn::BatchNorm> = OnceLock::new();
    let first = || bn::BatchNorm::new(shape).threads(bn::Threads::Executor(Arc::new(CandlePool)));
    FIRST.get_or_init(first).reshape(shape)
}
