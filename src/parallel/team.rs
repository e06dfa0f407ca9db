//! Threads that join a pass while it runs, without the pass ever waiting for one that has not joined.
//!
//! The caller opens a step, and works on it until no task is left. Helpers that come in the meantime enter, claim
//! tasks, and leave. Then the caller closes the step, and waits for the helpers that are inside: each runs its last
//! task. It runs nothing else meanwhile. So a pass ends even if no helper ever comes, and never runs other people's
//! code.

use super::sync::{AtomicPtr, AtomicUsize, Ordering, spin_loop, yield_now};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;

/// The task that a worker takes first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    FirstFirst,
    LastFirst,
}

/// The most shares into which tasks are divided; more workers use one together.
const MAX_SHARES: usize = 64;

type Panic = Box<dyn Any + Send>;

/// The tasks of a step, divided among workers.
pub(super) struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    shares: usize,
    order: Order,
    /// How many tasks of a share have been claimed, or more if none are left.
    claimed: [AtomicUsize; MAX_SHARES],
    /// The first panic of a helper, or null.
    panic: AtomicPtr<Panic>,
}

impl<'a> Job<'a> {
    pub(super) fn new(tasks: usize, workers: usize, order: Order, task: &'a (dyn Fn(usize) + Sync)) -> Self {
        let claimed = std::array::from_fn(|_| AtomicUsize::new(0));
        let shares = workers.clamp(1, MAX_SHARES);
        Self { task, tasks, shares, order, claimed, panic: AtomicPtr::new(null_mut()) }
    }

    /// Runs tasks until none is left.
    pub(super) fn work(&self, worker: usize) {
        while let Some(i) = self.claim(worker) {
            (self.task)(i);
        }
    }

    /// The first task of a share and the number of its tasks.
    fn share(&self, k: usize) -> (usize, usize) {
        let (each, more) = (self.tasks / self.shares, self.tasks % self.shares);
        (k * each + k.min(more), each + usize::from(k < more))
    }

    /// A task that nobody has claimed: of the worker's own share or, if that is done, of the next ones.
    fn claim(&self, worker: usize) -> Option<usize> {
        (0..self.shares).find_map(|k| {
            let k = (worker % self.shares + k) % self.shares;
            let (first, len) = self.share(k);
            // Relaxed: the counter orders nothing but itself; what tasks write is published when helpers leave. It is
            // read first, so that it exceeds the length by no more than the number of workers.
            let claimed = &self.claimed[k];
            let i = if claimed.load(Ordering::Relaxed) < len { claimed.fetch_add(1, Ordering::Relaxed) } else { len };
            (i < len).then(|| if self.order == Order::FirstFirst { first + i } else { first + len - 1 - i })
        })
    }

    /// Works as a helper, whose panic is the caller's.
    fn help(&self, worker: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(worker))) {
            let panic = Box::into_raw(Box::new(panic));
            // Relaxed: published when the helper leaves.
            if self.panic.compare_exchange(null_mut(), panic, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                // SAFETY: it was made above, and is not shared.
                drop(unsafe { Box::from_raw(panic) });
            }
        }
    }

    /// The first panic of a helper.
    fn take_panic(&mut self) -> Option<Panic> {
        let panic = self.panic.swap(null_mut(), Ordering::Relaxed);
        // SAFETY: `help` made it from a box, and it was taken out.
        (!panic.is_null()).then(|| *unsafe { Box::from_raw(panic) })
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.take_panic();
    }
}

/// A flag of the state: helpers may enter.
const OPEN: usize = 1;
/// A flag of the state: there is no pass.
const END: usize = 2;
/// One helper inside, in the state.
const HELPER: usize = 4;
/// One step, in the state. The number of steps wraps around: a helper that slept through all of them misses a step.
const STEP: usize = HELPER << 12;
/// The bits that count the helpers inside.
const INSIDE: usize = STEP - HELPER;

/// Where the caller of a pass and its helpers meet. It serves one pass after another; a helper that comes too late for
/// one helps the next.
pub(super) struct Team {
    /// The flags, the number of helpers inside, and the number of the step.
    state: AtomicUsize,
    /// What the open step consists of.
    job: AtomicPtr<Job<'static>>,
}

impl Team {
    pub(super) fn new() -> Self {
        Self { state: AtomicUsize::new(END), job: AtomicPtr::new(null_mut()) }
    }

    /// Begins a pass, unless the team already has one.
    pub(super) fn begin(&self) -> Option<Pass<'_>> {
        let state = self.state.load(Ordering::Relaxed);
        // Acquire: what the last pass did comes before this one.
        if state & END != 0
            && self.state.compare_exchange(state, state - END, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            Some(Pass(self))
        } else {
            None
        }
    }

    /// Helps the pass in all of its steps, and returns when it has ended.
    pub(super) fn help(&self, worker: usize) {
        let mut done = None;
        let mut wait = Wait::new();
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & END != 0 {
                return;
            }
            let step = Some(state / STEP);
            if state & OPEN == 0 || step == done || state & INSIDE == INSIDE {
                wait.a_little();
                continue;
            }
            // Acquire: the caller stored the job before it opened the step.
            let entered = self.state.compare_exchange(state, state + HELPER, Ordering::Acquire, Ordering::Relaxed);
            if entered.is_ok() {
                // SAFETY: the step was open. The caller keeps its job until it has closed the step and no helper is
                // inside.
                unsafe { &*self.job.load(Ordering::Relaxed) }.help(worker);
                // Release: what the tasks wrote.
                self.state.fetch_sub(HELPER, Ordering::Release);
                done = step;
                wait = Wait::new();
            }
        }
    }
}

/// The pass of a team. Dropping it ends the pass.
pub(super) struct Pass<'a>(&'a Team);

impl Pass<'_> {
    /// Runs a step: returns when all of its tasks have ended, and panics if one did.
    pub(super) fn run(&mut self, mut job: Job<'_>) {
        let state = &self.0.state;
        self.0.job.store((&raw mut job).cast(), Ordering::Relaxed);
        // While a step is closed, with no helper inside, only the caller writes the state. Release: the job.
        let opened = state.load(Ordering::Relaxed).wrapping_add(STEP) | OPEN;
        state.store(opened, Ordering::Release);
        let close = Close(state);
        job.work(0);
        drop(close);
        if let Some(panic) = job.take_panic() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // Release: the next pass of the team comes after this one.
        self.0.state.fetch_or(END, Ordering::Release);
    }
}

/// Closes the step when dropped, by a panic too, and waits until no helper is inside.
struct Close<'a>(&'a AtomicUsize);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!OPEN, Ordering::Relaxed);
        let mut wait = Wait::new();
        // Acquire: what the tasks of helpers wrote, also of those that left before it was closed.
        while self.0.load(Ordering::Acquire) & INSIDE != 0 {
            wait.a_little();
        }
    }
}

/// A wait for another thread, which usually takes less than a task.
struct Wait(usize);

impl Wait {
    fn new() -> Self {
        Self(0)
    }

    /// Spins at first, then lets other threads have the core.
    fn a_little(&mut self) {
        const SPINS: usize = 1000;
        if self.0 < SPINS {
            self.0 += 1;
            spin_loop();
        } else {
            yield_now();
        }
    }
}
