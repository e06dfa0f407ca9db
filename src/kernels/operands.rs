//! What a pass reads at an element, and which variant of the pass it is.

use crate::activation::Activation;
use crate::lanes::{Load, Same, Storage};
use crate::simd::{Real, Simd, Vector};
use std::marker::PhantomData;

/// How a kernel reads elements of a type, and weights, into lanes of one kind.
pub(crate) trait Lanes {
    type E: Storage;
    type V: Vector;
    type X: Load<Element = Self::E, V = Self::V>;
    type W: Load<Element = <Self::E as Storage>::Scalar, V = Self::V>;
}

/// The lanes that a storage type is computed in.
pub(crate) struct Native<E, S>(PhantomData<(E, S)>);

impl<E: Storage, S: Simd> Lanes for Native<E, S> {
    type E = E;
    type V = <E::Native<S> as Load>::V;
    type X = E::Native<S>;
    type W = Same<Self::V>;
}

/// Lanes of f64.
pub(crate) struct Wide<E, S>(PhantomData<(E, S)>);

impl<E: Storage, S: Simd> Lanes for Wide<E, S> {
    type E = E;
    type V = S::F64;
    type X = E::Wide<S>;
    type W = <E::Scalar as Storage>::Wide<S>;
}

/// Arrays of the plan's shape that a pass may read: up to two of its own, the cotangent of dx, the residual, and y.
/// Null if it does not read them.
pub(crate) type Inputs<E> = [*const E; INPUTS];
pub(crate) const INPUTS: usize = 5;
/// The index of the cotangent of dx in [`Inputs`].
pub(crate) const COTANGENT: usize = 2;
/// The index of the residual in [`Inputs`].
pub(crate) const RESIDUAL: usize = 3;
/// The index of y, kept from the forward pass, in [`Inputs`].
pub(crate) const OUTPUT: usize = 4;

/// Which variants of a pass a kernel is compiled for.
pub(crate) trait Kind: 'static {
    /// Whether it asks at run time what is fused, for each vector anew.
    const ANY: bool;
    /// Whether ReLU alone is fused: forward, on top of a residual or not; backward, without one.
    const RELU: bool;
    /// Whether ReLU alone is fused, backward, and y tells where it was on.
    const MASK: bool = false;
    /// Whether anything is fused.
    const FUSED: bool = Self::ANY || Self::RELU || Self::MASK;
}

/// Nothing is fused.
pub(crate) struct Plain;
/// ReLU, which most networks have.
pub(crate) struct Relu;
/// The gradient of ReLU, alone or on top of a residual, by its mask, which y has.
pub(crate) struct Mask;
/// Whatever the variant says.
pub(crate) struct Any;

impl Kind for Plain {
    const ANY: bool = false;
    const RELU: bool = false;
}

impl Kind for Relu {
    const ANY: bool = false;
    const RELU: bool = true;
}

impl Kind for Mask {
    const ANY: bool = false;
    const RELU: bool = false;
    const MASK: bool = true;
}

impl Kind for Any {
    const ANY: bool = true;
    const RELU: bool = false;
}

/// Which variant of a pass runs, decided once for all its elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) activation: Activation,
    pub(crate) residual: bool,
    /// Whether y is read.
    pub(crate) output: bool,
    pub(crate) weighted: bool,
    /// The power of two by which weights are multiplied, see [`Weights`](super::weights::Weights).
    pub(crate) weight_scale: f64,
    /// Whether positions are rows, each with one weight, and not elements of planes.
    pub(crate) rows: bool,
    /// Whether x is rebuilt from y.
    pub(crate) rebuild: bool,
    /// Whether the statistics are constants, through which no gradient flows.
    pub(crate) constant: bool,
    /// Whether the map of the backward pass makes second derivatives.
    pub(crate) double_backward: bool,
}

impl Variant {
    /// Nothing fused.
    pub(crate) const PLAIN: Self = Self {
        activation: Activation::Identity,
        residual: false,
        output: false,
        weighted: false,
        weight_scale: 1.0,
        rows: false,
        rebuild: false,
        constant: false,
        double_backward: false,
    };

    /// Whether it differs from the plain pass.
    pub(crate) fn fuses(&self) -> bool {
        self.activation != Activation::Identity
            || self.residual
            || self.weighted
            || self.rebuild
            || self.double_backward
    }

    /// Whether nothing but ReLU is fused, on top of a residual or not.
    pub(crate) fn is_relu(&self) -> bool {
        self.activation == Activation::Relu && !(self.weighted || self.rebuild || self.constant || self.double_backward)
    }

    /// Whether an input is read by a pass that has `own` inputs.
    #[inline(always)]
    pub(crate) fn reads<K: Kind>(&self, k: usize, own: usize) -> bool {
        match k {
            RESIDUAL => (K::ANY || K::RELU && own == 1) && self.residual,
            OUTPUT => K::ANY && self.output || K::MASK,
            COTANGENT => K::ANY && self.double_backward,
            _ => k < own,
        }
    }

    /// Whether a backward pass recomputes the argument of the activation.
    #[inline(always)]
    pub(crate) fn recomputes(&self) -> bool {
        self.activation != Activation::Identity && !self.output
    }
}

/// The inputs of a pass at the start of a run or row, and the weights of its positions, null if there are none.
pub(crate) struct Sources<E: Storage> {
    pub(crate) inputs: Inputs<E>,
    pub(crate) weights: *const E::Scalar,
}

impl<E: Storage> Clone for Sources<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Storage> Copy for Sources<E> {}

impl<E: Storage> Sources<E> {
    /// Moved on by some elements and positions. Wrapping: an array that is not read is null.
    #[inline(always)]
    pub(crate) fn advance(&self, elements: usize, positions: usize) -> Self {
        let mut on = *self;
        for p in &mut on.inputs {
            *p = p.wrapping_add(elements);
        }
        on.weights = on.weights.wrapping_add(positions);
        on
    }
}

/// What [`Sources`] have for one vector.
#[derive(Clone, Copy)]
pub(crate) struct Operands<V> {
    pub(crate) inputs: [V; INPUTS],
    /// 1 if there are no weights.
    pub(crate) weight: V,
}

/// The first `n` lanes of a vector, all of them if it is `whole`; zero if the input is not read.
///
/// # Safety
/// The lanes can be read at `p` if they are.
#[inline(always)]
unsafe fn input<L: Load>(reads: bool, whole: bool, p: *const L::Element, n: usize) -> L::V {
    // SAFETY: the caller's promise.
    unsafe {
        if !reads {
            L::V::splat(Real::from_wide(0.0))
        } else if whole {
            L::load(p)
        } else {
            L::load_first(p, n)
        }
    }
}

/// Loads the first `n` lanes of a vector, all of them if `WHOLE`, with the weights of as many positions in planes, or
/// the one weight of a row.
///
/// # Safety
/// The lanes can be read in the first `own` inputs and, unless the kernel is plain, in those that `variant` names.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes, K: Kind, const WHOLE: bool>(
    sources: &Sources<L::E>,
    own: usize,
    variant: &Variant,
    n: usize,
) -> Operands<L::V> {
    let [a, b, cotangent, residual, output] = sources.inputs;
    // One by one: loops over arrays of vectors are seldom unrolled.
    // SAFETY: the caller's promise; positions have weights as they have elements.
    unsafe {
        Operands {
            inputs: [
                input::<L::X>(variant.reads::<K>(0, own), WHOLE, a, n),
                input::<L::X>(variant.reads::<K>(1, own), WHOLE, b, n),
                input::<L::X>(variant.reads::<K>(COTANGENT, own), WHOLE, cotangent, n),
                input::<L::X>(variant.reads::<K>(RESIDUAL, own), WHOLE, residual, n),
                input::<L::X>(variant.reads::<K>(OUTPUT, own), WHOLE, output, n),
            ],
            weight: if !(K::ANY && variant.weighted) {
                L::V::splat(Real::from_wide(1.0))
            } else if variant.rows {
                L::V::splat(Real::from_wide((*sources.weights).to_wide()))
            } else {
                input::<L::W>(true, WHOLE, sources.weights, n)
            },
        }
    }
}

/// The weight in the unit of sums of weights. It may be 0 although the weight is not.
#[inline(always)]
pub(crate) fn scaled_weight<V: Vector>(variant: &Variant, weight: V) -> V {
    weight.mul(V::splat(Real::from_wide(variant.weight_scale)))
}

/// `v` where the weight is positive and 0 elsewhere, even where `v` is NaN.
#[inline(always)]
pub(crate) fn masked<V: Vector>(variant: &Variant, weight: V, v: V) -> V {
    if variant.weighted { weight.if_positive(v, V::splat(Real::from_wide(0.0))) } else { v }
}
