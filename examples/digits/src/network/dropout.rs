//! Dropout.

use super::Mode;

/// In training, sets units to 0 at random and scales the others up to keep the mean; at test time it does nothing.
#[derive(Clone, Debug)]
pub(super) struct Dropout {
    /// The probability that a unit is set to 0.
    rate: f32,
    /// 0 or 1 / (1 − rate), for each unit of each row of the last batch.
    factors: Vec<f32>,
    random: fastrand::Rng,
}

impl Dropout {
    pub(super) fn new(rate: f32, random: fastrand::Rng) -> Self {
        Self { rate, factors: Vec::new(), random }
    }

    pub(super) fn forward(&mut self, x: &[f32], mode: Mode, y: &mut Vec<f32>) {
        y.clear();
        y.extend(x);
        if mode == Mode::Train {
            let Self { rate, random, .. } = self;
            let kept = 1.0 / (1.0 - *rate);
            self.factors.clear();
            self.factors.extend(x.iter().map(|_| if random.f32() < *rate { 0.0 } else { kept }));
            self.backward(y);
        }
    }

    /// Overwrites dy with dx.
    pub(super) fn backward(&self, dy: &mut [f32]) {
        dy.iter_mut().zip(&self.factors).for_each(|(dy, factor)| *dy *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_acts_only_in_training() {
        let mut dropout = Dropout::new(0.25, fastrand::Rng::with_seed(3));
        let (x, mut y) = (vec![1.0; 10_000], Vec::new());
        dropout.forward(&x, Mode::Train, &mut y);
        assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
        // The mean of 10 000 values has standard deviation sqrt(0.25 / 0.75) / 100 = 0.0058; six of these are allowed.
        assert!((y.iter().sum::<f32>() / 1e4 - 1.0).abs() < 6.0 * 0.0058);
        let mut dy = x.clone();
        dropout.backward(&mut dy);
        assert_eq!(dy, y, "the same units are 0 in the backward pass");
        dropout.forward(&x, Mode::Test, &mut y);
        assert_eq!(y, x);
    }
}
