//! The inputs of a training step.

use crate::{Number, Random, normal, to_f64};
use batchnorm::{Affine, BatchNorm, RunningStatistics, Shape, reference};

/// All inputs of a training step.
#[derive(Clone, Debug)]
pub struct Problem<T: Number> {
    /// The extents of x and dy.
    pub shape: Shape,
    /// Added to the variance.
    pub eps: f64,
    /// The input of the layer.
    pub x: Vec<T>,
    /// The gradient of its output.
    pub dy: Vec<T>,
    /// 1 if absent.
    pub gamma: Option<Vec<T::Param>>,
    /// 0 if absent.
    pub beta: Option<Vec<T::Param>>,
}

impl<T: Number> Problem<T> {
    /// Normal data with mean c and standard deviation 1 + c/4 in channel c.
    pub fn random(shape: Shape, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut x = vec![T::default(); shape.len()];
        for c in 0..shape.channels() {
            for k in reference::indices(shape, c) {
                x[k] = T::of(c as f64 + (1.0 + c as f64 / 4.0) * random.normal());
            }
        }
        let dy = normal(&mut random, shape.len());
        let (gamma, beta) = (normal(&mut random, shape.channels()), normal(&mut random, shape.channels()));
        Self { shape, eps: 1e-5, x, dy, gamma: Some(gamma), beta: Some(beta) }
    }
    /// gamma and beta.
    pub fn affine(&self) -> Affine<'_, T::Param> {
        Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() }
    }
    /// gamma of every channel.
    pub fn gamma_f64(&self) -> Vec<f64> {
        self.gamma.as_ref().map_or(vec![1.0; self.shape.channels()], |g| to_f64(g))
    }
    /// beta of every channel.
    pub fn beta_f64(&self) -> Vec<f64> {
        self.beta.as_ref().map_or(vec![0.0; self.shape.channels()], |b| to_f64(b))
    }
    /// A plan for it, with default settings.
    pub fn plan(&self) -> BatchNorm {
        BatchNorm::new(self.shape).eps(self.eps).unwrap()
    }
    /// Running statistics that are about as large as the batch's.
    pub fn running(&self) -> RunningStatistics {
        let channels = 0..self.shape.channels();
        let var = channels.clone().map(|c| (1.0 + c as f64 / 4.0).powi(2)).collect();
        RunningStatistics::from_parts(channels.map(|c| c as f64 + 0.25).collect(), var, 7).unwrap()
    }
}
