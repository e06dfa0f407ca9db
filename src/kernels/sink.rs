//! Streaming stores for outputs of any alignment: vectors are gathered in L1 into whole cache lines.
//!
//! A store past the caches must write an aligned line at once or it costs more than an ordinary one, and an output
//! seldom starts on a line (a large allocation begins 16 bytes after one), nor do rows and planes have whole lines.
//! Going through L1 costs a store and a load there, which a walk bound by memory does not notice.

use crate::element::Store;
use crate::simd::{STREAM_ALIGN, Vector};
use std::marker::PhantomData;

/// Bytes gathered before they are written.
const BYTES: usize = 2048;

/// Room for them and for a vector more.
#[repr(C, align(64))]
pub(crate) struct Lines([u8; BYTES + 2 * STREAM_ALIGN]);

impl Lines {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self([0; BYTES + 2 * STREAM_ALIGN])
    }
}

/// Where a map's outputs go: to memory at once or, where `STREAM`, past the caches.
pub(crate) struct Sink<'a, L: Store, const STREAM: bool> {
    /// Apart from the other fields, which could not stay in registers beside memory that is written by pointer.
    buffer: *mut L::Element,
    /// The line in memory that the buffer's first stands for.
    line: *mut L::Element,
    /// Elements of the buffer before `start` are not ours; those from there to `end` wait to be written.
    start: usize,
    end: usize,
    lines: PhantomData<&'a mut Lines>,
}

impl<'a, L: Store, const STREAM: bool> Sink<'a, L, STREAM> {
    /// Elements in a line.
    const LINE: usize = {
        assert!(L::V::LANES * size_of::<<L::V as Vector>::Scalar>() == STREAM_ALIGN);
        STREAM_ALIGN / size_of::<L::Element>()
    };

    #[inline(always)]
    pub(crate) fn new(lines: &'a mut Lines) -> Self {
        let buffer = lines.0.as_mut_ptr().cast();
        Self { buffer, line: std::ptr::null_mut(), start: 0, end: 0, lines: PhantomData }
    }

    /// Where the next element goes.
    ///
    /// # Safety
    /// What was put before may be written.
    #[inline(always)]
    pub(crate) unsafe fn seek(&mut self, p: *mut L::Element) {
        if p != self.line.wrapping_add(self.end) {
            if STREAM {
                // SAFETY: the caller's promise.
                unsafe { self.flush() };
                self.start = p.addr() % STREAM_ALIGN / size_of::<L::Element>();
                self.end = self.start;
                self.line = p.wrapping_sub(self.start);
            } else {
                self.line = p.wrapping_sub(self.end);
            }
        }
    }

    /// The first `n` lanes, all of them unless `PARTIAL`, go where the last ones ended.
    ///
    /// # Safety
    /// They may be written there.
    #[inline(always)]
    pub(crate) unsafe fn put<const PARTIAL: bool>(&mut self, v: L::V, n: usize) {
        let n = if PARTIAL { n } else { L::V::LANES };
        // SAFETY: the caller's promise; the buffer has room for a vector more than is gathered.
        unsafe {
            if STREAM {
                L::store(v, self.buffer.add(self.end));
            } else if PARTIAL {
                L::store_first(v, self.line.wrapping_add(self.end), n);
            } else {
                L::store(v, self.line.wrapping_add(self.end));
            }
        }
        self.end += n;
        if STREAM && self.end >= BYTES / size_of::<L::Element>() {
            // SAFETY: the caller's promises so far.
            unsafe { self.write_lines() };
        }
    }

    /// Streams the whole lines and keeps what is left.
    ///
    /// # Safety
    /// What was put may be written.
    #[inline(always)]
    unsafe fn write_lines(&mut self) {
        let (line, buffer) = (self.line, self.buffer);
        let whole = self.end / Self::LINE * Self::LINE;
        let mut at = 0;
        // SAFETY: the caller's promise. `line` is aligned, and so are its multiples.
        unsafe {
            if self.start > 0 {
                at = Self::LINE;
                line.add(self.start).copy_from_nonoverlapping(buffer.add(self.start), Self::LINE - self.start);
            }
            while at < whole {
                // As they lie there: a vector has the bytes of a line, whatever the elements are.
                L::V::load(buffer.add(at).cast()).stream(line.add(at).cast());
                at += Self::LINE;
            }
            L::V::load(buffer.add(whole).cast()).store(buffer.cast());
        }
        self.line = line.wrapping_add(whole);
        self.end -= whole;
        self.start = 0;
    }

    /// Writes all that is left.
    ///
    /// # Safety
    /// What was put may be written.
    #[inline(always)]
    pub(crate) unsafe fn flush(&mut self) {
        if !STREAM || self.start == self.end {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if self.end >= Self::LINE {
                self.write_lines();
            }
            let (line, buffer) = (self.line, self.buffer);
            line.add(self.start).copy_from_nonoverlapping(buffer.add(self.start), self.end - self.start);
        }
        self.start = self.end;
    }
}
