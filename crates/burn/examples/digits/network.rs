//! A small convolutional network with a normalization that can be chosen, and its training.

use crate::data::{Batch, Images};
use batchnorm_burn::{BatchNorm, BatchNormConfig};
use burn::module::{Module, ModuleDisplay};
use burn::nn;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

/// Images per step. The remainder of an epoch's images is skipped.
const BATCH: usize = 64;
const RATE: f64 = 3e-3;

/// burn's module or ours.
pub(crate) trait Norm: Module + ModuleDisplay {
    /// The layer for so many channels.
    fn new(channels: usize, device: &Device) -> Self;
    /// The normalization and, after it, ReLU.
    fn forward_relu(&self, x: Tensor<4>) -> Tensor<4>;
}

impl Norm for nn::BatchNorm {
    fn new(channels: usize, device: &Device) -> Self {
        nn::BatchNormConfig::new(channels).init(device)
    }

    fn forward_relu(&self, x: Tensor<4>) -> Tensor<4> {
        relu(self.forward(x))
    }
}

impl Norm for BatchNorm {
    fn new(channels: usize, device: &Device) -> Self {
        BatchNormConfig::new(channels).init(device)
    }

    fn forward_relu(&self, x: Tensor<4>) -> Tensor<4> {
        BatchNorm::forward_relu(self, x)
    }
}

/// Two convolutions, each normalized, and a linear layer.
#[derive(Module, Debug)]
pub(crate) struct Network<N: Norm> {
    conv1: Conv2d,
    norm1: N,
    conv2: Conv2d,
    norm2: N,
    linear: nn::Linear,
}

impl<N: Norm> Network<N> {
    /// A network for digits, with so many channels in its first layer.
    pub(crate) fn new(channels: usize, device: &Device) -> Self {
        let conv = |channels| {
            let padding = nn::PaddingConfig2d::Explicit(1, 1, 1, 1);
            Conv2dConfig::new(channels, [3, 3]).with_padding(padding).with_bias(false).init(device)
        };
        Self {
            conv1: conv([1, channels]),
            norm1: N::new(channels, device),
            conv2: conv([channels, 2 * channels]),
            norm2: N::new(2 * channels, device),
            linear: nn::LinearConfig::new(2 * channels, 10).init(device),
        }
    }

    /// `[batch, 10]`.
    pub(crate) fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.norm1.forward_relu(self.conv1.forward(images));
        let x = self.norm2.forward_relu(self.conv2.forward(x));
        self.linear.forward(x.flatten::<3>(2, 3).mean_dim(2).flatten::<2>(1, 2))
    }

    /// The fraction of these images that is classified correctly, with the running statistics.
    pub(crate) fn accuracy(&self, batch: Batch) -> f64 {
        let network = self.valid();
        let [images] = batch.labels.dims();
        let guesses = network.logits(batch.images).argmax(1).flatten::<1>(0, 1);
        let right = guesses.equal(batch.labels).int().sum().into_scalar::<i32>();
        f64::from(right) / images as f64
    }
}

/// A network in training.
pub(crate) struct Training<N: Norm> {
    pub(crate) network: Network<N>,
    optimizer: ModuleOptimizer,
    random: fastrand::Rng,
}

impl<N: Norm> Training<N> {
    /// The training of a network, in an order of the images that the seed determines.
    pub(crate) fn new(network: Network<N>, seed: u64) -> Self {
        Self { network, optimizer: AdamConfig::new().init(), random: fastrand::Rng::with_seed(seed) }
    }

    /// Trains on the images with these indices, each once. Returns the loss of each step.
    pub(crate) fn epoch(&mut self, images: &Images, picks: &[usize], device: &Device) -> Vec<f64> {
        let mut picks = picks.to_vec();
        self.random.shuffle(&mut picks);
        picks.chunks_exact(BATCH).map(|picks| self.step(images.batch(picks, device), device)).collect()
    }

    fn step(&mut self, batch: Batch, device: &Device) -> f64 {
        let logits = self.network.logits(batch.images);
        let loss = CrossEntropyLossConfig::new().init(device).forward(logits, batch.labels);
        let gradients = GradientsParams::from_grads(loss.backward(), &self.network);
        self.network = self.optimizer.step(RATE, self.network.clone(), gradients);
        loss.into_scalar()
    }
}
