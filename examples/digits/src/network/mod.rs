//! A multilayer perceptron with batch normalization, and its gradients.
//!
//! Activations are row-major matrices, one row per example and one column per feature: the shape is
//! [`Shape::nc`](batchnorm::Shape::nc).

mod activation;
mod design;
mod dropout;
mod linear;
mod loss;
mod norm;
mod parameter;

pub(crate) use activation::Activation;
pub(crate) use design::{Backend, Design, Placement};
pub(crate) use loss::cross_entropy;
pub(crate) use norm::Norm;
pub(crate) use parameter::{Parameter, Role};

use crate::Result;
use crate::data::{CLASSES, PIXELS};
use batchnorm::Momentum;
use dropout::Dropout;
use linear::Linear;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// Normalize with the statistics of the batch, and use dropout.
    Train,
    /// Normalize with the running statistics, and use all units.
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
    /// The input and the output of each layer in the last forward pass.
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
            if design.norm == Some(Placement::BeforeActivation) {
                layers.push(norm(units));
            }
            layers.push(Layer::Activation(design.activation));
            if design.norm == Some(Placement::AfterActivation) {
                layers.push(norm(units));
            }
            if let Some(rate) = design.dropout {
                layers.push(Layer::Dropout(Dropout::new(rate, random.fork())));
            }
            width = units;
        }
        let bias = Some(Role::OutputBias);
        layers.push(Layer::Linear(Linear::new(width, outputs, bias, design.initial_scale, &mut random)));
        Self { activations: vec![Vec::new(); layers.len() + 1], layers }
    }

    /// Returns one row of logits per row of x.
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

    /// Computes the gradient of every parameter from the gradient of the logits. Call after a forward pass in
    /// [`Mode::Train`].
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

    /// The learned parameters, in a fixed order.
    pub(crate) fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.layers.iter_mut().flat_map(|layer| -> Vec<&mut Parameter> {
            match layer {
                Layer::Linear(linear) => std::iter::once(&mut linear.weight).chain(&mut linear.bias).collect(),
                Layer::Norm(norm) if norm.affine => vec![&mut norm.gamma, &mut norm.beta],
                Layer::Norm(_) | Layer::Activation(_) | Layer::Dropout(_) => Vec::new(),
            }
        })
    }

    /// The inputs of each linear layer except the first, in the last forward pass.
    pub(crate) fn hidden_activations(&self) -> impl Iterator<Item = &[f32]> {
        let inputs = self.layers.iter().zip(&self.activations).skip(1);
        inputs.filter_map(|(layer, x)| matches!(layer, Layer::Linear(_)).then_some(&x[..]))
    }

    /// The inputs of each batch normalization layer in the last forward pass.
    pub(crate) fn norm_inputs(&self) -> impl Iterator<Item = &[f32]> {
        let inputs = self.layers.iter().zip(&self.activations);
        inputs.filter_map(|(layer, x)| matches!(layer, Layer::Norm(_)).then_some(&x[..]))
    }

    pub(crate) fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.layers.iter().filter_map(|layer| if let Layer::Norm(norm) = layer { Some(&**norm) } else { None })
    }

    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.layers.iter_mut().filter_map(|layer| if let Layer::Norm(norm) = layer { Some(&mut **norm) } else { None })
    }

    /// Replaces the statistics for test time by the statistics of these rows, taken as one batch.
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

#[cfg(test)]
mod tests {
    use super::linear::normal;
    use super::*;

    const ROWS: usize = 12;
    const LABELS: [u8; ROWS] = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1];

    /// Random rows with 5 inputs each.
    fn inputs() -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..ROWS * 5).map(|_| normal(&mut random)).collect()
    }

    fn loss(network: &mut Network, x: &[f32]) -> (f64, Vec<f32>) {
        cross_entropy(network.forward(x, ROWS, Mode::Train).unwrap(), &LABELS)
    }

    /// Compares each derivative with (loss(w + h) − loss(w − h)) / 2h.
    fn check_gradients(design: Design) {
        // The rounding error of the loss divided by h is about ε/h, and the cubic term is about h². They are equal at
        // h = ε^(1/3), where both are ε^(2/3). The bound is 8 times that, which leaves room for the network's constants
        // and is below 0.001.
        let h = f32::EPSILON.cbrt();
        let bound = 8.0 * f64::from(h * h);
        let x = inputs();
        let design = Design { hidden: vec![4, 3], activation: Activation::Sigmoid, ..design };
        let mut network = Network::with_sizes(&design, 5, 3, 2);
        let (_, gradient) = loss(&mut network, &x);
        network.backward(gradient, ROWS).unwrap();
        let parameters: Vec<_> = network.parameters().map(|parameter| parameter.clone()).collect();
        assert!(
            parameters.iter().flat_map(|p| &p.gradient).any(|g| g.abs() > 0.05),
            "some gradients are large enough for the check to mean something"
        );
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
                assert!(error <= bound, "{:?} {i}: expected {numeric}, got {analytic}", parameter.role);
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
        check_gradients(Design { norm: Some(Placement::AfterActivation), bias: true, ..Design::default() });
    }

    #[test]
    fn gradients_with_batch_normalization_in_groups() {
        check_gradients(Design { group: Some(ROWS / 2), ..Design::default() });
    }

    #[test]
    fn gradients_of_the_reference() {
        check_gradients(Design { backend: Backend::Reference, ..Design::default() });
    }
}
