//! The engine's threads.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{SendError, Sender, channel};
use std::thread;

/// A pool on which all operations of the engine run.
pub struct ThreadPool {
    /// Where each helper gets its work from. They end when the pool is dropped.
    helpers: Vec<Sender<Job>>,
}

/// A share of the indices of a loop.
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    indices: std::iter::StepBy<std::ops::Range<usize>>,
    panics: Sender<Box<dyn Any + Send>>,
}

thread_local! {
    /// Whether the thread is a helper. One that waited for others could wait for itself, so a loop in a loop runs on it
    /// alone.
    static HELPS: Cell<bool> = const { Cell::new(false) };
}

impl ThreadPool {
    /// A pool of so many threads, the calling one among them.
    ///
    /// # Errors
    /// If the system can't start them.
    pub fn new(threads: usize) -> io::Result<Self> {
        let helper = |_| {
            let (sender, jobs) = channel::<Job>();
            thread::Builder::new().spawn(move || {
                HELPS.set(true);
                jobs.into_iter().for_each(Job::run);
            })?;
            Ok(sender)
        };
        Ok(Self { helpers: (1..threads).map(helper).collect::<io::Result<_>>()? })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task` once for every index below `n`, and returns when all calls have ended. An index always runs on the
    /// same thread.
    pub fn for_each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        if HELPS.get() || n < 2 {
            return (0..n).for_each(task);
        }
        let (panics, ended) = channel();
        // SAFETY: only jobs have this reference. `ended` has no more items once the last job has run and dropped its
        // sender. This function waits for that, and nothing before it can unwind, as panics are caught.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = |first| Job { task, indices: (first..n).step_by(self.threads()), panics: panics.clone() };
        let own = job(0);
        for (helper, job) in self.helpers.iter().zip((1..n).map(job)) {
            helper.send(job).unwrap_or_else(|SendError(job)| job.run());
        }
        own.run();
        drop(panics);
        // All of them before any is dropped, which may panic, too.
        let mut panics: Vec<_> = ended.into_iter().collect();
        if let Some(panic) = panics.pop() {
            resume_unwind(panic);
        }
    }
}

impl Job {
    fn run(self) {
        let Self { task, indices, panics } = self;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| indices.for_each(task))) {
            // The loop waits, so there is a receiver.
            let _ = panics.send(panic);
        }
    }
}
