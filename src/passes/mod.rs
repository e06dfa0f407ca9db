//! How a pass runs: per-channel algebra between two walks of the kernels. Arguments have been checked.
//!
//! [`request`] says what is asked for, [`engine`] what a plan consists of. [`forward`], [`backward`] and
//! [`double_backward`] have a struct per pass, whose steps [`tiling`] runs over the tiles of the shape.

mod arrays;
mod backward;
mod caches;
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
use scratch::Sizes;
use walked::Walked;

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

/// The memory that a pass over elements of a type needs at most, on the threads of the plan or fewer.
pub(crate) fn scratch_sizes<E: Storage>(engine: &Engine) -> Sizes {
    if engine.shape.is_empty() {
        return backward::sizes_without_elements::<E>(&Walked::as_it_is(engine.shape));
    }
    let mut sizes = Sizes::default();
    for weighted in [false, true] {
        let walked = Walked::new(engine.shape, weighted);
        for count in [1, engine.threads.count(usize::MAX)] {
            sizes = sizes.max(forward::sizes::<E>(engine, &walked, count));
            sizes = sizes.max(normalize::sizes::<E>(&walked, count));
            sizes = sizes.max(backward::sizes::<E>(engine, &walked, count));
        }
    }
    sizes
}
