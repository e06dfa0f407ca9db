//! The module, and its constructors.

use crate::operation::{Normalize, Source};
use crate::threads::plan;
use batchnorm as bn;
use candle_core::{DType, Error, Result, Tensor, Var, bail};
pub use candle_nn::BatchNormConfig;
use candle_nn::{Init, ModuleT, VarBuilder};
use std::cmp::Reverse;
use std::sync::{Arc, OnceLock};

/// The name of the count of batches in PyTorch's checkpoints.
const BATCHES: &str = "num_batches_tracked";

/// Batch normalization over all dimensions of `[n, c, ..]` but the second: `candle_nn::BatchNorm` with other kernels.
///
/// Clones share running statistics, as those of candle's module do.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    running_mean: Var,
    running_var: Var,
    weight_and_bias: Option<(Tensor, Tensor)>,
    batches: Option<Var>,
    eps: f64,
    momentum: bn::Momentum,
}

impl BatchNorm {
    /// [`new_with_momentum`](Self::new_with_momentum) with momentum 0.1.
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        Self::checked(num_features, [running_mean, running_var], Some((weight, bias)), eps, 0.1)
    }

    /// [`new_with_momentum`](Self::new_with_momentum) with momentum 0.1 and without weight and bias.
    pub fn new_no_bias(num_features: usize, running_mean: Tensor, running_var: Tensor, eps: f64) -> Result<Self> {
        Self::checked(num_features, [running_mean, running_var], None, eps, 0.1)
    }

    /// A layer with these tensors, and the momentum that weighs a new batch. Running statistics that are variables are
    /// updated where they are; of others the layer makes variables of its own.
    ///
    /// # Errors
    /// If a tensor does not have the shape `[num_features]`, eps is negative or not finite, or the momentum is outside
    /// [0, 1].
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        Self::checked(num_features, [running_mean, running_var], Some((weight, bias)), eps, momentum)
    }

    /// [`new_with_momentum`](Self::new_with_momentum) without weight and bias.
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        Self::checked(num_features, [running_mean, running_var], None, eps, momentum)
    }

    fn checked(
        num_features: usize,
        [running_mean, running_var]: [Tensor; 2],
        weight_and_bias: Option<(Tensor, Tensor)>,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        let running = [("running mean", &running_mean), ("running variance", &running_var)];
        let affine = weight_and_bias.iter().flat_map(|(weight, bias)| [("weight", weight), ("bias", bias)]);
        for (name, tensor) in running.into_iter().chain(affine) {
            if tensor.dims() != [num_features] {
                bail!("batch-norm: expected a {name} of shape [{num_features}], got {:?}", tensor.shape())
            }
        }
        bn::Shape::new(1, num_features, 1).and_then(|shape| plan(shape).eps(eps)).map_err(Error::wrap)?;
        if !(0.0..=1.0).contains(&momentum) {
            return Err(Error::wrap(bn::Error::Momentum(momentum)));
        }
        let [running_mean, running_var] = [Var::from_tensor(&running_mean)?, Var::from_tensor(&running_var)?];
        let momentum = bn::Momentum::Exponential(momentum);
        Ok(Self { running_mean, running_var, weight_and_bias, batches: None, eps, momentum })
    }

    /// The same layer with running statistics that are the plain averages over all batches in training, the
    /// `momentum=None` of PyTorch. `vb` has the number of these batches, the variable `num_batches_tracked` of dtype
    /// I64.
    ///
    /// # Errors
    /// If the variable is missing or has another shape.
    pub fn cumulative(self, vb: VarBuilder) -> Result<Self> {
        Ok(Self { batches: Some(count(&vb)?), momentum: bn::Momentum::Cumulative, ..self })
    }

    /// The running mean of each channel.
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }

    /// The running variance of each channel, the average of unbiased ones.
    pub fn running_var(&self) -> &Tensor {
        self.running_var.as_tensor()
    }

    /// The number of batches in the running statistics, if it is counted.
    pub fn num_batches_tracked(&self) -> Option<&Tensor> {
        self.batches.as_ref().map(Var::as_tensor)
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// gamma and beta.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.weight_and_bias.as_ref().map(|(weight, bias)| (weight, bias))
    }

    /// The weight of a new batch in the running statistics; 0 if they are cumulative.
    pub fn momentum(&self) -> f64 {
        match self.momentum {
            bn::Momentum::Exponential(momentum) => momentum,
            bn::Momentum::Cumulative => 0.0,
        }
    }

    /// Normalizes with the statistics of the batch, and updates the running ones.
    ///
    /// # Errors
    /// If x does not have the shape `[n, channels, ..]`, a supported dtype and device, and several values per channel.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x, None, bn::Activation::Identity, true)
    }

    /// `relu(norm(x))` in one sweep, in training or in inference.
    ///
    /// # Errors
    /// Same as [`forward_train`](Self::forward_train).
    pub fn forward_relu_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, None, bn::Activation::Relu, train)
    }

    /// `relu(norm(x) + residual)` in one sweep, in training or in inference: the end of a residual block.
    ///
    /// # Errors
    /// Same as [`forward_train`](Self::forward_train), and if the residual has another shape or dtype than x.
    pub fn forward_add_relu_t(&self, x: &Tensor, residual: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, Some(residual), bn::Activation::Relu, train)
    }

    fn forward(&self, x: &Tensor, residual: Option<&Tensor>, act: bn::Activation, train: bool) -> Result<Tensor> {
        let channels = self.running_mean.elem_count();
        if !x.device().is_cpu() {
            bail!("batch-norm: expected x on the CPU, got a tensor on {:?}", x.device().location())
        }
        if x.rank() < 2 || x.dims()[1] != channels {
            bail!("batch-norm: expected x of shape [n, {channels}, ..], got {:?}", x.shape())
        }
        let of = |tensor: &Tensor| (tensor.shape().clone(), tensor.dtype());
        if let Some(got) = residual.map(of).filter(|got| *got != of(x)) {
            bail!("batch-norm: expected a residual of the shape and dtype of x, {:?}, got {got:?}", of(x))
        }

        let (x, shape) = dense(x)?;
        let order = order(&x);
        let back = inverse(&order);
        let plan = plan(shape).eps(self.eps).and_then(|plan| plan.activation(act)).map_err(Error::wrap)?;
        let statistics = Arc::new(OnceLock::new());
        let source = if train { Source::Batch(statistics.clone()) } else { Source::Running(self.running()?) };
        let (affine, dims) = (self.weight_and_bias.is_some(), order.iter().map(|&axis| x.dims()[axis]).collect());
        let op = Normalize { plan, source, affine, residual: residual.is_some(), dims, back: back.clone() };

        let none = Tensor::zeros(0, x.dtype(), x.device())?;
        let residual = residual.map(|residual| reordered(residual, &order)).transpose()?;
        let (second, third) = match (&self.weight_and_bias, residual) {
            (None, residual) => (none.clone(), residual.unwrap_or(none)),
            (Some((weight, bias)), None) => (weight.contiguous()?, bias.contiguous()?),
            (Some((weight, bias)), Some(residual)) => (Tensor::cat(&[weight, bias], 0)?, residual),
        };
        let y = x.apply_op3(&second, &third, op)?;
        if let Some(batch) = statistics.get() {
            self.update(batch)?;
        }
        // candle would copy gradients even for a permutation that changes nothing.
        if order.is_sorted() { Ok(y) } else { y.permute(back) }
    }

    /// The running statistics, in f64.
    fn running(&self) -> Result<bn::RunningStatistics> {
        let values = |var: &Var| var.as_detached_tensor().to_dtype(DType::F64)?.to_vec1();
        let batches = self.batches.as_ref().map_or(Ok(0), |batches| batches.to_scalar::<i64>())?;
        let Ok(batches) = u64::try_from(batches) else {
            bail!("batch-norm: expected {BATCHES} of at least 0, got {batches}")
        };
        bn::RunningStatistics::from_parts(values(&self.running_mean)?, values(&self.running_var)?, batches)
            .map_err(Error::wrap)
    }

    fn update(&self, batch: &bn::Statistics) -> Result<()> {
        let mut running = self.running()?;
        running.update(batch, self.momentum).map_err(Error::wrap)?;
        for (var, values) in [(&self.running_mean, running.mean()), (&self.running_var, running.var())] {
            var.set(&Tensor::new(values, var.device())?.to_dtype(var.dtype())?)?;
        }
        let Some(batches) = &self.batches else { return Ok(()) };
        batches.set(&Tensor::new(running.batches().cast_signed(), batches.device())?)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, None, bn::Activation::Identity, train)
    }
}

/// A layer with the variables `running_mean`, `running_var` and, unless `config` says otherwise, `weight` and `bias`.
/// If `vb` already has a `num_batches_tracked`, it is updated as well. It is not added, since `VarMap::load` could then
/// not read the checkpoints of candle's module, which do not have it.
///
/// # Errors
/// If a variable is missing or has another shape, eps is negative or not finite, the momentum is outside [0, 1], or
/// `remove_mean` is false.
pub fn batch_norm<C: Into<BatchNormConfig>>(num_features: usize, config: C, vb: VarBuilder) -> Result<BatchNorm> {
    let BatchNormConfig { eps, remove_mean, affine, momentum } = config.into();
    if !remove_mean {
        bail!("batch-norm: expected a config with remove_mean true, got false")
    }
    let get = |name, value| vb.get_with_hints(num_features, name, Init::Const(value));
    let running = [get("running_mean", 0.0)?, get("running_var", 1.0)?];
    let weight_and_bias = if affine { Some((get("weight", 1.0)?, get("bias", 0.0)?)) } else { None };
    let batches = if vb.contains_tensor(BATCHES) { Some(count(&vb)?) } else { None };
    Ok(BatchNorm { batches, ..BatchNorm::checked(num_features, running, weight_and_bias, eps, momentum)? })
}

fn count(vb: &VarBuilder) -> Result<Var> {
    Var::from_tensor(&vb.get_with_hints_dtype((), BATCHES, Init::Const(0.0), DType::I64)?)
}

/// x, or a copy of it if it has gaps, and the shape in memory.
fn dense(x: &Tensor) -> Result<(Tensor, bn::Shape)> {
    let strides: Vec<_> = x.stride().iter().map(|&stride| stride as isize).collect();
    match bn::Shape::from_strides(x.dims(), &strides, 1) {
        Err(bn::Error::NotDense { .. }) => dense(&x.contiguous()?),
        shape => Ok((x.clone(), shape.map_err(Error::wrap)?)),
    }
}

/// The axes of a tensor without gaps in the order of memory.
fn order(x: &Tensor) -> Vec<usize> {
    let mut axes: Vec<_> = (0..x.rank()).collect();
    if !x.is_contiguous() {
        axes.sort_by_key(|&axis| Reverse(x.stride()[axis]));
    }
    axes
}

fn inverse(permutation: &[usize]) -> Vec<usize> {
    let mut axes: Vec<_> = (0..permutation.len()).collect();
    axes.sort_by_key(|&axis| permutation[axis]);
    axes
}

/// The tensor with its axes in this order in memory: a copy only if they are in another one.
fn reordered(x: &Tensor, order: &[usize]) -> Result<Tensor> {
    if x.layout().permute(order)?.is_contiguous() {
        return Ok(x.clone());
    }
    x.permute(order)?.contiguous()?.permute(inverse(order))
}
