//! The version of the header and of the library.

/// The major version of this header.
pub const BN_VERSION_MAJOR: u32 = 0;
/// The minor version of this header. Before 1.0 a new minor version may break programs linked to an older one.
pub const BN_VERSION_MINOR: u32 = 1;
/// The patch version of this header.
pub const BN_VERSION_PATCH: u32 = 0;
/// The version of this header as one number, for comparison with bn_version().
pub const BN_VERSION: u32 = BN_VERSION_MAJOR * 10000 + BN_VERSION_MINOR * 100 + BN_VERSION_PATCH;

/// The version of the library: BN_VERSION of the header that it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn bn_version() -> u32 {
    BN_VERSION
}
