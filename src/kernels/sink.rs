//! Where the outputs of a map go: whole vectors to places that are aligned to them, and the parts of vectors around
//! these.
//!
//! A non-temporal store must write a whole aligned line at once, or it costs more than an ordinary store, and an output
//! seldom starts on a line (a large allocation begins 16 bytes after one), nor do rows and planes have whole lines.
//! So walks cut the first vector of a run short, and the parts of vectors with which runs begin and end wait here for
//! the next run, which often continues the line.
//!
//! Each line is written as soon as it is complete: to gather 2 KB in L1 first lets memory wait for the sums and the
//! sums for memory, and takes 1.8 times as long on one thread.

use crate::lanes::Store;
use crate::simd::{STREAM_ALIGN, Vector};
use std::marker::PhantomData;

/// Whether outputs bypass the caches. Plain maps over rows are compiled for both; the others ask at run time, for each
/// vector: rows of 57 channels would take 1.1 times as long.
pub(super) trait Streaming: Copy {
    /// Whether it is known when it is compiled that they do.
    const ALWAYS: bool;
    fn on(self) -> bool;
}

#[derive(Clone, Copy)]
pub(super) struct Cached;
#[derive(Clone, Copy)]
pub(super) struct Streamed;

impl Streaming for Cached {
    const ALWAYS: bool = false;
    #[inline(always)]
    fn on(self) -> bool {
        false
    }
}

impl Streaming for Streamed {
    const ALWAYS: bool = true;
    #[inline(always)]
    fn on(self) -> bool {
        true
    }
}

impl Streaming for bool {
    const ALWAYS: bool = false;
    #[inline(always)]
    fn on(self) -> bool {
        self
    }
}

/// Room for a vector, and for the excess of its last part.
#[repr(C, align(64))]
pub(super) struct Line([u8; 2 * STREAM_ALIGN]);

impl Line {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self([0; 2 * STREAM_ALIGN])
    }
}

/// An output.
pub(super) struct Sink<'a, L: Store, T> {
    /// Borrowed, not inline: fields next to memory that is written by pointer cannot stay in registers.
    buffer: *mut L::Element,
    /// The place of a vector in memory, aligned to its size, to which the next element belongs.
    place: *mut L::Element,
    /// Elements of the place before `end` have been put. Those before `start` are not ours; the others wait in the
    /// buffer if this streams.
    start: usize,
    end: usize,
    streaming: T,
    line: PhantomData<&'a mut Line>,
}

impl<'a, L: Store, T: Streaming> Sink<'a, L, T> {
    const BYTES: usize = L::V::LANES * size_of::<L::Element>();

    #[inline(always)]
    pub(super) fn new(line: &'a mut Line, streaming: T) -> Self {
        const { assert!(Self::BYTES <= STREAM_ALIGN) };
        let buffer = line.0.as_mut_ptr().cast();
        Self { buffer, place: std::ptr::null_mut(), start: 0, end: 0, streaming, line: PhantomData }
    }

    /// Says where the next element goes.
    ///
    /// # Safety
    /// What was put before may be written.
    #[inline(always)]
    pub(super) unsafe fn seek(&mut self, p: *mut L::Element) {
        if p != self.place.wrapping_add(self.end) {
            // SAFETY: the caller's promise.
            unsafe { self.flush() };
            self.end = p.addr() % Self::BYTES / size_of::<L::Element>();
            self.start = self.end;
            self.place = p.wrapping_sub(self.end);
        }
    }

    /// Whether outputs bypass the caches.
    #[inline(always)]
    pub(super) fn streams(&self) -> bool {
        self.streaming.on()
    }

    /// Where the next element goes.
    #[inline(always)]
    pub(super) fn position(&self) -> *mut L::Element {
        self.place.wrapping_add(self.end)
    }

    /// Elements to the next place of a vector, 0 at one.
    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        (L::V::LANES - self.end) % L::V::LANES
    }

    /// Puts all lanes after what was put before, which ends at the place of a vector if this streams.
    ///
    /// # Safety
    /// They may be written there.
    #[inline(always)]
    pub(super) unsafe fn put(&mut self, v: L::V) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.streaming.on() {
                debug_assert!(self.end == 0);
                L::stream(v, self.place);
            } else {
                L::store(v, self.place.wrapping_add(self.end));
            }
        }
        self.place = self.place.wrapping_add(L::V::LANES);
    }

    /// Puts the first `n` lanes after what was put before: no more than there is room for, if this streams.
    ///
    /// # Safety
    /// They may be written there.
    #[inline(always)]
    pub(super) unsafe fn put_first(&mut self, v: L::V, n: usize) {
        let streaming = self.streaming.on();
        // SAFETY: the caller's promise; the buffer has room for two vectors.
        unsafe {
            if streaming {
                // All lanes; the next part overwrites the excess. Masked stores take several times as long.
                L::store(v, self.buffer.wrapping_add(self.end));
            } else {
                L::store_first(v, self.place.wrapping_add(self.end), n);
            }
            self.end += n;
            if self.end >= L::V::LANES {
                if streaming && self.start == 0 {
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
    pub(super) unsafe fn flush(&mut self) {
        if self.streaming.on() && self.start < self.end {
            let (from, to) = (self.buffer.wrapping_add(self.start), self.place.wrapping_add(self.start));
            // SAFETY: the caller's promise; the buffer is our own.
            unsafe { to.copy_from_nonoverlapping(from, self.end - self.start) };
            self.start = self.end;
        }
    }
}
