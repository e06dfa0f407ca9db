//! `Σ g` and `Σ g·(x − mean)`, a channel at a time or a block of rows, with `g = dy·act'`.

use super::input_gradient::upstream;
use super::normalize::{self, center};
use super::operands::{Fused, Lanes, Native, Operands, Sources, existing};
use super::reduce::{self, MAX_COEFS, Reduce, Rows};
use super::{MAX_GROUP, Runs, Tile, start};
use crate::Shape;
use crate::element::Element;
use crate::simd::{Kernel, Real, Simd, Vector};
use std::mem::MaybeUninit;
use std::ops::Range;

/// How many coefficients this needs: prescale, mean_hi, mean_lo.
pub(crate) const COEFS: usize = 3;

/// The terms g and g·(x − mean), the second times the channel's prescale. Where anything is fused the coefficients of
/// the forward pass come after its own.
struct Terms<const FUSED: bool>;

impl<const FUSED: bool> Reduce for Terms<FUSED> {
    const INPUTS: usize = 2;
    const COEFS: usize = if FUSED { COEFS + normalize::COEFS } else { COEFS };
    const RECOMPUTE_COEFS: usize = if FUSED { normalize::COEFS } else { 0 };
    const FUSED: bool = FUSED;
    const SQUARES: bool = false;
    #[inline(always)]
    fn terms<V: Vector>(coefs: [V; MAX_COEFS], operands: Operands<V>, fused: &Fused) -> [V; 2] {
        let [prescale, mean_hi, mean_lo, forward @ ..] = coefs;
        if !FUSED {
            let [g, x, ..] = operands.inputs;
            return [g, g.mul(center(x, prescale, mean_hi, mean_lo))];
        }
        let (g, x) = upstream(forward, &operands, fused);
        [g, existing(fused, operands.weight, g.mul(center(x, prescale, mean_hi, mean_lo)))]
    }
}

/// The pass over one tile: both sums of each of its channels at the tile's positions.
pub(crate) struct GradientTerms<E: Element, const FUSED: bool> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    /// dy and x.
    pub(crate) x: Sources<E>,
    pub(crate) fused: Fused,
    /// Arrays of the channels' coefficients, so many values apart.
    pub(crate) coefs: *const E::Param,
    pub(crate) apart: usize,
    /// Σg and Σg·(x − mean)·prescale by channel, each `padded(channels)` long.
    pub(crate) out: [*mut f64; 2],
}

impl<E: Element, const FUSED: bool> Kernel for GradientTerms<E, FUSED> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes a `GradientTerms` promises that its pointers cover the shape.
        unsafe {
            if self.shape.inner() == 1 {
                self.rows::<Native<E, S>>();
            } else {
                self.planes::<Native<E, S>>();
            }
        }
    }
}

impl<E: Element, const FUSED: bool> GradientTerms<E, FUSED> {
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<L: Lanes<E = E, V: Vector<Scalar = E::Param>>>(&self) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        let mut slots = [const { MaybeUninit::uninit() }; MAX_GROUP];
        let sums = start(&mut slots, self.tile.channels.len(), [L::V::wide_zero(); 2]);
        for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
            for (acc, c) in sums.iter_mut().zip(self.tile.channels.clone()) {
                let x = self.x.advance((o * channels + c) * inner + i, o * inner + i);
                // SAFETY: the run lies within the buffers, by the definition of the shape; `c` is a channel.
                unsafe {
                    let mut coefs = [L::V::splat(Real::from_f64(0.0)); MAX_COEFS];
                    for (k, v) in coefs.iter_mut().enumerate().take(Terms::<FUSED>::COEFS) {
                        *v = L::V::splat(*self.coefs.add(k * self.apart + c));
                    }
                    reduce::prefetch_plane::<L::V, E>(x.inputs[0].wrapping_add(channels * inner), len);
                    reduce::prefetch_plane::<L::V, E>(x.inputs[1].wrapping_add(channels * inner), len);
                    *acc = reduce::run::<Terms<FUSED>, L, _>(coefs, x, &self.fused, len, *acc, &mut ());
                }
            }
        }
        for (acc, c) in sums.iter().zip(self.tile.channels.clone()) {
            // SAFETY: `c` is below the number of channels.
            unsafe {
                *self.out[0].add(c) = L::V::wide_sum(acc[0]);
                *self.out[1].add(c) = L::V::wide_sum(acc[1]);
            }
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<L: Lanes<E = E, V: Vector<Scalar = E::Param>>>(&self) {
        let stride = self.shape.channels();
        let Range { start, end } = self.tile.channels;
        let columns = end - start;
        let first = self.tile.positions.start;
        let x = self.x.advance(first * stride + start, first);
        // SAFETY: tiles start at whole vectors, and the arrays are padded to such: what is written past the tile's own
        // columns is padding. The rows lie within the buffers.
        unsafe {
            let sums = self.out.map(|p| p.add(start));
            for p in sums {
                p.write_bytes(0, columns.next_multiple_of(16));
            }
            let r = Rows { coefs: self.coefs.add(start), sums, apart: self.apart, columns, stride };
            reduce::rows::<Terms<FUSED>, L>(&r, x, &self.fused, self.tile.positions.len());
        }
    }
}
