//! The bounds of docs/numerics.md as code, and a ledger of errors.

use crate::{Number, Value};
use batchnorm::{Activation, reference};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The conditioning of a channel, κ: sqrt(1 + mean²/var), and 1 for a constant channel.
pub fn kappa(mean: f64, var: f64) -> f64 {
    if var == 0.0 { 1.0 } else { (1.0 + mean * mean / var).sqrt() }
}

/// The largest κ that the bounds are stated for.
pub const WORST_KAPPA: f64 = 1e6;

/// The factors of the bounds for a channel.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// Times std.
    pub mean: f64,
    /// Times the variance.
    pub var: f64,
    /// Times |gamma|·(1 + |x̂|) + |beta|.
    pub y: f64,
    /// Times Σ|dy| for dbeta, and Σ|dy·x̂| for dgamma.
    pub sums: f64,
    /// Times |gamma|·inv_std and the three parts of dx.
    pub dx: f64,
    /// What the mean in lanes has lost, at most, in standard deviations.
    pub lost: f64,
}

impl Factors {
    /// As docs/numerics.md states them.
    pub fn new<T: Number>(kappa: f64) -> Self {
        let u = T::Param::U;
        if size_of::<T::Param>() == 4 {
            Self { mean: 6.0 * u, var: 12.0 * u, y: 12.0 * u, sums: 8.0 * u, dx: 16.0 * u, lost: u * kappa }
        } else {
            let f = 1e-13 * kappa;
            Self { mean: f, var: f, y: f, sums: f, dx: f, lost: 0.0 }
        }
    }

    /// With a relative error of the reference in what it computes from mean and variance.
    pub fn plus(self, reference: f64) -> Self {
        Self { y: self.y + reference, sums: self.sums + reference, dx: self.dx + reference, ..self }
    }
}

/// The relative error that a comparison of arbitrary data with the reference allows beyond the stated bounds. Fuzzing
/// needs it; the data of the tests does not. The error of n additions in f64 is at most n·2⁻⁵³, relative to the sum of
/// absolute values, and the mean is rounded.
pub fn reference_error(values: f64, kappa: f64) -> f64 {
    f64::EPSILON * (values + kappa + 8.0)
}

/// The error of an x̂ that is rebuilt from y.
pub fn rebuilt<T: Number>(x_hat: f64, gamma: f64, beta: f64) -> f64 {
    14.0 * T::U * (1.0 + x_hat.abs() + (beta / gamma).abs())
}

/// The smallest subnormal of lanes, and that of the reference's own steps.
fn subnormal<T: Number>() -> f64 {
    T::Param::SMALLEST_SUBNORMAL + f64::from_bits(1)
}

/// A channel with the statistics that a pass takes as exact, and the bounds of the pass's results. They are those of
/// lanes: to store a result in a type of fewer bits adds a rounding.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    inv_std: f64,
    /// |gamma|.
    gamma: f64,
    /// |beta|.
    beta: f64,
    factors: Factors,
    /// The largest factor by which lanes multiply deviations from a mean that is not the batch's own, otherwise 0.
    prescale: f64,
}

impl Bounds {
    /// For the given variance, which is the batch's unless it is `foreign`, gamma and beta.
    pub fn new<T: Number>(factors: Factors, var: f64, eps: f64, (gamma, beta): (f64, f64), foreign: bool) -> Self {
        let inv_std = reference::inv_std(var, eps);
        // 2^100, and 2^500 for f64.
        let limit = T::LARGEST_FACTOR / f64::from(1 << 26);
        let of_tiny = if var > 0.0 { 1.0 / (limit * var.sqrt()) } else { 0.0 };
        let prescale = if foreign { inv_std.max(of_tiny).max(1.0) } else { 0.0 };
        Self { inv_std, gamma: gamma.abs(), beta: beta.abs(), factors, prescale }
    }

    /// Times |gamma|·inv_std, a product that may be out of the range of f64 although the result is not.
    fn scaled(&self, v: f64) -> f64 {
        reference::product(self.gamma, self.inv_std, v)
    }

    /// Whether |gamma|·inv_std fits in two factors of lanes.
    fn scale_fits<T: Number>(&self) -> bool {
        self.gamma / T::LARGEST_FACTOR * self.inv_std <= T::Param::LARGEST
    }

    /// Whether it is so small that one of them may be subnormal.
    fn scale_is_tiny<T: Number>(&self) -> bool {
        self.gamma < T::Param::SMALLEST_NORMAL / self.inv_std / T::LARGEST_FACTOR
    }

    /// The error of gamma·x̂ + beta; nothing if it is not promised, since lanes leave their range.
    pub fn y<T: Number>(&self, x_hat: f64) -> Option<f64> {
        let relative = self.factors.y * (self.gamma * (1.0 + x_hat.abs()) + self.beta);
        let of_scale = if self.scale_is_tiny::<T>() { 2.0 * x_hat.abs() } else { 0.0 };
        let product = self.gamma * x_hat.abs() * if self.gamma < T::Param::SMALLEST_NORMAL { 2.0 } else { 1.0 };
        let fits = product + self.beta + relative <= T::Param::LARGEST && self.scale_fits::<T>();
        fits.then_some(relative + (1.0 + of_scale) * subnormal::<T>())
    }

    /// The errors of dbeta and dgamma for values of (g, x − mean); nothing if they are not promised.
    pub fn sums<T: Number>(&self, values: impl Iterator<Item = (f64, f64)>) -> Option<[f64; 2]> {
        let s = subnormal::<T>();
        let (mut g_sum, mut gx_sum, mut subnormals, mut in_lanes) = (0.0, 0.0, 0.0, 0.0);
        for (g, d) in values.map(|(g, d)| (g.abs(), d.abs())) {
            g_sum += g;
            gx_sum += g * d * self.inv_std;
            subnormals += (2.0 + self.inv_std) * (1.0 + g) * s;
            in_lanes += g.max(g * d).max((d * self.prescale).max(g * d * self.prescale));
        }
        let Factors { sums, lost, .. } = self.factors;
        let bounds = [sums * g_sum + s, sums * (gx_sum + lost * g_sum) + subnormals + s];
        [g_sum, gx_sum, in_lanes].iter().all(|v| *v <= T::Param::LARGEST).then_some(bounds)
    }

    /// The error of dx for a g and an x − mean, at a position with the given weight, with the means of g and g·x̂, or
    /// none if statistics are constants; nothing if it is not promised.
    pub fn dx<T: Number>(&self, g: f64, d: f64, weight: f64, means: Option<[f64; 2]>) -> Option<f64> {
        let (g, d, s) = (g.abs(), d.abs(), subnormal::<T>());
        let [g_mean, gx_mean] = means.unwrap_or_default().map(f64::abs);
        let x_hat = d * self.inv_std;
        let through = g_mean + x_hat * gx_mean;
        let size = g + weight * (through + self.factors.lost * gx_mean);
        let subnormals = 1.0 + d * (1.0 + self.prescale) + 2.0 * x_hat + (1.0 + self.inv_std) * gx_mean;
        // A weight of 1 needs no products of its own.
        let of_weight = if weight == 1.0 { 0.0 } else { s };
        let of_means = if means.is_some() { weight * subnormals * s + of_weight } else { 0.0 };
        let of_scale = if self.scale_is_tiny::<T>() { size / T::LARGEST_FACTOR } else { 0.0 };
        let in_lanes = [size, through, gx_mean * self.inv_std];
        let fits = in_lanes.iter().all(|v| *v <= T::Param::LARGEST) && self.scale_fits::<T>();
        let bound = self.scaled(self.factors.dx * size + of_means) + (1.0 + of_scale) * s;
        (fits && bound.is_finite()).then_some(bound)
    }
}

/// Half an ulp of lanes, and the error of the reference's own steps.
fn unit<T: Number>() -> f64 {
    T::Param::U + f64::EPSILON
}

/// The error of a result that is stored as T, if it is `error` in lanes: a type of fewer bits adds one rounding.
pub fn stored<T: Number>(exact: f64, error: f64) -> f64 {
    if size_of::<T>() == size_of::<T::Param>() {
        error
    } else {
        error + T::U * (exact.abs() + error) + T::SMALLEST_SUBNORMAL / 2.0
    }
}

/// The smallest subnormal of lanes for each operation that may give one.
fn tiny<T: Number>(z: f64) -> f64 {
    (1.0 + z.abs()) * T::Param::SMALLEST_SUBNORMAL
}

/// The activation of z and its error in lanes, if z has the given error.
pub fn output<T: Number>(activation: Activation, z: f64, error: f64) -> (f64, f64) {
    let (u, y) = (unit::<T>(), reference::activate(activation, z));
    let bound = match activation {
        Activation::Identity | Activation::Relu => error,
        // The slope is rounded, and so is the product.
        Activation::LeakyRelu(slope) => slope.max(1.0) * error + 2.0 * u * slope * z.abs() + tiny::<T>(z),
        // The derivative is below 1.1. exp has four roundings; a sum, a quotient and a product follow.
        Activation::Silu => 1.1 * error + 8.0 * u * y.abs() + tiny::<T>(z),
        _ => unreachable!("{activation:?}"),
    };
    (y, bound)
}

/// The gradient of z and its error in lanes, if z has the given error. If z is no further from a kink than that, both
/// branches are right, and the one that `found` is within the error of is taken. The error is infinite if `found` does
/// not tell which it was.
pub fn z_gradient<T: Number>(activation: Activation, z: f64, dy: f64, error: f64, found: f64) -> (f64, f64) {
    let (u, exact) = (unit::<T>(), reference::activation_gradient(activation, z, dy));
    match activation {
        Activation::Identity => (exact, 0.0),
        Activation::Relu | Activation::LeakyRelu(_) => {
            let other = reference::activation_gradient(activation, -z, dy);
            // As above, for a gradient that is neither dy nor 0.
            let of = |g: f64| if g == dy { 0.0 } else { 2.0 * u * g.abs() + tiny::<T>(0.0) };
            let is = |g: f64| T::of(g).to_f64() == found || (found - g).abs() <= stored::<T>(g, of(g));
            match (z.abs() <= error, is(exact), is(other)) {
                (true, false, true) => (other, of(other)),
                // They may be next to each other in a type of few bits.
                (true, true, true) if exact != other => (exact, f64::INFINITY),
                _ => (exact, of(exact)),
            }
        }
        Activation::Silu => {
            // act' = s·(1 + z·(1 − s)), whose derivative is below 0.5. s and 1 − s have eight roundings each, as above,
            // and each operation after them has one.
            let e = (-z.abs()).exp();
            let size = if z > 0.0 { 1.0 } else { e } / (1.0 + e) + z.abs() * e / (1.0 + e).powi(2);
            (exact, dy.abs() * (0.5 * error + 12.0 * u * size + tiny::<T>(z)) + tiny::<T>(0.0))
        }
        _ => unreachable!("{activation:?}"),
    }
}

/// The largest errors seen, as multiples of their bounds.
#[derive(Default)]
pub struct Ledger {
    worst: BTreeMap<(&'static str, &'static str), Worst>,
    entries: usize,
}

#[derive(Default)]
struct Worst {
    multiple: f64,
    context: String,
    /// The largest multiple since it was last asked for.
    latest: f64,
}

impl Ledger {
    /// Notes an error and its bound.
    pub fn note<T: Value>(&mut self, quantity: &'static str, error: f64, bound: f64, context: &dyn Debug) {
        self.enter((T::NAME, quantity), error, bound, context);
    }

    /// Notes the error of a result. It may be infinite if its bound reaches beyond the range of T, and must be NaN if
    /// `exact` is.
    pub fn compare<T: Value>(
        &mut self,
        quantity: &'static str,
        exact: f64,
        actual: f64,
        bound: f64,
        context: &dyn Debug,
    ) {
        let beyond = actual.is_infinite() && exact * actual.signum() + bound >= T::LARGEST;
        let right = beyond || actual == exact || (exact.is_nan() && actual.is_nan());
        let error = if right { 0.0 } else { (actual - exact).abs() };
        self.enter((T::NAME, quantity), error, bound, &(context, exact, actual));
    }

    /// The largest error of a quantity that was noted since the last call, as a multiple of its bound; 0 if there was
    /// none.
    pub fn take_latest(&mut self, element: &'static str, quantity: &'static str) -> f64 {
        let latest = self.worst.get(&(element, quantity)).map_or(0.0, |worst| worst.latest);
        self.worst.values_mut().for_each(|worst| worst.latest = 0.0);
        latest
    }

    fn enter(&mut self, of: (&'static str, &'static str), error: f64, bound: f64, context: &dyn Debug) {
        let multiple = match error / bound {
            _ if error == 0.0 => 0.0,
            m if m.is_nan() => f64::INFINITY,
            m => m,
        };
        self.entries += 1;
        let worst = self.worst.entry(of).or_default();
        worst.latest = worst.latest.max(multiple);
        if multiple > worst.multiple {
            worst.multiple = multiple;
            worst.context = format!("error {error:e}, bound {bound:e}, {context:?}");
        }
    }

    /// Prints the largest error of each quantity.
    pub fn print(&self, title: &str) {
        for ((element, quantity), Worst { multiple, context, .. }) in &self.worst {
            println!("{title}, {element}: worst {quantity} {multiple:.3} of its bound ({context})");
        }
    }

    /// Prints the largest error of each quantity, and fails if one is over its bound or fewer than `entries` were
    /// noted.
    pub fn close(self, title: &str, entries: usize) {
        self.print(title);
        assert!(self.entries >= entries, "{title}: only {} comparisons", self.entries);
        self.close_silently();
    }

    /// Fails if an error is over its bound.
    pub fn close_silently(self) {
        for ((element, quantity), Worst { multiple, context, .. }) in self.worst {
            assert!(multiple <= 1.0, "{element} {quantity} is {multiple} times its bound: {context}");
        }
    }
}
