//! The module against candle's own.

mod against_candle;
mod checkpoints;
mod common;
mod errors;
mod fused;
mod layouts;
mod running;
mod threads;
mod training;
mod types;
