//! An oracle stronger than what is tested, and the bounds of docs/numerics.md as code.
//!
//! The oracle is the textbook in double-double arithmetic: 106 bits, with the exponents of f64. Sums of any f32 inputs
//! that tests use are exact in it to far below what any bound can see.

use crate::common::{Float, Number, Outputs, Problem, Value};
use batchnorm::Shape;
use batchnorm::reference::indices;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The unevaluated sum of two f64, the second at most half an ulp of the first. Dekker, Numerische Mathematik 18 (1971).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Double(pub(crate) f64, pub(crate) f64);

fn two_sum(a: f64, b: f64) -> Double {
    let s = a + b;
    let t = s - a;
    Double(s, (a - (s - t)) + (b - t))
}

impl Double {
    pub(crate) fn sqrt(self) -> Double {
        if self.0 == 0.0 {
            return self;
        }
        let root = self.0.sqrt();
        let rest = self - Double::from(root) * root.into();
        two_sum(root, rest.0 / (2.0 * root))
    }
    pub(crate) fn abs(self) -> Double {
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
pub(crate) fn statistics<T: Float>(shape: Shape, x: &[T]) -> Vec<(Double, Double)> {
    let m = Double::from(shape.values_per_channel().max(1) as f64);
    let channel = |c| {
        let values = indices(shape, c).map(|k| Double::from(x[k].to_f64()));
        let mean = values.clone().sum::<Double>() / m;
        let var = values.map(|v| (v - mean) * (v - mean)).sum::<Double>() / m;
        (mean, var)
    };
    (0..shape.channels()).map(channel).collect()
}

/// 1/sqrt(var + eps), and 0 for 0.
pub(crate) fn inv_std(var: Double, eps: f64) -> Double {
    let v = var + eps.into();
    if v.0 == 0.0 { v } else { Double::from(1.0) / v.sqrt() }
}

/// How badly a channel is conditioned.
pub(crate) fn kappa(mean: f64, var: f64) -> f64 {
    (1.0 + mean * mean / var).sqrt()
}

/// The worst errors seen, as multiples of their bounds.
#[derive(Default)]
pub(crate) struct Ledger {
    worst: BTreeMap<(&'static str, &'static str), (f64, String)>,
    entries: usize,
}

impl Ledger {
    pub(crate) fn note<T: Value>(&mut self, quantity: &'static str, error: f64, bound: f64, context: &dyn Debug) {
        let multiple = match error / bound {
            _ if error == 0.0 => 0.0,
            m if m.is_nan() => f64::INFINITY,
            m => m,
        };
        self.entries += 1;
        let worst = self.worst.entry((T::NAME, quantity)).or_default();
        if multiple > worst.0 {
            *worst = (multiple, format!("error {error:e}, bound {bound:e}, {context:?}"));
        }
    }

    /// Prints the worst of each quantity and fails where one passed its bound, or where less than `entries` were seen.
    pub(crate) fn close(self, title: &str, entries: usize) {
        for ((element, quantity), (multiple, context)) in &self.worst {
            println!("{title}, {element}: worst {quantity} {multiple:.3} of its bound ({context})");
        }
        assert!(self.entries >= entries, "{title}: only {} comparisons", self.entries);
        self.close_silently();
    }

    /// Fails where a quantity passed its bound.
    pub(crate) fn close_silently(self) {
        for ((element, quantity), (multiple, context)) in self.worst {
            assert!(multiple <= 1.0, "{element} {quantity} is {multiple} times its bound: {context}");
        }
    }
}

/// The factors of the bounds, for a channel of the given conditioning.
pub(crate) struct Factors {
    pub(crate) mean: f64,
    pub(crate) var: f64,
    pub(crate) y: f64,
    pub(crate) sums: f64,
    pub(crate) dx: f64,
}

impl Factors {
    pub(crate) fn new<T: Number>(kappa: f64) -> Self {
        let u = T::Param::U;
        if size_of::<T::Param>() == 4 {
            Self { mean: 2.0 * u, var: 4.0 * u, y: 8.0 * u, sums: 8.0 * u, dx: 16.0 * u }
        } else {
            let f = 1e-13 * kappa;
            Self { mean: f, var: f, y: f, sums: f, dx: f }
        }
    }
}

/// What the bounds are stated for.
const WORST_KAPPA: f64 = 1e6;

/// Checks mean, var and y of a training step against the exact mean and variance of each channel.
pub(crate) fn check_forward<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    exact: &[(Double, Double)],
    out: &Outputs<T>,
    context: &dyn Debug,
) {
    for (c, &(mean, var)) in exact.iter().enumerate() {
        let context: &dyn Debug = &(context, "channel", c);
        let kappa = kappa(mean.0, var.0);
        if var.0 == 0.0 {
            ledger.note::<T>("var of a constant", out.statistics.var()[c], 0.0, context);
        } else if kappa <= WORST_KAPPA {
            let f = Factors::new::<T>(kappa);
            let stored = Double::from(out.statistics.mean()[c]);
            let rounding = f64::EPSILON / 2.0 * mean.0.abs();
            ledger.note::<T>("mean", (stored - mean).abs().0, f.mean * var.0.sqrt() + rounding, context);
            let stored = Double::from(out.statistics.var()[c]);
            ledger.note::<T>("var", (stored - var).abs().0, f.var * var.0, context);
        } else {
            continue;
        }
        check_y(ledger, p, c, (mean, var), &out.y, context);
    }
}

/// Checks y of one channel, normalized with the given mean and variance.
pub(crate) fn check_y<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    c: usize,
    (mean, var): (Double, Double),
    y: &[T],
    context: &dyn Debug,
) {
    let (gamma, beta) = (p.gamma_f64()[c], p.beta_f64()[c]);
    let inv_std = inv_std(var, p.eps);
    // A constant has no kappa; its y is to be beta exactly, which the bound does not see.
    let f = Factors::new::<T>(if var.0 == 0.0 { 1.0 } else { kappa(mean.0, var.0) });
    for k in indices(p.shape, c) {
        let x_hat = (Double::from(p.x[k].to_f64()) - mean) * inv_std;
        let exact = Double::from(gamma) * x_hat + beta.into();
        let bound = f.y * (gamma.abs() * (1.0 + x_hat.0.abs()) + beta.abs()) + T::SMALLEST_SUBNORMAL;
        if var.0 == 0.0 {
            ledger.note::<T>("y of a constant", (y[k].to_f64() - beta).abs(), 0.0, context);
        } else {
            ledger.note::<T>("y", (Double::from(y[k].to_f64()) - exact).abs().0, bound, &(context, k));
        }
    }
}

/// Checks dbeta and dgamma against the exact gradients for the given statistics, and dx against the exact one for these
/// and `out.sums`: what a pass is given counts as exact. The result may be subnormal, and so may the means of dy and of
/// dy·x̂, whose roundings count once for each unit of what these are multiplied by. `batch` is the number of values per
/// channel where gradients flow through the statistics, and `None` where these are constants.
pub(crate) fn check_gradients<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    (mean, var): (&[f64], &[f64]),
    batch: Option<f64>,
    out: &Outputs<T>,
    context: &dyn Debug,
) {
    let gamma = p.gamma_f64();
    for c in 0..p.shape.channels() {
        let context: &dyn Debug = &(context, "channel", c);
        let s = inv_std(var[c].into(), p.eps);
        let kappa = kappa(mean[c], var[c]);
        if var[c] != 0.0 && kappa > WORST_KAPPA {
            continue;
        }
        let f = Factors::new::<T>(if var[c] == 0.0 { 1.0 } else { kappa });
        let terms = indices(p.shape, c).map(|k| {
            let g = Double::from(p.dy[k].to_f64());
            let x_hat = (Double::from(p.x[k].to_f64()) - mean[c].into()) * s;
            (k, g, x_hat)
        });
        let sum = terms.clone().map(|(_, g, _)| g).sum::<Double>();
        let sum_x_hat = terms.clone().map(|(_, g, x_hat)| g * x_hat).sum::<Double>();
        let sizes = terms.clone().map(|(_, g, x_hat)| (g.0.abs(), (g.0 * x_hat.0).abs()));
        let (size, size_x_hat) = sizes.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        let tiny = T::SMALLEST_SUBNORMAL;
        let (dbeta, dgamma) = (Double::from(out.dbeta[c].to_f64()), Double::from(out.dgamma[c].to_f64()));
        ledger.note::<T>("dbeta", (dbeta - sum).abs().0, f.sums * size + tiny, context);
        ledger.note::<T>("dgamma", (dgamma - sum_x_hat).abs().0, f.sums * size_x_hat + tiny, context);
        let (mean_g, mean_g_x_hat) = match batch {
            Some(m) => (Double::from(out.sums.g()[c]) / m.into(), Double::from(out.sums.gx()[c]) * s / m.into()),
            None => (0.0.into(), 0.0.into()),
        };
        let scale = Double::from(gamma[c]) * s;
        let s_abs = scale.0.abs();
        assert!(s_abs <= T::LARGEST_SCALE, "dx is not promised there: {context:?}");
        for (k, g, x_hat) in terms {
            let exact = scale * (g - mean_g - x_hat * mean_g_x_hat);
            let size = g.0.abs() + mean_g.0.abs() + (x_hat * mean_g_x_hat).0.abs();
            let dx = out.dx[k].to_f64();
            // What is beyond the type's range is to be infinite.
            let error = match exact.0 {
                e if e.abs() > T::LARGEST && e.is_sign_negative() == dx.is_sign_negative() && dx.is_infinite() => 0.0,
                _ => (Double::from(dx) - exact).abs().0,
            };
            ledger.note::<T>(
                "dx",
                error,
                f.dx * s_abs * size + tiny * (1.0 + s_abs * (1.0 + x_hat.0.abs())),
                &(context, k),
            );
        }
    }
}
