//! How far results may be from the reference.
//!
//! A bound is the sum of what the crate promises and what the reference itself may be off, which is worked out for the
//! sums of f64 that it takes: n additions have a relative error of at most n·2^-53 of the sum of absolute values.

use crate::Float;
use batchnorm::{Shape, reference};

/// What the promises are stated in: the exact values of a channel, as far as f64 has them.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    pub mean: f64,
    pub var: f64,
    /// How many values there are.
    pub values: f64,
    /// How badly the channel is conditioned: sqrt(1 + mean²/var).
    pub kappa: f64,
    /// Whether all values are finite, and whether they are all the same.
    pub finite: bool,
    pub constant: bool,
    /// Whether something is promised: finite values, a kappa up to 1e6, and squares that an f64 holds.
    pub promised: bool,
}

/// The channels of an activation.
pub fn channels<E: Float>(shape: Shape, x: &[f64]) -> Vec<Channel> {
    let (rough, _) = reference::statistics(shape, x);
    // The statistics of the distances from a rough mean: their sums are of the size of the deviation, not of the mean,
    // and so are the errors of the sums.
    let mut distances = x.to_vec();
    for (c, rough) in rough.iter().enumerate() {
        reference::indices(shape, c).for_each(|k| distances[k] -= rough);
    }
    let (rest, var) = reference::statistics(shape, &distances);
    let channel = |c: usize| {
        let mut values = reference::indices(shape, c).map(|k| x[k]);
        let first = values.next().unwrap_or(0.0);
        let finite = first.is_finite() && values.clone().all(f64::is_finite);
        let constant = finite && values.all(|v| v == first);
        let (mean, var) = if constant { (first, 0.0) } else { (rough[c] + rest[c], var[c]) };
        let kappa = if constant { 1.0 } else { (1.0 + mean * mean / var).sqrt() };
        let squares = constant || E::SQUARES_FIT || (1e-280..=1e280).contains(&var);
        let promised = finite && kappa <= 1e6 && squares;
        Channel { mean, var, values: shape.values_per_channel() as f64, kappa, finite, constant, promised }
    };
    (0..shape.channels()).map(channel).collect()
}

impl Channel {
    /// The channel with statistics that are not those of its values. What is promised holds for them too where x̂ can be
    /// told from the two terms of the mean, and where data of the element type may have them.
    pub fn given<E: Float>(&self, mean: f64, var: f64, eps: f64) -> Self {
        let kappa = (1.0 + mean * mean / (var + eps)).sqrt();
        let promised = kappa <= 1e6 && mean.abs().max(var.sqrt()) <= E::MAX;
        Self { mean, var, kappa, finite: true, promised, ..*self }
    }

    /// What is promised, and what the reference may be off: a few sums over all values, and a rounding of the mean.
    pub fn relative<E: Float>(&self) -> f64 {
        E::relative(self.kappa) + self.reference()
    }

    fn reference(&self) -> f64 {
        f64::EPSILON * (self.values + self.kappa + 8.0)
    }

    /// Error of the mean.
    pub fn mean_bound<E: Float>(&self) -> f64 {
        (E::variance(self.kappa) / 2.0 + f64::EPSILON * (self.values + 8.0)) * self.var.sqrt()
            + f64::EPSILON * self.mean.abs()
    }

    /// Error of the variance.
    pub fn var_bound<E: Float>(&self) -> f64 {
        (E::variance(self.kappa) + self.reference()) * self.var
    }

    /// Error of `y = gamma·x̂ + beta`. Where gamma·inv_std is below what two normal factors hold, its rounding to a
    /// subnormal is multiplied by at most 4·x̂.
    pub fn y_bound<E: Float>(&self, gamma: f64, beta: f64, normalized: f64) -> f64 {
        self.relative::<E>() * (gamma.abs() * (1.0 + normalized.abs()) + beta.abs())
            + E::SUBNORMAL * (1.0 + 2.0 * normalized.abs())
    }
}

/// Asserts that a result is near enough.
#[track_caller]
pub fn within(what: &str, at: usize, channel: &Channel, expected: f64, actual: f64, bound: f64) {
    let error = (actual - expected).abs();
    assert!(
        error <= bound,
        "{what}[{at}]: expected {expected:e}, got {actual:e}, error {error:e} over the bound {bound:e}; {channel:?}"
    );
}
