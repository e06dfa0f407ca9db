//! Two inputs on different scales, and gradient descent with and without normalizing them.

use super::{Context, Finding, Measure, Unit, Verdict};
use crate::Result;
use crate::data::{Images, PIXELS};
use crate::figures::{Axis, Chart, Colour, Figure, Point, Series, Style};
use batchnorm::{Affine, BatchNorm, Shape, Statistics};

/// Steps after which gradient descent gives up.
const LIMIT: usize = 10_000_000;

pub(super) fn check(context: &Context) -> Result<Finding> {
    let (x, target) = sixes_and_nines(&context.images);
    let plan = BatchNorm::new(Shape::nc(target.len(), 2)?);
    let mut normalized = vec![0.0; x.len()];
    plan.forward_training(&x, Affine::default(), &mut normalized, &mut Statistics::new(2))?;
    let (raw, normalized) = (Bowl::new(&x, &target), Bowl::new(&normalized, &target));

    let rates: Vec<f64> = (-20..=2).map(|e| 10f64.powf(f64::from(e) / 4.0)).collect();
    let steps = |bowl: &Bowl| context.parallel(&rates, |&rate| Ok(bowl.steps(rate)));
    let (raw_steps, normalized_steps) = (steps(&raw)?, steps(&normalized)?);
    let best = |steps: &[Option<usize>]| {
        let reached = steps.iter().zip(&rates).filter_map(|(steps, &rate)| steps.map(|steps| (steps, rate)));
        reached.min_by_key(|(steps, _)| *steps).ok_or("gradient descent does not reach the loss at any rate")
    };
    let ((raw_best, raw_rate), (best, rate)) = (best(&raw_steps)?, best(&normalized_steps)?);

    let line = |label: &str, colour, steps: &[Option<usize>]| {
        let reached = rates.iter().zip(steps).filter_map(|(&rate, steps)| Some(Point::new(rate, (*steps)? as f64)));
        Series { label: label.into(), colour, points: reached.collect(), style: Style::Marked }
    };
    let valley = |label: &str, colour, bowl: &Bowl, weight: usize| {
        let from_least = |d: f64| {
            let mut w = bowl.least;
            w[weight] += d;
            Point::new(d, bowl.loss(w) - bowl.loss(bowl.least))
        };
        let points = (-400..=400).map(|i| from_least(f64::from(i) / 200.0)).filter(|point| point.y < 2.0);
        Series { label: label.into(), colour, points: points.collect(), style: Style::Line }
    };
    Ok(Finding {
        verdict: if best < raw_best && rate > raw_rate { Verdict::Holds } else { Verdict::Fails },
        text: format!(
            "{best} step{} at learning rate {rate:.2} with normalized inputs, {raw_best} at {raw_rate:.4} with raw \
             ones",
            if best == 1 { "" } else { "s" },
        ),
        measures: vec![
            Measure::new("steps with raw inputs, at their best rate", raw_best as f64, Unit::Steps),
            Measure::new("steps with normalized inputs, at their best rate", best as f64, Unit::Steps),
            Measure::new("best rate with raw inputs", raw_rate, Unit::Number),
            Measure::new("best rate with normalized inputs", rate, Unit::Number),
        ],
        figures: vec![
            Figure {
                name: "inputs-steps",
                caption: "A linear model tells 6 from 9 by two inputs: how much ink there is (in pixels, about 20) and how \
                          high it is centred (in rows, 3.5 give or take a third), much as an age and a height. Each dot \
                          is a run of gradient descent that came within 1 % of the least loss in at most ten million \
                          steps; at rates further right it diverges."
                    .into(),
                chart: Chart {
                    title: "Steps to within 1 % of the least loss",
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
                caption: "Why: the loss surface cut along each weight through its least point. Raw, it is far steeper \
                          along the weight of the ink: a learning rate that is safe there is far too small for the rest. \
                          Normalized, it is the same bowl along either."
                    .into(),
                chart: Chart {
                    title: "Loss along each weight",
                    x: Axis::linear("weight, from its best value"),
                    y: Axis::range("loss above the least", 0.0, 2.0),
                    series: vec![
                        valley("either, normalized", Colour::Blue, &normalized, 0),
                        valley("ink, raw", Colour::Vermilion, &raw, 0),
                        valley("height, raw", Colour::Orange, &raw, 1),
                    ],
                },
            },
        ],
    })
}

/// Two inputs for each 6 and 9, ink and height, and 1 for a 6, −1 for a 9.
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
/// so its second and first derivatives at 0 say all.
struct Bowl {
    /// Mean products of the inputs, the constant being the third.
    curvature: [[f64; 3]; 3],
    /// Mean products of the inputs and the target.
    slope: [f64; 3],
    /// The weights of the least loss.
    least: [f64; 3],
}

impl Bowl {
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
        Self { curvature, slope, least: solve(curvature, slope) }
    }

    fn gradient(&self, w: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|i| (0..3).map(|j| self.curvature[i][j] * w[j]).sum::<f64>() - self.slope[i])
    }

    /// `½·w·curvature·w − w·slope + ½`, where ½ is the mean of the targets' squares, halved.
    fn loss(&self, w: [f64; 3]) -> f64 {
        let g = self.gradient(w);
        0.5 + (0..3).map(|i| 0.5 * w[i] * (g[i] - self.slope[i])).sum::<f64>()
    }

    /// Steps of gradient descent from 0 to within 1 % of the least loss.
    fn steps(&self, rate: f64) -> Option<usize> {
        let goal = 1.01 * self.loss(self.least);
        let mut w = [0.0; 3];
        for step in 0..LIMIT {
            let loss = self.loss(w);
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

/// The w with `a·w = b`, for a positive definite a: Gauss–Jordan elimination.
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
