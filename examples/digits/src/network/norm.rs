//! Batch normalization layers: how this program uses the crate.

use super::{Backend, Design, Mode, Parameter, Role};
use crate::Result;
use batchnorm::{Affine, BatchNorm, RunningStatistics, Shape, Statistics, reference};
use std::time::{Duration, Instant};

/// Added to the variance.
const EPS: f64 = 1e-5;

/// Batch normalization of each column over the rows.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    channels: usize,
    pub(crate) gamma: Parameter,
    pub(crate) beta: Parameter,
    pub(super) affine: bool,
    pub(super) group: Option<usize>,
    backend: Backend,
    plan: Option<BatchNorm>,
    /// Statistics of each group of the last batch.
    groups: Vec<Statistics>,
    /// Statistics of the last batch.
    pub(crate) batch: Statistics,
    /// Statistics for test time.
    pub(crate) running: RunningStatistics,
    /// Time spent in the backend.
    pub(crate) time: Duration,
    /// Number of passes made by the backend.
    pub(crate) passes: usize,
}

impl Norm {
    pub(super) fn new(channels: usize, design: &Design) -> Self {
        Self {
            channels,
            gamma: Parameter::new(Role::Gamma, vec![1.0; channels]),
            beta: Parameter::new(Role::Beta, vec![0.0; channels]),
            affine: design.affine,
            group: design.group,
            backend: design.backend,
            plan: None,
            groups: Vec::new(),
            batch: Statistics::new(channels),
            running: RunningStatistics::new(channels),
            time: Duration::ZERO,
            passes: 0,
        }
    }

    /// The plan for this number of rows: the last one if it fits, otherwise a new one.
    fn plan(&mut self, rows: usize) -> Result<BatchNorm> {
        let shape = Shape::nc(rows, self.channels)?;
        match self.plan.take() {
            Some(plan) if plan.shape() == shape => Ok(plan),
            _ => Ok(BatchNorm::new(shape).eps(EPS)?),
        }
    }

    pub(super) fn forward(&mut self, x: &[f32], rows: usize, mode: Mode, y: &mut Vec<f32>) -> Result<()> {
        y.resize(x.len(), 0.0);
        let group = if mode == Mode::Train { self.group.unwrap_or(rows) } else { rows };
        let plan = self.plan(group)?;
        if self.backend == Backend::Reference {
            self.forward_reference(&plan, x, mode, y)?;
        } else {
            let affine = Affine::new(&self.gamma.value, &self.beta.value);
            let start = Instant::now();
            match mode {
                Mode::Test => plan.normalize(x, &self.running, affine, y)?,
                Mode::Train => {
                    self.groups.resize(rows / group, Statistics::new(self.channels));
                    let len = group * self.channels;
                    for ((x, y), batch) in x.chunks(len).zip(y.chunks_mut(len)).zip(&mut self.groups) {
                        plan.forward_training(x, affine, y, batch)?;
                    }
                }
            }
            self.time += start.elapsed();
        }
        if mode == Mode::Train {
            self.batch = Statistics::new(self.channels);
            for group in &self.groups {
                self.batch.merge(group)?;
            }
        }
        self.passes += 1;
        self.plan = Some(plan);
        Ok(())
    }

    /// Overwrites dy with dx.
    pub(super) fn backward(&mut self, x: &[f32], rows: usize, dy: &mut [f32]) -> Result<()> {
        let group = self.group.unwrap_or(rows);
        let plan = self.plan(group)?;
        if self.backend == Backend::Reference {
            self.backward_reference(&plan, x, dy);
        } else {
            let affine = Affine::new(&self.gamma.value, &self.beta.value);
            let len = group * self.channels;
            let (mut dgamma, mut dbeta) = (vec![0.0; self.channels], vec![0.0; self.channels]);
            self.gamma.gradient.fill(0.0);
            self.beta.gradient.fill(0.0);
            let start = Instant::now();
            for ((x, dy), batch) in x.chunks(len).zip(dy.chunks_mut(len)).zip(&self.groups) {
                plan.backward_in_place(x, dy, batch, affine, Some(&mut dgamma), Some(&mut dbeta))?;
                self.gamma.gradient.iter_mut().zip(&dgamma).for_each(|(sum, d)| *sum += d);
                self.beta.gradient.iter_mut().zip(&dbeta).for_each(|(sum, d)| *sum += d);
            }
            self.time += start.elapsed();
        }
        self.passes += 1;
        self.plan = Some(plan);
        Ok(())
    }
}

/// The same passes with the crate's textbook implementation, to compare results and time. All rows are one group.
impl Norm {
    fn forward_reference(&mut self, plan: &BatchNorm, x: &[f32], mode: Mode, y: &mut [f32]) -> Result<()> {
        let shape = plan.shape();
        let (x, gamma, beta) = (to_f64(x), to_f64(&self.gamma.value), to_f64(&self.beta.value));
        let start = Instant::now();
        let (mean, var) = match mode {
            Mode::Train => reference::statistics(shape, &x),
            Mode::Test => (self.running.mean().to_vec(), self.running.var().to_vec()),
        };
        let result = reference::normalize(shape, &x, (&mean, &var), EPS, &gamma, &beta);
        self.time += start.elapsed();
        to_f32(&result, y);
        if mode == Mode::Train {
            self.groups = vec![Statistics::from_parts(shape.values_per_channel() as f64, mean, var)?];
        }
        Ok(())
    }

    fn backward_reference(&mut self, plan: &BatchNorm, x: &[f32], dy: &mut [f32]) {
        let (x, g, gamma) = (to_f64(x), to_f64(dy), to_f64(&self.gamma.value));
        let statistics = (self.batch.mean(), self.batch.var());
        let start = Instant::now();
        let (dx, dgamma, dbeta) = reference::backward(plan.shape(), &x, &g, statistics, EPS, &gamma);
        self.time += start.elapsed();
        to_f32(&dx, dy);
        to_f32(&dgamma, &mut self.gamma.gradient);
        to_f32(&dbeta, &mut self.beta.gradient);
    }
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn to_f32(values: &[f64], result: &mut [f32]) {
    result.iter_mut().zip(values).for_each(|(r, &v)| *r = v as f32);
}
