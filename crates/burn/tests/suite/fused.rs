//! ReLU and a residual in the same sweep.

use crate::support::{assert_close, ours, random, step, values};
use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{DType, Tensor};

#[test]
fn relu_has_the_results_of_two_operations() {
    for dtype in [DType::F64, DType::F32] {
        let (x, dy) = (random([3, 4, 5, 2], dtype), random([3, 4, 5, 2], dtype));
        let (separate, fused) = (ours(4, dtype), ours(4, dtype));
        let expected = step(&separate, |x| relu(separate.forward(x)), &x, &dy);
        let actual = step(&fused, |x| fused.forward_relu(x), &x, &dy);
        assert!(expected[0].contains(&0.0));
        assert_eq!(actual, expected);
    }
}

#[test]
fn a_residual_has_the_results_of_three_operations() {
    for dtype in [DType::F64, DType::F32] {
        let [x, dy, residual] = [(); 3].map(|()| random([3, 4, 5, 2], dtype));
        let (separate, fused) = (ours(4, dtype), ours(4, dtype));
        // With and without the gradient of x.
        for tracked in [false, true] {
            let gradients_of = |add_relu: &dyn Fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
                let (x, residual) = (x.clone().set_require_grad(tracked), residual.clone().require_grad());
                let gradients = (add_relu(x.clone(), residual.clone()) * dy.clone()).sum().backward();
                assert_eq!(x.grad(&gradients).is_some(), tracked);
                values(&residual.grad(&gradients).unwrap())
            };
            let expected = gradients_of(&|x, residual| relu(separate.forward(x) + residual));
            assert_eq!(gradients_of(&|x, residual| fused.forward_add_relu(x, residual)), expected);
        }
        let expected = step(&separate, |x| relu(separate.forward(x) + residual.clone()), &x, &dy);
        let actual = step(&fused, |x| fused.forward_add_relu(x, residual.clone()), &x, &dy);
        for (actual, expected) in actual.iter().zip(&expected) {
            assert_close("fused", actual, expected, 64, dtype);
        }
    }
}

#[test]
fn inference_overwrites_no_tensor_that_is_still_used() {
    let norm = ours(3, DType::F64).valid();
    let x = random([4, 3, 5], DType::F64).inner();
    let before = values(&x);
    let kept = norm.forward(x.clone());
    assert_eq!(values(&x), before);
    // A view shares the memory of the whole.
    let view = norm.forward(x.clone().narrow(0, 1, 2));
    assert_eq!(values(&x), before);
    assert_eq!(values(&view), values(&kept.clone().narrow(0, 1, 2)));
    // Nothing else uses x now, so that y may take its place.
    assert_eq!(values(&norm.forward(x)), values(&kept));
}

#[test]
fn a_gradient_that_is_used_twice_is_not_overwritten() {
    let norm = ours(3, DType::F64);
    let (x, dy) = (random([4, 3], DType::F64), random([4, 3], DType::F64));
    let (input, sum) = (x.clone().require_grad(), random([4, 3], DType::F64).require_grad());
    // The gradient of the sum goes to both operands as it is.
    let y = (norm.forward(input.clone()) + sum.clone()) * dy.clone();
    let gradients = y.sum().backward();
    assert_eq!(values(&sum.grad(&gradients).unwrap()), values(&dy));
    let alone = ours(3, DType::F64);
    let expected = step(&alone, |x| alone.forward(x), &x, &dy);
    assert_eq!(values(&input.grad(&gradients).unwrap()), expected[1]);
}
