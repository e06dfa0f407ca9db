//! Training steps with what can be fused to their passes: every way to run them, and what the reference, composed as
//! its module says, and the bounds of docs/numerics.md, carried through the activation, say of the results.

use crate::common::*;
use crate::oracle::{self, Factors, Ledger};
use batchnorm::{
    Activation, BatchNorm, Extras, GradientSums, Gradients, RunningStatistics, Shape, Source, Statistics, reference,
};
use std::fmt::Debug;

pub(crate) const ACTIVATIONS: [Activation; 4] =
    [Activation::Identity, Activation::Relu, Activation::LeakyRelu(0.01), Activation::Silu];

/// The weights of positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weighting {
    Absent,
    /// 0 and 1.
    Mask,
    /// Up to 2, and a few 0.
    Samples,
}

pub(crate) const WEIGHTINGS: [Weighting; 3] = [Weighting::Absent, Weighting::Mask, Weighting::Samples];

/// A problem and what is fused to its passes.
#[derive(Clone, Debug)]
pub(crate) struct Fusion<T: Number> {
    pub(crate) problem: Problem<T>,
    pub(crate) activation: Activation,
    pub(crate) residual: Option<Vec<T>>,
    pub(crate) weights: Option<Vec<T::Param>>,
}

/// All outputs of a step.
#[derive(Clone, Debug)]
pub(crate) struct Step<T: Number> {
    pub(crate) outputs: Outputs<T>,
    pub(crate) dresidual: Vec<T>,
}

impl<T: Number> Step<T> {
    /// Every output by name, as bits.
    pub(crate) fn bits(&self) -> Vec<(&'static str, Vec<u64>)> {
        let dresidual = self.dresidual.iter().map(|v| v.bits()).collect();
        self.outputs.bits().into_iter().chain([("dresidual", dresidual)]).collect()
    }
}

impl<T: Number> Fusion<T> {
    /// Garbage is where weights are 0.
    pub(crate) fn random(
        shape: Shape,
        seed: u64,
        activation: Activation,
        residual: bool,
        weighting: Weighting,
    ) -> Self {
        let mut random = Random(!seed);
        let residual = residual.then(|| normal(&mut random, shape.len()));
        let mut weight = |_| match weighting {
            Weighting::Mask if random.below(3) > 0 => 1.0,
            Weighting::Samples if random.below(9) > 0 => 2.0 * random.uniform(),
            _ => 0.0,
        };
        let weights: Vec<_> = (0..shape.values_per_channel()).map(|k| Value::of(weight(k))).collect();
        let weights = (weighting != Weighting::Absent).then_some(weights);
        let mut fusion = Self { problem: Problem::random(shape, seed), activation, residual, weights };
        fusion.set_masked(|k| [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e4][k % 4]);
        fusion
    }

    /// Puts a value into all inputs wherever the weight is 0.
    pub(crate) fn set_masked(&mut self, value: impl Fn(usize) -> f64) {
        for k in self.masked() {
            self.problem.x[k] = T::of(value(k));
            self.problem.dy[k] = T::of(value(k / 4));
            if let Some(residual) = &mut self.residual {
                residual[k] = T::of(value(k / 16));
            }
        }
    }

    /// The elements whose position has weight 0.
    pub(crate) fn masked(&self) -> Vec<usize> {
        let weights = self.weights_f64();
        let of_channel = |c| reference::indices(self.problem.shape, c).zip(&weights).filter(|(_, w)| **w == 0.0);
        (0..self.problem.shape.channels()).flat_map(of_channel).map(|(k, _)| k).collect()
    }

    pub(crate) fn weights_f64(&self) -> Vec<f64> {
        self.weights.as_deref().map_or_else(|| vec![1.0; self.problem.shape.values_per_channel()], to_f64)
    }

    pub(crate) fn plan(&self) -> BatchNorm {
        self.problem.plan().activation(self.activation).unwrap()
    }

    /// A training step, or one with constant statistics, which the backward pass is `given` the output of or not.
    /// Buffers start at different offsets, which follow from `offset`.
    pub(crate) fn run(
        &self,
        plan: &BatchNorm,
        running: Option<&RunningStatistics>,
        way: Way,
        given: bool,
        offset: usize,
    ) -> Step<T> {
        let p = &self.problem;
        let (len, channels, affine) = (p.shape.len(), p.shape.channels(), p.affine());
        let (mut statistics, mut sums) = (Statistics::new(channels), GradientSums::new(channels));
        let (x, dy) = (Buffer::new(&p.x, offset), Buffer::new(&p.dy, 3 * offset));
        let [mut y, mut dx, mut dresidual] = [5, 7, 9].map(|k| Buffer::<T>::output(len, k * offset));
        let [mut dgamma, mut dbeta] = [1, 2].map(|k| Buffer::<T::Param>::output(channels, k * offset));
        let residual = self.residual.as_ref().map(|r| Buffer::new(r, 11 * offset));
        let weights = self.weights.as_ref().map(|w| Buffer::new(w, 13 * offset));
        let mut extras = Extras { residual: residual.as_deref(), output: None, weights: weights.as_deref() };
        let in_place = matches!(way, Way::FusedInPlace | Way::HalvesInPlace);
        let fused = matches!(way, Way::Fused | Way::FusedInPlace);

        let with = plan.with(extras);
        if in_place {
            y.copy_from_slice(&x);
        }
        match (running, in_place) {
            (None, false) if fused => with.forward_training(&x, affine, &mut y, &mut statistics),
            (None, true) if fused => with.forward_training_in_place(&mut y, affine, &mut statistics),
            _ => {
                if running.is_none() {
                    with.statistics(&x, &mut statistics).unwrap();
                }
                let source = running.map_or(Source::from(&statistics), Source::from);
                if in_place {
                    with.normalize_in_place(&mut y, source, affine)
                } else {
                    with.normalize(&x, source, affine, &mut y)
                }
            }
        }
        .unwrap();

        let output = Buffer::new(&y, 15 * offset);
        if given {
            extras.output = Some(&output);
            if self.activation != Activation::Silu {
                extras.residual = None;
            }
        }
        let with = plan.with(extras);
        let source = running.map_or(Source::from(&statistics), Source::from);
        with.gradient_sums(&x, &dy, source, affine, &mut sums).unwrap();
        let parameters = (Some(&mut *dgamma), Some(&mut *dbeta));
        if in_place {
            dx.copy_from_slice(&dy);
            let (dgamma, dbeta) = parameters;
            let gradients = Gradients { dx: None, dresidual: Some(&mut dresidual), dgamma, dbeta };
            with.backward_in_place(&x, &mut dx, source, affine, gradients).unwrap();
        } else if fused || running.is_some() {
            let (dgamma, dbeta) = parameters;
            let gradients = Gradients { dx: Some(&mut dx), dresidual: Some(&mut dresidual), dgamma, dbeta };
            with.backward(&x, &dy, source, affine, gradients).unwrap();
        } else {
            plan.parameter_gradients(source, &sums, parameters.0, parameters.1).unwrap();
            let gradients = Gradients { dx: Some(&mut dx), dresidual: Some(&mut dresidual), ..Gradients::default() };
            with.input_gradient(&x, &dy, &statistics, &sums, affine, gradients).unwrap();
        }
        let outputs = Outputs {
            statistics,
            sums,
            y: y.to_vec(),
            dx: dx.to_vec(),
            dgamma: dgamma.to_vec(),
            dbeta: dbeta.to_vec(),
        };
        Step { outputs, dresidual: dresidual.to_vec() }
    }

    /// Compares a step with the reference.
    pub(crate) fn check(
        &self,
        ledger: &mut Ledger,
        running: Option<&RunningStatistics>,
        step: &Step<T>,
        context: &dyn Debug,
    ) {
        let mut clean = self.clone();
        clean.set_masked(|_| 0.0);
        let (p, out, shape) = (&clean.problem, &step.outputs, self.problem.shape);
        let (x, dy, gamma, beta) = (to_f64(&p.x), to_f64(&p.dy), p.gamma_f64(), p.beta_f64());
        let residual = clean.residual.as_deref().map_or_else(|| vec![0.0; x.len()], to_f64);
        let (w, masked) = (self.weights_f64(), self.masked());
        let total = w.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let u = unit::<T>();

        let own = reference::weighted_statistics(shape, &x, &w);
        let forward = running.map_or((&own.0[..], &own.1[..]), |r| (r.mean(), r.var()));
        // A pass answers for what it does with what it is given, and the backward pass is given these.
        let backward = running.map_or((out.statistics.mean(), out.statistics.var()), |r| (r.mean(), r.var()));
        let (ones, zeros) = (vec![1.0; shape.channels()], vec![0.0; shape.channels()]);
        let argument = |of| {
            let y = reference::normalize(shape, &x, of, p.eps, &gamma, &beta);
            y.iter().zip(&residual).map(|(y, r)| y + r).collect::<Vec<_>>()
        };
        let (z, z_backward) = (argument(forward), argument(backward));
        let [x_hat, x_hat_backward] =
            [forward, backward].map(|of| reference::normalize(shape, &x, of, p.eps, &ones, &zeros));
        let factors = |c: usize| {
            let (mean, var) = (forward.0[c], forward.1[c]);
            Factors::new::<T>(if var == 0.0 { 1.0 } else { oracle::kappa(mean, var) })
        };
        let z_error = |c: usize, x_hat: f64, z: f64| {
            let size = gamma[c].abs() * (1.0 + x_hat.abs()) + beta[c].abs();
            factors(c).y * size + u * z.abs() + T::Param::SMALLEST_SUBNORMAL
        };

        let (mut g, mut g_error) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for c in 0..shape.channels() {
            for (k, _) in reference::indices(shape, c).zip(&w).filter(|(_, w)| **w > 0.0) {
                let error = z_error(c, x_hat[k], z[k]);
                let (y, bound) = output::<T>(self.activation, z[k], error);
                let bound = stored::<T>(y, bound);
                ledger.note::<T>("y", (out.y[k].to_f64() - y).abs(), bound, context);

                let (z, error) = (z_backward[k], z_error(c, x_hat_backward[k], z_backward[k]));
                let found = step.dresidual[k].to_f64();
                (g[k], g_error[k]) = input_gradient::<T>(self.activation, z, dy[k], error, found);
                let bound = stored::<T>(g[k], g_error[k]);
                ledger.note::<T>("dresidual", (step.dresidual[k].to_f64() - g[k]).abs(), bound, context);
            }
        }
        for &k in &masked {
            let nothing = [out.y[k], out.dx[k], step.dresidual[k]];
            assert!(nothing.iter().all(|v| v.bits() == 0), "masked element {k}: {nothing:?} {context:?}");
        }

        let (dx, dgamma, dbeta) = match running {
            None => reference::weighted_backward(shape, &x, &g, backward, p.eps, &gamma, &w),
            Some(_) => reference::backward_frozen(shape, &x, &g, backward, p.eps, &gamma),
        };
        for c in 0..shape.channels() {
            let f = factors(c);
            if running.is_none() {
                let (mean, var) = (own.0[c], own.1[c]);
                let rounding = f64::EPSILON / 2.0 * mean.abs();
                let error = (out.statistics.mean()[c] - mean).abs();
                ledger.note::<T>("mean", error, f.mean * var.sqrt() + rounding, context);
                ledger.note::<T>("var", (out.statistics.var()[c] - var).abs(), f.var * var, context);
            }
            let channel = || reference::indices(shape, c);
            let sum = |f: &dyn Fn(usize) -> f64| channel().map(f).sum::<f64>();
            let x_hat = &x_hat_backward;
            let of_sums = [
                f.sums * sum(&|k| g[k].abs()) + sum(&|k| g_error[k]),
                f.sums * sum(&|k| (g[k] * x_hat[k]).abs()) + sum(&|k| g_error[k] * x_hat[k].abs()),
            ];
            let tiny = T::Param::SMALLEST_SUBNORMAL;
            ledger.note::<T>("dbeta", (out.dbeta[c].to_f64() - dbeta[c]).abs(), of_sums[0] + tiny, context);
            ledger.note::<T>("dgamma", (out.dgamma[c].to_f64() - dgamma[c]).abs(), of_sums[1] + tiny, context);
            let scale = (gamma[c] * reference::inv_std(backward.1[c], p.eps)).abs();
            for (k, w) in channel().zip(&w).filter(|(_, w)| **w > 0.0) {
                let share = if running.is_some() { 0.0 } else { w / total };
                let size = g[k].abs() + share * (dbeta[c].abs() + (x_hat[k] * dgamma[c]).abs());
                let through = share * (of_sums[0] + x_hat[k].abs() * of_sums[1]);
                let bound = stored::<T>(dx[k], scale * (f.dx * size + g_error[k] + through + tiny) + tiny);
                ledger.note::<T>("dx", (out.dx[k].to_f64() - dx[k]).abs(), bound, context);
            }
        }
    }
}

/// Half an ulp of lanes, and what the reference's own steps are off.
fn unit<T: Number>() -> f64 {
    T::Param::U + f64::EPSILON
}

/// What a result in lanes that is off by `error` is off when it is stored as T: one rounding more in a type of fewer bits.
pub(crate) fn stored<T: Number>(exact: f64, error: f64) -> f64 {
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

/// The activation of z, and its error in lanes by that of z and by its own roundings.
pub(crate) fn output<T: Number>(activation: Activation, z: f64, error: f64) -> (f64, f64) {
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

/// The gradient of z, and its error in lanes. Where z is no further from a kink than its error either side is right,
/// and the one that `found` is on is taken.
pub(crate) fn input_gradient<T: Number>(activation: Activation, z: f64, dy: f64, error: f64, found: f64) -> (f64, f64) {
    let (u, exact) = (unit::<T>(), reference::activation_gradient(activation, z, dy));
    match activation {
        Activation::Identity => (exact, 0.0),
        Activation::Relu | Activation::LeakyRelu(_) => {
            let other = reference::activation_gradient(activation, -z, dy);
            let nearer = (found - other).abs() < (found - exact).abs();
            let exact = if z.abs() <= error && nearer { other } else { exact };
            // As above, of what is not dy or 0.
            (exact, if exact == dy { 0.0 } else { 2.0 * u * exact.abs() + tiny::<T>(0.0) })
        }
        Activation::Silu => {
            // act' = s·(1 + z·(1 − s)), whose derivative is below 0.5. s and 1 − s have eight roundings each, as above,
            // and each operation after them one.
            let e = (-z.abs()).exp();
            let size = if z > 0.0 { 1.0 } else { e } / (1.0 + e) + z.abs() * e / (1.0 + e).powi(2);
            (exact, dy.abs() * (0.5 * error + 12.0 * u * size + tiny::<T>(z)))
        }
        _ => unreachable!("{activation:?}"),
    }
}
