//! How a pass runs: per-channel algebra between two walks of the kernels. Arguments have been checked.
//!
//! [`request`] says what is asked for, [`engine`] what a plan consists of. [`forward`], [`backward`] and
//! [`double_backward`] have a struct per pass, whose steps [`tiling`] runs over the tiles of the shape.

mod arrays;
mod backward;
mod double_backward;
pub(crate) mod engine;
mod forward;
mod inputs;
mod normalize;
pub(crate) mod request;
pub(crate) mod scratch;
mod tiling;
mod walked;

use crate::lanes::Storage;
use engine::Engine;
use request::Pass;

/// Runs a pass.
///
/// # Safety
/// See [`request`].
pub(crate) unsafe fn run<E: Storage>(engine: &Engine, pass: Pass<'_, E, E::Scalar>) {
    // SAFETY: the caller's promise.
    unsafe {
        match pass {
            Pass::Forward(request) => forward::forward(engine, request),
            Pass::Normalize(request) => normalize::normalize(engine, request),
            Pass::Backward(request) => backward::backward(engine, request),
            Pass::DoubleBackward(request) => double_backward::double_backward(engine, request),
        }
    }
}
