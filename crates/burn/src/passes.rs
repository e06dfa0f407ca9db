//! The passes over Flex's tensors.

use crate::memory::{Float, Order, Output, elements, per_channel};
use batchnorm as bn;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use std::sync::LazyLock;

/// The plan from which those of all layers are made, so that all share its scratch memory. To make one takes less than
/// a microsecond, so none is kept.
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
    pub(crate) plan: bn::BatchNorm,
    pub(crate) gamma: FlexTensor,
    pub(crate) beta: FlexTensor,
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

/// y, and what has normalized x: its own statistics unless running ones are given.
pub(crate) fn forward(
    layer: &Layer,
    x: FlexTensor,
    residual: Option<FlexTensor>,
    running: Option<bn::RunningStatistics>,
) -> (FlexTensor, Normalizer) {
    with_types!(x.dtype(), layer.gamma.dtype(), forward_of(layer, x, residual, running))
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
}

fn forward_of<E: Float, P: Float + bn::Element<Param = E::Param>>(
    layer: &Layer,
    x: FlexTensor,
    residual: Option<FlexTensor>,
    running: Option<bn::RunningStatistics>,
) -> (FlexTensor, Normalizer) {
    let order = Order::of(&x);
    let (x, residual) = (order.sort(x), residual.map(|residual| order.sort(residual)));
    let mut y = Output::new(x.layout().num_elements());
    let pass = || {
        let plan = layer.plan.reshape(order.shape(&x)?);
        let extras = bn::Extras { residual: residual.as_ref().map(elements::<E>), ..bn::Extras::default() };
        let with = plan.with(extras).parameters_of::<P>().uninit();
        let normalizer = match running {
            Some(running) => {
                with.normalize(elements(&x), &running, affine(layer), y.memory())?;
                Normalizer::Running(running)
            }
            None => {
                let mut batch = bn::Statistics::new(plan.shape().channels());
                with.forward_training(elements(&x), affine(layer), y.memory(), &mut batch)?;
                Normalizer::Batch(batch)
            }
        };
        Ok(normalizer)
    };
    let normalizer = pass().unwrap_or_else(|error: bn::Error| fail(error));
    // SAFETY: a pass that returned Ok has written all of its outputs.
    let y = unsafe { y.written() };
    (order.unsorted::<E>(&x, y), normalizer)
}

fn backward_of<E: Float, P: Float + bn::Element<Param = E::Param>>(
    layer: &Layer,
    x: FlexTensor,
    dy: FlexTensor,
    y: Option<FlexTensor>,
    normalizer: &Normalizer,
    wanted: [bool; 4],
) -> Gradients {
    let order = Order::of(&x);
    let (x, dy, y) = (order.sort(x), order.sort(dy), y.map(|y| order.sort(y)));
    let (len, channels) = (x.layout().num_elements(), layer.gamma.layout().num_elements());
    let [wants_x, wants_gamma, wants_beta, wants_residual] = wanted;
    let [mut dx, mut dresidual] = [wants_x, wants_residual].map(|wanted| wanted.then(|| Output::<E>::new(len)));
    let [mut dgamma, mut dbeta] = [wants_gamma, wants_beta].map(|wanted| wanted.then(|| Output::<P>::new(channels)));
    let mut pass = || {
        let plan = layer.plan.reshape(order.shape(&x)?);
        let extras = bn::Extras { output: y.as_ref().map(elements::<E>), ..bn::Extras::default() };
        let [dx, dresidual] = [&mut dx, &mut dresidual].map(|d| d.as_mut().map(Output::memory));
        let [dgamma, dbeta] = [&mut dgamma, &mut dbeta].map(|d| d.as_mut().map(Output::memory));
        let gradients = bn::Gradients { dx, dresidual, dgamma, dbeta };
        let with = plan.with(extras).parameters_of::<P>().uninit();
        with.backward(elements(&x), elements(&dy), normalizer, affine(layer), gradients)
    };
    pass().unwrap_or_else(|error| fail(error));
    // SAFETY: a pass that returned Ok has written all of its outputs.
    let ([dx, dresidual], [dgamma, dbeta]) = unsafe {
        (
            [dx, dresidual].map(|d| d.map(|d| order.unsorted(&x, d.written()))),
            [dgamma, dbeta].map(|d| d.map(|d| per_channel(d.written()))),
        )
    };
    [dx, dgamma, dbeta, dresidual]
}

fn affine<P: Float>(layer: &Layer) -> bn::Affine<'_, P> {
    bn::Affine::new(elements(&layer.gamma), elements(&layer.beta))
}

/// burn's modules have no errors to return.
pub(crate) fn fail(error: impl std::fmt::Display) -> ! {
    panic!("batch normalization: {error}")
}
