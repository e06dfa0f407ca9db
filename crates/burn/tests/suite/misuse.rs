//! Panics say what was expected and what was given.

use crate::support::{device, ours, random, values};
use batchnorm_burn::{BatchNorm, BatchNormConfig};
use burn::module::{Module, Param, RunningState};
use burn::tensor::{DType, Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The message of a panic.
#[track_caller]
fn message<T>(misuse: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(misuse()))).expect_err("misuse panics");
    panic.downcast_ref::<String>().expect("a message").clone()
}

#[test]
fn shapes() {
    let norm = ours(3, DType::F32);
    assert_eq!(
        message(|| norm.forward(random([4], DType::F32))),
        "batch normalization: the input has the wrong shape: expected [batch, 3, ...], got [4]"
    );
    assert_eq!(
        message(|| norm.forward(random([2, 4, 3], DType::F32))),
        "batch normalization: the input has the wrong shape: expected [batch, 3, ...], got [2, 4, 3]"
    );
    assert_eq!(
        message(|| norm.forward_add_relu(random([2, 3, 4], DType::F32), random([2, 3, 1], DType::F32))),
        "batch normalization: the residual does not match the input: expected ([2, 3, 4], F32), got ([2, 3, 1], F32)"
    );
    let mut norm = norm;
    norm.beta = Param::from_tensor(Tensor::zeros([2], &device()));
    assert_eq!(
        message(|| norm.forward(random([2, 3], DType::F32))),
        "batch normalization: beta has the wrong length: expected 3 elements, got 2"
    );
}

#[test]
fn types() {
    let expected = "the types are not supported: expected an input of F32, F64, BF16 or F16, and gamma and beta of the \
                    same type or, with BF16 and F16, of F32; got an input of";
    assert_eq!(
        message(|| ours(3, DType::F64).forward(random([2, 3], DType::F32))),
        format!("batch normalization: {expected} F32 and gamma of F64")
    );
    assert_eq!(
        message(|| ours(3, DType::BF16).forward(random([2, 3], DType::F16))),
        format!("batch normalization: {expected} F16 and gamma of BF16")
    );
    assert_eq!(
        message(|| ours(3, DType::F32).forward_add_relu(random([2, 3], DType::F32), random([2, 3], DType::F64))),
        "batch normalization: the residual does not match the input: expected ([2, 3], F32), got ([2, 3], F64)"
    );
    let mut norm = ours(3, DType::F32);
    norm.beta = Param::from_tensor(Tensor::zeros([3], (&device(), DType::F64)));
    assert_eq!(
        message(|| norm.forward(random([2, 3], DType::F32))),
        "batch normalization: beta has the wrong type: expected that of gamma, F32, got F64"
    );
}

#[test]
fn devices() {
    let capture = Device::capture();
    let captured = capture.capture_scope(|scope| {
        let norm = ours(3, DType::F32).valid();
        let x = Tensor::<2>::zeros([2, 3], &Device::flex());
        let elsewhere = x.clone().to_device(&capture);
        for (name, message) in [
            ("the input", message(|| norm.forward(elsewhere.clone()))),
            ("the residual", message(|| norm.forward_add_relu(x.clone(), elsewhere))),
            ("gamma", message(|| norm.to_device(&capture).forward(x))),
        ] {
            let expected =
                format!("batch normalization: {name} is on a device that is not supported: expected Flex, got ");
            assert!(message.starts_with(&expected), "{message}");
        }
        scope.complete([], [])
    });
    assert!(captured.is_ok());
}

#[test]
fn settings() {
    let init = |config: BatchNormConfig| message(|| config.init(&device()));
    assert_eq!(
        init(BatchNormConfig::new(0)),
        "batch normalization: num_features is out of range: expected at least 1, got 0"
    );
    for epsilon in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let expected =
            format!("batch normalization: epsilon is out of range: expected a positive, finite number, got {epsilon}");
        assert_eq!(init(BatchNormConfig::new(3).with_epsilon(epsilon)), expected);
    }
    for momentum in [-0.1, 1.1, f64::NAN] {
        let expected =
            format!("batch normalization: momentum is out of range: expected a number in [0, 1], got {momentum}");
        assert_eq!(init(BatchNormConfig::new(3).with_momentum(momentum)), expected);
    }
    // The fields are public.
    let mut norm = ours(3, DType::F32);
    norm.epsilon = -1.0;
    assert_eq!(
        message(|| norm.forward(random([2, 3], DType::F32))),
        "batch normalization: eps is out of range: expected a finite number >= 0, got -1"
    );
}

#[test]
fn statistics() {
    let mut norm: BatchNorm = BatchNormConfig::new(3).init(&device()).with_unbiased(true);
    let before = values(&norm.running_mean.value_sync());
    assert_eq!(
        message(|| norm.forward(random([1, 3], DType::F32))),
        "batch normalization: too few values for an unbiased variance: expected more than 1 value per channel, got 1"
    );
    assert_eq!(values(&norm.running_mean.value_sync()), before);
    norm.running_var = RunningState::new(Tensor::from_floats([1.0, -2.0, 1.0], &device()));
    assert_eq!(
        message(|| norm.valid().forward(random([4, 3], DType::F32).inner())),
        "batch normalization: variance of channel 1 is invalid: expected a number >= 0, got -2"
    );
    norm.running_mean = RunningState::new(Tensor::zeros([2], &device()));
    assert_eq!(
        message(|| norm.valid().forward(random([4, 3], DType::F32).inner())),
        "batch normalization: var has the wrong length: expected 2 elements, got 3"
    );
}
