//! The walks of passes that write: one output an element, from the inputs and the channel's coefficients.

use super::{AHEAD, Runs, Tile};
use crate::Shape;
use crate::element::{Element, Store};
use crate::kernels::reduce::{Inputs, advance};
use crate::kernels::sink::{Lines, Sink};
use crate::simd::{Kernel, Real, Simd, Vector};
use std::marker::PhantomData;
use std::ops::Range;

/// The most coefficients a channel may have.
pub(crate) const MAX_COEFS: usize = 7;

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
            if self.stream {
                self.walk::<E::Native<S>, true>();
                S::fence();
            } else {
                self.walk::<E::Native<S>, false>();
            }
        }
    }
}

/// The values of one vector of outputs; of its first `n` lanes, where `PARTIAL`.
///
/// # Safety
/// The lanes can be read at every input used.
#[inline(always)]
unsafe fn vector<M: Map, L: Store, const PARTIAL: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Inputs<L::Element>,
    at: usize,
    n: usize,
) -> L::V {
    let mut v = [L::V::splat(Real::from_f64(0.0)); 2];
    for (v, p) in v.iter_mut().zip(x).take(M::INPUTS) {
        L::V::prefetch(p.wrapping_add(at).cast::<u8>().wrapping_add(AHEAD));
        // SAFETY: the caller's promise.
        *v = unsafe { if PARTIAL { L::load_first(p.add(at), n) } else { L::load(p.add(at)) } };
    }
    M::apply(coefs, v)
}

impl<M: Map, E: Element> Apply<M, E> {
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn walk<L: Store<Element = E, V: Vector<Scalar = E::Param>>, const STREAM: bool>(&self) {
        let mut lines = Lines::new();
        let mut sink = Sink::<L, STREAM>::new(&mut lines);
        // SAFETY: the caller's promise.
        unsafe {
            if self.shape.inner() == 1 {
                self.rows(&mut sink);
            } else {
                self.planes(&mut sink);
            }
            sink.flush();
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<L: Store<Element = E, V: Vector<Scalar = E::Param>>, const STREAM: bool>(
        &self,
        sink: &mut Sink<'_, L, STREAM>,
    ) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
            for c in self.tile.channels.clone() {
                let mut coefs = [L::V::splat(Real::from_f64(0.0)); MAX_COEFS];
                let run = (o * channels + c) * inner + i;
                let x = advance(self.x, run);
                // SAFETY: the run lies within the buffer, by the definition of the shape; `c` is below `padded`.
                unsafe {
                    for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
                        *v = L::V::splat(*self.coefs.add(k * self.padded + c));
                    }
                    sink.seek(self.out.add(run));
                    let mut at = 0;
                    while len - at >= L::V::LANES {
                        sink.put::<false>(vector::<M, L, false>(coefs, x, at, L::V::LANES), L::V::LANES);
                        at += L::V::LANES;
                    }
                    if at < len {
                        sink.put::<true>(vector::<M, L, true>(coefs, x, at, len - at), len - at);
                    }
                }
            }
        }
    }

    /// Row by row, in the order of memory: walking several rows at once, to load coefficients less often, takes up
    /// to twice as long on large tensors, as hardware prefetchers lose the track.
    ///
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<L: Store<Element = E, V: Vector<Scalar = E::Param>>, const STREAM: bool>(
        &self,
        sink: &mut Sink<'_, L, STREAM>,
    ) {
        let Range { start, end } = self.tile.channels;
        for row in self.tile.positions.clone() {
            let x = advance(self.x, row * self.shape.channels());
            // SAFETY: the row lies within the buffer; a column plus a vector lies within the padded coefficients.
            unsafe {
                sink.seek(self.out.add(row * self.shape.channels() + start));
                let mut c = start;
                while c < end {
                    let mut coefs = [L::V::splat(Real::from_f64(0.0)); MAX_COEFS];
                    for (k, v) in coefs.iter_mut().enumerate().take(M::COEFS) {
                        *v = L::V::load(self.coefs.add(k * self.padded + c));
                    }
                    let n = end - c;
                    if n >= L::V::LANES {
                        sink.put::<false>(vector::<M, L, false>(coefs, x, c, n), n);
                    } else {
                        sink.put::<true>(vector::<M, L, true>(coefs, x, c, n), n);
                    }
                    c += L::V::LANES;
                }
            }
        }
    }
}
