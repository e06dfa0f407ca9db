//! Sets the SONAME of the shared library: `libbatchnorm.so.MAJOR`, or `libbatchnorm.so.0.MINOR` before 1.0.

fn main() {
    let part = |name| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let (major, minor) = (part("CARGO_PKG_VERSION_MAJOR"), part("CARGO_PKG_VERSION_MINOR"));
    let version = if major == "0" { format!("0.{minor}") } else { major };
    if part("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libbatchnorm.so.{version}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
