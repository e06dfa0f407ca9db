#![doc = include_str!("../README.md")]

pub mod batch_norm;
mod operation;
mod threads;

pub use batch_norm::{BatchNorm, BatchNormConfig, batch_norm};
