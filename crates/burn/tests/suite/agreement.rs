//! The same results as burn's module.

use crate::support::{assert_close, device, ours, random, step, theirs, values};
use batchnorm_burn::{BatchNorm, BatchNormConfig};
use burn::module::{Module, ParamGroup};
use burn::nn;
use burn::tensor::quantization::QuantScheme;
use burn::tensor::{DType, Device, Tensor};

const NAMES: [&str; 6] = ["y", "dx", "dgamma", "dbeta", "running mean", "running variance"];

/// burn's sums of M values take M roundings, each of a sum that is at most M times as large as a value.
fn roundings<const D: usize>(x: &Tensor<D>) -> usize {
    (x.shape().num_elements() / x.dims()[1]).pow(2)
}

/// Compares a step on a batch, and then inference on another.
#[track_caller]
fn compare<const D: usize>(dims: [usize; D], dtype: DType) {
    let (theirs, ours) = (theirs(dims[1], dtype), ours(dims[1], dtype));
    let (x, dy) = (random(dims, dtype), random(dims, dtype));
    // Of the same fields, which `step` reads.
    let fields = BatchNorm::from(theirs.clone());
    let expected = step(&fields, |x| theirs.forward(x), &x, &dy);
    let actual = step(&ours, |x| ours.forward(x), &x, &dy);
    for (name, (actual, expected)) in NAMES.iter().zip(actual.iter().zip(&expected)) {
        assert_close(name, actual, expected, roundings(&x), dtype);
    }
    let x = random(dims, dtype).inner();
    let (expected, actual) = (theirs.valid().forward(x.clone()), ours.valid().forward(x.clone()));
    assert_close("inference", &values(&actual), &values(&expected), roundings(&x), dtype);
}

#[test]
fn all_ranks_in_both_types() {
    for dtype in [DType::F64, DType::F32] {
        compare([16, 3], dtype);
        compare([4, 3, 5], dtype);
        compare([3, 5, 4, 2], dtype);
        compare([2, 3, 2, 3, 2], dtype);
        compare([1, 1, 1, 7], dtype);
    }
}

#[test]
fn several_threads() {
    // Enough for the kernels to use all threads of the pool.
    compare([2, 4, 256, 256], DType::F64);
}

#[test]
fn frozen_layers_use_the_running_statistics_and_leave_them() {
    let (theirs, ours) = (theirs(3, DType::F64).freeze(), ours(3, DType::F64).freeze());
    let (x, dy) = (random([4, 3, 5], DType::F64), random([4, 3, 5], DType::F64));
    let before = [values(&ours.running_mean.value_sync()), values(&ours.running_var.value_sync())];
    let step = |y: &dyn Fn(Tensor<3>) -> Tensor<3>| {
        let x = x.clone().require_grad();
        let y = y(x.clone());
        let gradients = (y.clone() * dy.clone()).sum().backward();
        assert!(ours.gamma.grad(&gradients).is_none());
        [values(&y), values(&x.grad(&gradients).unwrap())]
    };
    let (actual, expected) = (step(&|x| ours.forward(x)), step(&|x| theirs.forward(x)));
    assert_close("y", &actual[0], &expected[0], roundings(&x), DType::F64);
    assert_close("dx", &actual[1], &expected[1], roundings(&x), DType::F64);
    assert_eq!([values(&ours.running_mean.value_sync()), values(&ours.running_var.value_sync())], before);
}

#[test]
fn parameters_can_be_frozen_one_by_one() {
    let norm = ours(3, DType::F64).freeze_group(ParamGroup::from_path("gamma"));
    let (x, dy) = (random([4, 3], DType::F64), random([4, 3], DType::F64));
    // x itself needs no gradient here.
    let gradients = (norm.forward(x.clone()) * dy.clone()).sum().backward();
    assert!(norm.gamma.grad(&gradients).is_none());
    let dbeta = values(&norm.beta.grad(&gradients).unwrap());
    assert_close("dbeta", &dbeta, &values(&dy.sum_dim(0).inner()), roundings(&x), DType::F64);
}

#[test]
fn gradient_checkpointing_gives_the_same_bits() {
    for frozen in [false, true] {
        let results = [device(), device().gradient_checkpointing()].map(|device| {
            let norm: BatchNorm = BatchNormConfig::new(3).init(&device);
            let norm = if frozen { norm.freeze() } else { norm };
            let values: Vec<f32> = (0..24).map(|i| (i * i % 11) as f32).collect();
            let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([4, 3, 2]).require_grad();
            // The input of the layer is what checkpointing computes again.
            let gradients = (norm.forward_relu(x.clone() * 2.0 - 9.0) * x.clone()).sum().backward();
            x.grad(&gradients).unwrap().to_data()
        });
        assert_eq!(results[0], results[1]);
    }
}

#[test]
fn tensors_without_elements() {
    let norm = ours(3, DType::F32);
    let x = Tensor::<4>::zeros([0, 3, 2, 2], &device()).require_grad();
    let before = values(&norm.running_var.value_sync());
    let y = norm.forward(x.clone());
    let gradients = y.clone().sum().backward();
    assert_eq!((y.dims(), x.grad(&gradients).unwrap().dims()), ([0, 3, 2, 2], [0, 3, 2, 2]));
    assert_eq!(values(&norm.gamma.grad(&gradients).unwrap()), [0.0; 3]);
    assert_eq!(values(&norm.running_var.value_sync()), before);
}

#[test]
fn one_value_per_channel_normalizes_to_beta_as_in_burn() {
    let (theirs, ours) = (theirs(3, DType::F64), ours(3, DType::F64));
    let x = random([1, 3], DType::F64);
    let y = values(&ours.forward(x.clone()));
    assert_eq!(y, values(&theirs.forward(x)));
    assert_eq!(y, values(&ours.beta.val()));
    let (actual, expected) = (values(&ours.running_var.value_sync()), values(&theirs.running_var.value_sync()));
    assert_close("running variance", &actual, &expected, 4, DType::F64);
}

#[test]
fn the_running_variance_is_unbiased_on_request() {
    let x = Tensor::<2>::from_floats([[1.0], [2.0], [3.0], [6.0]], &device());
    for (unbiased, expected) in [(false, 3.5), (true, 14.0 / 3.0)] {
        let norm = BatchNormConfig::new(1).with_momentum(1.0).init(&device()).with_unbiased(unbiased);
        norm.forward(x.clone());
        assert_close("variance", &values(&norm.running_var.value_sync()), &[expected], 2, DType::F32);
    }
}

#[test]
fn quantized_tensors_are_dequantized_as_in_burn() {
    let x = random([4, 3, 8], DType::F32).inner().quantize_dynamic(&QuantScheme::default());
    let (theirs, ours) = (theirs(3, DType::F32).valid(), ours(3, DType::F32).valid());
    let (expected, actual) = (theirs.forward(x.clone()), ours.forward(x.clone()));
    assert_close("y", &values(&actual), &values(&expected), roundings(&x), DType::F32);
}

#[test]
fn a_layer_shows_itself_as_burns_does() {
    let (theirs, ours) =
        (nn::BatchNormConfig::new(3).init(&Device::flex()), BatchNormConfig::new(3).init(&Device::flex()));
    assert_eq!(ours.to_string(), theirs.to_string().replace("0.00001,", "0.00001, unbiased: false,"));
    assert!(ours.freeze().to_string().contains("training: disabled"));
}
