//! Memory for the per-channel arrays of passes, kept for the next pass.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

/// Buffers start at a multiple of so many bytes: a cache line.
const ALIGN: usize = 64;

/// The most memory that one pass of a plan needs. Lengths are in values of f64, and whole cache lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of a pass, once.
    pub(crate) pass: usize,
    /// Of each task of a pass while it runs.
    pub(crate) task: usize,
    /// Tasks that a pass can have.
    pub(crate) tasks: usize,
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
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

impl Scratch {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self { sizes, passes: Pool::default(), tasks: Pool::default() }
    }

    /// The memory of a pass, with arbitrary contents.
    pub(crate) fn pass(&self) -> Buffer<'_> {
        self.passes.take(self.sizes.pass)
    }

    /// The memory of a task, with arbitrary contents.
    pub(crate) fn task(&self) -> Buffer<'_> {
        self.tasks.take(self.sizes.task)
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
        let mut values = memory.as_mut_ptr().cast::<f64>();
        let mut cut = |n: usize, len: usize| {
            let buffer = |_| {
                let start = values;
                values = values.wrapping_add(len);
                Memory { start, _owned: Vec::new() }
            };
            Pool(Mutex::new((0..n).map(buffer).collect()))
        };
        self.passes = cut(calls, self.sizes.pass);
        self.tasks = cut(calls * self.sizes.threads(threads), self.sizes.task);
        true
    }
}

/// Memory of the length of a pool, from a cache line on: owned, or given to the plan, which alone uses it.
struct Memory {
    start: *mut f64,
    _owned: Vec<f64>,
}

// SAFETY: nothing else refers to the memory.
unsafe impl Send for Memory {}

impl Memory {
    fn new(len: usize) -> Self {
        let mut owned = vec![0.0; len + ALIGN / size_of::<f64>()];
        let start = owned.as_mut_ptr();
        Self { start: start.wrapping_add(start.align_offset(ALIGN)), _owned: owned }
    }
}

/// Buffers of one length that are not in use.
#[derive(Default)]
struct Pool(Mutex<Vec<Memory>>);

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Pool {
    fn take(&self, len: usize) -> Buffer<'_> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = idle.unwrap_or_else(|| Memory::new(len));
        Buffer { next: memory.start, left: len, memory: Some(memory), pool: self }
    }
}

/// A borrowed buffer; it returns to its pool when dropped.
pub(crate) struct Buffer<'a> {
    next: *mut f64,
    left: usize,
    /// Present until it is dropped.
    memory: Option<Memory>,
    pool: &'a Pool,
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
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).extend(self.memory.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    const SIZES: Sizes = Sizes { pass: 48, task: 16, tasks: 3 };

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
