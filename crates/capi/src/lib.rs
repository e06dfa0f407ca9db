//! The C interface of the `batchnorm` crate; `include/batchnorm.h` is made from it.
//!
//! Thin by rule: a call reads a struct, checks its arrays, makes slices of them and calls the method of the same name.
//! [`descriptors`] has the structs, [`status`] what a call returns, [`arrays`] the way from pointers to slices, [`plan`]
//! the handle and [`threads`] where it runs, [`passes`], [`statistics`] and [`fold`] the calls.
//!
//! Public items have the names that C sees. What a call asks of its pointers is the same for all of them and stands once,
//! at the top of the header. Modules name each other by `super`: the library is not one that Rust links, so tests, benches
//! and fuzz targets have this file as a module of theirs.

#![allow(non_camel_case_types)]
#![allow(clippy::missing_safety_doc)]

// The header has the items of these in this order.
pub mod status;

pub mod plan;

pub mod passes;

pub mod statistics;

pub mod fold;

pub mod descriptors;

mod arrays;
mod threads;

/// The major version of this header.
pub const BN_VERSION_MAJOR: u32 = 0;
/// The minor version of this header; before 1.0 a new one may break what was linked to an old one.
pub const BN_VERSION_MINOR: u32 = 1;
/// The patch version of this header.
pub const BN_VERSION_PATCH: u32 = 0;
/// The version of this header as one number, to compare with bn_version().
pub const BN_VERSION: u32 = BN_VERSION_MAJOR * 10000 + BN_VERSION_MINOR * 100 + BN_VERSION_PATCH;

/// The version of the library: BN_VERSION of the header that it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn bn_version() -> u32 {
    BN_VERSION
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_that_of_the_package() {
        let version = format!("{}.{}.{}", super::BN_VERSION_MAJOR, super::BN_VERSION_MINOR, super::BN_VERSION_PATCH);
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
}
