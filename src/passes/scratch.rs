//! Memory for the per-channel arrays of passes, kept for the next pass.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::Arc;
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

/// The most memory that one call of a plan needs at once. Lengths are in values of f64, and whole cache lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Of a window, and how many there are.
    pub(crate) window: usize,
    pub(crate) windows: usize,
    /// Of a task while it runs, and how many run at once.
    pub(crate) task: usize,
    pub(crate) tasks: usize,
}

impl Sizes {
    fn bytes(&self) -> usize {
        let windows = lines(self.window).saturating_mul(self.windows);
        windows.saturating_add(lines(self.task).saturating_mul(self.tasks)).saturating_mul(size_of::<Line>())
    }

    /// Bytes for `calls` calls at once, whatever their alignment.
    pub(crate) fn bytes_for(&self, calls: usize) -> usize {
        self.bytes().saturating_mul(calls.max(1)).saturating_add(ALIGN - 1)
    }

    /// What both need.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            window: self.window.max(other.window),
            windows: self.windows.max(other.windows),
            task: self.task.max(other.task),
            tasks: self.tasks.max(other.tasks),
        }
    }
}

/// Scratch memory that is given to a plan, of any alignment: made from a `Box` or from a `&'static mut`.
#[derive(Debug)]
pub struct Memory {
    /// Whoever has this has the memory to itself. A raw pointer, since buffers point to it as well.
    bytes: *mut [MaybeUninit<u8>],
    boxed: bool,
}

// SAFETY: it is like a `Box<[MaybeUninit<u8>]>` or a `&'static mut [MaybeUninit<u8>]`.
unsafe impl Send for Memory {}
// SAFETY: the same.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl From<&'static mut [MaybeUninit<u8>]> for Memory {
    fn from(bytes: &'static mut [MaybeUninit<u8>]) -> Self {
        Self { bytes, boxed: false }
    }
}

impl From<Box<[MaybeUninit<u8>]>> for Memory {
    fn from(bytes: Box<[MaybeUninit<u8>]>) -> Self {
        Self { bytes: Box::into_raw(bytes), boxed: true }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.boxed {
            // SAFETY: it comes from a box, and whatever used it is gone.
            drop(unsafe { Box::from_raw(self.bytes) });
        }
    }
}

/// The memory of a plan, and of those that share it: buffers for windows, for tasks and for conversions.
#[derive(Clone)]
pub(crate) struct Scratch(Arc<Pools>);

struct Pools {
    windows: Pool,
    tasks: Pool,
    conversions: Pool,
    /// What the given buffers lie in.
    _memory: Option<Memory>,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

impl Default for Scratch {
    fn default() -> Self {
        let [windows, tasks, conversions] = [(); 3].map(|()| Pool::new(Given::none()));
        Self(Arc::new(Pools { windows, tasks, conversions, _memory: None }))
    }
}

impl Scratch {
    /// Memory for a window, with arbitrary contents.
    pub(crate) fn window(&self, len: usize) -> Buffer<'_> {
        self.0.windows.take(len)
    }

    /// The memory of a task, with arbitrary contents.
    pub(crate) fn task(&self, len: usize) -> Buffer<'_> {
        self.0.tasks.take(len)
    }

    /// The memory of a pass for its arguments in other types, with arbitrary contents.
    pub(crate) fn conversions(&self, len: usize) -> Buffer<'_> {
        self.0.conversions.take(len)
    }

    /// Cuts memory into buffers for as many calls as it has room for; none if it has room for none.
    pub(crate) fn given(memory: Memory, sizes: Sizes) -> Option<Self> {
        // SAFETY: nothing else uses the memory, and nothing did before.
        let bytes = unsafe { &mut *memory.bytes };
        let first = bytes.as_mut_ptr().align_offset(ALIGN);
        let bytes = bytes.get_mut(first..).unwrap_or_default();
        let calls = bytes.len().checked_div(sizes.bytes()).unwrap_or(1);
        if calls == 0 {
            return None;
        }
        bytes.fill(MaybeUninit::new(0));
        let start = bytes.as_mut_ptr().cast::<Line>();
        let (windows, tasks) = (calls.saturating_mul(sizes.windows), calls.saturating_mul(sizes.tasks));
        let after = start.wrapping_add(windows * lines(sizes.window));
        Some(Self(Arc::new(Pools {
            windows: Pool::new(Given::new(start, lines(sizes.window), windows)),
            tasks: Pool::new(Given::new(after, lines(sizes.task), tasks)),
            conversions: Pool::new(Given::none()),
            _memory: Some(memory),
        })))
    }
}

fn lines(len: usize) -> usize {
    len.div_ceil(VALUES)
}

/// Buffers that are not in use. No lock guards them, since a forked child would wait forever for one that another thread
/// had held.
struct Pool {
    given: Given,
    /// Buffers from the heap, each after a line with its length, and null.
    kept: [AtomicPtr<Line>; KEPT],
}

/// Neighbouring buffers of one length, of which plans have the memory to themselves.
struct Given {
    start: AtomicPtr<Line>,
    lines: usize,
    idle: Box<[AtomicBool]>,
}

impl Given {
    fn none() -> Self {
        Self::new(null_mut(), 0, 0)
    }

    fn new(start: *mut Line, lines: usize, buffers: usize) -> Self {
        let buffers = if lines == 0 { 0 } else { buffers };
        Self { start: AtomicPtr::new(start), lines, idle: (0..buffers).map(|_| AtomicBool::new(true)).collect() }
    }
}

impl Pool {
    fn new(given: Given) -> Self {
        Self { given, kept: [const { AtomicPtr::new(null_mut()) }; KEPT] }
    }

    fn take(&self, len: usize) -> Buffer<'_> {
        let lines = lines(len);
        // Acquire, here and below: whoever had the buffer before no longer uses it.
        let idle = |idle: &AtomicBool| idle.load(Ordering::Relaxed) && idle.swap(false, Ordering::Acquire);
        let given = if lines <= self.given.lines { self.given.idle.iter().position(idle) } else { None };
        let start = match given {
            Some(k) => self.given.start.load(Ordering::Relaxed).wrapping_add(k * self.given.lines),
            None => self.heap_buffer(lines),
        };
        Buffer { pool: self, start, given, next: start.cast(), left: lines * VALUES }
    }

    /// A buffer that was kept, unless it is too short, or a new one.
    fn heap_buffer(&self, lines: usize) -> *mut Line {
        if let Some(start) = self.take_kept() {
            // SAFETY: it was kept, and is taken out.
            unsafe {
                if length(start) >= lines {
                    return start;
                }
                free(start);
            }
        }
        allocate(lines)
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
}

impl Drop for Pool {
    fn drop(&mut self) {
        while let Some(start) = self.take_kept() {
            // SAFETY: buffers that are kept are from the heap, and this one was taken out.
            unsafe { free(start) };
        }
    }
}

/// Allocates a buffer, of zeros: large ones then cost nothing until they are used. The line before it has its length.
fn allocate(lines: usize) -> *mut Line {
    let layout = layout(lines);
    // SAFETY: the layout has a size that is not 0; the first line has room for a length.
    unsafe {
        let header = alloc_zeroed(layout).cast::<Line>();
        if header.is_null() {
            handle_alloc_error(layout);
        }
        header.cast::<usize>().write(lines);
        header.add(1)
    }
}

fn layout(lines: usize) -> Layout {
    Layout::array::<Line>(lines.saturating_add(1)).expect("a plan's arrays are no larger than a tensor's")
}

/// The length of a buffer.
///
/// # Safety
/// [`allocate`] made it, and it has not been freed.
unsafe fn length(start: *mut Line) -> usize {
    // SAFETY: the caller's promise.
    unsafe { start.sub(1).cast::<usize>().read() }
}

/// # Safety
/// [`allocate`] made the buffer, and nothing uses it any more.
unsafe fn free(start: *mut Line) {
    // SAFETY: the caller's promise.
    unsafe { dealloc(start.sub(1).cast(), layout(length(start))) };
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
            None => unsafe { free(self.start) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    const SIZES: Sizes = Sizes { window: 48, windows: 2, task: 16, tasks: 3 };
    const SET: usize = 8 * (2 * 48 + 3 * 16);

    fn room(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
        Box::leak(Box::new_uninit_slice(bytes))
    }

    fn given(bytes: &'static mut [MaybeUninit<u8>]) -> Option<Scratch> {
        Scratch::given(bytes.into(), SIZES)
    }

    fn span(mut buffer: Buffer<'_>, len: usize) -> Range<usize> {
        let start = buffer.take(len).addr();
        start..start + len * size_of::<f64>()
    }

    #[test]
    fn given_memory_is_cut_into_buffers_wherever_it_starts() {
        for offset in 0..ALIGN {
            let memory = &mut room(offset + SIZES.bytes_for(2))[offset..];
            let whole = memory.as_ptr_range();
            let whole = whole.start.addr()..whole.end.addr();
            let scratch = given(memory).unwrap();
            let (windows, tasks) = ([(); 4].map(|()| scratch.window(48)), [(); 6].map(|()| scratch.task(16)));
            let spans = [windows.map(|b| span(b, 48)).to_vec(), tasks.map(|b| span(b, 16)).to_vec()].concat();
            for (i, a) in spans.iter().enumerate() {
                assert!(a.start.is_multiple_of(ALIGN) && whole.start <= a.start && a.end <= whole.end);
                assert!(spans[..i].iter().all(|b| a.end <= b.start || b.end <= a.start));
            }
        }
    }

    #[test]
    fn what_is_too_small_is_refused() {
        assert_eq!(SIZES.bytes_for(1), SET + ALIGN - 1);
        assert!(given(room(0)).is_none());
        assert!(given(room(SET - 1)).is_none());
        assert!(given(room(SIZES.bytes_for(1))).is_some());
        assert_eq!(SIZES.bytes_for(usize::MAX), usize::MAX);
        // An empty plan needs nothing.
        assert!(Scratch::given(room(0).into(), Sizes::default()).is_some());
    }

    #[test]
    fn buffers_return_and_the_heap_helps_out() {
        let scratch = given(room(SIZES.bytes_for(1))).unwrap();
        let first = span(scratch.window(48), 48);
        let taken = [(); 2].map(|()| scratch.window(40));
        assert_eq!(taken[0].next.addr(), first.start);
        let third = scratch.window(48);
        assert!(taken.iter().all(|b| b.next != third.next) && third.next.addr().is_multiple_of(ALIGN));
        let kept = third.next;
        drop(third);
        assert_eq!(scratch.window(48).next, kept);
        // A longer one than what was given, or kept, is from the heap, and is kept instead.
        let long = span(scratch.window(500), 500);
        assert_eq!(scratch.window(49).next.addr(), long.start);
    }

    #[test]
    fn owned_memory_lives_as_long_as_any_plan_that_shares_it() {
        let memory: Box<[MaybeUninit<u8>]> = Box::new_uninit_slice(SIZES.bytes_for(1));
        let range = memory.as_ptr_range();
        let scratch = Scratch::given(memory.into(), SIZES).unwrap();
        let shared = scratch.clone();
        drop(scratch);
        let mut buffer = shared.window(48);
        let start = buffer.take(48);
        assert!((range.start.addr()..range.end.addr()).contains(&start.addr()));
        // SAFETY: the buffer has so many values.
        unsafe { start.add(47).write(1.0) };
    }

    #[test]
    #[should_panic(expected = "more scratch memory than its sizes say")]
    fn taking_too_much_is_found() {
        let scratch = Scratch::default();
        let mut window = scratch.window(48);
        window.take(40);
        window.take(16);
    }
}
