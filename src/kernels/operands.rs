//! What a pass reads at an element, and what is fused to it.

use crate::Activation;
use crate::element::{Element, Load, Same};
use crate::simd::{Real, Simd, Vector};
use std::marker::PhantomData;
use std::ops::Range;

/// How a kernel reads elements of a type, and weights, into lanes of one kind.
pub(crate) trait Lanes {
    type E: Element;
    type V: Vector;
    type X: Load<Element = Self::E, V = Self::V>;
    type W: Load<Element = <Self::E as Element>::Param, V = Self::V>;
}

/// The lanes that an element type is computed in.
pub(crate) struct Native<E, S>(PhantomData<(E, S)>);

impl<E: Element, S: Simd> Lanes for Native<E, S> {
    type E = E;
    type V = <E::Native<S> as Load>::V;
    type X = E::Native<S>;
    type W = Same<Self::V>;
}

/// Lanes of f64.
pub(crate) struct Redo<E, S>(PhantomData<(E, S)>);

impl<E: Element, S: Simd> Lanes for Redo<E, S> {
    type E = E;
    type V = S::F64;
    type X = E::Redo<S>;
    type W = <E::Param as Element>::Redo<S>;
}

/// Arrays of the plan's shape that a pass may read: up to three of its own, the residual, and y. Those that it does not
/// read are null.
pub(crate) type Inputs<E> = [*const E; INPUTS];
pub(crate) const INPUTS: usize = 5;
/// Where the residual stands in [`Inputs`].
pub(crate) const RESIDUAL: usize = 3;
/// Where y, kept from the forward pass, stands in [`Inputs`].
pub(crate) const OUTPUT: usize = 4;

/// What is fused to a pass, decided once for all its elements. A pass without any of it is compiled without the
/// branches that ask for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fused {
    pub(crate) activation: Activation,
    pub(crate) residual: bool,
    /// Whether y is read.
    pub(crate) output: bool,
    pub(crate) weighted: bool,
    /// Whether x is rebuilt from y.
    pub(crate) rebuild: bool,
    /// Whether the statistics are constants, through which no gradient flows.
    pub(crate) constant: bool,
}

impl Fused {
    /// Whether an input is read, by a pass that has `own` inputs, and others where `fuses`.
    #[inline(always)]
    pub(crate) fn reads(&self, fuses: bool, k: usize, own: usize) -> bool {
        match k {
            RESIDUAL => fuses && self.residual,
            OUTPUT => fuses && self.output,
            _ => k < own,
        }
    }

    /// Whether a backward pass computes the activation's argument again.
    #[inline(always)]
    pub(crate) fn recomputes(&self) -> bool {
        self.activation != Activation::Identity && !self.output
    }
}

/// The inputs of a pass at the start of a run or row, and the weights of its positions, null where there are none.
pub(crate) struct Sources<E: Element> {
    pub(crate) inputs: Inputs<E>,
    pub(crate) weights: *const E::Param,
}

impl<E: Element> Clone for Sources<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Element> Copy for Sources<E> {}

impl<E: Element> Sources<E> {
    /// On by some elements and positions. Wrapping: an array that is not read is null.
    #[inline(always)]
    pub(crate) fn advance(self, elements: usize, positions: usize) -> Self {
        Self { inputs: self.inputs.map(|p| p.wrapping_add(elements)), weights: self.weights.wrapping_add(positions) }
    }
}

/// The weights of positions, counted from where they start; null where all are 1.
#[derive(Clone, Copy)]
pub(crate) struct Weights<P>(pub(crate) *const P);

impl<P: Real> Weights<P> {
    /// Their sum, in a fixed order: what counts of values are where there are none.
    ///
    /// # Safety
    /// The weights can be read.
    #[inline(always)]
    pub(crate) unsafe fn sum(self, positions: Range<usize>) -> f64 {
        if self.0.is_null() {
            return positions.len() as f64;
        }
        // SAFETY: the caller's promise.
        let weights = unsafe { std::slice::from_raw_parts(self.0.add(positions.start), positions.len()) };
        // Many sums at once, or the additions would wait for each other.
        let mut sums = [0.0; 8];
        for weights in weights.chunks(8) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight.to_f64();
            }
        }
        sums.iter().sum()
    }

    /// The first of the heaviest of some positions, if it weighs more than `than`; none where there are no weights.
    ///
    /// # Safety
    /// The weights can be read.
    #[inline(always)]
    pub(crate) unsafe fn heaviest(self, positions: Range<usize>, than: f64) -> Option<usize> {
        let mut heaviest = (None, than);
        for p in positions.filter(|_| !self.0.is_null()) {
            // SAFETY: the caller's promise.
            let weight = unsafe { (*self.0.add(p)).to_f64() };
            if weight > heaviest.1 {
                heaviest = (Some(p), weight);
            }
        }
        heaviest.0
    }
}

/// What [`Sources`] have for one vector.
#[derive(Clone, Copy)]
pub(crate) struct Operands<V> {
    pub(crate) inputs: [V; INPUTS],
    /// 1 where there are no weights.
    pub(crate) weight: V,
}

/// A vector, or its first `n` lanes where `PARTIAL`; zero where it is not read.
///
/// # Safety
/// The lanes can be read at `p` where they are.
#[inline(always)]
unsafe fn input<L: Load, const PARTIAL: bool>(reads: bool, p: *const L::Element, n: usize) -> L::V {
    // SAFETY: the caller's promise.
    unsafe {
        if !reads {
            L::V::splat(Real::from_f64(0.0))
        } else if PARTIAL {
            L::load_first(p, n)
        } else {
            L::load(p)
        }
    }
}

/// Loads a vector, or its first `n` lanes where `PARTIAL`; with the weights of as many positions in planes, that of one
/// in rows.
///
/// # Safety
/// The lanes can be read in the first `own` inputs and, where the pass `fuses`, in those that `fused` names.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes, const ROWS: bool, const PARTIAL: bool>(
    sources: Sources<L::E>,
    own: usize,
    fuses: bool,
    fused: &Fused,
    n: usize,
) -> Operands<L::V> {
    let [a, b, c, residual, output] = sources.inputs;
    // One by one: loops over arrays of vectors are seldom unrolled.
    // SAFETY: the caller's promise.
    let inputs = unsafe {
        [
            input::<L::X, PARTIAL>(fused.reads(fuses, 0, own), a, n),
            input::<L::X, PARTIAL>(fused.reads(fuses, 1, own), b, n),
            input::<L::X, PARTIAL>(fused.reads(fuses, 2, own), c, n),
            input::<L::X, PARTIAL>(fused.reads(fuses, RESIDUAL, own), residual, n),
            input::<L::X, PARTIAL>(fused.reads(fuses, OUTPUT, own), output, n),
        ]
    };
    let weight = if fuses && fused.weighted {
        // SAFETY: positions have weights as they have elements.
        unsafe {
            if ROWS {
                L::V::splat(Real::from_f64((*sources.weights).to_f64()))
            } else {
                input::<L::W, PARTIAL>(true, sources.weights, n)
            }
        }
    } else {
        L::V::splat(Real::from_f64(1.0))
    };
    Operands { inputs, weight }
}

/// `v` where the weight is positive, 0 elsewhere: there a position does not exist, and its NaN neither.
#[inline(always)]
pub(crate) fn existing<V: Vector>(fused: &Fused, weight: V, v: V) -> V {
    if fused.weighted { weight.if_positive(v, V::splat(Real::from_f64(0.0))) } else { v }
}
