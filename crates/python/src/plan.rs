//! The settings of a call, from which its plan is made.

use crate::error::Failure;
use crate::threads::threads;
use batchnorm::{Activation, BatchNorm, Shape};
use std::sync::OnceLock;

/// `(element, parameter, (outer, channels, inner), eps, activation, slope, threads)`: the numbers of the types of
/// activations and of parameters, see `elements.rs`; an activation is one of [`ACTIVATIONS`]; the threads are those of
/// [`threads`].
pub(crate) type Settings = (usize, usize, (usize, usize, usize), f64, usize, f64, usize);

/// The activations by their numbers; a slope is only for the third.
const ACTIVATIONS: [fn(f64) -> Activation; 4] =
    [|_| Activation::Identity, |_| Activation::Relu, Activation::LeakyRelu, |_| Activation::Silu];

/// The plan of a call. Plans of the same process share scratch memory, which so is no larger than what the passes that
/// ran at once needed, however many shapes there are.
pub(crate) fn plan(settings: &Settings) -> Result<BatchNorm, Failure> {
    static ORIGIN: OnceLock<BatchNorm> = OnceLock::new();
    let &(_, _, (outer, channels, inner), eps, activation, slope, count) = settings;
    let activation = ACTIVATIONS.get(activation).map(|of| of(slope)).ok_or_else(|| {
        let last = ACTIVATIONS.len() - 1;
        Failure::value(format!("activation is out of range: expected a number from 0 to {last}, got {activation}"))
    })?;
    let shape = Shape::new(outer, channels, inner)?;
    let origin = ORIGIN.get_or_init(|| BatchNorm::new(shape));
    Ok(origin.reshape(shape).eps(eps)?.activation(activation)?.threads(threads(count)))
}
