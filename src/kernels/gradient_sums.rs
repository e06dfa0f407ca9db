//! `Σ g` and `Σ g·(x − mean)`, a channel at a time or a block of rows, with `g = dy·act'`.

use super::input_gradient::{before_relu, upstream};
use super::normalize::{self, center};
use super::operands::{Any, Kind, Lanes, Native, Operands, Sources, Variant, masked};
use super::reduce::{self, MAX_COEFS, Reduce, Rows};
use super::scale::all_ones;
use super::tile::{MAX_GROUP, PlaneRuns, Tile, padded, start};
use crate::lanes::Storage;
use crate::shape::Shape;
use crate::simd::{Kernel, MAX_LANES, Real, Simd, Vector, with_rest};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

/// How many coefficients this needs: mean_hi, prescale. Only kernels of any variant need the second.
pub(crate) const COEFS: usize = 2;

/// The terms g and g·(x − mean_hi), the second times the prescale of the channel. If the argument of
/// the activation is computed again, the coefficients of the forward pass come after its own.
struct Terms<K>(PhantomData<K>);

impl<K: Kind> Reduce for Terms<K> {
    type Kind = K;
    const INPUTS: usize = 2;
    const COEFS: usize = if K::ANY || K::RELU { COEFS + normalize::COEFS } else { COEFS - 1 };
    const RECOMPUTE_COEFS: usize = if K::ANY { normalize::COEFS } else { 0 };
    #[inline(always)]
    fn terms<V: Vector>(coefs: &[V; MAX_COEFS], operands: &Operands<V>, variant: &Variant) -> [V; 2] {
        let [mean_hi, prescale, forward @ ..] = *coefs;
        if !K::ANY {
            let d = operands.inputs[1].sub(mean_hi);
            let g = before_relu::<V, K>(&forward, d, operands);
            return [g, g.mul(d)];
        }
        let (g, x) = upstream(&forward, operands, variant);
        [g, masked(variant, operands.weight, g.mul(center(x, prescale, mean_hi)))]
    }
}

/// The pass over one tile: both sums of each of its channels at the positions of the tile.
pub(crate) struct GradientSumsTask<E: Storage> {
    pub(crate) shape: Shape,
    pub(crate) tile: Tile,
    /// dy and x.
    pub(crate) x: Sources<E>,
    pub(crate) variant: Variant,
    /// Arrays of coefficients per channel, a stride apart.
    pub(crate) coefs: *const E::Scalar,
    pub(crate) coefs_stride: usize,
    /// Σg and Σg·(x − mean_hi)·prescale by channel, each `padded(channels)` long.
    pub(crate) out: [*mut f64; 2],
    /// As many values as [`GradientSumsTask::scratch`] says, for rows.
    pub(crate) scratch: *mut f64,
}

/// The kernel of this pass.
pub(crate) struct GradientSumsKernel<K, E: Storage>(GradientSumsTask<E>, PhantomData<K>);

impl<K, E: Storage> GradientSumsKernel<K, E> {
    /// # Safety
    /// dy, x and what the variant names cover the shape, and nothing else uses the channels of the tile in `out` while
    /// the kernel runs. There are as many arrays of coefficients as a kernel of any variant has, of which those that the
    /// pass needs are filled. A tile of planes has at most [`MAX_GROUP`] channels.
    pub(crate) unsafe fn new(task: GradientSumsTask<E>) -> Self {
        Self(task, PhantomData)
    }
}

impl<K: Kind, E: Storage> Kernel for GradientSumsKernel<K, E> {
    const AVX2_SERVES: bool = E::AVX2_SERVES;

    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever made the kernel promised that its pointers cover the shape, and this code runs in the tier.
        unsafe {
            if !(K::ANY || S::ALL_KINDS && self.0.is_ordinary()) {
                S::enter(GradientSumsKernel::<Any, E>::new(self.0));
            } else if self.0.shape.inner() == 1 {
                self.0.rows::<Native<E, S>, K>();
            } else {
                self.0.planes::<Native<E, S>, K>();
            }
        }
    }
}

impl<E: Storage> GradientSumsTask<E> {
    /// Values of scratch memory that a tile needs.
    pub(crate) fn scratch(shape: Shape) -> usize {
        if shape.inner() == 1 { 2 * padded(shape.channels()) } else { 0 }
    }

    /// Whether no channel has a prescale.
    ///
    /// # Safety
    /// The coefficients are computed.
    #[inline(always)]
    unsafe fn is_ordinary(&self) -> bool {
        let channels = &self.tile.channels;
        let prescales = |k: usize| {
            let first = self.coefs.wrapping_add(k * self.coefs_stride + channels.start);
            // SAFETY: the caller's promise.
            unsafe { slice::from_raw_parts(first, channels.len()) }
        };
        let (own, forward) = (COEFS - 1, COEFS + normalize::COEFS - 1);
        all_ones(prescales(own)) && (!self.variant.recomputes() || all_ones(prescales(forward)))
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn planes<L: Lanes<E = E, V: Vector<Scalar = E::Scalar>>, K: Kind>(&self) {
        let next_plane = self.shape.channels() * self.shape.inner();
        let mut slots = [const { MaybeUninit::uninit() }; MAX_GROUP];
        let Range { start: first, end } = self.tile.channels;
        let sums = start(&mut slots, end - first, [L::V::wide_zero(); 2]);
        for run in PlaneRuns::new(self.shape, first..end, self.tile.positions.clone()) {
            let x = self.x.advance(run.element, run.position);
            let mut coefs = [L::V::splat(Real::from_wide(0.0)); MAX_COEFS];
            // SAFETY: the run lies within the buffers, and its channel is one of the shape's.
            unsafe {
                let mut k = 0;
                while k < Terms::<K>::COEFS {
                    coefs[k] = L::V::splat(*self.coefs.wrapping_add(k * self.coefs_stride + run.c));
                    k += 1;
                }
                reduce::prefetch_plane::<L::V, E>(x.inputs[0].wrapping_add(next_plane), run.len);
                reduce::prefetch_plane::<L::V, E>(x.inputs[1].wrapping_add(next_plane), run.len);
                let acc = &mut sums[run.k];
                *acc = reduce::run::<Terms<K>, L, _>(&coefs, &x, &self.variant, run.len, *acc, &mut ());
            }
        }
        let mut c = first;
        while c < end {
            let acc = sums[c - first];
            // SAFETY: `c` is below the number of channels.
            unsafe {
                *self.out[0].wrapping_add(c) = L::V::wide_sum(acc[0]);
                *self.out[1].wrapping_add(c) = L::V::wide_sum(acc[1]);
            }
            c += 1;
        }
    }

    /// # Safety
    /// The pointers cover the shape.
    #[inline(always)]
    unsafe fn rows<L: Lanes<E = E, V: Vector<Scalar = E::Scalar>>, K: Kind>(&self) {
        let row_stride = self.shape.channels();
        let Range { start, end } = self.tile.channels;
        let columns = end - start;
        let first = self.tile.positions.start;
        let x = self.x.advance(first * row_stride + start, first);
        // SAFETY: tiles start at whole vectors, and the arrays are padded to such: what is written past the columns of
        // the tile is padding. The rows lie within the buffers.
        unsafe {
            let sums = [self.out[0].wrapping_add(start), self.out[1].wrapping_add(start)];
            let rests = [self.scratch, self.scratch.wrapping_add(padded(columns))];
            for p in [sums, rests].as_flattened() {
                p.write_bytes(0, columns.next_multiple_of(MAX_LANES));
            }
            let coefs = self.coefs.wrapping_add(start);
            let r = Rows { coefs, coefs_stride: self.coefs_stride, sums, rests, columns, row_stride };
            reduce::rows::<Terms<K>, L>(&r, &x, &self.variant, self.tile.positions.len());
            if size_of::<E::Scalar>() == size_of::<f64>() {
                for (sum, rest) in sums.into_iter().zip(rests) {
                    let mut c = 0;
                    while c < columns {
                        *sum.add(c) = with_rest(*sum.add(c), *rest.add(c));
                        c += 1;
                    }
                }
            }
        }
    }
}
