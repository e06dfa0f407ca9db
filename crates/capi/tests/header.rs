//! The committed header is what cbindgen generates from the sources, and has the version of the package.

use batchnorm_ffi::{BN_VERSION_MAJOR, BN_VERSION_MINOR, BN_VERSION_PATCH};
use std::path::Path;

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::Builder::new().with_crate(root.join("../ffi")).with_config(config).generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/batchnorm.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "include/batchnorm.h is out of date; to update it: UPDATE_HEADER=1 cargo test -p batchnorm-capi --test header"
    );
}

#[test]
fn the_version_is_that_of_the_package() {
    let version = format!("{BN_VERSION_MAJOR}.{BN_VERSION_MINOR}.{BN_VERSION_PATCH}");
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}
