//! The module.

use crate::ops::{BatchNormOps, Residual};
use crate::passes::{Normalizer, PLAN, fail};
use batchnorm as bn;
use burn::backend::{Dispatch, DispatchDevice};
use burn::config::Config;
use burn::module::{Content, DisplaySettings, Flag, Initializer, Module, ModuleDisplay, Param, RunningState};
use burn::tensor::{Device, Tensor, TensorData};

/// The configuration of a [`BatchNorm`], with the fields of [`burn::nn::BatchNormConfig`], so that files of either load
/// into the other.
#[derive(Config, Debug)]
pub struct BatchNormConfig {
    /// The number of channels, at least 1.
    pub num_features: usize,
    /// Added to the variance before the square root; positive and finite. Default: 1e-5
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// The weight of a new batch in the running statistics, from 0 to 1. Default: 0.1
    #[config(default = 0.1)]
    pub momentum: f64,
}

/// Batch normalization of `[batch, channels, ...]`, with the fields of [`burn::nn::BatchNorm`], so that records of
/// either load into the other. Made by [`BatchNormConfig::init`], or `from` a module of burn.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct BatchNorm {
    /// The learnable scale, one value per channel.
    pub gamma: Param<Tensor<1>>,
    /// The learnable shift, one value per channel.
    pub beta: Param<Tensor<1>>,
    /// Whether the layer trains on a device with autodiff; [`Module::freeze`] disables it.
    pub training: Param<Flag>,
    /// The running mean.
    pub running_mean: RunningState<Tensor<1>>,
    /// The running variance.
    pub running_var: RunningState<Tensor<1>>,
    /// The weight of a new batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance before the square root.
    pub epsilon: f64,
    /// Whether the running variance averages unbiased estimates of the population's, instead of the batches' own.
    pub unbiased: bool,
}

impl BatchNormConfig {
    /// A layer with gamma 1, beta 0, running mean 0 and running variance 1.
    ///
    /// # Panics
    /// If `num_features` is 0, `epsilon` is not positive and finite, or `momentum` is not within 0 and 1.
    #[track_caller]
    pub fn init(&self, device: &Device) -> BatchNorm {
        let &Self { num_features, epsilon, momentum } = self;
        check(num_features > 0, || "num_features is out of range: expected at least 1, got 0".into());
        check(epsilon > 0.0 && epsilon.is_finite(), || {
            format!("epsilon is out of range: expected a positive, finite number, got {epsilon}")
        });
        check((0.0..=1.0).contains(&momentum), || {
            format!("momentum is out of range: expected a number in [0, 1], got {momentum}")
        });
        BatchNorm {
            gamma: Initializer::Ones.init([num_features], device),
            beta: Initializer::Zeros.init([num_features], device),
            training: Param::from_bool(true),
            running_mean: RunningState::new(Tensor::zeros([num_features], device)),
            running_var: RunningState::new(Tensor::ones([num_features], device)),
            momentum,
            epsilon,
            unbiased: false,
        }
    }
}

impl BatchNorm {
    /// Sets [`unbiased`](Self::unbiased), which is false in a new layer, as burn's running variance is biased.
    #[must_use]
    pub fn with_unbiased(self, unbiased: bool) -> Self {
        Self { unbiased, ..self }
    }

    /// `gamma·(x − mean)/sqrt(var + epsilon) + beta`.
    ///
    /// On a device with autodiff mean and variance are those of the batch, unless the layer is frozen, and they update
    /// the running ones. Otherwise they are the running ones.
    ///
    /// # Panics
    /// If the input is not `[batch, num_features, ...]`, for the other reasons that [the crate](crate#panics) lists,
    /// and in training if `unbiased` is set and there is only one value per channel.
    #[track_caller]
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.run(input, None, bn::Activation::Identity)
    }

    /// [`forward`](Self::forward), then ReLU, in one sweep.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    #[track_caller]
    pub fn forward_relu<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.run(input, None, bn::Activation::Relu)
    }

    /// [`forward`](Self::forward), then the sum with `residual`, then ReLU, in one sweep: the end of a residual block.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and if `residual` does not have the shape and the type of the input.
    #[track_caller]
    pub fn forward_add_relu<const D: usize>(&self, input: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        self.run(input, Some(residual), bn::Activation::Relu)
    }

    #[track_caller]
    fn run<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Option<Tensor<D>>,
        activation: bn::Activation,
    ) -> Tensor<D> {
        let (input, residual) = (input.dequantize(), residual.map(Tensor::dequantize));
        let [gamma, beta] = [&self.gamma, &self.beta].map(|parameter| parameter.val().dequantize());
        let (dims, [channels]) = (input.dims(), gamma.dims());
        check_device("the input", &input.device());
        check_device("gamma", &gamma.device());
        check_device("beta", &beta.device());
        check(dims.get(1) == Some(&channels), || {
            format!("the input has the wrong shape: expected [batch, {channels}, ...], got {dims:?}")
        });
        check(beta.dtype() == gamma.dtype(), || {
            format!("beta has the wrong type: expected that of gamma, {:?}, got {:?}", gamma.dtype(), beta.dtype())
        });
        if let Some(residual) = &residual {
            check_device("the residual", &residual.device());
            let (expected, actual) = ((dims, input.dtype()), (residual.dims(), residual.dtype()));
            check(expected == actual, || {
                format!("the residual does not match the input: expected {expected:?}, got {actual:?}")
            });
        }
        let training = input.device().is_autodiff() && self.training.is_enabled();
        let normalizer = match training {
            true => Normalizer::Batch(bn::Statistics::new(channels)),
            false => Normalizer::Running(self.running(self.running_mean.value(), self.running_var.value())),
        };
        let plan = PLAN.clone().eps(self.epsilon).and_then(|plan| plan.activation(activation));
        let (output, normalizer) = Dispatch::normalize(
            input.into_dispatch(),
            gamma.into_dispatch(),
            beta.into_dispatch(),
            residual.map_or(Residual::Absent, |residual| Residual::Present(residual.into_dispatch())),
            plan.unwrap_or_else(|error| fail(error)),
            normalizer,
        );
        if let Normalizer::Batch(batch) = normalizer {
            self.update(&batch);
        }
        Tensor::from_dispatch(output)
    }

    fn running(&self, mean: Tensor<1>, var: Tensor<1>) -> bn::RunningStatistics {
        let [mean, var] = [mean, var].map(|values| values.into_data().iter().collect());
        let running = bn::RunningStatistics::from_parts(mean, var, 0).unwrap_or_else(|error| fail(error));
        running.biased(!self.unbiased)
    }

    fn update(&self, batch: &bn::Statistics) {
        let (mean, var) = (self.running_mean.value_sync(), self.running_var.value_sync());
        let like = |tensor: &Tensor<1>, values: &[f64]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::from_data(data, (&tensor.device(), tensor.dtype()))
        };
        let mut running = self.running(mean.clone(), var.clone());
        running.update(batch, bn::Momentum::Exponential(self.momentum)).unwrap_or_else(|error| fail(error));
        self.running_mean.update(like(&mean, running.mean()));
        self.running_var.update(like(&var, running.var()));
    }
}

/// The same layer: parameters, running statistics, their ids, and settings.
impl From<burn::nn::BatchNorm> for BatchNorm {
    fn from(norm: burn::nn::BatchNorm) -> Self {
        let burn::nn::BatchNorm { gamma, beta, training, running_mean, running_var, momentum, epsilon } = norm;
        Self { gamma, beta, training, running_mean, running_var, momentum, epsilon, unbiased: false }
    }
}

/// The same layer, but for `unbiased`, which burn's module does not have.
impl From<BatchNorm> for burn::nn::BatchNorm {
    fn from(norm: BatchNorm) -> Self {
        let BatchNorm { gamma, beta, training, running_mean, running_var, momentum, epsilon, unbiased: _ } = norm;
        Self { gamma, beta, training, running_mean, running_var, momentum, epsilon }
    }
}

impl ModuleDisplay for BatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [num_features] = self.gamma.shape().dims();
        let content = content
            .add("num_features", &num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon)
            .add("unbiased", &self.unbiased);
        let frozen = !self.training.is_enabled();
        if frozen { content.add("training", &self.training).optional() } else { content.optional() }
    }
}

#[track_caller]
fn check_device(name: &str, device: &Device) {
    let plain = device.clone().without_autodiff();
    check(matches!(plain.as_dispatch(), DispatchDevice::Flex(_)), || {
        format!("{name} is on a device that is not supported: expected Flex, got {device:?}")
    });
}

#[track_caller]
fn check(valid: bool, message: impl FnOnce() -> String) {
    if !valid {
        fail(message());
    }
}
