//! The functions of the C interface of the crate `batchnorm`, as a Rust library. The package `batchnorm-capi` makes a
//! shared and a static library of it, and has its tests; `crates/capi/include/batchnorm.h` is generated from these
//! sources.
//!
//! Each call is thin: it reads a struct, checks its arrays, makes slices of them and calls the method of the same name.
//!
//! - `version`, `status`, `constants`, `structs` and `args` are what the header declares, apart from the calls.
//!   `status` also has the boundary that no panic crosses.
//! - `read` copies and checks a struct of the caller.
//! - `plan` is what a handle points to, and `threads` where it runs: its own threads, the caller's, or a pool.
//! - `arrays` makes slices from pointers, and `views` the core's types from structs and slices.
//! - `passes`, `statistics` and `fold` are the calls; `call` selects the element type.
//!
//! Public items have the names that C sees. What a call demands of its pointers is the same for all calls, and is
//! stated once, at the top of the header.

#![allow(non_camel_case_types)]
#![allow(clippy::missing_safety_doc)]

// From the bottom up: each module imports only from those above it. The header has their items in this order; the empty
// lines keep rustfmt from sorting them.
mod version;

mod status;

mod constants;
mod elements;

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
pub use read::{Descriptor, sized};
pub use statistics::*;
pub use status::*;
pub use structs::*;
pub use threads::{bn_pool_create, bn_pool_destroy};
pub use version::*;
