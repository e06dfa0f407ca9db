//! What a plan consists of.

use super::caches::l2_bytes;
use super::request::Parameters;
use super::scratch::Scratch;
use super::tiling::{Grid, Steps};
use crate::activation::Activation;
use crate::kernels::coefficients::Channels;
use crate::parallel::Threads;
use crate::shape::Shape;
use crate::simd::Detected;
use std::ops::Range;

/// A shape, how to normalize it, and where to run.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) shape: Shape,
    pub(crate) eps: f64,
    pub(crate) activation: Activation,
    pub(crate) isa: Detected,
    pub(crate) threads: Threads,
    pub(crate) scratch: Scratch,
    /// Bytes of the L2 cache.
    pub(crate) l2: usize,
}

impl Engine {
    pub(crate) fn new(shape: Shape) -> Self {
        let (isa, threads, scratch) = (Detected::best(), Threads::default(), Scratch::default());
        Self { shape, eps: 1e-5, activation: Activation::Identity, isa, threads, scratch, l2: l2_bytes() }
    }

    /// Runs the steps of a pass that walks `sweeps` times over a buffer of the plan's shape.
    pub(super) fn walk<E>(&self, grid: &Grid, sweeps: usize, steps: &dyn Steps) {
        let bytes = self.shape.len() * size_of::<E>() * sweeps;
        let count = self.threads.count(bytes);
        grid.for_threads(count).walk(&self.threads, &self.scratch, count, steps);
        self.threads.ended(bytes);
    }

    /// What the coefficients of a range of channels are made from; `mean` and `var` have that range only.
    pub(super) fn channels<'a, P>(
        &self,
        mean: &'a [f64],
        var: &'a [f64],
        parameters: Parameters<'a, P>,
        range: &Range<usize>,
    ) -> Channels<'a, P> {
        let gamma = parameters.gamma.map(|gamma| &gamma[range.clone()]);
        let beta = parameters.beta.map(|beta| &beta[range.clone()]);
        Channels { mean, var, eps: self.eps, gamma, beta, rebuild: false }
    }
}
