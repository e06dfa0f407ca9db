//! The shared and the static library of the C interface. All code is in the package `batchnorm-ffi`, a Rust library, so
//! that tests, the benchmark and a fuzz target can link it too.

pub use batchnorm_ffi::*;
