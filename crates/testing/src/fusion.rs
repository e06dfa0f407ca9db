//! Training steps with everything that can be fused to their passes: all ways to run them, and their comparison with
//! the reference, with the bounds of docs/numerics.md carried through the activation.

use crate::oracle::{self, Double};
use crate::{Bounds, Buffer, Factors, Ledger, Number, Outputs, Problem, Random, Value, Way};
use crate::{WORST_KAPPA, bits_of, kappa, normal, output, stored, to_f64, z_gradient};
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
    /// The relative error of the reference in a channel, or nothing if it is not compared.
    pub channels: &'a dyn Fn(usize) -> Option<f64>,
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

    /// Compares a step with the reference, in all channels whose conditioning is at most the largest that the bounds
    /// are stated for.
    pub fn check(&self, ledger: &mut Ledger, running: Option<&RunningStatistics>, step: &Step<T>, context: &dyn Debug) {
        let mut clean = self.clone();
        clean.set_masked(&|_| 0.0);
        let (p, statistics) = (&clean.problem, &step.outputs.statistics);
        let exact = oracle::weighted_statistics(p.shape, &p.x, &self.weights_f64());
        for (c, &(mean, var)) in exact.iter().enumerate().filter(|_| running.is_none()) {
            let (kappa, context) = (kappa(mean.0, var.0), &(context, "channel", c));
            if kappa <= WORST_KAPPA {
                let (f, rounding) = (Factors::new::<T>(kappa), f64::EPSILON / 2.0 * mean.0.abs());
                let error = |actual: &[f64], exact| (Double::from(actual[c]) - exact).abs().0;
                let bound = f.mean * var.0.sqrt() + rounding;
                ledger.note::<T>("mean", error(statistics.mean(), mean), bound, context);
                ledger.note::<T>("var", error(statistics.var(), var), f.var * var.0, context);
            }
        }
        let own: (Vec<f64>, Vec<f64>) = exact.iter().map(|(mean, var)| (mean.0, var.0)).unzip();
        // A bound covers a pass's own error, given its inputs, and these are the inputs of the backward pass.
        let (forward, backward) = match running {
            Some(running) => ((running.mean(), running.var()), (running.mean(), running.var())),
            None => ((&own.0[..], &own.1[..]), (statistics.mean(), statistics.var())),
        };
        let channels = |c: usize| {
            // If they are not those of x, eps counts as variance.
            let eps = if running.is_some() { p.eps } else { 0.0 };
            (kappa(forward.0[c], forward.1[c] + eps) <= WORST_KAPPA).then_some(0.0)
        };
        let given = Given { forward, backward, frozen: running.is_some(), channels: &channels };
        self.compare(ledger, &given, step, context);
    }

    /// Compares a step with the reference for given statistics.
    pub fn compare(&self, ledger: &mut Ledger, given: &Given<'_>, step: &Step<T>, context: &dyn Debug) {
        let mut clean = self.clone();
        clean.set_masked(&|_| 0.0);
        let p = &clean.problem;
        let (x, dy) = (to_f64(&p.x), to_f64(&p.dy));
        let residual = clean.residual.as_deref().map_or_else(|| vec![0.0; x.len()], to_f64);
        for k in self.masked() {
            let nothing = [step.outputs.y[k], step.outputs.dx[k], step.dresidual[k]];
            assert!(nothing.iter().all(|v| v.bits() == 0), "masked element {k}: {nothing:?} {context:?}");
        }
        let weights = self.weights_f64();
        let weighted = Weighted { x, dy, residual, total: weights.iter().sum::<f64>().max(f64::MIN_POSITIVE), weights };
        for c in 0..p.shape.channels() {
            if let Some(error) = (given.channels)(c) {
                self.compare_channel(ledger, given, (c, error), &weighted, step, &(context, "channel", c));
            }
        }
    }

    fn compare_channel(
        &self,
        ledger: &mut Ledger,
        given: &Given<'_>,
        (c, reference_error): (usize, f64),
        of: &Weighted,
        step: &Step<T>,
        context: &dyn Debug,
    ) {
        let (p, out) = (&self.problem, &step.outputs);
        let f = Factors::new::<T>(kappa(given.forward.0[c], given.forward.1[c])).plus(reference_error);
        let (gamma, beta) = (p.gamma_f64()[c], p.beta_f64()[c]);
        let statistics = |(mean, var): (&[f64], &[f64])| {
            let bounds = Bounds::new::<T>(f, var[c], p.eps, (gamma, beta), given.frozen);
            (bounds, mean[c], reference::inv_std(var[c], p.eps))
        };
        let (forward, backward) = (statistics(given.forward), statistics(given.backward));
        // z and its error, if these are promised.
        let argument = |(bounds, mean, inv_std): &(Bounds, f64, f64), k: usize| {
            let x_hat = (of.x[k] - mean) * inv_std;
            let z = gamma * x_hat + beta + of.residual[k];
            let sum = if self.residual.is_some() { (T::Param::U + f64::EPSILON) * z.abs() } else { 0.0 };
            // Of an infinite z, these know only the sign, if anything.
            let of_infinity = matches!(self.activation, Activation::LeakyRelu(_) | Activation::Silu);
            let error = bounds.y::<T>(x_hat).map(|error| error + sum);
            error.filter(|error| !of_infinity || z.abs() + error < T::Param::LARGEST).map(|error| (z, error))
        };
        let existing = || reference::indices(p.shape, c).zip(&of.weights).filter(|(_, w)| **w > 0.0);
        let (mut g, mut promised) = (vec![], true);
        for (k, _) in existing() {
            if let Some((z, error)) = argument(&forward, k) {
                let (y, error) = output::<T>(self.activation, z, error);
                ledger.compare::<T>("y", y, out.y[k].to_f64(), stored::<T>(y, error), &(context, k));
            }
            let Some((z, error)) = argument(&backward, k) else {
                promised = false;
                continue;
            };
            let found = step.dresidual[k].to_f64();
            let (exact, error) = z_gradient::<T>(self.activation, z, of.dy[k], error, found);
            ledger.compare::<T>("dresidual", exact, found, stored::<T>(exact, error), &(context, k));
            promised &= error.is_finite();
            g.push((k, exact, error));
        }

        let (bounds, mean, inv_std) = backward;
        let (deviation, x_hat) = (|k: usize| of.x[k] - mean, |k: usize| (of.x[k] - mean) * inv_std);
        let of_sums = bounds.sums::<T>(g.iter().map(|&(k, g, _)| (g, deviation(k))));
        let Some([of_dbeta, of_dgamma]) = of_sums.filter(|_| promised) else {
            return;
        };
        let dbeta = g.iter().map(|&(_, g, _)| Double::from(g)).sum::<Double>();
        let dgamma = g.iter().map(|&(k, g, _)| Double::from(g * x_hat(k))).sum::<Double>();
        let of_dbeta = of_dbeta + g.iter().map(|(_, _, error)| error).sum::<f64>();
        let of_dgamma = of_dgamma + g.iter().map(|&(k, _, error)| error * x_hat(k).abs()).sum::<f64>();
        ledger.note::<T>("dbeta", (out.dbeta[c].to_f64() - dbeta.0).abs(), of_dbeta, context);
        ledger.note::<T>("dgamma", (out.dgamma[c].to_f64() - dgamma.0).abs(), of_dgamma, context);
        // The sums that the pass has found are inputs of dx.
        let means = [out.sums.g()[c], out.sums.gx()[c] * inv_std].map(|sum| sum / of.total);
        let means = (!given.frozen).then_some(means);
        // Lanes have weights in a unit in which the heaviest is between 1 and 2.
        let heaviest = of.weights.iter().copied().fold(0.0, f64::max);
        let most = 2f64.powi(if size_of::<T::Param>() == 4 { 120 } else { 1000 });
        let unit = if heaviest > 0.0 { heaviest.log2().floor().exp2().clamp(1.0 / most, most) } else { 1.0 };
        let in_lanes = means.map(|means| means.map(|mean| mean * unit));
        for ((k, &w), &(_, g, error)) in existing().zip(&g) {
            let through = means.map_or(0.0, |[g_mean, gx_mean]| w * (g_mean + x_hat(k) * gx_mean));
            let exact = reference::product(gamma, inv_std, g - through);
            if let Some(bound) = bounds.dx::<T>(g, deviation(k), w / unit, in_lanes) {
                let bound = bound + reference::product(gamma, inv_std, error).abs();
                ledger.compare::<T>("dx", exact, out.dx[k].to_f64(), stored::<T>(exact, bound), &(context, k));
            }
        }
    }
}

/// The values of a step in f64, with 0 at positions without weight, and the sum of the weights.
struct Weighted {
    x: Vec<f64>,
    dy: Vec<f64>,
    residual: Vec<f64>,
    weights: Vec<f64>,
    total: f64,
}
