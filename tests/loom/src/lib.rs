//! Checks `src/parallel/team.rs` with loom, which runs each test in all orders of its threads' accesses, and with every
//! value that an access may see: `cargo test --manifest-path tests/loom/Cargo.toml`.
//!
//! Tasks write to cells that loom watches: it reports an access by one thread that is not ordered with a write by
//! another. So do callers after a step, whose tasks must have ended.
#![cfg(test)]

#[path = "../../../src/parallel/team.rs"]
mod team;

/// The items of `src/parallel/sync.rs`, from loom.
mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
    pub(super) use loom::thread::yield_now;
}

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};
use team::{Job, Order, Pass, Team};

/// Numbers that tasks write, with no synchronization of their own.
struct Cells([UnsafeCell<usize>; 2]);

// SAFETY: loom reports accesses that are not ordered.
unsafe impl Sync for Cells {}

impl Cells {
    fn new() -> Self {
        Self([0; 2].map(UnsafeCell::new))
    }

    fn add(&self, i: usize, n: usize) {
        // SAFETY: loom reports an access at the same time.
        self.0[i].with_mut(|cell| unsafe { *cell += n });
    }

    fn get(&self, i: usize) -> usize {
        // SAFETY: as above.
        self.0[i].with(|cell| unsafe { *cell })
    }
}

/// Runs `f` in all orders with up to so many switches to another thread where the running one could go on.
fn check(switches: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(f);
}

fn step(pass: &mut Pass<'_>, task: &(dyn Fn(usize) + Sync)) {
    pass.run(Job::new(2, 2, Order::FirstFirst, task));
}

/// A helper that comes at any time. There is only one per test: of two that wait, loom would run each forever while the
/// other waits.
fn helper(team: &Arc<Team>, worker: usize) -> thread::JoinHandle<()> {
    let team = team.clone();
    thread::spawn(move || team.help(worker))
}

#[test]
fn a_helper_enters_while_a_step_is_closed() {
    check(6, || {
        let team = Arc::new(Team::new());
        let helper = helper(&team, 1);
        let cells = Cells::new();
        let mut pass = team.begin().unwrap();
        step(&mut pass, &|i| cells.add(i, 1));
        assert_eq!([cells.get(0), cells.get(1)], [1, 1]);
        drop(pass);
        helper.join().unwrap();
    });
}

#[test]
fn a_step_sees_what_the_one_before_wrote() {
    check(3, || {
        let team = Arc::new(Team::new());
        let helper = helper(&team, 1);
        let cells = Cells::new();
        let sums = Cells::new();
        let mut pass = team.begin().unwrap();
        step(&mut pass, &|i| cells.add(i, 1 + i));
        cells.add(0, 10);
        pass.run(Job::new(2, 2, Order::LastFirst, &|i| sums.add(i, cells.get(0) + cells.get(1))));
        drop(pass);
        assert_eq!([sums.get(0), sums.get(1)], [13, 13]);
        helper.join().unwrap();
    });
}

#[test]
fn a_helper_that_is_late_for_a_pass_joins_the_next() {
    check(3, || {
        let team = Arc::new(Team::new());
        let helper = helper(&team, 1);
        for n in 1..=2 {
            let cells = Cells::new();
            let mut pass = team.begin().unwrap();
            step(&mut pass, &|i| cells.add(i, n));
            drop(pass);
            assert_eq!([cells.get(0), cells.get(1)], [n, n]);
        }
        helper.join().unwrap();
    });
}

#[test]
fn a_team_has_one_pass_at_a_time() {
    check(3, || {
        let team = Arc::new(Team::new());
        let passes = Arc::new(Cells::new());
        let run = |team: &Team, passes: &Cells| {
            if let Some(mut pass) = team.begin() {
                step(&mut pass, &|i| assert!(i < 2));
                passes.add(0, 1);
            }
        };
        let helper = helper(&team, 1);
        let other = {
            let (team, passes) = (team.clone(), passes.clone());
            thread::spawn(move || run(&team, &passes))
        };
        run(&team, &passes);
        other.join().unwrap();
        helper.join().unwrap();
        assert!((1..=2).contains(&passes.get(0)));
    });
}

#[test]
fn a_panic_of_any_task_reaches_the_caller() {
    check(2, || {
        let team = Arc::new(Team::new());
        let helper = helper(&team, 1);
        let mut pass = team.begin().unwrap();
        let run = || {
            step(&mut pass, &|i| {
                if i == 1 {
                    std::panic::resume_unwind(Box::new(i))
                }
            })
        };
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!(panic.downcast_ref::<usize>(), Some(&1));
        drop(pass);
        helper.join().unwrap();
    });
}
