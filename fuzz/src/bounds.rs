//! The promises for channels of arbitrary data.

use batchnorm::{Shape, reference};
use batchnorm_testing::{Factors, Float, kappa, oracle, reference_error};

/// The exact values of a channel that the promises are stated in.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    pub mean: f64,
    pub var: f64,
    /// The number of values.
    pub values: f64,
    /// Its conditioning, by [`kappa`].
    pub kappa: f64,
    /// Whether all values are finite, and whether they are all the same.
    pub finite: bool,
    pub constant: bool,
    /// Whether something is promised: for finite values, a kappa up to 1e6, and squares in the range of f64.
    pub promised: bool,
}

/// The channels of an activation.
pub fn channels<E: Float>(shape: Shape, x: &[E]) -> Vec<Channel> {
    let exact = oracle::statistics(shape, x);
    let channel = |(c, (mean, var)): (usize, (oracle::Double, oracle::Double))| {
        let mut values = reference::indices(shape, c).map(|k| x[k].to_f64());
        let first = values.next().unwrap_or(0.0);
        let finite = first.is_finite() && values.clone().all(f64::is_finite);
        let constant = finite && values.all(|v| v == first);
        let (mean, var) = if constant { (first, 0.0) } else { (mean.0, var.0) };
        let kappa = kappa(mean, var);
        let squares = constant || size_of::<E>() == 4 || (1e-280..=1e280).contains(&var);
        let promised = finite && kappa <= 1e6 && squares;
        Channel { mean, var, values: shape.values_per_channel() as f64, kappa, finite, constant, promised }
    };
    exact.into_iter().enumerate().map(channel).collect()
}

/// The error of a subnormal result and of the reference's: the smallest positive value of each type.
pub fn subnormal<E: Float>() -> f64 {
    E::SMALLEST_SUBNORMAL + f64::from_bits(1)
}

impl Channel {
    /// The channel with statistics that are not those of its values. The promises also apply to them if x̂ is not lost
    /// in the rounding of the mean to two lanes, and if data of the element type may have them.
    pub fn given<E: Float>(&self, mean: f64, var: f64, eps: f64) -> Self {
        let kappa = (1.0 + mean * mean / (var + eps)).sqrt();
        let promised = kappa <= 1e6 && mean.abs().max(var.sqrt()) <= E::LARGEST;
        Self { mean, var, kappa, finite: true, promised, ..*self }
    }

    /// The promised factors, with the error of the reference.
    pub fn factors<E: Float>(&self) -> Factors {
        Factors::new::<E>(self.kappa).plus(reference_error(self.values, self.kappa))
    }

    /// The error of the mean: it is rounded to f64, and so is the exact one.
    pub fn mean_bound<E: Float>(&self) -> f64 {
        self.factors::<E>().mean * self.var.sqrt() + f64::EPSILON * self.mean.abs()
    }

    /// The error of the variance.
    pub fn var_bound<E: Float>(&self) -> f64 {
        self.factors::<E>().var * self.var
    }

    /// The error of `y = gamma·x̂ + beta`. If gamma·inv_std is too small for two normal factors, its rounding to a
    /// subnormal is multiplied by at most 4·x̂.
    pub fn y_bound<E: Float>(&self, gamma: f64, beta: f64, normalized: f64) -> f64 {
        self.factors::<E>().y * (gamma.abs() * (1.0 + normalized.abs()) + beta.abs())
            + subnormal::<E>() * (1.0 + 2.0 * normalized.abs())
    }
}
