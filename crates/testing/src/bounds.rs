//! The bounds of docs/numerics.md as code, and a ledger of errors.

use crate::{Number, Value};
use batchnorm::{Activation, reference};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The conditioning of a channel, κ: sqrt(1 + mean²/var), and 1 for a constant channel.
pub fn kappa(mean: f64, var: f64) -> f64 {
    if var == 0.0 { 1.0 } else { (1.0 + mean * mean / var).sqrt() }
}

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
}

impl Factors {
    /// As docs/numerics.md states them.
    pub fn new<T: Number>(kappa: f64) -> Self {
        let u = T::Param::U;
        if size_of::<T::Param>() == 4 {
            Self { mean: 2.0 * u, var: 4.0 * u, y: 8.0 * u, sums: 8.0 * u, dx: 16.0 * u }
        } else {
            let f = 1e-13 * kappa;
            Self { mean: f, var: f, y: f, sums: f, dx: f }
        }
    }
}

/// Errors beyond the stated bounds that a comparison of arbitrary data with the reference allows. Fuzzing needs them;
/// the data of the tests does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    /// The relative error of the reference itself. That of n additions in f64 is at most n·2⁻⁵³, relative to the sum of
    /// absolute values, and the mean is rounded.
    pub reference: f64,
    /// The error of x̂ near 0. In lanes the mean is the sum of two values, which lose u²·|mean| of it.
    pub x_hat: f64,
}

impl Allowance {
    /// The allowance for a channel of `values` values.
    pub fn new<T: Number>(values: f64, mean: f64, inv_std: f64, kappa: f64) -> Self {
        let reference = f64::EPSILON * (values + kappa + 8.0);
        Self { reference, x_hat: T::Param::U * T::Param::U * mean.abs() * inv_std }
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
/// branches are right, and the one nearer to `found` is taken.
pub fn z_gradient<T: Number>(activation: Activation, z: f64, dy: f64, error: f64, found: f64) -> (f64, f64) {
    let (u, exact) = (unit::<T>(), reference::activation_gradient(activation, z, dy));
    match activation {
        Activation::Identity => (exact, 0.0),
        Activation::Relu | Activation::LeakyRelu(_) => {
            let other = reference::activation_gradient(activation, -z, dy);
            let nearer = (found - other).abs() < (found - exact).abs();
            let exact = if z.abs() <= error && nearer { other } else { exact };
            // As above, for a gradient that is neither dy nor 0.
            (exact, if exact == dy { 0.0 } else { 2.0 * u * exact.abs() + tiny::<T>(0.0) })
        }
        Activation::Silu => {
            // act' = s·(1 + z·(1 − s)), whose derivative is below 0.5. s and 1 − s have eight roundings each, as above,
            // and each operation after them has one.
            let e = (-z.abs()).exp();
            let size = if z > 0.0 { 1.0 } else { e } / (1.0 + e) + z.abs() * e / (1.0 + e).powi(2);
            (exact, dy.abs() * (0.5 * error + 12.0 * u * size + tiny::<T>(z)))
        }
        _ => unreachable!("{activation:?}"),
    }
}

/// The largest errors seen, as multiples of their bounds.
#[derive(Default)]
pub struct Ledger {
    worst: BTreeMap<(&'static str, &'static str), (f64, String)>,
    entries: usize,
}

impl Ledger {
    /// Notes an error and its bound.
    pub fn note<T: Value>(&mut self, quantity: &'static str, error: f64, bound: f64, context: &dyn Debug) {
        self.enter((T::NAME, quantity), error, bound, context);
    }

    /// Notes the error of a result. Beyond the range of T it must be infinite with the right sign, and NaN if `exact`
    /// is.
    pub fn compare<T: Value>(
        &mut self,
        quantity: &'static str,
        exact: f64,
        actual: f64,
        bound: f64,
        context: &dyn Debug,
    ) {
        let beyond = exact.is_infinite() || exact.abs() + bound >= T::LARGEST;
        let infinite = actual.is_infinite() && actual.is_sign_negative() == exact.is_sign_negative();
        let right = (exact.is_nan() && actual.is_nan()) || (beyond && infinite);
        let error = if right { 0.0 } else { (actual - exact).abs() };
        self.enter((T::NAME, quantity), error, bound, &(context, exact, actual));
    }

    fn enter(&mut self, of: (&'static str, &'static str), error: f64, bound: f64, context: &dyn Debug) {
        let multiple = match error / bound {
            _ if error == 0.0 => 0.0,
            m if m.is_nan() => f64::INFINITY,
            m => m,
        };
        self.entries += 1;
        let worst = self.worst.entry(of).or_default();
        if multiple > worst.0 {
            *worst = (multiple, format!("error {error:e}, bound {bound:e}, {context:?}"));
        }
    }

    /// Prints the largest error of each quantity, and fails if one is over its bound or fewer than `entries` were
    /// noted.
    pub fn close(self, title: &str, entries: usize) {
        for ((element, quantity), (multiple, context)) in &self.worst {
            println!("{title}, {element}: worst {quantity} {multiple:.3} of its bound ({context})");
        }
        assert!(self.entries >= entries, "{title}: only {} comparisons", self.entries);
        self.close_silently();
    }

    /// Fails if an error is over its bound.
    pub fn close_silently(self) {
        for ((element, quantity), (multiple, context)) in self.worst {
            assert!(multiple <= 1.0, "{element} {quantity} is {multiple} times its bound: {context}");
        }
    }
}
