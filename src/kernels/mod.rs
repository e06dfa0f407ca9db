//! The loops. Each runs on one thread over one [`Tile`] and trusts its caller for lengths.
//!
//! There are two walks. **Planes** (`inner > 1`): a channel is a set of contiguous runs, and its coefficients are
//! splat. **Rows** (`inner == 1`): neighbouring elements belong to neighbouring channels, and coefficients are loaded.
//! [`reduce`] has both for passes that sum, [`map`] and [`map_rows`] for passes that write; a pass hands them one body
//! over vectors.
//!
//! No closures over vectors here: the compiler may choose not to inline one, and then it lacks the instruction set.

pub(crate) mod activation;
pub(crate) mod coefficients;
pub(crate) mod double_backward;
pub(crate) mod gradient_sums;
pub(crate) mod input_gradient;
pub(crate) mod interleave;
pub(crate) mod map;
mod map_rows;
pub(crate) mod merge;
pub(crate) mod moments;
mod moments_rows;
pub(crate) mod normalize;
pub(crate) mod operands;
pub(crate) mod partials;
pub(crate) mod reduce;
pub(crate) mod scale;
mod sink;
pub(crate) mod tile;
pub(crate) mod weights;
