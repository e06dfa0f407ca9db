//! Layers of both kinds with the same parameters, and what they compute.

use batchnorm_burn::BatchNorm;
use burn::module::{Param, RunningState};
use burn::nn;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::cell::RefCell;

pub(crate) const MOMENTUM: f64 = 0.3;
pub(crate) const EPSILON: f64 = 1e-3;

/// Flex with autodiff.
pub(crate) fn device() -> Device {
    Device::flex().autodiff()
}

/// A layer of burn of this type, with gamma and beta that differ in each channel.
pub(crate) fn theirs(channels: usize, dtype: DType) -> nn::BatchNorm {
    let device = device();
    let tensor = |value: fn(f64) -> f64| {
        let values: Vec<f64> = (0..channels).map(|c| value(c as f64)).collect();
        Tensor::from_data(TensorData::new(values, [channels]), (&device, dtype))
    };
    nn::BatchNorm {
        gamma: Param::from_tensor(tensor(|c| 1.5 - 0.25 * c)),
        beta: Param::from_tensor(tensor(|c| 0.5 * c - 0.75)),
        training: Param::from_bool(true),
        running_mean: RunningState::new(tensor(|c| 0.125 * c)),
        running_var: RunningState::new(tensor(|c| 1.0 + 0.5 * c)),
        momentum: MOMENTUM,
        epsilon: EPSILON,
    }
}

/// The same layer of ours. It shares nothing with another one.
pub(crate) fn ours(channels: usize, dtype: DType) -> BatchNorm {
    theirs(channels, dtype).into()
}

thread_local! {
    /// Each test runs on a thread of its own, so that it has the same values in every run.
    static RANDOM: RefCell<fastrand::Rng> = const { RefCell::new(fastrand::Rng::with_seed(1)) };
}

/// Values of mean 0.5 and standard deviation 2 on a device with autodiff.
pub(crate) fn random<const D: usize>(dims: [usize; D], dtype: DType) -> Tensor<D> {
    // A sum of three uniform numbers has nearly a normal distribution, and variance 1/4.
    let value = |random: &mut fastrand::Rng| 4.0 * ((0..3).map(|_| random.f64()).sum::<f64>() - 1.5) + 0.5;
    let values: Vec<f64> = RANDOM.with_borrow_mut(|random| (0..dims.iter().product()).map(|_| value(random)).collect());
    Tensor::from_data(TensorData::new(values, dims), (&device(), dtype))
}

pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter().collect()
}

/// y, the gradients of x, gamma and beta, and both running statistics, after a forward and a backward pass from `dy`.
pub(crate) fn step<const D: usize>(
    norm: &BatchNorm,
    forward: impl FnOnce(Tensor<D>) -> Tensor<D>,
    x: &Tensor<D>,
    dy: &Tensor<D>,
) -> [Vec<f64>; 6] {
    let x = x.clone().require_grad();
    let y = forward(x.clone());
    let gradients = (y.clone() * dy.clone()).sum().backward();
    [
        values(&y),
        values(&x.grad(&gradients).unwrap()),
        values(&norm.gamma.grad(&gradients).unwrap()),
        values(&norm.beta.grad(&gradients).unwrap()),
        values(&norm.running_mean.value_sync()),
        values(&norm.running_var.value_sync()),
    ]
}

/// Neither result is off by more than so many roundings of the largest value or, if all are small, of 1.
#[track_caller]
pub(crate) fn assert_close(name: &str, ours: &[f64], expected: &[f64], roundings: usize, dtype: DType) {
    let epsilon = match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => unreachable!("no test uses {dtype:?}"),
    };
    assert_eq!(ours.len(), expected.len(), "{name}");
    let scale = expected.iter().fold(1.0, |scale: f64, v| scale.max(v.abs()));
    for (i, (a, b)) in ours.iter().zip(expected).enumerate() {
        let bound = roundings as f64 * epsilon * scale;
        assert!((a - b).abs() <= bound, "{name}[{i}]: {a} and {b} differ by more than {bound:e}");
    }
}
