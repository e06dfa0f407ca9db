//! A multilayer perceptron with batch normalization, and its gradients.
//!
//! Activations are row-major: a row an example, a column a feature, which is [`Shape::nc`].

use crate::Result;
use crate::data::{CLASSES, PIXELS};
use batchnorm::{Affine, BatchNorm, Momentum, RunningStatistics, Shape, Statistics, reference};
use std::time::{Duration, Instant};

/// What a parameter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Weight,
    /// The bias of a hidden linear layer.
    Bias,
    /// The bias of the last layer.
    OutputBias,
    Gamma,
    Beta,
}

/// Numbers to learn, and how the loss changes with each.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) role: Role,
    pub(crate) value: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
}

impl Parameter {
    pub(crate) fn new(role: Role, value: Vec<f32>) -> Self {
        let gradient = vec![0.0; value.len()];
        Self { role, value, gradient }
    }
}

/// What a network is made of.
#[derive(Clone, Debug)]
pub(crate) struct Design {
    /// Units of each hidden layer.
    pub(crate) hidden: Vec<usize>,
    pub(crate) activation: Activation,
    pub(crate) norm: Option<Place>,
    /// Whether gamma and beta learn or stay 1 and 0.
    pub(crate) affine: bool,
    /// Whether hidden linear layers have a bias.
    pub(crate) bias: bool,
    /// The share of hidden units that dropout silences in a training step.
    pub(crate) dropout: Option<f32>,
    /// Initial weights are normal with standard deviation `initial_scale · sqrt(2 / inputs)`.
    pub(crate) initial_scale: f32,
    /// Rows normalized together in training; all of a mini-batch where `None`.
    pub(crate) group: Option<usize>,
    pub(crate) backend: Backend,
}

impl Default for Design {
    fn default() -> Self {
        Self {
            hidden: vec![128, 128],
            activation: Activation::Relu,
            norm: Some(Place::BeforeActivation),
            affine: true,
            bias: false,
            dropout: None,
            initial_scale: 1.0,
            group: None,
            backend: Backend::Kernels,
        }
    }
}

impl Design {
    /// The same network without batch normalization; its linear layers need their bias.
    pub(crate) fn plain(self) -> Self {
        Self { norm: None, bias: true, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Relu,
    Sigmoid,
}

/// Where batch normalization stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place {
    BeforeActivation,
    AfterActivation,
}

/// What computes batch normalization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Backend {
    Kernels,
    Reference,
}

/// Whether a forward pass uses the batch's own statistics and dropout, or running statistics and all units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Train,
    Test,
}

#[derive(Clone, Debug)]
enum Layer {
    Linear(Linear),
    Norm(Box<Norm>),
    Activation(Activation),
    Dropout(Dropout),
}

#[derive(Clone, Debug)]
pub(crate) struct Network {
    layers: Vec<Layer>,
    /// The input, then what each layer made of it in the last forward pass.
    activations: Vec<Vec<f32>>,
}

impl Network {
    pub(crate) fn new(design: &Design, seed: u64) -> Self {
        Self::with_sizes(design, PIXELS, CLASSES, seed)
    }

    pub(crate) fn with_sizes(design: &Design, inputs: usize, outputs: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut layers, mut width) = (Vec::new(), inputs);
        let norm = |width| Layer::Norm(Box::new(Norm::new(width, design)));
        for &units in &design.hidden {
            let bias = design.bias.then_some(Role::Bias);
            layers.push(Layer::Linear(Linear::new(width, units, bias, design.initial_scale, &mut random)));
            if design.norm == Some(Place::BeforeActivation) {
                layers.push(norm(units));
            }
            layers.push(Layer::Activation(design.activation));
            if design.norm == Some(Place::AfterActivation) {
                layers.push(norm(units));
            }
            if let Some(rate) = design.dropout {
                layers.push(Layer::Dropout(Dropout { rate, factors: Vec::new(), random: random.fork() }));
            }
            width = units;
        }
        let bias = Some(Role::OutputBias);
        layers.push(Layer::Linear(Linear::new(width, outputs, bias, design.initial_scale, &mut random)));
        Self { activations: vec![Vec::new(); layers.len() + 1], layers }
    }

    /// One row of logits for each of the `rows` rows of x.
    pub(crate) fn forward(&mut self, x: &[f32], rows: usize, mode: Mode) -> Result<&[f32]> {
        self.activations[0].clear();
        self.activations[0].extend(x);
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let [x, y] = &mut self.activations[i..i + 2] else { unreachable!("a layer has an input and an output") };
            match layer {
                Layer::Linear(linear) => linear.forward(x, rows, y),
                Layer::Norm(norm) => norm.forward(x, rows, mode, y)?,
                Layer::Activation(activation) => activation.forward(x, y),
                Layer::Dropout(dropout) => dropout.forward(x, mode, y),
            }
        }
        Ok(&self.activations[self.layers.len()])
    }

    /// Leaves the gradient of every parameter with it. Follows a forward pass in [`Mode::Train`]; `gradient` is that
    /// of the logits.
    pub(crate) fn backward(&mut self, mut gradient: Vec<f32>, rows: usize) -> Result<()> {
        for (i, layer) in self.layers.iter_mut().enumerate().rev() {
            let (x, y) = (&self.activations[i], &self.activations[i + 1]);
            match layer {
                Layer::Linear(linear) => gradient = linear.backward(x, rows, &gradient),
                Layer::Norm(norm) => norm.backward(x, rows, &mut gradient)?,
                Layer::Activation(activation) => activation.backward(y, &mut gradient),
                Layer::Dropout(dropout) => dropout.backward(&mut gradient),
            }
        }
        Ok(())
    }

    /// All that learns, in a fixed order.
    pub(crate) fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.layers.iter_mut().flat_map(|layer| -> Vec<&mut Parameter> {
            match layer {
                Layer::Linear(linear) => std::iter::once(&mut linear.weight).chain(&mut linear.bias).collect(),
                Layer::Norm(norm) if norm.affine => vec![&mut norm.gamma, &mut norm.beta],
                Layer::Norm(_) | Layer::Activation(_) | Layer::Dropout(_) => Vec::new(),
            }
        })
    }

    /// What went into each hidden linear layer but the first, and into the last, in the last forward pass.
    pub(crate) fn hidden_activations(&self) -> impl Iterator<Item = &[f32]> {
        let inputs = self.layers.iter().zip(&self.activations).skip(1);
        inputs.filter_map(|(layer, x)| matches!(layer, Layer::Linear(_)).then_some(&x[..]))
    }

    /// What went into each batch normalization in the last forward pass.
    pub(crate) fn norm_inputs(&self) -> impl Iterator<Item = &[f32]> {
        let inputs = self.layers.iter().zip(&self.activations);
        inputs.filter_map(|(layer, x)| matches!(layer, Layer::Norm(_)).then_some(&x[..]))
    }

    /// The batch normalization layers.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.layers.iter().filter_map(|layer| if let Layer::Norm(norm) = layer { Some(&**norm) } else { None })
    }

    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.layers.iter_mut().filter_map(|layer| if let Layer::Norm(norm) = layer { Some(&mut **norm) } else { None })
    }

    /// Makes the statistics of these rows, all at once, those for test time.
    pub(crate) fn adopt_statistics(&mut self, x: &[f32], rows: usize) -> Result<()> {
        for norm in self.norms_mut() {
            norm.group = None;
        }
        self.forward(x, rows, Mode::Train)?;
        for norm in self.norms_mut() {
            norm.running.update(&norm.batch, Momentum::Exponential(1.0))?;
        }
        Ok(())
    }
}

/// The mean cross-entropy of the softmax of `logits`, and its gradient.
pub(crate) fn cross_entropy(logits: &[f32], labels: &[u8]) -> (f64, Vec<f32>) {
    let classes = logits.len() / labels.len();
    let mut gradient = Vec::with_capacity(logits.len());
    let mut loss = 0.0;
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = row.iter().map(|&v| f64::from(v - max).exp());
        let sum: f64 = exp.clone().sum();
        loss += sum.ln() - f64::from(row[usize::from(label)] - max);
        gradient.extend(exp.enumerate().map(|(class, e)| {
            let target = if class == usize::from(label) { 1.0 } else { 0.0 };
            ((e / sum - target) / labels.len() as f64) as f32
        }));
    }
    (loss / labels.len() as f64, gradient)
}

/// `y = x·W + b`
#[derive(Clone, Debug)]
struct Linear {
    inputs: usize,
    outputs: usize,
    weight: Parameter,
    bias: Option<Parameter>,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, bias: Option<Role>, scale: f32, random: &mut fastrand::Rng) -> Self {
        let deviation = scale * (2.0 / inputs as f32).sqrt();
        let weight = (0..inputs * outputs).map(|_| deviation * normal(random)).collect();
        let bias = bias.map(|role| Parameter::new(role, vec![0.0; outputs]));
        Self { inputs, outputs, weight: Parameter::new(Role::Weight, weight), bias }
    }

    fn forward(&self, x: &[f32], rows: usize, y: &mut Vec<f32>) {
        y.clear();
        match &self.bias {
            Some(bias) => (0..rows).for_each(|_| y.extend(&bias.value)),
            None => y.resize(rows * self.outputs, 0.0),
        }
        let (x, w) = (Matrix::new(x, self.inputs), Matrix::new(&self.weight.value, self.outputs));
        multiply(x, w, 1.0, y);
    }

    fn backward(&mut self, x: &[f32], rows: usize, dy: &[f32]) -> Vec<f32> {
        let (x, dy_matrix) = (Matrix::new(x, self.inputs), Matrix::new(dy, self.outputs));
        multiply(x.transposed(), dy_matrix, 0.0, &mut self.weight.gradient);
        if let Some(bias) = &mut self.bias {
            bias.gradient.fill(0.0);
            for row in dy.chunks_exact(self.outputs) {
                bias.gradient.iter_mut().zip(row).for_each(|(db, dy)| *db += dy);
            }
        }
        let mut dx = vec![0.0; rows * self.inputs];
        multiply(dy_matrix, Matrix::new(&self.weight.value, self.outputs).transposed(), 0.0, &mut dx);
        dx
    }
}

/// A normal deviate, by the method of Box and Muller.
pub(crate) fn normal(random: &mut fastrand::Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * random.f64()).cos()) as f32
}

/// A matrix, or its transpose, in a row-major slice.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    strides: (isize, isize),
}

impl<'a> Matrix<'a> {
    fn new(values: &'a [f32], columns: usize) -> Self {
        let rows = values.len() / columns;
        assert_eq!(values.len(), rows * columns, "a matrix has full rows");
        Self { values, rows, columns, strides: (columns as isize, 1) }
    }

    fn transposed(self) -> Self {
        let (down, right) = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: (right, down), ..self }
    }
}

/// `c = a·b + keep·c`
fn multiply(a: Matrix<'_>, b: Matrix<'_>, keep: f32, c: &mut [f32]) {
    assert_eq!((a.columns, a.rows * b.columns), (b.rows, c.len()), "the matrices fit");
    // SAFETY: a row and a column of `Matrix` times its strides stay in its slice, whose length `Matrix::new` has
    // checked; c holds a.rows rows of b.columns values, checked above.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.columns,
            b.columns,
            1.0,
            a.values.as_ptr(),
            a.strides.0,
            a.strides.1,
            b.values.as_ptr(),
            b.strides.0,
            b.strides.1,
            keep,
            c.as_mut_ptr(),
            b.columns as isize,
            1,
        );
    }
}

/// Added to the variance.
const EPS: f64 = 1e-5;

/// Batch normalization: where this program uses the crate.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    channels: usize,
    pub(crate) gamma: Parameter,
    pub(crate) beta: Parameter,
    affine: bool,
    group: Option<usize>,
    backend: Backend,
    plan: Option<BatchNorm>,
    /// Those of each group of the last batch.
    groups: Vec<Statistics>,
    /// Those of the last batch.
    pub(crate) batch: Statistics,
    /// Those for test time.
    pub(crate) running: RunningStatistics,
    /// Spent in the backend.
    pub(crate) time: Duration,
    /// Passes done by the backend.
    pub(crate) passes: usize,
}

impl Norm {
    fn new(channels: usize, design: &Design) -> Self {
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

    /// The plan for so many rows; a new one only where the last was for another number of rows.
    fn plan(&mut self, rows: usize) -> Result<BatchNorm> {
        let shape = Shape::nc(rows, self.channels)?;
        match self.plan.take() {
            Some(plan) if plan.shape() == shape => Ok(plan),
            _ => Ok(BatchNorm::new(shape).eps(EPS)?),
        }
    }

    fn forward(&mut self, x: &[f32], rows: usize, mode: Mode, y: &mut Vec<f32>) -> Result<()> {
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

    /// Leaves dx where dy was.
    fn backward(&mut self, x: &[f32], rows: usize, dy: &mut [f32]) -> Result<()> {
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

/// The same passes by the textbook, to compare results and time. The rows are one group.
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

impl Activation {
    fn forward(self, x: &[f32], y: &mut Vec<f32>) {
        y.clear();
        match self {
            Self::Relu => y.extend(x.iter().map(|&x| x.max(0.0))),
            Self::Sigmoid => y.extend(x.iter().map(|&x| 1.0 / (1.0 + (-x).exp()))),
        }
    }

    /// Leaves dx where dy was.
    fn backward(self, y: &[f32], dy: &mut [f32]) {
        let slope = |y: f32| match self {
            Self::Relu => f32::from(y > 0.0),
            Self::Sigmoid => y * (1.0 - y),
        };
        dy.iter_mut().zip(y).for_each(|(dy, &y)| *dy *= slope(y));
    }
}

/// In training silences units at random and makes up for it by the others; does nothing at test time.
#[derive(Clone, Debug)]
struct Dropout {
    rate: f32,
    /// 0 or 1 / (1 − rate) for each unit of each row of the last batch.
    factors: Vec<f32>,
    random: fastrand::Rng,
}

impl Dropout {
    fn forward(&mut self, x: &[f32], mode: Mode, y: &mut Vec<f32>) {
        y.clear();
        y.extend(x);
        if mode == Mode::Train {
            let Self { rate, random, .. } = self;
            let kept = 1.0 / (1.0 - *rate);
            self.factors.clear();
            self.factors.extend(x.iter().map(|_| if random.f32() < *rate { 0.0 } else { kept }));
            self.backward(y);
        }
    }

    /// Leaves dx where dy was.
    fn backward(&self, dy: &mut [f32]) {
        dy.iter_mut().zip(&self.factors).for_each(|(dy, factor)| *dy *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 12;
    const LABELS: [u8; ROWS] = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1];

    /// Random rows of 5 inputs.
    fn inputs() -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..ROWS * 5).map(|_| normal(&mut random)).collect()
    }

    fn loss(network: &mut Network, x: &[f32]) -> (f64, Vec<f32>) {
        cross_entropy(network.forward(x, ROWS, Mode::Train).unwrap(), &LABELS)
    }

    /// Each derivative against (loss(w + h) − loss(w − h)) / 2h.
    fn check_gradients(design: Design) {
        // Rounding of the loss, of size ε, over h, and the cubic term, of size h², balance at h = ε^(1/3), where each
        // is ε^(2/3). 8 of it leave room for the network's constants, and are below a thousandth.
        let h = f32::EPSILON.cbrt();
        let bound = 8.0 * f64::from(h * h);
        let x = inputs();
        let design = Design { hidden: vec![4, 3], activation: Activation::Sigmoid, ..design };
        let mut network = Network::with_sizes(&design, 5, 3, 2);
        let (_, gradient) = loss(&mut network, &x);
        network.backward(gradient, ROWS).unwrap();
        let parameters: Vec<_> = network.parameters().map(|parameter| parameter.clone()).collect();
        assert!(parameters.iter().flat_map(|p| &p.gradient).any(|g| g.abs() > 0.05), "gradients worth checking");
        for (p, parameter) in parameters.iter().enumerate() {
            for (i, &analytic) in parameter.gradient.iter().enumerate() {
                let mut loss_at = |w: f32| {
                    network.parameters().nth(p).unwrap().value[i] = w;
                    (loss(&mut network, &x).0, f64::from(w))
                };
                let w = parameter.value[i];
                let ((high, right), (low, left)) = (loss_at(w + h), loss_at(w - h));
                loss_at(w);
                let numeric = (high - low) / (right - left);
                let error = (f64::from(analytic) - numeric).abs();
                assert!(error <= bound, "{:?} {i}: {analytic} is not {numeric}", parameter.role);
            }
        }
    }

    #[test]
    fn gradients_without_batch_normalization() {
        check_gradients(Design::default().plain());
    }

    #[test]
    fn gradients_with_batch_normalization_before_the_activation() {
        check_gradients(Design { bias: true, ..Design::default() });
    }

    #[test]
    fn gradients_with_batch_normalization_after_the_activation() {
        check_gradients(Design { norm: Some(Place::AfterActivation), bias: true, ..Design::default() });
    }

    #[test]
    fn gradients_with_batch_normalization_in_groups() {
        check_gradients(Design { group: Some(ROWS / 2), ..Design::default() });
    }

    #[test]
    fn gradients_of_the_reference() {
        check_gradients(Design { backend: Backend::Reference, ..Design::default() });
    }

    #[test]
    fn relu_passes_gradients_where_it_is_positive() {
        let (mut y, mut dy) = (Vec::new(), vec![1.0, 2.0, 3.0]);
        Activation::Relu.forward(&[-1.0, 0.5, 2.0], &mut y);
        Activation::Relu.backward(&y, &mut dy);
        assert_eq!((y, dy), (vec![0.0, 0.5, 2.0], vec![0.0, 2.0, 3.0]));
    }

    #[test]
    fn dropout_keeps_the_mean_and_silences_only_in_training() {
        let mut dropout = Dropout { rate: 0.25, factors: Vec::new(), random: fastrand::Rng::with_seed(3) };
        let (x, mut y) = (vec![1.0; 10_000], Vec::new());
        dropout.forward(&x, Mode::Train, &mut y);
        assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
        // The mean of 10 000 has standard deviation sqrt(0.25 / 0.75) / 100; six of them.
        assert!((y.iter().sum::<f32>() / 1e4 - 1.0).abs() < 6.0 * 0.0058);
        let mut dy = x.clone();
        dropout.backward(&mut dy);
        assert_eq!(dy, y, "the same units are silent on the way back");
        dropout.forward(&x, Mode::Test, &mut y);
        assert_eq!(y, x);
    }
}
