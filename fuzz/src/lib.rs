//! Code shared by the fuzz targets, besides [`batchnorm_testing`]: how bytes become a [`Case`], where its passes run,
//! and the promises for arbitrary data.
//!
//! Every target runs a case once with [`batchnorm::Isa::Portable`], sequentially, and compares the results with
//! [`batchnorm::reference`]. All other ways to run the case must then give the same bits.

mod bounds;
mod case;
mod fused;
mod place;

pub use bounds::{Channel, channels, subnormal};
pub use case::{Case, Dims, Scalar};
pub use fused::{Fusing, Type, reference_errors};
pub use place::{Place, Runner, baseline};
