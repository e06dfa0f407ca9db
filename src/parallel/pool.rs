//! A pool of threads that takes no lock.

use super::process;
use super::team::{Pass, Team};
use std::fmt;
use std::hint::spin_loop;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long threads stay awake after a pass.
pub(super) const AWAKE: Duration = Duration::from_micros(50);

/// A pool of threads that plans can share, for programs that have no pool of their own: [`Threads::Pool`].
///
/// A thread that is busy with another pass is not waited for. A thread goes to sleep 50 µs after its last pass.
///
/// Dropping the pool ends its threads, and returns when they have ended; in a forked child, which does not have them,
/// it does nothing.
///
/// ```
/// use batchnorm::{BatchNorm, Shape, ThreadPool, Threads};
/// use std::sync::Arc;
///
/// let pool = Arc::new(ThreadPool::new(4)?);
/// let plan = BatchNorm::new(Shape::nc(128, 64)?).threads(Threads::Pool(pool.clone()));
/// let other = BatchNorm::new(Shape::nchw(32, 64, 28, 28)?).threads(Threads::Pool(pool));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`Threads::Pool`]: crate::Threads::Pool
pub struct ThreadPool {
    common: Arc<Common>,
    helpers: Vec<JoinHandle<()>>,
    /// The process that has these threads.
    process: u32,
}

/// What the threads share.
struct Common {
    /// As many as threads: if more of them call passes at once, cores are busy without helpers.
    teams: Box<[Team]>,
    requests: Box<[Request]>,
    closed: AtomicBool,
}

/// 1 + the index of the team that a helper is asked to join, or 0. In cache lines of its own.
#[repr(align(128))]
struct Request(AtomicUsize);

impl ThreadPool {
    /// The most threads of a pool.
    pub const MAX_THREADS: usize = 1024;

    /// A pool for passes on so many threads, the calling one among them: the pool starts one fewer.
    ///
    /// # Errors
    /// If the number is 0 or more than [`MAX_THREADS`](Self::MAX_THREADS), or if the system can't start the threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        if !(1..=Self::MAX_THREADS).contains(&threads) {
            let message = format!("a pool has 1 to {} threads, got {threads}", Self::MAX_THREADS);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let common = Arc::new(Common {
            teams: (0..threads).map(|_| Team::new()).collect(),
            requests: (1..threads).map(|_| Request(AtomicUsize::new(0))).collect(),
            closed: AtomicBool::new(false),
        });
        // Dropped, and so ended, if one of them can't be started.
        let mut pool = Self { common, helpers: Vec::with_capacity(threads - 1), process: process::id() };
        for helper in 0..threads - 1 {
            let common = pool.common.clone();
            let thread = thread::Builder::new().name("batchnorm".into());
            pool.helpers.push(thread.spawn(move || common.help(helper))?);
        }
        Ok(pool)
    }

    /// The threads that a pass can have, including the calling one.
    pub fn threads(&self) -> usize {
        self.common.teams.len()
    }

    /// The same, or 1 in a forked child, which does not have the threads.
    pub(super) fn available(&self) -> usize {
        if self.process == process::id() { self.threads() } else { 1 }
    }

    /// Begins a pass, and asks for helpers. None if as many passes as there are threads run already.
    pub(super) fn begin(&self, workers: usize) -> Option<Pass<'_>> {
        let common = &self.common;
        let (team, pass) = common.teams.iter().enumerate().find_map(|(i, team)| Some((i, team.begin()?)))?;
        // The same ones each time, which find in their caches what the last pass left there.
        for (request, helper) in common.requests.iter().zip(&self.helpers).take(workers - 1) {
            // A request that nobody has looked at yet is replaced: whoever made it does without. Release: the pass has
            // begun.
            request.0.store(team + 1, Ordering::Release);
            helper.thread().unpark();
        }
        Some(pass)
    }
}

impl Common {
    /// What a thread of the pool does until the pool is closed.
    fn help(&self, helper: usize) {
        while let Some(team) = self.next_request(&self.requests[helper].0) {
            team.help(helper + 1);
        }
    }

    fn next_request(&self, request: &AtomicUsize) -> Option<&Team> {
        let start = Instant::now();
        loop {
            if self.closed.load(Ordering::Relaxed) {
                return None;
            }
            // Acquire: the pass has begun.
            if request.load(Ordering::Relaxed) != 0
                && let Some(team) = request.swap(0, Ordering::Acquire).checked_sub(1)
            {
                return Some(&self.teams[team]);
            }
            if start.elapsed() < AWAKE {
                (0..16).for_each(|_| spin_loop());
            } else {
                thread::park();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let helpers = self.helpers.drain(..);
        if self.process != process::id() {
            // A forked child does not have these threads.
            helpers.for_each(std::mem::forget);
            return;
        }
        self.common.closed.store(true, Ordering::Relaxed);
        for helper in helpers {
            helper.thread().unpark();
            // An error means that the thread panicked; it has ended too.
            let _ = helper.join();
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool").field("threads", &self.threads()).finish()
    }
}
