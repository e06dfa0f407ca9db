//! Where a map's outputs go: whole vectors at places that are aligned to them, and the parts of vectors around these.
//!
//! A store past the caches must write an aligned line at once or it costs more than an ordinary one, and an output
//! seldom starts on a line (a large allocation begins 16 bytes after one), nor do rows and planes have whole lines.
//! So walks cut the first vector of a run short, and the parts of vectors that runs begin and end with wait here for the
//! next run, which often goes on with the line.
//!
//! Each line is written as soon as it is there: gathering 2 KB in L1 first lets memory wait for the sums and the sums
//! for memory, and takes 1.8 times as long on one thread.

use crate::element::Store;
use crate::simd::{STREAM_ALIGN, Vector};
use std::marker::PhantomData;

/// Room for a vector, and for what the last of its parts has beyond it.
#[repr(C, align(64))]
pub(crate) struct Line([u8; 2 * STREAM_ALIGN]);

impl Line {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self([0; 2 * STREAM_ALIGN])
    }
}

/// An output, written as it comes or, where `STREAM`, past the caches.
pub(crate) struct Sink<'a, L: Store, const STREAM: bool> {
    /// Apart from the other fields, which could not stay in registers beside memory that is written by pointer.
    buffer: *mut L::Element,
    /// The place of a vector in memory, aligned to its size, that the next element belongs to.
    place: *mut L::Element,
    /// Elements of the place before `end` have been put. Those before `start` are not ours; the others wait in the buffer
    /// where `STREAM`.
    start: usize,
    end: usize,
    line: PhantomData<&'a mut Line>,
}

impl<'a, L: Store, const STREAM: bool> Sink<'a, L, STREAM> {
    const BYTES: usize = L::V::LANES * size_of::<L::Element>();

    #[inline(always)]
    pub(crate) fn new(line: &'a mut Line) -> Self {
        const { assert!(Self::BYTES <= STREAM_ALIGN) };
        let buffer = line.0.as_mut_ptr().cast();
        Self { buffer, place: std::ptr::null_mut(), start: 0, end: 0, line: PhantomData }
    }

    /// Where the next element goes.
    ///
    /// # Safety
    /// What was put before may be written.
    #[inline(always)]
    pub(crate) unsafe fn seek(&mut self, p: *mut L::Element) {
        if p != self.place.wrapping_add(self.end) {
            // SAFETY: the caller's promise.
            unsafe { self.flush() };
            self.end = p.addr() % Self::BYTES / size_of::<L::Element>();
            self.start = self.end;
            self.place = p.wrapping_sub(self.end);
        }
    }

    /// Elements to the next place of a vector, 0 at one.
    #[inline(always)]
    pub(crate) fn room(&self) -> usize {
        (L::V::LANES - self.end) % L::V::LANES
    }

    /// The first `n` lanes, all of them unless `PARTIAL`, go where the last ones ended: no more than there is room for
    /// where `PARTIAL`; at the place of a vector where not, if this is a `STREAM`.
    ///
    /// # Safety
    /// They may be written there.
    #[inline(always)]
    pub(crate) unsafe fn put<const PARTIAL: bool>(&mut self, v: L::V, n: usize) {
        // SAFETY: the caller's promise; the buffer has room for two vectors.
        unsafe {
            if !PARTIAL {
                if STREAM {
                    debug_assert!(self.end == 0);
                    L::stream(v, self.place);
                } else {
                    L::store(v, self.place.wrapping_add(self.end));
                }
                self.place = self.place.wrapping_add(L::V::LANES);
                return;
            }
            if STREAM {
                // All lanes, of which the next part overwrites what is too much: masked stores take several times as long.
                L::store(v, self.buffer.wrapping_add(self.end));
            } else {
                L::store_first(v, self.place.wrapping_add(self.end), n);
            }
            self.end += n;
            if self.end >= L::V::LANES {
                if STREAM && self.start == 0 {
                    L::stream(L::load(self.buffer), self.place);
                } else {
                    self.flush();
                }
                self.place = self.place.wrapping_add(L::V::LANES);
                (self.start, self.end) = (0, self.end - L::V::LANES);
            }
        }
    }

    /// Writes what waits.
    ///
    /// # Safety
    /// What was put may be written.
    #[inline(always)]
    pub(crate) unsafe fn flush(&mut self) {
        if STREAM && self.start < self.end {
            let (from, to) = (self.buffer.wrapping_add(self.start), self.place.wrapping_add(self.start));
            // SAFETY: the caller's promise; the buffer is our own.
            unsafe { to.copy_from_nonoverlapping(from, self.end - self.start) };
            self.start = self.end;
        }
    }
}
