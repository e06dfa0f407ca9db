//! How the results of two parts of a batch become those of both.
//!
//! Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).

use crate::simd::{Real, two_sum};

/// What is known of some values of a channel: a pivot p near their mean, `S = Σ(x − p)` and `Q = Σ(x − p)²`.
///
/// Two parts are merged by moving both to one pivot, which is Chan's formula without its divisions. The pivot then moves
/// to the mean of both, so that Q is hardly larger than the sum of squared deviations and S is nearly 0: neither loses
/// bits. Pivots lie on a coarse grid, hence if values lie on a grid, all of this is exact.
#[derive(Clone, Copy)]
pub(super) struct Moments {
    pub(super) pivot: f64,
    pub(super) s: f64,
    pub(super) q: f64,
}

impl Moments {
    /// Of no values.
    pub(super) const NONE: Self = Self { pivot: 0.0, s: 0.0, q: 0.0 };

    /// The same about another pivot, for values of weight `n`.
    #[inline(always)]
    pub(super) fn about(self, n: f64, pivot: f64) -> Self {
        let delta = pivot - self.pivot;
        let moved = n * delta;
        // Squares that have left the range stay there.
        let q = if self.q < f64::INFINITY { self.q - delta * (2.0 * self.s - moved) } else { self.q };
        Self { pivot, s: self.s - moved, q }
    }

    /// The same about a pivot near the mean, which is a value of P, for values of weight `n`, whose inverse is given.
    #[inline(always)]
    pub(super) fn about_mean<P: Real>(self, n: f64, inverse: f64) -> Self {
        let mean = self.pivot + self.s * inverse;
        let rounder = grid(self.q * inverse) * f64::ROUNDER;
        let near = P::from_wide((mean + rounder) - rounder).to_wide();
        // A constant keeps its pivot, to which it is equal.
        let moves = (self.q > 0.0) & (self.q < f64::INFINITY);
        self.about(n, if moves { near } else { self.pivot })
    }

    /// Of these values, of weight `n`, and others, of which not both are 0.
    #[inline(always)]
    fn merge(self, n: f64, other: Self, other_n: f64) -> Self {
        let heavier = other_n > n;
        let (a, b, b_n) = if heavier { (other, self, n) } else { (self, other, other_n) };
        let b = b.about(b_n, a.pivot);
        let (n, both) = (n + other_n, Self { pivot: a.pivot, s: a.s + b.s, q: a.q + b.q });
        both.about_mean::<f64>(n, 1.0 / n)
    }

    /// The mean and the biased variance of values of weight `n`, whose inverse is given. Each is rounded once: what the
    /// steps on the way lose is added to their results.
    #[inline(always)]
    pub(super) fn mean_and_var(self, n: f64, inverse: f64) -> [f64; 2] {
        let [m, m_rest] = two_quotient(self.s, n, inverse);
        let [square, square_rest] = two_quotient(self.q, n, inverse);
        let [mean, mean_rest] = two_sum(self.pivot, m);
        let [correction, correction_rest] = two_product(m, m);
        let [var, var_rest] = two_sum(square, -correction);
        let var = corrected(var, var_rest + (square_rest - correction_rest - 2.0 * m * m_rest));
        let var = if var < 0.0 { 0.0 } else { var };
        // Infinite if only the squares have left the range, but not a number if a value is not finite.
        let not_finite = self.q + 0.0 * self.s;
        [corrected(mean, mean_rest + m_rest), if self.q < f64::INFINITY { var } else { not_finite }]
    }
}

/// A sum of a rounded value and a correction, which is not finite if the value is near the ends of the range.
#[inline(always)]
fn corrected(v: f64, by: f64) -> f64 {
    let sum = v + by;
    if sum.is_finite() { sum } else { v }
}

/// The grid of the pivot of values with this mean square about the pivot before: the power of two from 1/32 to 1/16 of
/// its root. A finer one would leave fewer bits for exact sums, a coarser one would take pivots far from means.
#[inline(always)]
fn grid(mean_square: f64) -> f64 {
    const BIAS: u64 = 1023;
    let exponent = mean_square.to_bits() >> 52;
    f64::from_bits((((exponent + BIAS) >> 1) - 4) << 52)
}

/// The rounded product of two values, and what the rounding loses. Dekker, Numerische Mathematik 18 (1971).
#[inline(always)]
fn two_product(a: f64, b: f64) -> [f64; 2] {
    let ([a_high, a_low], [b_high, b_low]) = (halves(a), halves(b));
    let product = a * b;
    [product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)]
}

/// A value as the sum of two of at most 26 bits, whose products are exact.
#[inline(always)]
fn halves(v: f64) -> [f64; 2] {
    let c = v * ((1u64 << 27) + 1) as f64;
    let high = c - (c - v);
    [high, v - high]
}

/// The quotient of two values, of which the second comes with its inverse, as a sum: a value close to it, and the rest.
#[inline(always)]
fn two_quotient(a: f64, b: f64, inverse: f64) -> [f64; 2] {
    let quotient = a * inverse;
    let [product, lost] = two_product(quotient, b);
    [quotient, ((a - product) - lost) * inverse]
}

/// How K arrays of partial results, of parts with the given counts, are merged into the first of them.
pub(crate) trait Merge<const K: usize> {
    fn merge(a_count: f64, a: &mut [&mut [f64]; K], b_count: f64, b: &[&mut [f64]; K]);
}

/// Pivots, S and Q of [`Moments`].
pub(crate) struct AllMoments;

impl Merge<3> for AllMoments {
    #[inline(always)]
    fn merge(a_count: f64, [pivot, s, q]: &mut [&mut [f64]; 3], b_count: f64, b: &[&mut [f64]; 3]) {
        if b_count == 0.0 {
            return;
        }
        // Of so many slices the compiler does not find out that they do not overlap, and writes scalar code. Copied to
        // arrays, those of a part are few enough.
        for c in (0..pivot.len()).step_by(GROUP) {
            let n = GROUP.min(pivot.len() - c);
            let mut group = [[0.0; GROUP]; 3];
            for (to, from) in group.iter_mut().zip(b) {
                to[..n].copy_from_slice(&from[c..c + n]);
            }
            let [b_pivot, b_s, b_q] = group;
            let (pivot, s, q) = (&mut pivot[c..c + n], &mut s[c..c + n], &mut q[c..c + n]);
            for i in 0..n {
                let b = Moments { pivot: b_pivot[i], s: b_s[i], q: b_q[i] };
                let both = Moments { pivot: pivot[i], s: s[i], q: q[i] }.merge(a_count, b, b_count);
                (pivot[i], s[i], q[i]) = (both.pivot, both.s, both.q);
            }
        }
    }
}

/// Channels whose moments are merged together.
const GROUP: usize = 64;

/// Sums.
pub(crate) struct Sums;

impl Merge<2> for Sums {
    #[inline(always)]
    fn merge(_: f64, a: &mut [&mut [f64]; 2], _: f64, b: &[&mut [f64]; 2]) {
        for (a, b) in a.iter_mut().zip(b) {
            for (a, b) in a.iter_mut().zip(&**b) {
                *a += b;
            }
        }
    }
}

/// The mean and biased variance of two parts, from those of each and from counts of which not both are 0.
pub(crate) fn merge_statistics([a_count, b_count]: [f64; 2], a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
    // Only the ratio of counts matters. In units of the larger one, nothing that follows leaves the range.
    let unit = power_of_two_near_inverse(a_count.max(b_count));
    let (a_count, b_count) = (a_count * unit, b_count * unit);
    let n = a_count + b_count;
    let share = b_count / n;
    let delta = b[0] - a[0];
    let m2 = a[1] * a_count + (b[1] * b_count + delta * delta * (a_count * share));
    [a[0] + delta * share, m2 / n]
}

/// A power of two whose product with `v`, which is positive and finite, is between 2⁻⁵³ and 4.
pub(crate) fn power_of_two_near_inverse(v: f64) -> f64 {
    let exponent = v.to_bits() >> 52;
    f64::from_bits(2045u64.saturating_sub(exponent).max(1) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_a_power_of_two_near_the_inverse() {
        for v in [f64::from_bits(1), f64::MIN_POSITIVE, 1e-300, 0.75, 1.0, 1e300, f64::MAX] {
            let product = v * power_of_two_near_inverse(v);
            assert!((2f64.powi(-53)..=4.0).contains(&product), "{v} {product}");
        }
    }

    #[test]
    fn counts_of_any_size_have_the_same_shares() {
        for exponent in [-1074, -1030, -500, 0, 1022] {
            let count = 2f64.powi(exponent / 2) * 2f64.powi(exponent - exponent / 2);
            assert_eq!(merge_statistics([count, count], [1.0, 2.0], [5.0, 4.0]), [3.0, 7.0], "{count}");
        }
    }

    #[test]
    fn what_products_lose() {
        let (a, b) = (1.0 + f64::EPSILON, 1.0 - f64::EPSILON);
        assert_eq!(two_product(a, b), [1.0, -f64::EPSILON * f64::EPSILON]);
    }
}
