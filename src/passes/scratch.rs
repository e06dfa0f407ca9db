//! Memory for the per-channel arrays of passes, kept for the next pass.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::{null_mut, slice_from_raw_parts_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// What buffers consist of: cache lines.
#[repr(align(64))]
#[derive(Clone)]
struct Line {
    _values: [f64; VALUES],
}

/// Values of a line.
const VALUES: usize = 8;
/// Buffers start at a multiple of so many bytes.
const ALIGN: usize = align_of::<Line>();
/// Buffers from the heap that a pool keeps.
const KEPT: usize = 64;

/// The most memory that one pass of a plan needs. Lengths are in values of f64, and whole cache lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of a pass, once.
    pub(crate) pass: usize,
    /// Of each task of a pass while it runs.
    pub(crate) task: usize,
    /// Tasks that a pass can have.
    pub(crate) tasks: usize,
    /// Of a pass whose per-channel arguments have other types than it computes with. Always from the heap.
    pub(crate) conversions: usize,
}

impl Sizes {
    fn threads(&self, threads: usize) -> usize {
        threads.min(self.tasks)
    }

    /// Bytes for a pass on this many threads.
    fn bytes(&self, threads: usize) -> usize {
        self.task.saturating_mul(self.threads(threads)).saturating_add(self.pass).saturating_mul(size_of::<f64>())
    }
}

/// The memory of a plan: buffers for passes and for their tasks. A clone starts with none.
#[derive(Clone)]
pub(crate) struct Scratch {
    sizes: Sizes,
    passes: Pool,
    tasks: Pool,
    conversions: Pool,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

impl Scratch {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let [passes, tasks, conversions] = [sizes.pass, sizes.task, sizes.conversions].map(Pool::new);
        Self { sizes, passes, tasks, conversions }
    }

    /// The memory of a pass, with arbitrary contents.
    pub(crate) fn pass(&self) -> Buffer<'_> {
        self.passes.take()
    }

    /// The memory of a task, with arbitrary contents.
    pub(crate) fn task(&self) -> Buffer<'_> {
        self.tasks.take()
    }

    /// The memory of a pass for its arguments in other types, with arbitrary contents.
    pub(crate) fn conversions(&self) -> Buffer<'_> {
        self.conversions.take()
    }

    /// Bytes for `calls` concurrent passes on this many threads each, whatever their alignment.
    pub(crate) fn bytes(&self, calls: usize, threads: usize) -> usize {
        self.sizes.bytes(threads).saturating_mul(calls.max(1)).saturating_add(ALIGN - 1)
    }

    /// Cuts the memory into buffers for as many passes as it has room for; false if it has room for none.
    pub(crate) fn give(&mut self, memory: &'static mut [MaybeUninit<u8>], threads: usize) -> bool {
        let start = memory.as_mut_ptr().align_offset(ALIGN);
        let memory = memory.get_mut(start..).unwrap_or_default();
        let calls = memory.len() / self.sizes.bytes(threads);
        if calls == 0 {
            return false;
        }
        memory.fill(MaybeUninit::new(0));
        let (passes, tasks) = (calls, calls * self.sizes.threads(threads));
        let start = memory.as_mut_ptr().cast::<Line>();
        self.passes.given = Given::new(start, passes);
        self.tasks.given = Given::new(start.wrapping_add(passes * self.passes.lines), tasks);
        true
    }
}

/// Buffers of one length that are not in use. No lock guards them, since a forked child would wait forever for one
/// that another thread had held.
struct Pool {
    /// The length of a buffer.
    lines: usize,
    given: Given,
    /// Buffers from the heap, and null.
    kept: [AtomicPtr<Line>; KEPT],
}

/// Neighbouring buffers that were given to the plan, which alone uses them.
struct Given {
    start: AtomicPtr<Line>,
    idle: Box<[AtomicBool]>,
}

impl Given {
    fn new(start: *mut Line, buffers: usize) -> Self {
        Self { start: AtomicPtr::new(start), idle: (0..buffers).map(|_| AtomicBool::new(true)).collect() }
    }
}

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::new(self.lines * VALUES)
    }
}

impl Pool {
    fn new(len: usize) -> Self {
        let kept = [const { AtomicPtr::new(null_mut()) }; KEPT];
        Self { lines: len.div_ceil(VALUES), given: Given::new(null_mut(), 0), kept }
    }

    fn take(&self) -> Buffer<'_> {
        // Acquire, here and below: whoever had the buffer before no longer uses it.
        let idle = |idle: &AtomicBool| idle.load(Ordering::Relaxed) && idle.swap(false, Ordering::Acquire);
        let given = self.given.idle.iter().position(idle);
        let start = match given {
            Some(k) => self.given.start.load(Ordering::Relaxed).wrapping_add(k * self.lines),
            None => self.take_kept().unwrap_or_else(|| {
                Box::into_raw(vec![Line { _values: [0.0; VALUES] }; self.lines].into_boxed_slice()).cast()
            }),
        };
        Buffer { pool: self, start, given, next: start.cast(), left: self.lines * VALUES }
    }

    fn take_kept(&self) -> Option<*mut Line> {
        self.kept.iter().find_map(|kept| {
            let start = if kept.load(Ordering::Relaxed).is_null() {
                null_mut()
            } else {
                kept.swap(null_mut(), Ordering::Acquire)
            };
            (!start.is_null()).then_some(start)
        })
    }

    /// Keeps a buffer from the heap, if there is room.
    fn keep(&self, start: *mut Line) -> bool {
        // Release: the buffer is no longer used.
        let keep = |kept: &AtomicPtr<Line>| {
            kept.load(Ordering::Relaxed).is_null()
                && kept.compare_exchange(null_mut(), start, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        self.kept.iter().any(keep)
    }

    /// # Safety
    /// `take` allocated the buffer, and nothing uses it any more.
    unsafe fn free(&self, start: *mut Line) {
        // SAFETY: the caller's promise; all buffers have this length.
        drop(unsafe { Box::from_raw(slice_from_raw_parts_mut(start, self.lines)) });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        while let Some(start) = self.take_kept() {
            // SAFETY: buffers that are kept are from the heap, and this one was taken out.
            unsafe { self.free(start) };
        }
    }
}

/// A borrowed buffer; it returns to its pool when dropped.
pub(crate) struct Buffer<'a> {
    pool: &'a Pool,
    start: *mut Line,
    /// Which of the given buffers it is; otherwise it is from the heap.
    given: Option<usize>,
    next: *mut f64,
    left: usize,
}

impl Buffer<'_> {
    /// The next `len` values.
    pub(crate) fn take(&mut self, len: usize) -> *mut f64 {
        assert!(len <= self.left, "a pass takes more scratch memory than its sizes say");
        let taken = self.next;
        self.next = taken.wrapping_add(len);
        self.left -= len;
        taken
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        match self.given {
            // Release: the buffer is no longer used.
            Some(k) => self.pool.given.idle[k].store(true, Ordering::Release),
            None if self.pool.keep(self.start) => {}
            // SAFETY: it is from the heap, and nothing else refers to it.
            None => unsafe { self.pool.free(self.start) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    const SIZES: Sizes = Sizes { pass: 48, task: 16, tasks: 3, conversions: 8 };

    fn room(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
        Box::leak(Box::new_uninit_slice(bytes))
    }

    fn span(mut buffer: Buffer<'_>, len: usize) -> Range<usize> {
        let start = buffer.take(len).addr();
        start..start + len * size_of::<f64>()
    }

    #[test]
    fn given_memory_is_cut_into_buffers_wherever_it_starts() {
        for offset in 0..ALIGN {
            let mut scratch = Scratch::new(SIZES);
            // More threads than tasks: three of them have work.
            let memory = &mut room(offset + scratch.bytes(2, 9))[offset..];
            let whole = memory.as_ptr_range();
            let whole = whole.start.addr()..whole.end.addr();
            assert!(scratch.give(memory, 9));
            let (passes, tasks) = ([(); 2].map(|()| scratch.pass()), [(); 6].map(|()| scratch.task()));
            let spans = [passes.map(|b| span(b, SIZES.pass)).to_vec(), tasks.map(|b| span(b, SIZES.task)).to_vec()];
            let spans = spans.concat();
            for (i, a) in spans.iter().enumerate() {
                assert!(a.start.is_multiple_of(ALIGN) && whole.start <= a.start && a.end <= whole.end);
                assert!(spans[..i].iter().all(|b| a.end <= b.start || b.end <= a.start));
            }
        }
    }

    #[test]
    fn what_is_too_small_is_refused() {
        let mut scratch = Scratch::new(SIZES);
        let set = 8 * (48 + 2 * 16);
        assert_eq!(scratch.bytes(1, 2), set + ALIGN - 1);
        assert!(!scratch.give(room(0), 2));
        assert!(!scratch.give(room(set - 1), 2));
        assert!(scratch.give(room(scratch.bytes(1, 2)), 2));
        assert_eq!(scratch.bytes(usize::MAX, 2), usize::MAX);
    }

    #[test]
    fn buffers_return_and_the_heap_helps_out() {
        let mut scratch = Scratch::new(SIZES);
        assert!(scratch.give(room(scratch.bytes(1, 1)), 1));
        let given = span(scratch.pass(), 48);
        let first = scratch.pass();
        let second = scratch.pass();
        assert_eq!(first.next.addr(), given.start);
        assert!(!given.contains(&second.next.addr()) && second.next.addr().is_multiple_of(ALIGN));
        let kept = second.next;
        drop(second);
        assert_eq!(scratch.pass().next, kept);
    }

    #[test]
    #[should_panic(expected = "more scratch memory than its sizes say")]
    fn taking_too_much_is_found() {
        let scratch = Scratch::new(SIZES);
        let mut pass = scratch.pass();
        pass.take(40);
        pass.take(16);
    }
}
