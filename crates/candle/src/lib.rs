//! Batch normalization for candle: a drop-in for `candle_nn::BatchNorm` on CPUs, by the kernels of the crate
//! `batchnorm`.
//!
//! Change one line of a model:
//!
//! ```
//! // use candle_nn::{BatchNorm, BatchNormConfig, batch_norm};
//! use batchnorm_candle::{BatchNorm, BatchNormConfig, batch_norm};
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{ModuleT, VarBuilder, VarMap};
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let norm: BatchNorm = batch_norm(8, BatchNormConfig::default(), vb.pp("norm"))?;
//!
//! let x = Tensor::randn(3f32, 2f32, (4, 8, 5, 5), &Device::Cpu)?;
//! let y = norm.forward_t(&x, true)?; // training; false is inference
//! let gradients = y.sqr()?.sum_all()?.backward()?;
//! let weight = &variables.data().lock().unwrap()["norm.weight"];
//! assert_eq!(gradients.get(weight).unwrap().dims(), [8]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! [`BatchNorm`] has the constructors, methods and variable names of candle's module, so that checkpoints of one are
//! checkpoints of the other. It takes tensors `[n, c, ..]` of at least 2 dimensions in f32, f64, bf16 or f16. weight and
//! bias have the dtype of the activations, or are f32 where these are bf16 or f16.
//!
//! # What differs from candle's module
//!
//! - **Fusion.** [`forward_relu_t`](BatchNorm::forward_relu_t) and
//!   [`forward_add_relu_t`](BatchNorm::forward_add_relu_t) also apply a ReLU, and add a residual before it, in the same
//!   sweep over memory, with their gradients.
//! - **Accuracy.** Statistics are computed in one pass and kept in f64, also between the forward and the backward pass.
//!   So values far from 0 lose no digits: see the error bounds in the documentation of `batchnorm`.
//! - **Errors.** One value per channel in training is an error. candle's module makes the running variance NaN.
//! - **16-bit types** can be trained. In candle's module that is an error, since it mixes dtypes. Note that averages in
//!   bf16 stop changing once updates are below half a unit in the last place: give the layer running statistics of f32
//!   with [`BatchNorm::new`] if they matter.
//! - **Cumulative averages**: [`batch_norm_cumulative`], the `momentum=None` of PyTorch.
//! - **Channels last.** A tensor whose axes are permuted, as by `x.permute((0, 3, 1, 2))`, is normalized where it lies,
//!   and y has the same order of axes in memory. A tensor with gaps is copied first. In the backward pass candle adds
//!   gradients into tensors in standard layout, so gradients of a permuted tensor are transposed twice, by candle's
//!   strided addition: once that of y and once that of x.
//! - **Only CPUs.** A tensor on another device is an error.
//! - `remove_mean: false` is an error.
//! - Gradients cannot be differentiated again, as everywhere in candle by default.
//!
//! As candle's module, it implements `ModuleT`, and not `Module`, which would imply a `ModuleT` that ignores `train`.
//!
//! # Threads
//!
//! Passes run on candle's own pool, `candle_core::utils::barrier_pool`, on which its elementwise operations run. The
//! environment variable `CANDLE_NUM_THREADS` sets its size. Results do not depend on it by a bit.

pub mod batch_norm;
mod operation;
mod threads;

pub use batch_norm::{BatchNorm, BatchNormConfig, batch_norm, batch_norm_cumulative};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
