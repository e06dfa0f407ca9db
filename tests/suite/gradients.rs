//! Do the gradients agree with finite differences of the forward pass?
//!
//! The forward pass is the reference's, in f64. The loss is L = Σ w·y, so that dL/dy = w. Central differences of L with
//! a step h differ from the gradient by h²/6 times the third derivative, and by the rounding error of L divided by h.

use crate::common::*;
use batchnorm::{Activation, Affine, RunningStatistics, Shape, Statistics, reference};

/// The loss, with the statistics of `running` if it is given, otherwise with those of the batch.
fn loss(p: &Problem<f64>, x: &[f64], gamma: &[f64], beta: &[f64], running: Option<&RunningStatistics>) -> f64 {
    let own = reference::statistics(p.shape, x);
    let source = running.map_or((&own.0[..], &own.1[..]), |r| (r.mean(), r.var()));
    let y = reference::normalize(p.shape, x, source, p.eps, gamma, beta);
    y.iter().zip(&p.dy).map(|(y, w)| y * w).sum()
}

/// The central difference of `f` for each element of `at`.
fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let side = |k: usize, h: f64| {
        let mut moved = at.to_vec();
        moved[k] += h;
        f(&moved)
    };
    (0..at.len()).map(|k| (side(k, STEP) - side(k, -STEP)) / (2.0 * STEP)).collect()
}

/// Its square, and the rounding error of a loss of 10 to 100 divided by it, are both about 1e-10.
const STEP: f64 = 1e-5;

/// Ten times the larger of both.
const TOLERANCE: f64 = 1e-9;

fn check(p: &Problem<f64>, running: Option<&RunningStatistics>) {
    let (gamma, beta) = (p.gamma_f64(), p.beta_f64());
    let expected = [
        ("dx", differences(&p.x, |x| loss(p, x, &gamma, &beta, running))),
        ("dgamma", differences(&gamma, |gamma| loss(p, &p.x, gamma, &beta, running))),
        ("dbeta", differences(&beta, |beta| loss(p, &p.x, &gamma, beta, running))),
    ];
    every_isa(|isa| {
        for way in WAYS {
            let plan = p.plan().isa(isa).unwrap();
            let out = match running {
                None => train(&plan, p, way, 0),
                Some(running) => train_frozen(&plan, p, running, way, 0),
            };
            for ((name, expected), actual) in expected.iter().zip([&out.dx, &out.dgamma, &out.dbeta]) {
                for (k, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                    let close = (expected - actual).abs() <= TOLERANCE * (1.0 + expected.abs());
                    assert!(
                        close,
                        "{name}[{k}]: {expected} by differences, {actual} by {way:?}, {:?} {isa:?}",
                        p.shape
                    );
                }
            }
        }
    });
}

fn shapes() -> [Shape; 4] {
    [Shape::ncl(3, 2, 7), Shape::ncl(2, 3, 19), Shape::nc(21, 2), Shape::nc(5, 9)].map(Result::unwrap)
}

#[test]
fn through_the_batch_statistics() {
    for shape in shapes() {
        check(&Problem::random(shape, 21), None);
    }
}

#[test]
fn with_frozen_statistics() {
    for shape in shapes() {
        let p = Problem::random(shape, 22);
        check(&p, Some(&p.running()));
    }
}

#[test]
fn without_gamma_or_beta() {
    for shape in shapes() {
        let p = Problem::random(shape, 23);
        for p in [Problem { gamma: None, ..p.clone() }, Problem { beta: None, ..p.clone() }] {
            check(&p, None);
            check(&p, Some(&p.running()));
        }
        check(&Problem { gamma: None, beta: None, ..p }, None);
    }
}

/// With the merged statistics of all parts, the gradients of the parts are those of the whole batch.
#[test]
fn of_a_batch_in_parts() {
    let p = Problem::<f64>::random(Shape::nc(12, 3).unwrap(), 24);
    let (gamma, beta) = (p.gamma_f64(), p.beta_f64());
    let expected = differences(&p.x, |x| loss(&p, x, &gamma, &beta, None));
    let part = batchnorm::BatchNorm::new(Shape::nc(4, 3).unwrap());
    let parts = || (0..3).map(|k| k * 12..(k + 1) * 12);
    let (mut whole, mut sums) = (Statistics::new(3), batchnorm::GradientSums::new(3));
    for range in parts() {
        let mut own = Statistics::new(3);
        part.statistics(&p.x[range], &mut own).unwrap();
        whole.merge(&own).unwrap();
    }
    for range in parts() {
        let mut own = batchnorm::GradientSums::new(3);
        part.gradient_sums(&p.x[range.clone()], &p.dy[range], &whole, Affine::default(), &mut own).unwrap();
        sums.merge(&own).unwrap();
    }
    let mut dx = vec![f64::NAN; p.x.len()];
    for r in parts() {
        part.input_gradient(&p.x[r.clone()], &p.dy[r.clone()], &whole, &sums, p.affine(), &mut dx[r]).unwrap();
    }
    for (expected, actual) in expected.iter().zip(dx) {
        assert!((expected - actual).abs() <= TOLERANCE * (1.0 + expected.abs()), "{expected} {actual}");
    }
}

/// The variables of a loss with everything fused.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    residual: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
}

/// z, and the loss Σ w·act(z) over positions whose weight is not 0.
fn fused_loss(fusion: &Fusion<f64>, at: &Point, running: Option<&RunningStatistics>) -> (Vec<f64>, f64) {
    let (p, weights) = (&fusion.problem, fusion.weights_f64());
    let own = reference::weighted_statistics(p.shape, &at.x, &weights);
    let source = running.map_or((&own.0[..], &own.1[..]), |r| (r.mean(), r.var()));
    let normalized = reference::normalize(p.shape, &at.x, source, p.eps, &at.gamma, &at.beta);
    let z: Vec<f64> = normalized.iter().zip(&at.residual).map(|(y, r)| y + r).collect();
    let masked = fusion.masked();
    let term = |k: usize| reference::activate(fusion.activation, z[k]) * p.dy[k];
    let loss = (0..z.len()).filter(|k| !masked.contains(k)).map(term).sum();
    (z, loss)
}

fn check_fused(fusion: &mut Fusion<f64>, frozen: bool) {
    fusion.set_masked(&|_| 0.5);
    let running = fusion.problem.running();
    let running = frozen.then_some(&running);
    let mut at = Point {
        x: fusion.problem.x.clone(),
        residual: fusion.residual.clone().unwrap(),
        gamma: fusion.problem.gamma_f64(),
        beta: fusion.problem.beta_f64(),
    };
    // Moves z away from the kinks of ReLUs, where there is no derivative. Statistics do not depend on the residual.
    let (z, _) = fused_loss(fusion, &at, running);
    for (residual, z) in at.residual.iter_mut().zip(z).filter(|(_, z)| z.abs() < 0.01) {
        *residual += 0.05f64.copysign(z);
    }
    fusion.residual = Some(at.residual.clone());
    let at = &at;
    let by = |of: &[f64], put: fn(&mut Point, &[f64])| {
        differences(of, |moved| {
            let mut at = at.clone();
            put(&mut at, moved);
            fused_loss(fusion, &at, running).1
        })
    };
    let expected = [
        ("dx", by(&at.x, |at, v| at.x = v.into())),
        ("dresidual", by(&at.residual, |at, v| at.residual = v.into())),
        ("dgamma", by(&at.gamma, |at, v| at.gamma = v.into())),
        ("dbeta", by(&at.beta, |at, v| at.beta = v.into())),
    ];
    every_isa(|isa| {
        for (way, given) in WAYS.into_iter().zip([false, true, true, false]) {
            let step = fusion.run(&fusion.plan().isa(isa).unwrap(), running, way, given, 0);
            let found = [&step.outputs.dx, &step.dresidual, &step.outputs.dgamma, &step.outputs.dbeta];
            for ((name, expected), found) in expected.iter().zip(found) {
                for (k, (expected, found)) in expected.iter().zip(found).enumerate() {
                    let close = (expected - found).abs() <= TOLERANCE * (1.0 + expected.abs());
                    let context = (fusion.problem.shape, fusion.activation, way, isa, frozen);
                    assert!(close, "{name}[{k}]: {expected} by differences, {found} by {context:?}");
                }
            }
        }
    });
}

#[test]
fn of_fused_passes() {
    for shape in shapes() {
        for activation in ACTIVATIONS.into_iter().chain([Activation::LeakyRelu(3.0)]) {
            for weighting in [Weighting::Absent, Weighting::Mask, Weighting::Samples] {
                let fusion = Fusion::<f64>::random(shape, 25, activation, true, weighting);
                check_fused(&mut fusion.clone(), false);
                check_fused(&mut fusion.clone(), true);
            }
        }
    }
}
