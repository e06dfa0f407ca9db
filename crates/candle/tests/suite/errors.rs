//! Invalid arguments give an error that says what was expected and what came, and nothing changes.

use crate::common::{Parameters, check_same, values};
use batchnorm_candle::{BatchNorm, BatchNormConfig, batch_norm};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use std::collections::HashMap;

fn zeros(dims: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(dims, dtype, &Device::Cpu).unwrap()
}

fn message<T>(result: Result<T>) -> String {
    // With RUST_BACKTRACE a backtrace follows.
    result.err().unwrap().to_string().lines().next().unwrap_or_default().to_owned()
}

#[test]
fn inputs() -> Result<()> {
    let parameters = Parameters::new(3, DType::F32)?;
    let norm = parameters.ours(1e-5, 0.1)?;
    let cases = [
        (zeros(&[3], DType::F32), "batch-norm: expected x of shape [n, 3, ..], got [3]"),
        (zeros(&[8, 4, 2], DType::F32), "batch-norm: expected x of shape [n, 3, ..], got [8, 4, 2]"),
        (zeros(&[8, 3], DType::U8), "batch-norm: expected x of dtype F32, F64, BF16 or F16, got U8"),
        (
            zeros(&[8, 3], DType::F64),
            "batch-norm: expected weight and bias of dtype F64, that of x, or F32 beside 16 bits, got F32",
        ),
    ];
    for (x, expected) in cases {
        for train in [false, true] {
            assert_eq!(message(norm.forward_t(&x, train)), expected);
        }
    }
    let bf16 = Parameters::new(3, DType::BF16)?.ours(1e-5, 0.1)?;
    assert_eq!(
        message(bf16.forward_t(&zeros(&[8, 3], DType::F16), true)),
        "batch-norm: expected weight and bias of dtype F16, that of x, or F32 beside 16 bits, got BF16"
    );
    let x = values(&[1, 3], 0.0, 1, DType::F32)?;
    assert_eq!(
        message(norm.forward_t(&x, true)),
        "too few values for an unbiased variance: expected more than 1 value per channel, got 1"
    );
    assert_eq!(norm.forward_t(&x, false)?.dims(), [1, 3]);
    check_same("running mean", norm.running_mean(), &parameters.mean)?;
    check_same("running var", norm.running_var(), &parameters.var)
}

#[test]
fn residuals() -> Result<()> {
    let norm = Parameters::new(3, DType::F32)?.ours(1e-5, 0.1)?;
    let x = zeros(&[8, 3], DType::F32);
    for (residual, got) in
        [(zeros(&[8, 1], DType::F32), "([8, 1], F32)"), (zeros(&[8, 3], DType::F64), "([8, 3], F64)")]
    {
        assert_eq!(
            message(norm.forward_add_relu_t(&x, &residual, true)),
            format!("batch-norm: expected a residual of the shape and dtype of x, ([8, 3], F32), got {got}")
        );
    }
    Ok(())
}

#[test]
fn constructors() {
    let (three, four) = (zeros(&[3], DType::F32), zeros(&[4], DType::F32));
    let arrays = |wrong: usize| std::array::from_fn(|i| if i == wrong { four.clone() } else { three.clone() });
    for (wrong, name) in ["running mean", "running variance", "weight", "bias"].into_iter().enumerate() {
        let [mean, var, weight, bias] = arrays(wrong);
        assert_eq!(
            message(BatchNorm::new(3, mean, var, weight, bias, 1e-5)),
            format!("batch-norm: expected a {name} of shape [3], got [4]")
        );
    }
    let new = |eps, momentum| BatchNorm::new_no_bias_with_momentum(3, three.clone(), three.clone(), eps, momentum);
    for eps in [-1.0, f64::NAN, f64::INFINITY] {
        let expected = format!("eps is out of range: expected a finite number >= 0, got {eps}");
        assert_eq!(message(new(eps, 0.1)), expected);
    }
    for momentum in [-0.1, 1.1, f64::NAN] {
        let expected = format!("momentum is out of range: expected a number in [0, 1], got {momentum}");
        assert_eq!(message(new(1e-5, momentum)), expected);
    }
    let map = VarMap::new();
    let config = BatchNormConfig { remove_mean: false, ..BatchNormConfig::default() };
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    assert_eq!(message(batch_norm(3, config, vb)), "batch-norm: expected a config with remove_mean true, got false");
}

#[test]
fn running_statistics() -> Result<()> {
    let var = Tensor::new(&[1f32, -2.0, 1.0], &Device::Cpu)?;
    let norm = BatchNorm::new_no_bias(3, zeros(&[3], DType::F32), var, 1e-5)?;
    let x = values(&[8, 3], 0.0, 1, DType::F32)?;
    assert_eq!(message(norm.forward_t(&x, false)), "variance of channel 1 is invalid: expected a number >= 0, got -2");
    let count = HashMap::from([("num_batches_tracked".to_owned(), Tensor::new(-1i64, &Device::Cpu)?)]);
    let vb = VarBuilder::from_tensors(count, DType::F32, &Device::Cpu);
    let counting = Parameters::new(3, DType::F32)?.ours(1e-5, 0.1)?.cumulative(vb)?;
    assert_eq!(message(counting.forward_t(&x, true)), "batch-norm: expected num_batches_tracked of at least 0, got -1");
    Ok(())
}
