//! What a pass is asked for: checked arguments, with pointers to the arrays of the plan's shape.
//!
//! # Safety
//! Whoever runs a request promises that
//! - pointers that are not null cover the plan's shape, weights its positions, and slices have its channels;
//! - outputs overlap nothing else, except that one output may be equal to an input of the plan's shape; they need not be
//!   initialized, and are afterwards;
//! - weights are finite and not negative.

use crate::kernels::weights::Weights;
use crate::statistics::{GradientSums, WideSource};
use std::mem::MaybeUninit;
use std::ptr::null;

/// One of the passes over elements of type `E` with parameters of type `P`.
pub enum Pass<'a, E, P> {
    Forward(Forward<'a, E, P>),
    Normalize(Normalize<'a, E, P>),
    Backward(Backward<'a, E, P>),
    DoubleBackward(DoubleBackward<'a, E, P>),
}

/// gamma and beta, each absent or one value per channel.
#[derive(Clone, Copy)]
pub(crate) struct Parameters<'a, P> {
    pub(crate) gamma: Option<&'a [P]>,
    pub(crate) beta: Option<&'a [P]>,
}

/// What may be fused. Null if it is absent.
#[derive(Clone, Copy)]
pub(crate) struct Fusions<E, P> {
    pub(crate) residual: *const E,
    pub(crate) output: *const E,
    pub(crate) weights: Weights<P>,
}

impl<E, P> Fusions<E, P> {
    pub(crate) const NONE: Self = Self { residual: null(), output: null(), weights: Weights::NONE };
}

/// Statistics of x and, if there is an output, y.
pub struct Forward<'a, E, P> {
    pub(crate) x: *const E,
    pub(crate) fusions: Fusions<E, P>,
    pub(crate) count: &'a mut f64,
    pub(crate) mean: &'a mut [f64],
    pub(crate) var: &'a mut [f64],
    pub(crate) output: Option<(Parameters<'a, P>, *mut E)>,
}

/// y with given statistics.
pub struct Normalize<'a, E, P> {
    pub(crate) x: *const E,
    pub(crate) fusions: Fusions<E, P>,
    pub(crate) source: WideSource<'a>,
    pub(crate) parameters: Parameters<'a, P>,
    pub(crate) y: *mut E,
}

/// Any part of the backward pass.
pub struct Backward<'a, E, P> {
    /// Null if given sums leave nothing to compute from it.
    pub(crate) dy: *const E,
    /// Null if it is rebuilt from y, or if nothing depends on it.
    pub(crate) x: *const E,
    /// Whether x̂ is rebuilt from y, which is then given.
    pub(crate) rebuild: bool,
    pub(crate) fusions: Fusions<E, P>,
    pub(crate) source: WideSource<'a>,
    pub(crate) parameters: Parameters<'a, P>,
    /// The sums, if they are known.
    pub(crate) sums: Option<GradientSums<&'a [f64]>>,
    /// Where to write the sums.
    pub(crate) sums_out: Option<GradientSums<&'a mut [f64]>>,
    pub(crate) out: BackwardOutputs<'a, E, P>,
}

/// The wanted gradients; dx may be equal to dy.
pub(crate) struct BackwardOutputs<'a, E, P> {
    pub(crate) dx: Option<*mut E>,
    pub(crate) dresidual: Option<*mut E>,
    pub(crate) dgamma: Option<&'a mut [MaybeUninit<P>]>,
    pub(crate) dbeta: Option<&'a mut [MaybeUninit<P>]>,
}

impl<E, P> BackwardOutputs<'_, E, P> {
    pub(crate) const NONE: Self = Self { dx: None, dresidual: None, dgamma: None, dbeta: None };
}

/// Second derivatives: the gradients of `Σ v·dx + dgamma_cotangent·dgamma + dbeta_cotangent·dbeta`.
pub struct DoubleBackward<'a, E, P> {
    pub(crate) dy: *const E,
    pub(crate) x: *const E,
    /// The cotangent of dx.
    pub(crate) v: *const E,
    pub(crate) source: WideSource<'a>,
    pub(crate) gamma: Option<&'a [P]>,
    pub(crate) dgamma_cotangent: Option<&'a [P]>,
    pub(crate) dbeta_cotangent: Option<&'a [P]>,
    pub(crate) of_x: Option<*mut E>,
    pub(crate) of_dy: Option<*mut E>,
    pub(crate) of_gamma: Option<&'a mut [MaybeUninit<P>]>,
}
