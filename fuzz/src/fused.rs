//! The activation and the extras of a [`Case`], in any element type, and the channels that are compared.

use crate::{Case, Scalar, case::finite};
use arbitrary::Arbitrary;
use batchnorm::{Activation, reference};
use batchnorm_testing::{Fusion, Number, Problem, Value, kappa, reference_error};

/// An element type.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Type {
    F32,
    F64,
    Bf16,
    F16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Identity,
    Relu,
    LeakyRelu(u8),
    Silu,
}

/// An activation and extras.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Fusing {
    pub element: Type,
    activation: Act,
    residual: Option<[Scalar; 3]>,
    /// Weights of positions, which share them in turn.
    weights: Option<[Scalar; 5]>,
}

impl Fusing {
    pub fn activation(self) -> Activation {
        match self.activation {
            Act::Identity => Activation::Identity,
            Act::Relu => Activation::Relu,
            Act::LeakyRelu(slope) => Activation::LeakyRelu(f64::from(slope) / 64.0),
            Act::Silu => Activation::Silu,
        }
    }

    /// The case with these.
    pub fn fusion<E: Number>(self, case: &Case) -> Fusion<E> {
        let Problem { shape, eps, x, dy, gamma, beta } = case.problem::<f64>();
        let cast = |v: Vec<f64>| v.into_iter().map(E::of).collect::<Vec<_>>();
        let params = |v: Option<Vec<f64>>| v.map(|v| v.into_iter().map(|v| Value::of(finite::<E::Param>(v))).collect());
        let repeat = |v: &[Scalar], n: usize| (0..n).map(|k| v[k % v.len()].f64()).collect::<Vec<_>>();
        let weight = |v: f64| Value::of(if v.is_finite() { finite::<E::Param>(v.abs()).min(1e30) } else { 0.0 });
        Fusion {
            problem: Problem { shape, eps, x: cast(x), dy: cast(dy), gamma: params(gamma), beta: params(beta) },
            activation: self.activation(),
            residual: self.residual.map(|v| cast(repeat(&v, shape.len()))),
            weights: self.weights.map(|v| repeat(&v, shape.values_per_channel()).into_iter().map(weight).collect()),
        }
    }
}

/// The error of the reference in each channel of the given statistics. Only those of ordinary size are compared.
pub fn reference_errors<E: Number>(fusion: &Fusion<E>, mean: &[f64], var: &[f64]) -> Vec<Option<f64>> {
    let (p, weights) = (&fusion.problem, fusion.weights_f64());
    let (gamma, beta) = (p.gamma_f64(), p.beta_f64());
    let ordinary = |v: f64| v == 0.0 || (1e-4..=1e4).contains(&v.abs());
    let sizes = [weights.iter().sum::<f64>(), weights.iter().fold(0.0, |a, &b| b.max(a))];
    let channel = |c: usize| {
        let kappa = kappa(mean[c], var[c]);
        let mut existing = reference::indices(p.shape, c).zip(&weights).filter(|(_, w)| **w > 0.0);
        let ordinary = (sizes[0] == 0.0 || sizes.into_iter().all(ordinary))
            && [gamma[c], beta[c], mean[c], var[c] + p.eps].into_iter().all(ordinary)
            && kappa <= 1e4
            && existing.all(|(k, &w)| {
                let residual = fusion.residual.as_ref().map_or(0.0, |r| r[k].to_f64());
                [p.x[k].to_f64(), p.dy[k].to_f64(), residual, w].into_iter().all(ordinary)
            });
        ordinary.then(|| reference_error(p.shape.values_per_channel() as f64, kappa))
    };
    (0..p.shape.channels()).map(channel).collect()
}
