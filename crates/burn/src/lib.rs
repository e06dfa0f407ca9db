//! Batch normalization for [burn] on CPUs, with the SIMD kernels of the crate `batchnorm`.
//!
//! [`BatchNorm`] takes the place of [`burn::nn::BatchNorm`], with the same fields, configuration and records. It works
//! on the backend Flex, with and without autodiff:
//!
//! ```
//! use batchnorm_burn::{BatchNorm, BatchNormConfig};
//! use burn::module::Module;
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! let device = Device::flex().autodiff();
//! let norm: BatchNorm = BatchNormConfig::new(8).init(&device);
//! let x = Tensor::<4>::random([2, 8, 5, 5], Distribution::Default, &device).require_grad();
//!
//! // Training: the statistics of the batch, which also update the running ones.
//! let gradients = norm.forward_relu(x.clone()).sum().backward();
//! let (dx, dgamma) = (x.grad(&gradients), norm.gamma.grad(&gradients));
//! assert_eq!((dx.unwrap().dims(), dgamma.unwrap().dims()), ([2, 8, 5, 5], [8]));
//!
//! // Inference: the running statistics.
//! let y = norm.valid().forward(Tensor::<2>::zeros([1, 8], &Device::flex()));
//! assert_eq!(y.dims(), [1, 8]);
//! ```
//!
//! # Differences from burn's module
//!
//! - It is faster, as a pass reads and writes each tensor once or twice, where burn's operations make about 40 sweeps.
//! - Statistics are computed in f64, and kept in f64 for the backward pass. Errors do not grow with |mean|/std.
//! - Results have the same bits on every CPU and on any number of threads.
//! - [`BatchNorm::forward_relu`] and [`BatchNorm::forward_add_relu`] fuse what often follows.
//! - Tensors of f32, f64, bf16 and f16; gamma and beta have the same type or, if the tensor has 16 bits per element,
//!   may be f32. A tensor with its axes in another order, such as channels last, is not copied, and the output has the
//!   same order. The gradient of the output is copied if its order is another one.
//! - The running variance is biased, as burn has it, or unbiased on request: [`BatchNorm::with_unbiased`]. An unbiased
//!   variance needs more than one value per channel.
//! - A batch without examples gives an output without elements, and leaves the running statistics as they were.
//! - Other backends than Flex are not supported, and there are no second derivatives: as in burn, a gradient cannot be
//!   differentiated again.
//!
//! # Panics
//!
//! burn's modules have no errors to return, so a wrong argument panics, before anything is written, with a message
//! that says what was expected and what was given: a device other than Flex, a tensor of less than two axes or of
//! another number of channels, a type that is not supported, and a running variance that is negative or NaN, as after
//! a training that has diverged; burn's module returns NaN for the last.
//!
//! # Threads and memory
//!
//! Flex runs on rayon's pool if burn's feature `rayon` is on, and so do the kernels, always: on the pool in which
//! `forward` or `backward` is called. Passes over less than 1 MB stay on the calling thread. Outputs are not filled
//! before they are written, and the scratch memory, some ten KB per thread, is shared by all layers.
//!
//! # Versions
//!
//! burn 0.22. Extensions of its backends change from one minor version to the next.

mod memory;
mod module;
mod ops;
mod passes;

pub use module::{BatchNorm, BatchNormConfig};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
