//! What candle records of a call: the forward pass, and the backward pass with what it needs.

use batchnorm as bn;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};
use std::sync::{Arc, OnceLock};

/// The statistics to normalize with.
pub(crate) enum Source {
    /// Those of the batch, which the forward pass computes. They stay in f64 until the backward pass, since rounding a
    /// mean that is far from 0 to f32 would spoil gradients.
    Batch(Arc<OnceLock<bn::Statistics>>),
    /// Averages from training, as they are in the forward pass.
    Running(bn::RunningStatistics),
}

/// The operation. candle has none with four arguments, so they are
///
/// | | first | second | third |
/// |---|---|---|---|
/// | without residual | x | weight | bias |
/// | with residual | x | weight, followed by bias | residual |
///
/// Without weight and bias, tensors without elements take their places. x and the residual have the same strides, which
/// leave no gaps; the others are contiguous.
pub(crate) struct Normalize {
    /// For the shape of x in memory.
    pub(crate) plan: bn::BatchNorm,
    pub(crate) source: Source,
    pub(crate) affine: bool,
    pub(crate) residual: bool,
    /// The dimensions of x in the order of memory, which are those of y.
    pub(crate) dims: Vec<usize>,
    /// The permutation that gives the axes of y the order of those of x.
    pub(crate) back: Vec<usize>,
}

/// Calls a function that is generic over the types of x and of weight and bias.
macro_rules! dispatch {
    ($x:expr, $parameters:expr, $function:ident($($argument:expr),+)) => {
        match ($x, $parameters) {
            (DType::F32, DType::F32) => $function::<f32, f32>($($argument),+),
            (DType::F64, DType::F64) => $function::<f64, f64>($($argument),+),
            (DType::BF16, DType::BF16) => $function::<bf16, bf16>($($argument),+),
            (DType::BF16, DType::F32) => $function::<bf16, f32>($($argument),+),
            (DType::F16, DType::F16) => $function::<f16, f16>($($argument),+),
            (DType::F16, DType::F32) => $function::<f16, f32>($($argument),+),
            (x @ (DType::F32 | DType::F64 | DType::BF16 | DType::F16), got) => {
                bail!("batch-norm: expected weight and bias of dtype {x:?}, that of x, or F32 beside 16 bits, got {got:?}")
            }
            (x, _) => bail!("batch-norm: expected x of dtype F32, F64, BF16 or F16, got {x:?}"),
        }
    };
}

impl CustomOp3 for Normalize {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
        third: &CpuStorage,
        third_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let arguments = [(x, x_layout), (second, second_layout), (third, third_layout)];
        let y = dispatch!(x.dtype(), second.dtype(), forward(self, arguments))?;
        Ok((y, Shape::from(&self.dims[..])))
    }

    fn bwd(
        &self,
        x: &Tensor,
        second: &Tensor,
        third: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let gradients = dispatch!(x.dtype(), second.dtype(), backward(self, [x, second, third], y, &dy))?;
        Ok(gradients.into())
    }
}

fn forward<E: bn::Element<Param = P::Param> + WithDType, P: bn::Element + WithDType>(
    op: &Normalize,
    [x, second, third]: [(&CpuStorage, &Layout); 3],
) -> Result<CpuStorage> {
    let (x, second) = (elements::<E>(x.0, x.1)?, elements::<P>(second.0, second.1)?);
    let residual = if op.residual { Some(elements(third.0, third.1)?) } else { None };
    let (gamma, beta) = match op.residual {
        true => second.split_at(second.len() / 2),
        false => (second, elements(third.0, third.1)?),
    };
    let affine = if op.affine { bn::Affine::new(gamma, beta) } else { bn::Affine::default() };
    let with = op.plan.with(bn::Extras { residual, ..bn::Extras::default() }).parameters_of::<P>().uninit();
    let mut y = Box::new_uninit_slice(x.len());
    match &op.source {
        Source::Batch(statistics) => {
            let mut batch = bn::Statistics::new(op.plan.shape().channels());
            with.forward_training(x, affine, &mut y, &mut batch).map_err(Error::wrap)?;
            statistics.get_or_init(|| batch);
        }
        Source::Running(running) => with.normalize(x, running, affine, &mut y).map_err(Error::wrap)?,
    }
    // SAFETY: a pass that returned Ok has written all of its outputs.
    Ok(E::to_cpu_storage_owned(unsafe { y.assume_init() }.into_vec()))
}

/// The gradients of the arguments of which candle needs one.
fn backward<E: bn::Element<Param = P::Param> + WithDType, P: bn::Element + WithDType>(
    op: &Normalize,
    arguments @ [x, second, third]: [&Tensor; 3],
    y: &Tensor,
    dy: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let (len, channels) = (op.plan.shape().len(), op.plan.shape().channels());
    let [of_x, of_second, of_third] = arguments.map(Tensor::track_op);
    let like_x = |wanted: bool| wanted.then(|| Box::<[E]>::new_uninit_slice(len));
    let (mut dx, mut dresidual) = (like_x(of_x), like_x(op.residual && of_third));
    let of_parameters = of_second || (of_third && !op.residual);
    let mut dparameters = of_parameters.then(|| Box::<[P]>::new_uninit_slice(2 * channels));
    let (dgamma, dbeta) = dparameters.as_mut().map(|both| both.split_at_mut(channels)).unzip();
    let (dx_memory, dresidual_memory) = (dx.as_deref_mut(), dresidual.as_deref_mut());
    let gradients = bn::Gradients { dx: dx_memory, dresidual: dresidual_memory, dgamma, dbeta };

    let [(x, x_layout), (second, second_layout), (y, y_layout), (dy, dy_layout)] =
        [x, second, y, dy].map(Tensor::storage_and_layout);
    let (beta, beta_layout) = third.storage_and_layout();
    let (x, y, dy) = (on_cpu(&x, x_layout)?, on_cpu(&y, y_layout)?, on_cpu(&dy, dy_layout)?);
    let gamma = if op.affine { on_cpu(&second, second_layout)?.get(..channels) } else { None };
    let beta = if op.affine && !op.residual { Some(on_cpu(&beta, beta_layout)?) } else { None };
    let source = match &op.source {
        Source::Batch(statistics) => statistics.get().map(bn::Source::from),
        Source::Running(running) => Some(bn::Source::from(running)),
    };
    let Some(source) = source else { bail!("batch-norm: expected a forward pass before the backward pass") };
    // y tells where a ReLU was 0, so the residual is not needed. Without one, f32 takes less time to compute that again.
    let computes = E::DTYPE == DType::F32 && !op.residual && matches!(op.source, Source::Batch(_));
    let extras = bn::Extras { output: (!computes).then_some(y), ..bn::Extras::default() };
    let with = op.plan.with(extras).parameters_of::<P>().uninit();
    with.backward(x, dy, source, bn::Affine { gamma, beta }, gradients).map_err(Error::wrap)?;

    // SAFETY: a pass that returned Ok has written all of its outputs.
    let [dx, dresidual] = [dx, dresidual].map(|gradient| gradient.map(|gradient| unsafe { gradient.assume_init() }));
    // SAFETY: the same.
    let dparameters = dparameters.map(|both| unsafe { both.assume_init() });
    let tensor =
        |gradient: Box<[E]>| Tensor::from_vec(gradient.into_vec(), &op.dims[..], third.device())?.permute(&op.back[..]);
    let (dx, dresidual) = (dx.map(tensor).transpose()?, dresidual.map(tensor).transpose()?);
    let dparameters = dparameters.map(|both| Tensor::from_vec(both.into_vec(), 2 * channels, third.device()));
    Ok(match dparameters.transpose()? {
        Some(both) if !op.residual => {
            [dx, Some(both.narrow(0, 0, channels)?), Some(both.narrow(0, channels, channels)?)]
        }
        both => [dx, both, dresidual],
    })
}

/// The elements of a tensor without gaps, in the order of memory.
fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let start = layout.start_offset();
    Ok(&storage.as_slice()?[start..start + layout.shape().elem_count()])
}

/// The same of a tensor that has been locked.
fn on_cpu<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => elements(storage, layout),
        other => bail!("batch-norm: expected a tensor on the CPU, got one on {:?}", other.device().location()),
    }
}
