//! SIMD batch normalization kernels for CPUs.
//!
//! For a channel with M values, over the mini-batch:
//!
//! ```text
//! mean = (1/M) Σ x     var = (1/M) Σ (x − mean)²     x̂ = (x − mean) / sqrt(var + eps)     y = gamma·x̂ + beta
//! dbeta = Σ dy         dgamma = Σ dy·x̂               dx = gamma / sqrt(var + eps) · (dy − dbeta/M − x̂·dgamma/M)
//! ```
//!
//! gamma and beta are also known as weight and bias, or scale and shift. At test time mean and var come from running
//! averages kept during training, so one example can be normalized alone.
//!
//! ```
//! use batchnorm::{Affine, BatchNorm, Gradients, Momentum, RunningStatistics, Shape, Statistics};
//!
//! let plan = BatchNorm::new(Shape::nc(4, 2)?); // 4 examples, 2 features
//! let x = [1.0f32, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
//! let (gamma, beta) = ([2.0, 2.0], [0.5, 0.5]);
//! let affine = Affine::new(&gamma, &beta);
//!
//! // Training: normalize with the batch's own statistics, and remember them.
//! let (mut y, mut batch, mut running) = ([0.0; 8], Statistics::new(2), RunningStatistics::new(2));
//! plan.forward_training(&x, affine, &mut y, &mut batch)?;
//! running.update(&batch, Momentum::Exponential(0.1))?;
//! assert_eq!(batch.mean(), [2.5, 25.0]);
//!
//! // Backward: ask for the gradients that are needed.
//! let dy = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
//! let (mut dx, mut dgamma, mut dbeta) = ([0.0; 8], [0.0; 2], [0.0; 2]);
//! let gradients = Gradients { dx: Some(&mut dx), dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta), ..Gradients::default() };
//! plan.backward(&x, &dy, &batch, affine, gradients)?;
//! assert_eq!(dbeta, [1.0, 1.0]);
//!
//! // Test time: one example, with the running statistics.
//! let one = BatchNorm::new(Shape::nc(1, 2)?);
//! one.normalize(&x[..2], &running, affine, &mut y[..2])?;
//! # Ok::<(), batchnorm::Error>(())
//! ```
//!
//! - [`Shape`] maps every usual layout onto three integers.
//! - [`BatchNorm`] is the plan; its methods are the passes, fused or in halves.
//! - [`Statistics`] and [`GradientSums`] are the seam between the halves; parts of a batch merge.
//! - [`RunningStatistics`] are the averages for test time; [`Fold`] takes them into the weights of a layer.
//! - [`Isa`] and [`Threads`] choose speed. They never change a bit of a result.
//! - [`mod@reference`] is the specification, short and slow.
//!
//! Nothing panics: a wrong argument is an [`Error`], found before anything is written.

mod activation;
mod batch_norm;
mod element;
mod error;
mod fold;
mod grid;
mod kernels;
mod parallel;
mod passes;
pub mod reference;
mod scratch;
mod shape;
mod simd;
mod statistics;

pub use activation::Activation;
pub use batch_norm::{Affine, BatchNorm, Cotangents, Extras, Gradients, SecondGradients, With};
pub use element::Element;
pub use error::Error;
pub use fold::Fold;
pub use parallel::{Executor, Threads};
pub use shape::Shape;
pub use simd::Isa;
pub use statistics::{GradientSums, Momentum, RunningStatistics, Source, Statistics, Values, ValuesMut};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
