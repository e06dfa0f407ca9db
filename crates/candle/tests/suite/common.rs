//! Tensors and modules to test with, and comparisons.

use batchnorm_candle::BatchNorm;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

/// Values from `from` to `from + 4`, the same in each run, which f32 represents exactly.
pub(crate) fn values(dims: &[usize], from: f64, seed: u64, dtype: DType) -> Result<Tensor> {
    let mut random = fastrand::Rng::with_seed(seed);
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| from + random.u32(0..4096) as f64 / 1024.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}

/// Running mean, running variance, weight and bias of one module, and the weights of its outputs in a loss.
pub(crate) struct Parameters {
    pub(crate) mean: Tensor,
    pub(crate) var: Tensor,
    pub(crate) weight: Var,
    pub(crate) bias: Var,
}

impl Parameters {
    pub(crate) fn new(channels: usize, dtype: DType) -> Result<Self> {
        Ok(Self {
            mean: values(&[channels], -1.0, 1, dtype)?,
            var: values(&[channels], 0.5, 2, dtype)?,
            weight: Var::from_tensor(&values(&[channels], -2.5, 3, dtype)?)?,
            bias: Var::from_tensor(&values(&[channels], -2.0, 4, dtype)?)?,
        })
    }

    pub(crate) fn ours(&self, eps: f64, momentum: f64) -> Result<BatchNorm> {
        let Self { mean, var, weight, bias } = self;
        let [weight, bias] = [weight, bias].map(|var| var.as_tensor().clone());
        BatchNorm::new_with_momentum(mean.dim(0)?, mean.clone(), var.clone(), weight, bias, eps, momentum)
    }

    pub(crate) fn candles(&self, eps: f64, momentum: f64) -> Result<candle_nn::BatchNorm> {
        let Self { mean, var, weight, bias } = self;
        let [weight, bias] = [weight, bias].map(|var| var.as_tensor().clone());
        candle_nn::BatchNorm::new_with_momentum(mean.dim(0)?, mean.clone(), var.clone(), weight, bias, eps, momentum)
    }
}

/// The gradients of Σ y·dy.
pub(crate) fn backward(y: &Tensor, dy: &Tensor) -> Result<GradStore> {
    (y * dy)?.sum_all()?.backward()
}

pub(crate) fn largest(tensor: &Tensor) -> Result<f64> {
    tensor.to_dtype(DType::F64)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// Checks that all elements differ by at most `bound`.
pub(crate) fn check(what: &str, actual: &Tensor, expected: &Tensor, bound: f64) -> Result<()> {
    assert_eq!((actual.dims(), actual.dtype()), (expected.dims(), expected.dtype()), "{what}");
    let [actual, expected] = [actual.to_dtype(DType::F64)?, expected.to_dtype(DType::F64)?];
    let difference = largest(&(actual - expected)?)?;
    assert!(difference <= bound, "{what}: expected a difference of at most {bound:e}, got {difference:e}");
    Ok(())
}

/// Checks that all elements are the same.
pub(crate) fn check_same(what: &str, actual: &Tensor, expected: &Tensor) -> Result<()> {
    check(what, actual, expected, 0.0)
}

/// The distance between 1 and the next number, halved.
pub(crate) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON / 2.0,
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::BF16 => 0.5f64.powi(8),
        _ => 0.5f64.powi(11),
    }
}
