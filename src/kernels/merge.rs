//! How the results of two parts of a batch become those of both.
//!
//! Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).

/// The factors of Chan's formula for two parts of given counts, of which the second is not empty. One division serves
/// all channels; parts of the same length have the exact share 1/2.
#[derive(Clone, Copy)]
pub(crate) struct ChanFactors {
    first_is_empty: bool,
    /// The share of the second part, and the product of the count of one part with the share of the other.
    share: f64,
    product: f64,
}

impl ChanFactors {
    #[inline(always)]
    pub(crate) fn new(a_count: f64, b_count: f64) -> Self {
        let share = b_count / (a_count + b_count);
        Self { first_is_empty: a_count == 0.0, share, product: a_count * share }
    }

    /// Mean and M2, the sum of squared deviations, of both parts.
    #[inline(always)]
    pub(crate) fn merge(self, [a_mean, a_m2]: [f64; 2], [b_mean, b_m2]: [f64; 2]) -> [f64; 2] {
        if self.first_is_empty {
            return [b_mean, b_m2];
        }
        let delta = b_mean - a_mean;
        [a_mean + delta * self.share, a_m2 + (b_m2 + delta * delta * self.product)]
    }
}

/// How two arrays of partial results, of parts with the given counts, are merged into the first of them.
pub(crate) trait Merge {
    fn merge(a_count: f64, a: [&mut [f64]; 2], b_count: f64, b: [&[f64]; 2]);
}

/// Means and M2.
pub(crate) struct MeansAndM2;

impl Merge for MeansAndM2 {
    #[inline(always)]
    fn merge(a_count: f64, [a_mean, a_m2]: [&mut [f64]; 2], b_count: f64, [b_mean, b_m2]: [&[f64]; 2]) {
        if b_count == 0.0 {
            return;
        }
        let factors = ChanFactors::new(a_count, b_count);
        for (((a_mean, a_m2), &b_mean), &b_m2) in a_mean.iter_mut().zip(a_m2).zip(b_mean).zip(b_m2) {
            [*a_mean, *a_m2] = factors.merge([*a_mean, *a_m2], [b_mean, b_m2]);
        }
    }
}

/// Sums.
pub(crate) struct Sums;

impl Merge for Sums {
    #[inline(always)]
    fn merge(_: f64, a: [&mut [f64]; 2], _: f64, b: [&[f64]; 2]) {
        for (a, b) in a.into_iter().zip(b) {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
        }
    }
}
