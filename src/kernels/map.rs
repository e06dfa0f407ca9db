//! The walks of passes that write: one output an element, from the inputs and the channel's coefficients.

use super::{Runs, Tile};
use crate::Shape;
use crate::element::{Element, Store};
use crate::kernels::reduce::{Inputs, advance};
use crate::simd::{Kernel, Real, STREAM_ALIGN, Simd, Vector};
use std::marker::PhantomData;
use std::ops::Range;

/// The most coefficients a channel may have.
pub(crate) const MAX_COEFS: usize = 6;

/// The body of an elementwise pass.
pub(crate) trait Map {
    /// How many input arrays are read.
    const INPUTS: usize;
    /// How many coefficients a channel has.
    const COEFS: usize;
    fn apply<V: Vector>(coefs: [V; MAX_COEFS], x: [V; 2]) -> V;
}

/// The pass over one tile.
pub(crate) struct Apply<M, E: Element> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    /// May be equal to `out`: each vector is loaded before it is stored.
    pub(crate) x: Inputs<E>,
    /// `M::COEFS` arrays, each `padded(channels)` long.
    pub(crate) coefs: *const E::Param,
    pub(crate) padded: usize,
    pub(crate) out: *mut E,
    /// Whether to pass the caches by: for outputs too large to be read from them later.
    pub(crate) stream: bool,
    pub(crate) pass: PhantomData<M>,
}

impl<M: Map, E: Element> Kernel for Apply<M, E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes an `Apply` promises that its pointers cover the shape.
        unsafe {
            if self.shape.inner() == 1 {
                self.rows::<E::Native<S>>();
            } else {
                self.planes::<E::Native<S>>();
            }
        }
        if self.stream {
            S::fence();
        }
    }
}

/// Loads, applies and stores one vector, or its first `n` lanes where `PARTIAL`.
///
/// # Safety
/// The lanes can be read at every input used and written at `out`, which is aligned where `STREAM`.
#[inline(always)]
unsafe fn vector<M: Map, L: Store, const PARTIAL: bool, const STREAM: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Inputs<L::Element>,
    out: *mut L::Element,
    at: usize,
    n: usize,
) {
    let mut v = [L::V::splat(Real::from_f64(0.0)); 2];
    // SAFETY: the caller's promise.
    unsafe {
        for (v, p) in v.iter_mut().zip(x).take(M::INPUTS) {
            *v = if PARTIAL { L::load_first(p.add(at), n) } else { L::load(p.add(at)) };
        }
        let y = M::apply(coefs, v);
        let out = out.add(at);
        if PARTIAL {
            L::store_first(y, out, n);
        } else if STREAM {
            L::stream(y, out);
        } else {
            L::store(y, out);
        }
    }
}

/// Elements up to the next address fit for streaming.
#[inline(always)]
fn misaligned<E>(p: *const E) -> usize {
    (p as usize).wrapping_neg() % STREAM_ALIGN / size_of::<E>()
}

impl<M: Map, E: Element> Apply<M, E> {
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<L: Store<Element = E, V: Vector<Scalar = E::Param>>>(&self) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
            for c in self.tile.channels.clone() {
                let mut coefs = [L::V::splat(Real::from_f64(0.0)); MAX_COEFS];
                let at = (o * channels + c) * inner + i;
                // SAFETY: the run lies within the buffer, by the definition of the shape; `c` is below `padded`.
                unsafe {
                    for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
                        *v = L::V::splat(*self.coefs.add(k * self.padded + c));
                    }
                    // A run shorter than a few cache lines would stream most of its lines in two halves.
                    if self.stream && len >= 16 * L::V::LANES {
                        run::<M, L, true>(coefs, advance(self.x, at), self.out.add(at), len);
                    } else {
                        run::<M, L, false>(coefs, advance(self.x, at), self.out.add(at), len);
                    }
                }
            }
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<L: Store<Element = E, V: Vector<Scalar = E::Param>>>(&self) {
        let channels = self.shape.channels();
        let aligned = misaligned(self.out) == 0 && (channels * size_of::<E>()).is_multiple_of(STREAM_ALIGN);
        let mut row = self.tile.positions.start;
        while row < self.tile.positions.end {
            let rows = ROWS.min(self.tile.positions.end - row);
            let at = row * channels;
            // SAFETY: the rows lie within the buffer.
            unsafe {
                let (x, out) = (advance(self.x, at), self.out.add(at));
                if self.stream && aligned {
                    self.block::<L, true>(x, out, rows);
                } else {
                    self.block::<L, false>(x, out, rows);
                }
            }
            row += rows;
        }
    }

    /// A block of rows, panel by panel: coefficients are loaded once for all of them.
    ///
    /// # Safety
    /// `rows` rows can be read at every input and written at `out`, which is aligned where `STREAM`.
    #[inline(always)]
    unsafe fn block<L: Store<Element = E, V: Vector<Scalar = E::Param>>, const STREAM: bool>(
        &self,
        x: Inputs<E>,
        out: *mut E,
        rows: usize,
    ) {
        let stride = self.shape.channels();
        let Range { start: mut c, end } = self.tile.channels;
        while c < end {
            let n = end - c;
            let mut coefs = [L::V::splat(Real::from_f64(0.0)); MAX_COEFS];
            // SAFETY: `c` plus a vector lies within the padded coefficients; rows are the caller's promise.
            unsafe {
                for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
                    *v = L::V::load(self.coefs.add(k * self.padded + c));
                }
                for row in 0..rows {
                    let at = row * stride + c;
                    if n >= L::V::LANES {
                        vector::<M, L, false, STREAM>(coefs, x, out, at, n);
                    } else {
                        vector::<M, L, true, false>(coefs, x, out, at, n);
                    }
                }
            }
            c += L::V::LANES;
        }
    }
}

/// Rows that share a load of the coefficients.
const ROWS: usize = 2;

/// A contiguous run of one channel.
///
/// # Safety
/// `len` elements can be read at every input used and written at `out`.
#[inline(always)]
unsafe fn run<M: Map, L: Store, const STREAM: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Inputs<L::Element>,
    out: *mut L::Element,
    len: usize,
) {
    let lanes = L::V::LANES;
    // SAFETY: every vector lies within `len`; after the head `out` is aligned, and stays so by whole vectors.
    unsafe {
        let mut at = 0;
        if STREAM {
            at = misaligned(out).min(len);
            vector::<M, L, true, false>(coefs, x, out, 0, at);
        }
        while len - at >= lanes {
            vector::<M, L, false, STREAM>(coefs, x, out, at, lanes);
            at += lanes;
        }
        if at < len {
            vector::<M, L, true, false>(coefs, x, out, at, len - at);
        }
    }
}
