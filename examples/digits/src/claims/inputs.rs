//! Two inputs on different scales, and gradient descent with and without normalizing them.

use super::{Context, Finding, Measure, Unit, Verdict};
use crate::Result;
use crate::data::{Images, PIXELS};
use crate::figures::{Axis, Chart, Colour, Figure, Point, Series, Style};
use batchnorm::{Affine, BatchNorm, Shape, Statistics};

/// The number of steps after which gradient descent gives up.
const LIMIT: usize = 10_000_000;

pub(super) fn check(context: &Context) -> Result<Finding> {
    let (x, target) = sixes_and_nines(&context.images);
    let plan = BatchNorm::new(Shape::nc(target.len(), 2)?);
    let mut normalized = vec![0.0; x.len()];
    plan.forward_training(&x, Affine::default(), &mut normalized, &mut Statistics::new(2))?;
    let (raw, normalized) = (QuadraticLoss::new(&x, &target), QuadraticLoss::new(&normalized, &target));

    let rates: Vec<f64> = (-20..=2).map(|e| 10f64.powf(f64::from(e) / 4.0)).collect();
    let steps = |loss: &QuadraticLoss| context.parallel(&rates, |&rate| Ok(loss.steps(rate)));
    let (raw_steps, normalized_steps) = (steps(&raw)?, steps(&normalized)?);
    let best = |steps: &[Option<usize>]| {
        let reached = steps.iter().zip(&rates).filter_map(|(steps, &rate)| steps.map(|steps| (steps, rate)));
        reached
            .min_by_key(|(steps, _)| *steps)
            .ok_or("gradient descent does not reach the minimum loss at any learning rate")
    };
    let ((raw_best, raw_rate), (best, rate)) = (best(&raw_steps)?, best(&normalized_steps)?);

    let line = |label: &str, colour, steps: &[Option<usize>]| {
        let reached = rates.iter().zip(steps).filter_map(|(&rate, steps)| Some(Point::new(rate, (*steps)? as f64)));
        Series { label: label.into(), colour, points: reached.collect(), style: Style::Marked }
    };
    let section = |label: &str, colour, loss: &QuadraticLoss, weight: usize| {
        let at_distance = |d: f64| {
            let mut w = loss.optimum;
            w[weight] += d;
            Point::new(d, loss.at(w) - loss.at(loss.optimum))
        };
        let points = (-400..=400).map(|i| at_distance(f64::from(i) / 200.0)).filter(|point| point.y < 2.0);
        Series { label: label.into(), colour, points: points.collect(), style: Style::Line }
    };
    Ok(Finding {
        verdict: if best < raw_best && rate > raw_rate { Verdict::Holds } else { Verdict::Fails },
        text: format!(
            "gradient descent takes {best} step{} with normalized inputs, at learning rate {rate:.2}, and {raw_best} \
             steps with raw inputs, at {raw_rate:.4}",
            if best == 1 { "" } else { "s" },
        ),
        measures: vec![
            Measure::new("steps with raw inputs at the best learning rate", raw_best as f64, Unit::Steps),
            Measure::new("steps with normalized inputs at the best learning rate", best as f64, Unit::Steps),
            Measure::new("best learning rate with raw inputs", raw_rate, Unit::Number),
            Measure::new("best learning rate with normalized inputs", rate, Unit::Number),
        ],
        figures: vec![
            Figure {
                name: "inputs-steps",
                caption: "A linear model distinguishes 6 from 9 by two inputs on different scales: the amount of ink \
                          (about 20 pixels) and the height of its centre (about 3.5 rows, with a spread of a third of \
                          a row). Each dot is a run of gradient descent that came within 1 % of the minimum loss in at \
                          most ten million steps. At learning rates beyond the last dot it diverges."
                    .into(),
                chart: Chart {
                    title: "Steps to within 1 % of the minimum loss",
                    x: Axis::log("learning rate"),
                    y: Axis::log("steps"),
                    series: vec![
                        line("normalized inputs", Colour::Blue, &normalized_steps),
                        line("raw inputs", Colour::Vermilion, &raw_steps),
                    ],
                },
            },
            Figure {
                name: "inputs-surface",
                caption: "The reason: the loss as a function of each weight, while the other weights have their \
                          optimal values. With raw inputs it is far steeper along the weight of the ink, so a learning \
                          rate that is safe for this weight is far too small for the other. With normalized inputs it \
                          is the same along both."
                    .into(),
                chart: Chart {
                    title: "Loss along each weight",
                    x: Axis::linear("distance of the weight from its optimum"),
                    y: Axis::range("loss minus the minimum loss", 0.0, 2.0),
                    series: vec![
                        section("both, normalized", Colour::Blue, &normalized, 0),
                        section("ink, raw", Colour::Vermilion, &raw, 0),
                        section("height, raw", Colour::Orange, &raw, 1),
                    ],
                },
            },
        ],
    })
}

/// Two inputs for each 6 and each 9, the amount of ink and its height, and the target: 1 for a 6, −1 for a 9.
fn sixes_and_nines(images: &Images) -> (Vec<f64>, Vec<f64>) {
    let (mut x, mut target) = (Vec::new(), Vec::new());
    for (image, &label) in images.pixels.chunks_exact(PIXELS).zip(&images.labels) {
        if label == 6 || label == 9 {
            let pixels = || image.iter().map(|&p| f64::from(p));
            let ink: f64 = pixels().sum();
            let height = pixels().enumerate().map(|(i, p)| p * (7.5 - (i / 8) as f64)).sum::<f64>() / ink;
            x.extend([ink, height]);
            target.push(if label == 6 { 1.0 } else { -1.0 });
        }
    }
    (x, target)
}

/// The squared error of a linear model of two inputs and a constant: `½·mean((w·(x, 1) − target)²)`. It is quadratic,
/// so its first and second derivatives at 0 determine it up to a constant.
struct QuadraticLoss {
    /// The means of products of two inputs, where the constant is the third input.
    curvature: [[f64; 3]; 3],
    /// The means of products of an input and the target.
    slope: [f64; 3],
    /// The weights with the minimum loss.
    optimum: [f64; 3],
}

impl QuadraticLoss {
    fn new(x: &[f64], target: &[f64]) -> Self {
        let (mut curvature, mut slope) = ([[0.0; 3]; 3], [0.0; 3]);
        for (x, t) in x.chunks_exact(2).zip(target) {
            let x = [x[0], x[1], 1.0];
            for i in 0..3 {
                slope[i] += x[i] * t / target.len() as f64;
                for j in 0..3 {
                    curvature[i][j] += x[i] * x[j] / target.len() as f64;
                }
            }
        }
        Self { curvature, slope, optimum: solve(curvature, slope) }
    }

    fn gradient(&self, w: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|i| (0..3).map(|j| self.curvature[i][j] * w[j]).sum::<f64>() - self.slope[i])
    }

    /// `½·w·curvature·w − w·slope + ½`, where the last ½ is half the mean of the squared targets.
    fn at(&self, w: [f64; 3]) -> f64 {
        let g = self.gradient(w);
        0.5 + (0..3).map(|i| 0.5 * w[i] * (g[i] - self.slope[i])).sum::<f64>()
    }

    /// The steps of gradient descent from 0 to within 1 % of the minimum loss; `None` if it diverges or gives up.
    fn steps(&self, rate: f64) -> Option<usize> {
        let goal = 1.01 * self.at(self.optimum);
        let mut w = [0.0; 3];
        for step in 0..LIMIT {
            let loss = self.at(w);
            if loss <= goal {
                return Some(step);
            }
            if loss > 1e3 {
                return None;
            }
            let g = self.gradient(w);
            w = std::array::from_fn(|i| w[i] - rate * g[i]);
        }
        None
    }
}

/// Solves `a·w = b` for a positive definite `a`, by Gauss–Jordan elimination.
fn solve(mut a: [[f64; 3]; 3], mut b: [f64; 3]) -> [f64; 3] {
    for i in 0..3 {
        for k in (0..3).filter(|&k| k != i) {
            let pivot = a[i];
            let factor = a[k][i] / pivot[i];
            for (entry, pivot) in a[k].iter_mut().zip(pivot) {
                *entry -= factor * pivot;
            }
            b[k] -= factor * b[i];
        }
    }
    std::array::from_fn(|i| b[i] / a[i][i])
}
