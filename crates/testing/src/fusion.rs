//! Training steps with everything that can be fused to their passes: all ways to run them, and their comparison with
//! the reference, with the bounds of docs/numerics.md carried through the activation.

use crate::{Allowance, Buffer, Factors, Ledger, Number, Outputs, Problem, Random, Value, Way};
use crate::{bits_of, kappa, normal, output, stored, to_f64, z_gradient};
use batchnorm::Element;
use batchnorm::{
    Activation, BatchNorm, Extras, GradientSums, Gradients, RunningStatistics, Shape, Source, Statistics, reference,
};
use std::fmt::Debug;

/// One activation of each kind.
pub const ACTIVATIONS: [Activation; 4] =
    [Activation::Identity, Activation::Relu, Activation::LeakyRelu(0.01), Activation::Silu];

/// The weights of positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighting {
    /// No weights.
    Absent,
    /// 0 and 1.
    Mask,
    /// Up to 2, and a few 0.
    Samples,
}

/// All weightings.
pub const WEIGHTINGS: [Weighting; 3] = [Weighting::Absent, Weighting::Mask, Weighting::Samples];

/// A problem with an activation and extras.
#[derive(Clone, Debug)]
pub struct Fusion<T: Number> {
    /// All other inputs.
    pub problem: Problem<T>,
    /// Of the plan.
    pub activation: Activation,
    /// Added before the activation.
    pub residual: Option<Vec<T>>,
    /// One per position.
    pub weights: Option<Vec<T::Param>>,
}

/// All outputs of a step.
#[derive(Clone, Debug)]
pub struct Step<T: Number> {
    /// All other outputs.
    pub outputs: Outputs<T>,
    /// The gradient of the residual, which is that of z.
    pub dresidual: Vec<T>,
}

/// The statistics that [`Fusion::compare`] takes as exact, and the channels that it compares.
pub struct Given<'a> {
    /// Mean and variance in the forward pass.
    pub forward: (&'a [f64], &'a [f64]),
    /// Mean and variance in the backward pass.
    pub backward: (&'a [f64], &'a [f64]),
    /// Whether they are constants.
    pub frozen: bool,
    /// The allowance for a channel, or nothing if it is not compared.
    pub channels: &'a dyn Fn(usize) -> Option<Allowance>,
}

impl<T: Number> Step<T> {
    /// Every output by name, as bits.
    pub fn bits(&self) -> Vec<(&'static str, Vec<u64>)> {
        let mut bits = self.outputs.bits();
        bits.push(("dresidual", bits_of(&self.dresidual)));
        bits
    }
}

impl<T: Number> Fusion<T> {
    /// Random data, with garbage where weights are 0.
    pub fn random(shape: Shape, seed: u64, activation: Activation, residual: bool, weighting: Weighting) -> Self {
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
        fusion.set_masked(&|k| [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e4][k % 4]);
        fusion
    }

    /// Puts a value into all inputs wherever the weight is 0.
    pub fn set_masked(&mut self, value: &dyn Fn(usize) -> f64) {
        for k in self.masked() {
            self.problem.x[k] = T::of(value(k));
            self.problem.dy[k] = T::of(value(k / 4));
            if let Some(residual) = &mut self.residual {
                residual[k] = T::of(value(k / 16));
            }
        }
    }

    /// The elements whose position has weight 0.
    pub fn masked(&self) -> Vec<usize> {
        let weights = self.weights_f64();
        let of_channel = |c| reference::indices(self.problem.shape, c).zip(&weights).filter(|(_, w)| **w == 0.0);
        (0..self.problem.shape.channels()).flat_map(of_channel).map(|(k, _)| k).collect()
    }

    /// The weight of every position.
    pub fn weights_f64(&self) -> Vec<f64> {
        self.weights.as_deref().map_or_else(|| vec![1.0; self.problem.shape.values_per_channel()], to_f64)
    }

    /// A plan for it, with default settings.
    pub fn plan(&self) -> BatchNorm {
        self.problem.plan().activation(self.activation).unwrap()
    }

    /// The residual and the weights.
    pub fn extras(&self) -> Extras<'_, T> {
        Extras { residual: self.residual.as_deref(), output: None, weights: self.weights.as_deref() }
    }

    /// A training step, or one with constant statistics if there are `running` ones. `given` says whether the backward
    /// pass gets y. Buffers start at different offsets, which follow from `offset`.
    pub fn run(
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
        let output = |k: usize| Buffer::<T>::output(len, k * offset);
        let (mut y, mut dx, mut dresidual) = (output(5), output(7), output(9));
        let output = |k: usize| Buffer::<T::Param>::output(channels, k * offset);
        let (mut dgamma, mut dbeta) = (output(1), output(2));
        let residual = self.residual.as_ref().map(|r| Buffer::new(r, 11 * offset));
        let weights = self.weights.as_ref().map(|w| Buffer::new(w, 13 * offset));
        let mut extras = Extras { residual: residual.as_deref(), output: None, weights: weights.as_deref() };
        let (in_place, fused) = (way.in_place(), way.fused());

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
            // Only SiLU needs z. Halves have both, to see that the residual is ignored.
            if fused && self.activation != Activation::Silu {
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

    /// Compares a step with the reference, for data whose sums are accurate in the reference.
    pub fn check(&self, ledger: &mut Ledger, running: Option<&RunningStatistics>, step: &Step<T>, context: &dyn Debug) {
        let (mut clean, statistics) = (self.problem.x.clone(), &step.outputs.statistics);
        self.masked().into_iter().for_each(|k| clean[k] = T::of(0.0));
        let own = reference::weighted_statistics(self.problem.shape, &to_f64(&clean), &self.weights_f64());
        for (c, (&mean, &var)) in own.0.iter().zip(&own.1).enumerate().filter(|_| running.is_none()) {
            let (f, context) = (Factors::new::<T>(kappa(mean, var)), &(context, "channel", c));
            let rounding = f64::EPSILON / 2.0 * mean.abs();
            ledger.note::<T>("mean", (statistics.mean()[c] - mean).abs(), f.mean * var.sqrt() + rounding, context);
            ledger.note::<T>("var", (statistics.var()[c] - var).abs(), f.var * var, context);
        }
        let given = Given {
            forward: running.map_or((&own.0, &own.1), |r| (r.mean(), r.var())),
            // A bound covers a pass's own error, given its inputs, and these are the inputs of the backward pass.
            backward: running.map_or((statistics.mean(), statistics.var()), |r| (r.mean(), r.var())),
            frozen: running.is_some(),
            channels: &|_| Some(Allowance::default()),
        };
        self.compare(ledger, &given, step, context);
    }

    /// Compares a step with the reference for given statistics.
    pub fn compare(&self, ledger: &mut Ledger, given: &Given<'_>, step: &Step<T>, context: &dyn Debug) {
        let mut clean = self.clone();
        clean.set_masked(&|_| 0.0);
        let (p, out, shape) = (&clean.problem, &step.outputs, self.problem.shape);
        let (x, dy, gamma, beta) = (to_f64(&p.x), to_f64(&p.dy), p.gamma_f64(), p.beta_f64());
        let residual = clean.residual.as_deref().map_or_else(|| vec![0.0; x.len()], to_f64);
        let w = self.weights_f64();
        let total = w.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        for k in self.masked() {
            let nothing = [out.y[k], out.dx[k], step.dresidual[k]];
            assert!(nothing.iter().all(|v| v.bits() == 0), "masked element {k}: {nothing:?} {context:?}");
        }

        let (ones, zeros) = (vec![1.0; shape.channels()], vec![0.0; shape.channels()]);
        let x_hat = |of| reference::normalize(shape, &x, of, p.eps, &ones, &zeros);
        let z = |of| {
            let y = reference::normalize(shape, &x, of, p.eps, &gamma, &beta);
            y.iter().zip(&residual).map(|(y, r)| y + r).collect::<Vec<_>>()
        };
        let (x_hat, x_hat_backward) = (x_hat(given.forward), x_hat(given.backward));
        let (z, z_backward) = (z(given.forward), z(given.backward));
        let allowances = (0..shape.channels()).map(given.channels).collect::<Vec<_>>();
        let channels = || allowances.iter().enumerate().filter_map(|(c, &allowance)| Some((c, allowance?)));
        let existing = |c: usize| reference::indices(shape, c).zip(&w).filter(|(_, w)| **w > 0.0);

        let (mut g, mut g_error) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for (c, allowance) in channels() {
            let f = Factors::new::<T>(kappa(given.forward.0[c], given.forward.1[c]));
            let z_error = |x_hat: f64, z: f64| {
                let size = gamma[c].abs() * (1.0 + x_hat.abs()) + beta[c].abs();
                let sum = if self.residual.is_some() { (T::Param::U + f64::EPSILON) * z.abs() } else { 0.0 };
                (f.y + allowance.reference) * size + sum + T::Param::SMALLEST_SUBNORMAL
            };
            for (k, _) in existing(c) {
                let context = &(context, "channel", c, k);
                let (y, error) = output::<T>(self.activation, z[k], z_error(x_hat[k], z[k]));
                ledger.compare::<T>("y", y, out.y[k].to_f64(), stored::<T>(y, error), context);

                let (found, z) = (step.dresidual[k].to_f64(), z_backward[k]);
                let error = z_error(x_hat_backward[k], z);
                (g[k], g_error[k]) = z_gradient::<T>(self.activation, z, dy[k], error, found);
                ledger.compare::<T>("dresidual", g[k], found, stored::<T>(g[k], g_error[k]), context);
            }
        }

        let (dx, dgamma, dbeta) = if given.frozen {
            reference::backward_frozen(shape, &x, &g, given.backward, p.eps, &gamma)
        } else {
            reference::weighted_backward(shape, &x, &g, given.backward, p.eps, &gamma, &w)
        };
        let (x_hat, tiny) = (&x_hat_backward, T::Param::SMALLEST_SUBNORMAL);
        for (c, allowance) in channels() {
            let f = Factors::new::<T>(kappa(given.forward.0[c], given.forward.1[c]));
            let (sums, of_dx) = (f.sums + allowance.reference, f.dx + allowance.reference);
            let sum = |f: &dyn Fn(usize) -> f64| reference::indices(shape, c).map(f).sum::<f64>();
            let of_sums = [
                sums * sum(&|k| g[k].abs()) + sum(&|k| g_error[k]),
                sums * sum(&|k| (g[k] * x_hat[k]).abs())
                    + sum(&|k| g_error[k] * x_hat[k].abs() + g[k].abs() * allowance.x_hat),
            ];
            let context = &(context, "channel", c);
            ledger.note::<T>("dbeta", (out.dbeta[c].to_f64() - dbeta[c]).abs(), of_sums[0] + tiny, context);
            ledger.note::<T>("dgamma", (out.dgamma[c].to_f64() - dgamma[c]).abs(), of_sums[1] + tiny, context);
            let scale = (gamma[c] * reference::inv_std(given.backward.1[c], p.eps)).abs();
            for (k, w) in existing(c) {
                let share = if given.frozen { 0.0 } else { w / total };
                let size = g[k].abs() + share * (dbeta[c].abs() + (x_hat[k] * dgamma[c]).abs());
                let through = share * (of_sums[0] + x_hat[k].abs() * of_sums[1] + allowance.x_hat * dgamma[c].abs());
                let error = scale * (of_dx * size + g_error[k] + through + tiny) + tiny;
                ledger.compare::<T>("dx", dx[k], out.dx[k].to_f64(), stored::<T>(dx[k], error), &(context, k));
            }
        }
    }
}
