//! The passes over Flex's tensors.

use crate::memory::{Float, Order, Output, contiguous, elements, elements_mut, tensor};
use batchnorm as bn;
use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use std::sync::LazyLock;

/// The plan from which those of all layers are made, so that all share its scratch memory. To make one takes 0.1 µs, so
/// none is kept.
pub(crate) static PLAN: LazyLock<bn::BatchNorm> =
    LazyLock::new(|| bn::BatchNorm::new(bn::Shape::nc(0, 0).unwrap_or_else(|error| fail(error))));

/// What normalizes x.
#[derive(Clone, Debug)]
pub(crate) enum Normalizer {
    Batch(bn::Statistics),
    Running(bn::RunningStatistics),
}

impl<'a> From<&'a Normalizer> for bn::Source<'a> {
    fn from(normalizer: &'a Normalizer) -> Self {
        match normalizer {
            Normalizer::Batch(batch) => batch.into(),
            Normalizer::Running(running) => running.into(),
        }
    }
}

/// A layer in one pass: its settings, of any shape, and gamma and beta.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    plan: bn::BatchNorm,
    gamma: FlexTensor,
    beta: FlexTensor,
}

impl Layer {
    pub(crate) fn new(plan: bn::BatchNorm, gamma: FlexTensor, beta: FlexTensor) -> Self {
        Self { plan, gamma: contiguous(gamma), beta: contiguous(beta) }
    }
}

/// The gradients of x, gamma, beta and the residual.
pub(crate) type Gradients = [Option<FlexTensor>; 4];

/// Calls a function with the types of a tensor and of its parameters.
macro_rules! with_types {
    ($x:expr, $gamma:expr, $function:ident($($argument:expr),*)) => {{
        use burn::tensor::{bf16, f16};
        match ($x, $gamma) {
            (DType::F32, DType::F32) => $function::<f32, f32>($($argument),*),
            (DType::F64, DType::F64) => $function::<f64, f64>($($argument),*),
            (DType::BF16, DType::BF16) => $function::<bf16, bf16>($($argument),*),
            (DType::BF16, DType::F32) => $function::<bf16, f32>($($argument),*),
            (DType::F16, DType::F16) => $function::<f16, f16>($($argument),*),
            (DType::F16, DType::F32) => $function::<f16, f32>($($argument),*),
            (x, gamma) => fail(format_args!(
                "the types are not supported: expected an input of F32, F64, BF16 or F16, and gamma and beta of the \
                 same type or, with BF16 and F16, of F32; got an input of {x:?} and gamma of {gamma:?}"
            )),
        }
    }};
}

/// y. The statistics of a batch are written, and running ones used.
pub(crate) fn forward(
    layer: &Layer,
    x: FlexTensor,
    residual: Option<FlexTensor>,
    normalizer: &mut Normalizer,
) -> FlexTensor {
    with_types!(x.dtype(), layer.gamma.dtype(), forward_of(layer, x, residual, normalizer))
        .unwrap_or_else(|error| fail(error))
}

/// The gradients of those that are `wanted`, in the order of [`Gradients`]. `y` is needed if there was a residual.
pub(crate) fn backward(
    layer: &Layer,
    x: FlexTensor,
    dy: FlexTensor,
    y: Option<FlexTensor>,
    normalizer: &Normalizer,
    wanted: [bool; 4],
) -> Gradients {
    with_types!(x.dtype(), layer.gamma.dtype(), backward_of(layer, x, dy, y, normalizer, wanted))
        .unwrap_or_else(|error| fail(error))
}

fn forward_of<E: Float, P: Float + bn::Element<Param = E::Param>>(
    layer: &Layer,
    x: FlexTensor,
    residual: Option<FlexTensor>,
    normalizer: &mut Normalizer,
) -> Result<FlexTensor, bn::Error> {
    let order = Order::of(&x);
    let (mut x, residual) = (order.sort(x), residual.map(|residual| order.sort(residual)));
    let plan = layer.plan.reshape(order.shape(&x)?);
    let extras = bn::Extras { residual: residual.as_ref().map(elements::<E>), ..bn::Extras::default() };
    let (with, affine) = (plan.with(extras).parameters_of::<P>(), affine(layer));
    if let Normalizer::Running(running) = normalizer
        && let Some(x_and_y) = elements_mut(&mut x)
    {
        with.normalize_in_place(x_and_y, &*running, affine)?;
        return Ok(order.restore(x));
    }
    let mut y = Output::new(plan.shape().len());
    match normalizer {
        Normalizer::Running(running) => with.uninit().normalize(elements(&x), &*running, affine, y.memory())?,
        Normalizer::Batch(batch) => with.uninit().forward_training(elements(&x), affine, y.memory(), batch)?,
    }
    // SAFETY: a pass that returned Ok has written all of its outputs.
    let y = unsafe { y.written() };
    Ok(order.restore(tensor::<E>(x.shape(), y)))
}

fn backward_of<E: Float, P: Float + bn::Element<Param = E::Param>>(
    layer: &Layer,
    x: FlexTensor,
    dy: FlexTensor,
    y: Option<FlexTensor>,
    normalizer: &Normalizer,
    wanted: [bool; 4],
) -> Result<Gradients, bn::Error> {
    let order = Order::of(&x);
    let (x, mut dy, y) = (order.sort(x), order.sort(dy), y.map(|y| order.sort(y)));
    let plan = layer.plan.reshape(order.shape(&x)?);
    let extras = bn::Extras { output: y.as_ref().map(elements::<E>), ..bn::Extras::default() };
    let (with, affine) = (plan.with(extras).parameters_of::<P>(), affine(layer));
    let of_channels = |values| tensor(layer.gamma.shape(), values);
    let [dx, dgamma, dbeta, dresidual] = wanted;

    // In place of dy, if nothing else needs it: new memory would cost up to a quarter of the time.
    if let (true, false, Some(dy_and_dx)) = (dx, dresidual, elements_mut(&mut dy)) {
        let new = |wanted: bool| wanted.then(|| vec![P::zeroed(); plan.shape().channels()]);
        let [mut dgamma, mut dbeta] = [dgamma, dbeta].map(new);
        let [to_dgamma, to_dbeta] = [&mut dgamma, &mut dbeta].map(|d| d.as_deref_mut());
        let gradients = bn::Gradients { dgamma: to_dgamma, dbeta: to_dbeta, ..bn::Gradients::default() };
        with.backward_in_place(elements(&x), dy_and_dx, normalizer, affine, gradients)?;
        let [dgamma, dbeta] = [dgamma, dbeta].map(|d| d.map(of_channels));
        return Ok([Some(order.restore(dy)), dgamma, dbeta, None]);
    }
    let [mut dx, mut dresidual] = [dx, dresidual].map(|wanted| wanted.then(|| Output::new(plan.shape().len())));
    let [mut dgamma, mut dbeta] = [dgamma, dbeta].map(|wanted| wanted.then(|| Output::new(plan.shape().channels())));
    let [to_dx, to_dresidual] = [&mut dx, &mut dresidual].map(|d| d.as_mut().map(Output::memory));
    let [to_dgamma, to_dbeta] = [&mut dgamma, &mut dbeta].map(|d| d.as_mut().map(Output::memory));
    let gradients = bn::Gradients { dx: to_dx, dresidual: to_dresidual, dgamma: to_dgamma, dbeta: to_dbeta };
    with.uninit().backward(elements(&x), elements(&dy), normalizer, affine, gradients)?;
    // SAFETY: a pass that returned Ok has written all of its outputs.
    let ([dx, dresidual], [dgamma, dbeta]) = unsafe {
        (
            [dx, dresidual].map(|d| d.map(|d| order.restore(tensor::<E>(x.shape(), d.written())))),
            [dgamma, dbeta].map(|d| d.map(|d| of_channels(d.written()))),
        )
    };
    Ok([dx, dgamma, dbeta, dresidual])
}

fn affine<P: Float>(layer: &Layer) -> bn::Affine<'_, P> {
    bn::Affine::new(elements(&layer.gamma), elements(&layer.beta))
}

/// Panics, as burn's modules have no errors to return.
#[track_caller]
pub(crate) fn fail(error: impl std::fmt::Display) -> ! {
    panic!("batch normalization: {error}")
}
