//! The integration tests, one binary: kernels are compiled into the crate that calls them, so every further binary
//! would compile all of them again. Each module answers one question; `cargo test --test suite bounds::` asks it alone.

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
mod misuse;
mod oracle;
mod same_bits;
mod weights;
