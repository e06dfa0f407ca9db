//! Batch normalization as the textbook has it: scalar, f64, one channel after the other. Start reading here.
//!
//! This is the specification: the kernels must agree with it within the rounding of their element type. Nothing is
//! checked; slices must have the lengths that the shape gives.
//!
//! ```text
//! mean = (1/M) Σ x     var = (1/M) Σ (x − mean)²     x̂ = (x − mean) / sqrt(var + eps)     y = gamma·x̂ + beta
//! dbeta = Σ dy         dgamma = Σ dy·x̂               dx = gamma / sqrt(var + eps) · (dy − dbeta/M − x̂·dgamma/M)
//! ```
//!
//! Ioffe, Szegedy, "Batch Normalization" (2015).

use crate::Shape;

/// Where the values of channel `c` live.
pub fn indices(shape: Shape, c: usize) -> impl Iterator<Item = usize> + Clone {
    let (outer, channels, inner) = (shape.outer(), shape.channels(), shape.inner());
    (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * channels + c) * inner + i))
}

/// Mean and biased variance of each channel, in two passes; 0 and 0 for no values.
pub fn statistics(shape: Shape, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let m = shape.values_per_channel().max(1) as f64;
    (0..shape.channels())
        .map(|c| {
            let mean = indices(shape, c).map(|k| x[k]).sum::<f64>() / m;
            let var = indices(shape, c).map(|k| (x[k] - mean).powi(2)).sum::<f64>() / m;
            (mean, var)
        })
        .unzip()
}

/// `1 / sqrt(var + eps)`, and 0 where that would divide by 0: a constant channel is then 0 when normalized.
pub fn inv_std(var: f64, eps: f64) -> f64 {
    if var + eps == 0.0 { 0.0 } else { 1.0 / (var + eps).sqrt() }
}

/// `y = gamma·x̂ + beta` with the given statistics: the batch's in training, running ones at test time.
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

/// The gradients `(dx, dgamma, dbeta)`, where the statistics are the batch's own.
pub fn backward(
    shape: Shape,
    x: &[f64],
    dy: &[f64],
    (mean, var): (&[f64], &[f64]),
    eps: f64,
    gamma: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let m = shape.values_per_channel().max(1) as f64;
    let (mut dx, dgamma, dbeta) = backward_frozen(shape, x, dy, (mean, var), eps, gamma);
    for c in 0..shape.channels() {
        let s = inv_std(var[c], eps);
        for k in indices(shape, c) {
            dx[k] = gamma[c] * s * (dy[k] - dbeta[c] / m - (x[k] - mean[c]) * s * dgamma[c] / m);
        }
    }
    (dx, dgamma, dbeta)
}

/// The gradients `(dx, dgamma, dbeta)`, where the statistics are constants: `dx = gamma / sqrt(var + eps) · dy`.
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
            dx[k] = gamma[c] * s * dy[k];
        }
    }
    (dx, dgamma, dbeta)
}
