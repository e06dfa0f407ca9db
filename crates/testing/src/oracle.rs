//! An oracle stronger than what is tested: the textbook in double-double arithmetic, with 106 bits and the exponents of
//! f64. Sums of f32 values are exact in it to far below what any bound can resolve.

use crate::Value;
use batchnorm::{Shape, reference::indices};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The unevaluated sum of two f64, the second at most half an ulp of the first. Dekker, Numerische Mathematik 18
/// (1971).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Double(pub f64, pub f64);

fn two_sum(a: f64, b: f64) -> Double {
    let s = a + b;
    let t = s - a;
    Double(s, (a - (s - t)) + (b - t))
}

impl Double {
    /// The square root.
    pub fn sqrt(self) -> Double {
        if self.0 == 0.0 {
            return self;
        }
        let root = self.0.sqrt();
        let rest = self - Double::from(root) * root.into();
        two_sum(root, rest.0 / (2.0 * root))
    }
    /// The absolute value.
    pub fn abs(self) -> Double {
        if self.0 < 0.0 { -self } else { self }
    }
}

impl From<f64> for Double {
    fn from(v: f64) -> Double {
        Double(v, 0.0)
    }
}

impl Neg for Double {
    type Output = Double;
    fn neg(self) -> Double {
        Double(-self.0, -self.1)
    }
}

impl Add for Double {
    type Output = Double;
    fn add(self, b: Double) -> Double {
        let (s, t) = (two_sum(self.0, b.0), two_sum(self.1, b.1));
        let s = two_sum(s.0, s.1 + t.0);
        two_sum(s.0, s.1 + t.1)
    }
}

impl Sub for Double {
    type Output = Double;
    fn sub(self, b: Double) -> Double {
        self + -b
    }
}

impl Mul for Double {
    type Output = Double;
    fn mul(self, b: Double) -> Double {
        let p = self.0 * b.0;
        two_sum(p, self.0.mul_add(b.0, -p) + (self.0 * b.1 + self.1 * b.0))
    }
}

impl Div for Double {
    type Output = Double;
    fn div(self, b: Double) -> Double {
        let first = self.0 / b.0;
        let rest = self - b * first.into();
        let second = rest.0 / b.0;
        let rest = rest - b * second.into();
        two_sum(first, second) + (rest.0 / b.0).into()
    }
}

impl std::iter::Sum for Double {
    fn sum<I: Iterator<Item = Double>>(terms: I) -> Double {
        terms.fold(0.0.into(), Add::add)
    }
}

/// Mean and biased variance of each channel.
pub fn statistics<T: Value>(shape: Shape, x: &[T]) -> Vec<(Double, Double)> {
    let m = Double::from(shape.values_per_channel().max(1) as f64);
    let channel = |c| {
        let values = indices(shape, c).map(|k| Double::from(x[k].number()));
        let mean = values.clone().sum::<Double>() / m;
        let var = values.map(|v| (v - mean) * (v - mean)).sum::<Double>() / m;
        (mean, var)
    };
    (0..shape.channels()).map(channel).collect()
}

/// [`statistics`] with a weight for each position. Deviations from the first value make the variance of a constant
/// channel exactly 0.
pub fn weighted_statistics<T: Value>(shape: Shape, x: &[T], weights: &[f64]) -> Vec<(Double, Double)> {
    let total = weights.iter().map(|&w| Double::from(w)).sum::<Double>();
    let total = if total.0 > 0.0 { total } else { 1.0.into() };
    let channel = |c| {
        let mut existing = indices(shape, c).zip(weights).filter(|(_, w)| **w > 0.0).peekable();
        let first = Double::from(existing.peek().map_or(0.0, |&(k, _)| x[k].number()));
        let values = existing.map(|(k, &w)| (Double::from(x[k].number()) - first, Double::from(w)));
        let mean = values.clone().map(|(d, w)| d * w).sum::<Double>() / total;
        let var = values.map(|(d, w)| (d - mean) * (d - mean) * w).sum::<Double>() / total;
        (first + mean, var)
    };
    (0..shape.channels()).map(channel).collect()
}

/// `1 / sqrt(var + eps)`, and 0 if that would divide by 0.
pub fn inv_std(var: Double, eps: f64) -> Double {
    let v = var + eps.into();
    if v.0 == 0.0 { v } else { Double::from(1.0) / v.sqrt() }
}
