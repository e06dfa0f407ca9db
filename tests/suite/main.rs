//! The integration tests, in one binary: every further one would compile and link their common parts again. Each module
//! answers one question; `cargo test --test suite bounds::` runs the tests of one.

mod against_reference;
mod bounds;
mod broke_others;
mod common;
mod double_backward;
mod fold;
mod fused;
mod gradients;
#[cfg(unix)]
mod guard_pages;
#[cfg(feature = "half")]
mod half;
mod hard_cases;
mod invertible;
mod memory;
mod misuse;
#[cfg(feature = "ndarray")]
mod ndarray;
mod oracle;
mod same_bits;
mod strides;
mod weights;
mod worst_cases;
