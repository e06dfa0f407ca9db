//! Helpers from rayon's current pool.

use super::process;
use super::team::{Pass, Team};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The threads of the current pool, or 1 in a forked child: rayon would take locks there that a thread may have
/// held when the parent forked. It is recognized if the parent has asked before.
pub(super) fn count() -> usize {
    static FIRST: AtomicU32 = AtomicU32::new(0);
    let this = process::id();
    // Relaxed: the number orders nothing else.
    match FIRST.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != this => 1,
        _ => rayon::current_num_threads(),
    }
}

/// The team of a thread, whose pool never changes.
struct Asked {
    team: Team,
    /// Jobs in rayon's queues that have not started. They will help whichever pass runs then, so that they are not
    /// asked for again: while no thread of the pool is free, the queue does not grow.
    queued: AtomicUsize,
}

thread_local! {
    static ASKED: Cell<Option<Arc<Asked>>> = const { Cell::new(None) };
}

/// Begins a pass of this thread, and asks for helpers.
pub(super) fn pass(workers: usize, pass: &mut dyn FnMut(Option<Pass<'_>>)) {
    let new = || Arc::new(Asked { team: Team::new(), queued: AtomicUsize::new(0) });
    // A thread that is ending has no such memory any more.
    let asked = ASKED.try_with(Cell::take).ok().flatten().unwrap_or_else(new);
    let team = asked.team.begin();
    // Relaxed: a number that orders nothing else.
    let queued = asked.queued.load(Ordering::Relaxed);
    for worker in queued + 1..workers {
        asked.queued.fetch_add(1, Ordering::Relaxed);
        let asked = asked.clone();
        rayon::spawn(move || {
            asked.queued.fetch_sub(1, Ordering::Relaxed);
            asked.team.help(worker);
        });
    }
    pass(team);
    let _ = ASKED.try_with(|cell| cell.set(Some(asked)));
}
