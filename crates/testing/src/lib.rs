//! Code shared by the tests in `tests/suite` and the fuzz targets: element types as numbers, inputs, ways to run a
//! step, and comparisons of its results by bits, with exact arithmetic, and with the reference by the bounds of
//! docs/numerics.md.

mod bounds;
mod buffer;
mod compare;
mod fusion;
mod numbers;
pub mod oracle;
mod problem;
mod random;
mod step;

pub use bounds::{Bounds, Factors, Ledger, WORST_KAPPA, kappa, output, rebuilt, reference_error, stored, z_gradient};
pub use buffer::Buffer;
pub use compare::{assert_same, assert_same_arrays, bits_of, same};
pub use fusion::{ACTIVATIONS, Fusion, Given, Step, WEIGHTINGS, Weighting};
pub use numbers::{Float, Number, Value, to_f64};
pub use problem::Problem;
pub use random::{Random, mix, normal};
pub use step::{BackwardOutputs, Outputs, WAYS, Way, assert_same_bits, backward, forward, normalize};
