//! The module compared with burn's own and with the reference of the core.

mod agreement;
mod fused;
mod layouts;
mod misuse;
mod precision;
mod records;
mod support;
