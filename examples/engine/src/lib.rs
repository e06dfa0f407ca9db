//! A toy engine that normalizes with the crate `batchnorm`: `docs/engines.md` explains every decision.
//!
//! [`norm`] is the adapter, the part that an engine's author would write. What it plugs into is as small as it can be
//! and still raise the questions of a real engine: [`tensor`] has strided views and memory that is not initialized,
//! [`threads`] a pool, and [`conv`] a convolution that takes the statistics of its output while it writes it.

pub mod conv;
pub mod error;
pub mod norm;
pub mod tensor;
pub mod threads;
