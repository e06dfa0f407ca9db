//! Textbook batch normalization: scalar, f64, one channel after the other. Start reading here.
//!
//! This is the specification: the kernels must agree with it within the rounding of their element type. Nothing is
//! checked; slices must have the lengths that follow from the shape.
//!
//! ```text
//! mean = (1/M) Σ x     var = (1/M) Σ (x − mean)²     x̂ = (x − mean) / sqrt(var + eps)     y = gamma·x̂ + beta
//! dbeta = Σ dy         dgamma = Σ dy·x̂               dx = gamma / sqrt(var + eps) · (dy − dbeta/M − x̂·dgamma/M)
//! ```
//!
//! Fusion composes these: `y = activate(normalize(..) + residual)`, and backward functions take `activation_gradient(z,
//! dy)` for dy. Weights w of positions replace `(1/M) Σ` by `(1/Σw) Σ w` in the statistics, and `/M` by `·w/Σw` in dx.
//!
//! Ioffe, Szegedy, "Batch Normalization" (2015).

use crate::activation::Activation;
use crate::shape::Shape;

/// The indices of the values of channel `c`.
pub fn indices(shape: Shape, c: usize) -> impl Iterator<Item = usize> + Clone {
    let (outer, channels, inner) = (shape.outer(), shape.channels(), shape.inner());
    (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * channels + c) * inner + i))
}

/// Mean and biased variance of each channel, in two passes; 0 and 0 for no values.
pub fn statistics(shape: Shape, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    weighted_statistics(shape, x, &vec![1.0; shape.values_per_channel()])
}

/// Mean and biased variance of each channel with a weight for each position; positions with weight 0 are ignored.
pub fn weighted_statistics(shape: Shape, x: &[f64], weights: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let total = weights.iter().sum::<f64>();
    let total = if total > 0.0 { total } else { 1.0 };
    (0..shape.channels())
        .map(|c| {
            let live = indices(shape, c).zip(weights).filter(|(_, w)| **w > 0.0);
            let mean = live.clone().map(|(k, w)| w * x[k]).sum::<f64>() / total;
            let var = live.map(|(k, w)| w * (x[k] - mean).powi(2)).sum::<f64>() / total;
            (mean, var)
        })
        .unzip()
}

/// `1 / sqrt(var + eps)`, and 0 if that would divide by 0: a constant channel is then 0 when normalized.
pub fn inv_std(var: f64, eps: f64) -> f64 {
    if var + eps == 0.0 { 0.0 } else { 1.0 / (var + eps).sqrt() }
}

/// `a·b·c`, with no step beyond the range of f64 if the result is within it.
pub fn product(a: f64, b: f64, c: f64) -> f64 {
    let mut factors = [a, b, c];
    factors.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let [small, middle, large] = factors;
    let first = middle * large;
    if first.is_finite() { small * first } else { middle * (small * large) }
}

/// `y = gamma·x̂ + beta` with the given statistics: the batch's in training, running ones in inference.
pub fn normalize(
    shape: Shape,
    x: &[f64],
    (mean, var): (&[f64], &[f64]),
    eps: f64,
    gamma: &[f64],
    beta: &[f64],
) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for c in 0..shape.channels() {
        for k in indices(shape, c) {
            y[k] = gamma[c] * ((x[k] - mean[c]) * inv_std(var[c], eps)) + beta[c];
        }
    }
    y
}

/// The gradients `(dx, dgamma, dbeta)` if the statistics are the batch's own.
pub fn backward(
    shape: Shape,
    x: &[f64],
    dy: &[f64],
    (mean, var): (&[f64], &[f64]),
    eps: f64,
    gamma: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    weighted_backward(shape, x, dy, (mean, var), eps, gamma, &vec![1.0; shape.values_per_channel()])
}

/// [`backward`] with weighted statistics; dx is 0 at positions with weight 0.
pub fn weighted_backward(
    shape: Shape,
    x: &[f64],
    dy: &[f64],
    (mean, var): (&[f64], &[f64]),
    eps: f64,
    gamma: &[f64],
    weights: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = shape.channels();
    let total = weights.iter().sum::<f64>();
    let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
    for c in 0..channels {
        let s = inv_std(var[c], eps);
        let live = indices(shape, c).zip(weights).filter(|(_, w)| **w > 0.0);
        for (k, _) in live.clone() {
            dbeta[c] += dy[k];
            dgamma[c] += dy[k] * ((x[k] - mean[c]) * s);
        }
        for (k, w) in live {
            let through = dbeta[c] + (x[k] - mean[c]) * s * dgamma[c];
            dx[k] = product(gamma[c], s, dy[k] - w / total * through);
        }
    }
    (dx, dgamma, dbeta)
}

/// The gradients `(dx, dgamma, dbeta)` if the statistics are constants: `dx = gamma / sqrt(var + eps) · dy`.
pub fn backward_frozen(
    shape: Shape,
    x: &[f64],
    dy: &[f64],
    (mean, var): (&[f64], &[f64]),
    eps: f64,
    gamma: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = shape.channels();
    let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
    for c in 0..channels {
        let s = inv_std(var[c], eps);
        for k in indices(shape, c) {
            dbeta[c] += dy[k];
            dgamma[c] += dy[k] * ((x[k] - mean[c]) * s);
            dx[k] = product(gamma[c], s, dy[k]);
        }
    }
    (dx, dgamma, dbeta)
}

/// The activation of a value.
pub fn activate(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Identity => z,
        Activation::Relu if z <= 0.0 => 0.0,
        Activation::LeakyRelu(slope) if z <= 0.0 => slope * z,
        Activation::Relu | Activation::LeakyRelu(_) => z,
        Activation::Silu => z * logistic(z)[0],
    }
}

/// The gradient with respect to the argument z of an activation, from that of its value.
pub fn activation_gradient(activation: Activation, z: f64, dy: f64) -> f64 {
    match activation {
        Activation::Identity => dy,
        Activation::Relu if z <= 0.0 => 0.0,
        Activation::LeakyRelu(slope) if z <= 0.0 => slope * dy,
        Activation::Relu | Activation::LeakyRelu(_) => dy,
        Activation::Silu => {
            let [s, rest] = logistic(z);
            dy * (s * (1.0 + z * rest))
        }
    }
}

/// `1 / (1 + exp(−z))` and 1 minus it, without that difference, which would cancel.
fn logistic(z: f64) -> [f64; 2] {
    let e = (-z.abs()).exp();
    let [larger, smaller] = [1.0 / (1.0 + e), e / (1.0 + e)];
    if z > 0.0 { [larger, smaller] } else { [smaller, larger] }
}
