//! SIMD batch normalization kernels for CPUs.
//!
//! For a channel with M values, over the mini-batch:
//!
//! ```text
//! mean = (1/M) Σ x     var = (1/M) Σ (x − mean)²     x̂ = (x − mean) / sqrt(var + eps)
//! z = gamma·x̂ + beta + residual                      y = act(z)
//!
//! dresidual = dy·act'(z) = g     dbeta = Σ g     dgamma = Σ g·x̂
//! dx = gamma / sqrt(var + eps) · (g − dbeta/M − x̂·dgamma/M)
//! ```
//!
//! The residual and act, the [`Activation`], are optional; without them y = z and g = dy. gamma and beta are also known
//! as weight and bias, or scale and shift. With a weight w for each position, `(1/M) Σ` becomes `(1/Σw) Σ w`, and `/M`
//! in dx becomes `·w/Σw`. In inference mean and var come from running averages kept during training, so a single
//! example can be normalized.
//!
//! ```
//! use batchnorm::{Affine, BatchNorm, Gradients, Momentum, RunningStatistics, Shape, Statistics};
//!
//! let plan = BatchNorm::new(Shape::nc(4, 2)?); // 4 examples, 2 features
//! let x = [1.0f32, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
//! let (gamma, beta) = ([2.0, 2.0], [0.5, 0.5]);
//! let affine = Affine::new(&gamma, &beta);
//!
//! // Training: normalize with the batch's own statistics, and update the averages.
//! let (mut y, mut batch, mut running) = ([0.0; 8], Statistics::new(2), RunningStatistics::new(2));
//! plan.forward_training(&x, affine, &mut y, &mut batch)?;
//! running.update(&batch, Momentum::Exponential(0.1))?;
//! assert_eq!(batch.mean(), [2.5, 25.0]);
//!
//! // Backward: request the gradients that are needed.
//! let dy = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
//! let (mut dx, mut dgamma, mut dbeta) = ([0.0; 8], [0.0; 2], [0.0; 2]);
//! let gradients = Gradients { dx: Some(&mut dx), dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta), ..Gradients::default() };
//! plan.backward(&x, &dy, &batch, affine, gradients)?;
//! assert_eq!(dbeta, [1.0, 1.0]);
//!
//! // Inference: one example, with the running statistics.
//! let one = BatchNorm::new(Shape::nc(1, 2)?);
//! one.normalize(&x[..2], &running, affine, &mut y[..2])?;
//! # Ok::<(), batchnorm::Error>(())
//! ```
//!
//! - [`Shape`] maps every usual layout, and dims with strides, onto three integers; an [`Element`] is f32, f64, bf16 or
//!   f16.
//! - [`BatchNorm`] is the plan; its methods are the passes, fused or split in two halves. [`Affine`] is gamma and beta,
//!   [`Gradients`] are the outputs of the backward pass.
//! - The [`Activation`] is set on the plan; [`Extras`] are a residual, the output, or weights, with which [`With`] runs
//!   a pass.
//! - [`Statistics`] and [`GradientSums`] are what the first half of a pass hands to the second; those of parts of a
//!   batch can be merged. A [`Source`] is either the statistics of a batch or running ones. Their arrays can be any
//!   [`Values`] or [`ValuesMut`].
//! - [`RunningStatistics`], updated with a [`Momentum`], are the averages for inference; [`Fold`] folds them into an
//!   adjacent layer's weights.
//! - [`Cotangents`] and [`SecondGradients`] are the inputs and outputs of second derivatives.
//! - [`Isa`] and [`Threads`], or an [`Executor`], affect speed only: results are bit-identical.
#![cfg_attr(
    feature = "ndarray",
    doc = "- [`Arrays`] are the passes over arrays of the crate `ndarray`, with [`ArrayExtras`] and [`ArrayGradients`]."
)]
//! - [`mod@reference`] is the specification, short and slow.
//!
//! Engines have a `Shape` and an `Error` of their own: there, `use batchnorm as bn` and write `bn::Shape`.
//!
//! Nothing panics: a wrong argument is an [`Error`], raised before anything is written.
//!
//! Passes expect the default floating-point environment. On a thread that flushes subnormals to zero (FTZ, DAZ), as
//! some hosts set it, subnormal numbers count as 0, given or computed. Channels without such numbers keep their bits. In
//! others no result that would be finite is NaN, but errors may exceed their bounds, and bits may depend on threads and
//! instruction set.

mod activation;
mod arguments;
#[cfg(feature = "ndarray")]
mod array_views;
mod batch_norm;
mod element;
mod error;
mod fold;
mod kernels;
mod lanes;
mod parallel;
mod passes;
pub mod reference;
mod shape;
mod simd;
mod statistics;
mod uninit;
mod with;

pub use activation::Activation;
pub use arguments::{Affine, Cotangents, Extras, Gradients, SecondGradients};
#[cfg(feature = "ndarray")]
pub use array_views::{ArrayExtras, ArrayGradients, Arrays};
pub use batch_norm::BatchNorm;
pub use element::Element;
pub use error::Error;
pub use fold::Fold;
pub use parallel::{Executor, ThreadPool, Threads};
pub use passes::scratch::Memory;
pub use shape::Shape;
pub use simd::Isa;
pub use statistics::{GradientSums, Momentum, Precision, RunningStatistics, Source, Statistics, Values, ValuesMut};
pub use uninit::Uninit;
pub use with::With;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
