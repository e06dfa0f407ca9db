//! Mini-batch training, and the evaluation of the result.

use crate::Result;
use crate::data::{Images, Split};
use crate::network::{Mode, Network, cross_entropy};
use crate::optimizers::{Optimizer, Rule};
use batchnorm::Momentum;
use std::time::{Duration, Instant};

/// The settings of a training run.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    pub(crate) rule: Rule,
    pub(crate) rate: f32,
    pub(crate) epochs: usize,
    /// Examples per mini-batch. The remainder of an epoch's images is skipped.
    pub(crate) batch: usize,
    /// The weight of a new mini-batch in the running statistics.
    pub(crate) momentum: Momentum,
    /// Determines the order of the images.
    pub(crate) seed: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self { rule: Rule::ADAM, rate: 0.003, epochs: 30, batch: 64, momentum: Momentum::Exponential(0.1), seed: 0 }
    }
}

/// A step of a training run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Counted from 1.
    pub(crate) number: usize,
    /// The loss of the step's mini-batch, before the step.
    pub(crate) loss: f64,
    /// The time since the training began, without the time spent in observers.
    pub(crate) seconds: f64,
    /// Whether this is the last step of its epoch.
    pub(crate) ends_epoch: bool,
}

impl Training {
    /// Steps per epoch.
    pub(crate) fn steps(&self, images: &Images) -> usize {
        images.len() / self.batch
    }

    /// Trains on `images`, and calls `observe` after each step.
    pub(crate) fn run(
        &self,
        network: &mut Network,
        images: &Images,
        mut observe: impl FnMut(Step, &mut Network) -> Result<()>,
    ) -> Result<()> {
        let mut optimizer = Optimizer::new(self.rule, self.rate);
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut order: Vec<usize> = (0..images.len()).collect();
        let steps = self.steps(images);
        let mut time = Duration::ZERO;
        for epoch in 0..self.epochs {
            random.shuffle(&mut order);
            for (i, picks) in order.chunks_exact(self.batch).enumerate() {
                let start = Instant::now();
                let batch = images.select(picks);
                let logits = network.forward(&batch.pixels, batch.len(), Mode::Train)?;
                let (loss, gradient) = cross_entropy(logits, &batch.labels);
                network.backward(gradient, batch.len())?;
                optimizer.step(network.parameters());
                for norm in network.norms_mut() {
                    norm.running.update(&norm.batch, self.momentum)?;
                }
                time += start.elapsed();
                let step = Step {
                    number: epoch * steps + i + 1,
                    loss,
                    seconds: time.as_secs_f64(),
                    ends_epoch: i + 1 == steps,
                };
                observe(step, network)?;
            }
        }
        Ok(())
    }
}

/// The course of a training run, with one value per epoch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// Steps since the training began.
    pub(crate) steps: Vec<usize>,
    /// The time since the training began, without the time spent in observers.
    pub(crate) seconds: Vec<f64>,
    /// The mean of the epoch's training losses.
    pub(crate) loss: Vec<f64>,
    /// The accuracy on the held-out images.
    pub(crate) accuracy: Vec<f64>,
}

impl Trace {
    /// Trains, and scores the network on the test images after each epoch.
    pub(crate) fn of(training: &Training, network: &mut Network, split: &Split) -> Result<Self> {
        let (mut trace, mut losses) = (Self::default(), Vec::new());
        training.run(network, &split.train, |step, network| {
            losses.push(step.loss);
            if step.ends_epoch {
                trace.steps.push(step.number);
                trace.seconds.push(step.seconds);
                trace.loss.push(losses.iter().sum::<f64>() / losses.len() as f64);
                trace.accuracy.push(score(network, &split.test)?.accuracy);
                losses.clear();
            }
            Ok(())
        })?;
        Ok(trace)
    }

    /// The accuracy after the last epoch.
    pub(crate) fn last_accuracy(&self) -> f64 {
        self.accuracy.last().copied().unwrap_or(0.0)
    }

    /// The first epoch, counted from 0, after which the accuracy is at least this high.
    pub(crate) fn first_at(&self, accuracy: f64) -> Option<usize> {
        self.accuracy.iter().position(|&a| a >= accuracy)
    }
}

/// The performance of a network on some images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// Mean cross-entropy, in nats.
    pub(crate) loss: f64,
    /// The fraction of images that are classified correctly.
    pub(crate) accuracy: f64,
}

/// Evaluates a network as at test time.
pub(crate) fn score(network: &mut Network, images: &Images) -> Result<Score> {
    let logits = network.forward(&images.pixels, images.len(), Mode::Test)?;
    let (loss, _) = cross_entropy(logits, &images.labels);
    let classes = logits.len() / images.len();
    let right = logits.chunks_exact(classes).zip(&images.labels).filter(|(row, label)| {
        let best = (0..classes).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best == Some(usize::from(**label))
    });
    Ok(Score { loss, accuracy: right.count() as f64 / images.len() as f64 })
}
