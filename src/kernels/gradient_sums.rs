//! `Σ g` and `Σ g·(x − mean)`, a channel at a time or a block of rows.

use super::normalize::center;
use super::reduce::{self, Inputs, Reduce, Rows};
use super::{MAX_GROUP, Runs, Tile, padded, start};
use crate::Shape;
use crate::element::{Element, Load};
use crate::simd::{Kernel, Simd, Vector, wide_sum};
use std::mem::MaybeUninit;
use std::ops::Range;

/// The terms g and g·(x − mean), the second times the channel's prescale.
struct Terms;

impl Reduce for Terms {
    const INPUTS: usize = 2;
    const COEFS: usize = 3;
    const SQUARES: bool = false;
    #[inline(always)]
    fn terms<V: Vector>([prescale, mean_hi, mean_lo]: [V; 3], [g, x]: [V; 2]) -> [V; 2] {
        [g, g.mul(center(x, prescale, mean_hi, mean_lo))]
    }
}

/// The pass over one tile: both sums of each of its channels at the tile's positions.
pub(crate) struct GradientTerms<E: Element> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    /// g and x.
    pub(crate) x: Inputs<E>,
    /// Three arrays, each `padded(channels)` long: prescale, mean_hi, mean_lo.
    pub(crate) coefs: *const E::Param,
    /// Σg and Σg·(x − mean)·prescale by channel, each `padded(channels)` long.
    pub(crate) out: [*mut f64; 2],
}

impl<E: Element> Kernel for GradientTerms<E> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes a `GradientTerms` promises that its pointers cover the shape.
        unsafe {
            if self.shape.inner() == 1 {
                self.rows::<E::Native<S>>();
            } else {
                self.planes::<E::Native<S>>();
            }
        }
    }
}

impl<E: Element> GradientTerms<E> {
    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<L: Load<Element = E, V: Vector<Scalar = E::Param>>>(&self) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        let padded = padded(channels);
        let mut slots = [const { MaybeUninit::uninit() }; MAX_GROUP];
        let sums = start(&mut slots, self.tile.channels.len(), [L::V::wide_zero(); 2]);
        for (o, i, len) in Runs::new(self.shape, &self.tile.positions) {
            for (acc, c) in sums.iter_mut().zip(self.tile.channels.clone()) {
                let x = reduce::advance(self.x, (o * channels + c) * inner + i);
                // SAFETY: the run lies within the buffers, by the definition of the shape; `c` is below `padded`.
                unsafe {
                    let coefs = [
                        L::V::splat(*self.coefs.add(c)),
                        L::V::splat(*self.coefs.add(padded + c)),
                        L::V::splat(*self.coefs.add(2 * padded + c)),
                    ];
                    *acc = reduce::run::<Terms, L>(coefs, x, len, *acc);
                }
            }
        }
        for (acc, c) in sums.iter().zip(self.tile.channels.clone()) {
            // SAFETY: `c` is below the number of channels.
            unsafe {
                *self.out[0].add(c) = wide_sum::<L::V>(acc[0]);
                *self.out[1].add(c) = wide_sum::<L::V>(acc[1]);
            }
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<L: Load<Element = E, V: Vector<Scalar = E::Param>>>(&self) {
        let stride = self.shape.channels();
        let Range { start, end } = self.tile.channels;
        let (padded, columns) = (padded(stride), end - start);
        let x = reduce::advance(self.x, self.tile.positions.start * stride + start);
        // SAFETY: tiles start at whole vectors, and the arrays are padded to such: what is written past the tile's own
        // columns is padding. The rows lie within the buffers.
        unsafe {
            let sums = self.out.map(|p| p.add(start));
            for p in sums {
                p.write_bytes(0, columns.next_multiple_of(16));
            }
            let r = Rows { coefs: self.coefs.add(start), sums, padded, columns, stride };
            reduce::rows::<Terms, L>(&r, x, self.tile.positions.len());
        }
    }
}
