//! The C interface of the `batchnorm` crate; `crates/capi/include/batchnorm.h` is made from it.
//!
//! Thin by rule: a call reads a struct, checks its arrays, makes slices of them and calls the method of the same name.
//! `descriptors` has the structs, `status` what a call returns, `arrays` the way from pointers to slices, `plan` the
//! handle and `threads` where it runs, `passes`, `statistics` and `fold` the calls.
//!
//! Public items have the names that C sees. What a call asks of its pointers is the same for all of them and stands once,
//! at the top of the header.

#![allow(non_camel_case_types)]
#![allow(clippy::missing_safety_doc)]

// From the bottom up: each imports only from those above it. The header has their items in this order, which the empty
// lines keep rustfmt from changing.
mod version;

mod status;

mod constants;

mod structs;

mod args;

mod read;

mod threads;

mod plan;

mod arrays;

mod views;

mod call;

mod passes;

mod statistics;

mod fold;

pub use args::*;
pub use constants::*;
pub use fold::*;
pub use passes::*;
pub use plan::*;
pub use statistics::*;
pub use status::*;
pub use structs::*;
pub use version::*;
