//! What burn's module does not have: types of 16 bits at full accuracy, and data far from 0.

use crate::support::{EPSILON, assert_close, device, ours, random, step, theirs, values};
use batchnorm::{Shape, reference};
use batchnorm_burn::BatchNorm;
use burn::module::Param;
use burn::tensor::{DType, Tensor};

/// y, dx, dgamma and dbeta in f64, from x and dy as they are stored.
fn expected<const D: usize>(norm: &BatchNorm, x: &Tensor<D>, dy: &Tensor<D>) -> [Vec<f64>; 4] {
    let (dims, x, dy) = (x.dims(), values(x), values(dy));
    let shape = Shape::ncl(dims[0], dims[1], dims[2..].iter().product()).unwrap();
    let (gamma, beta) = (values(&norm.gamma.val()), values(&norm.beta.val()));
    let (mean, var) = reference::statistics(shape, &x);
    let y = reference::normalize(shape, &x, (&mean, &var), EPSILON, &gamma, &beta);
    let (dx, dgamma, dbeta) = reference::backward(shape, &x, &dy, (&mean, &var), EPSILON, &gamma);
    [y, dx, dgamma, dbeta]
}

#[test]
fn types_of_16_bits_are_rounded_once() {
    for dtype in [DType::BF16, DType::F16] {
        for parameters in [dtype, DType::F32] {
            let norm = ours(4, parameters);
            let (x, dy) = (random([5, 4, 7], dtype), random([5, 4, 7], dtype));
            let expected = expected(&norm, &x, &dy);
            let actual = step(&norm, |x| norm.forward(x), &x, &dy);
            for (i, (name, rounded)) in
                [("y", dtype), ("dx", dtype), ("dgamma", parameters), ("dbeta", parameters)].into_iter().enumerate()
            {
                // One rounding is half an epsilon; the errors of f32 are far below the other half.
                let roundings = if rounded == DType::F32 { 64 } else { 1 };
                assert_close(name, &actual[i], &expected[i], roundings, rounded);
            }
            assert_eq!(norm.forward(x).dtype(), dtype);
            assert_eq!(norm.running_var.value_sync().dtype(), parameters);
        }
    }
}

#[test]
fn data_far_from_0_has_gradients_as_good_as_any() {
    let x = random([16, 3, 8], DType::F32) + 1e4;
    let dy = random([16, 3, 8], DType::F32);
    let (theirs, ours) = (theirs(3, DType::F32), ours(3, DType::F32));
    let expected = expected(&ours, &x, &dy);
    let fields = BatchNorm::from(theirs.clone());
    let burn = step(&fields, |x| theirs.forward(x), &x, &dy);
    let actual = step(&ours, |x| ours.forward(x), &x, &dy);
    let error =
        |actual: &[f64], expected: &[f64]| actual.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    for (i, name) in ["y", "dx", "dgamma", "dbeta"].into_iter().enumerate() {
        assert_close(name, &actual[i], &expected[i], 64, DType::F32);
    }
    // The mean rounded to f32 is off by up to 5e-4, a standard deviation by a quarter of that.
    let (own, other) = (error(&actual[2], &expected[2]), error(&burn[2], &expected[2]));
    assert!(own * 100.0 < other, "the error of dgamma is {own:e}, burn's {other:e}");
}

#[test]
fn running_statistics_are_rounded_once_per_batch() {
    let norm = ours(3, DType::F32);
    let x = random([16, 3, 8], DType::F32) + 1e4;
    let before = [values(&norm.running_mean.value()), values(&norm.running_var.value())];
    norm.forward(x.clone());
    let (mean, var) = reference::statistics(Shape::ncl(16, 3, 8).unwrap(), &values(&x));
    let average = |old: &[f64], new: &[f64]| {
        old.iter().zip(new).map(|(old, new)| f64::from((0.7 * old + 0.3 * new) as f32)).collect::<Vec<_>>()
    };
    assert_close("mean", &values(&norm.running_mean.value_sync()), &average(&before[0], &mean), 1, DType::F32);
    assert_close("variance", &values(&norm.running_var.value_sync()), &average(&before[1], &var), 1, DType::F32);
}

#[test]
fn parameters_may_be_views() {
    let mut norm = ours(3, DType::F32);
    let expected = norm.forward(Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]], &device()));
    let gamma = norm.gamma.val().detach().flip([0]);
    let reversed = Tensor::from_data(gamma.to_data(), &device());
    norm.gamma = Param::from_tensor(reversed.flip([0]).detach());
    let actual = norm.forward(Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]], &device()));
    assert_eq!(values(&actual), values(&expected));
}
