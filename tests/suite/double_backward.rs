//! Do second derivatives agree with finite differences of the reference's gradients?

use crate::common::*;
use batchnorm::{Activation, Affine, BatchNorm, Cotangents, Error, SecondGradients, Shape, Statistics, reference};

/// A scalar function of the gradients of the reference: their dot product with these cotangents.
struct Penalty {
    shape: Shape,
    eps: f64,
    dx: Vec<f64>,
    dgamma: Vec<f64>,
    dbeta: Vec<f64>,
}

impl Penalty {
    fn value(&self, x: &[f64], dy: &[f64], gamma: &[f64]) -> f64 {
        let (mean, var) = reference::statistics(self.shape, x);
        let (dx, dgamma, dbeta) = reference::backward(self.shape, x, dy, (&mean, &var), self.eps, gamma);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&self.dx, &dx) + dot(&self.dgamma, &dgamma) + dot(&self.dbeta, &dbeta)
    }
}

/// The derivative of f at 0, by central differences of fourth order.
fn derivative(f: impl Fn(f64) -> f64) -> f64 {
    const H: f64 = 1e-3;
    (8.0 * (f(H) - f(-H)) - (f(2.0 * H) - f(-2.0 * H))) / (12.0 * H)
}

fn bumped(values: &[f64], k: usize, by: f64) -> Vec<f64> {
    let mut values = values.to_vec();
    values[k] += by;
    values
}

#[test]
fn agrees_with_finite_differences() {
    for (o, c, i) in [(7, 3, 1), (2, 2, 5), (3, 17, 1), (1, 1, 40)] {
        let shape = Shape::new(o, c, i).unwrap();
        let p = Problem::<f64>::random(shape, 11);
        let mut random = Random(5);
        let mut normal = |n: usize| (0..n).map(|_| random.normal()).collect::<Vec<_>>();
        let (dx, dgamma, dbeta) = (normal(shape.len()), normal(c), normal(c));
        let penalty = Penalty { shape, eps: p.eps, dx, dgamma, dbeta };
        let (gamma, plan) = (p.gamma_f64(), p.plan());
        let mut statistics = Statistics::new(c);
        plan.statistics(&p.x, &mut statistics).unwrap();
        let (mut of_x, mut of_dy, mut of_gamma) =
            (vec![f64::NAN; shape.len()], vec![f64::NAN; shape.len()], vec![f64::NAN; c]);
        let cotangents = Cotangents { dx: &penalty.dx, dgamma: Some(&penalty.dgamma), dbeta: Some(&penalty.dbeta) };
        let out = SecondGradients { x: Some(&mut of_x), dy: Some(&mut of_dy), gamma: Some(&mut of_gamma) };
        plan.double_backward(&p.x, &p.dy, &statistics, p.affine(), cotangents, out).unwrap();
        let close = |name: &str, k: usize, found: f64, expected: f64| {
            // The error of fourth order for a step of 1e-3 and values of about 1, and a rounding of 1e-16 over 1e-3.
            assert!(
                (found - expected).abs() <= 1e-7 * (1.0 + expected.abs()),
                "{name}[{k}] {found} {expected} {shape:?}"
            );
        };
        for k in 0..shape.len() {
            close("x", k, of_x[k], derivative(|h| penalty.value(&bumped(&p.x, k, h), &p.dy, &gamma)));
            close("dy", k, of_dy[k], derivative(|h| penalty.value(&p.x, &bumped(&p.dy, k, h), &gamma)));
        }
        for (k, found) in of_gamma.iter().enumerate() {
            close("gamma", k, *found, derivative(|h| penalty.value(&p.x, &p.dy, &bumped(&gamma, k, h))));
        }
    }
}

#[test]
fn constant_statistics_agree_with_finite_differences() {
    for (o, c, i) in [(7, 3, 1), (2, 2, 5), (1, 1, 40)] {
        let shape = Shape::new(o, c, i).unwrap();
        let (p, n) = (Problem::<f64>::random(shape, 12), shape.len());
        let (running, gamma, plan) = (p.running(), p.gamma_f64(), p.plan());
        let mut random = Random(6);
        let mut normal = |n: usize| (0..n).map(|_| random.normal()).collect::<Vec<_>>();
        let (v, of_dgamma, of_dbeta) = (normal(n), normal(c), normal(c));
        let value = |x: &[f64], dy: &[f64], gamma: &[f64]| {
            let of_channel = |c: usize| {
                let inv_std = 1.0 / (running.var()[c] + p.eps).sqrt();
                let term = |k: usize| {
                    let x_hat = (x[k] - running.mean()[c]) * inv_std;
                    dy[k] * (v[k] * gamma[c] * inv_std + of_dgamma[c] * x_hat + of_dbeta[c])
                };
                reference::indices(shape, c).map(term).sum::<f64>()
            };
            (0..c).map(of_channel).sum::<f64>()
        };
        let [mut of_x, mut of_dy] = [(); 2].map(|()| vec![f64::NAN; n]);
        let mut of_gamma = vec![f64::NAN; c];
        let cotangents = Cotangents { dx: &v, dgamma: Some(&of_dgamma), dbeta: Some(&of_dbeta) };
        let out = SecondGradients { x: Some(&mut of_x), dy: Some(&mut of_dy), gamma: Some(&mut of_gamma) };
        plan.double_backward(&p.x, &p.dy, &running, p.affine(), cotangents, out).unwrap();
        let close = |name: &str, k: usize, found: f64, expected: f64| {
            // The function is linear in each variable, so only roundings are left: those of a value of about 100, each
            // 1e-14, over a step of 1e-3.
            let bound = 1e-10 * (1.0 + expected.abs());
            assert!((found - expected).abs() <= bound, "{name}[{k}] {found} {expected} {shape:?}");
        };
        for k in 0..n {
            close("x", k, of_x[k], derivative(|h| value(&bumped(&p.x, k, h), &p.dy, &gamma)));
            close("dy", k, of_dy[k], derivative(|h| value(&p.x, &bumped(&p.dy, k, h), &gamma)));
        }
        for (k, found) in of_gamma.iter().enumerate() {
            close("gamma", k, *found, derivative(|h| value(&p.x, &p.dy, &bumped(&gamma, k, h))));
        }
    }
}

/// All second derivatives for f32 inputs, as f64, and their bits.
fn of_f32(plan: &BatchNorm, p: &Problem<f32>) -> (Vec<f64>, Vec<u64>) {
    let (n, c) = (p.shape.len(), p.shape.channels());
    let mut statistics = Statistics::new(c);
    plan.statistics(&p.x, &mut statistics).unwrap();
    let (mut x, mut dy, mut gamma) = (vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; c]);
    let v: Vec<f32> = p.dy.iter().rev().copied().collect();
    let cotangents = Cotangents { dx: &v, dgamma: p.beta.as_deref(), dbeta: None };
    let out = SecondGradients { x: Some(&mut x), dy: Some(&mut dy), gamma: Some(&mut gamma) };
    plan.double_backward(&p.x, &p.dy, &statistics, p.affine(), cotangents, out).unwrap();
    let all = [x, dy, gamma].concat();
    (to_f64(&all), all.iter().map(|v| v.bits()).collect())
}

#[test]
fn f32_follows_f64_with_the_same_bits_everywhere() {
    for (o, c, i) in [(131, 37, 1), (3, 7, 45), (2, 3, 20_000)] {
        let shape = Shape::new(o, c, i).unwrap();
        let p = Problem::<f32>::random(shape, 3);
        let (first, bits) = of_f32(&p.plan(), &p);
        for &isa in batchnorm::Isa::available() {
            assert_eq!(of_f32(&p.plan().isa(isa).unwrap(), &p).1, bits, "{isa:?} {shape:?}");
        }
        let wide = Problem::<f64> {
            shape,
            eps: p.eps,
            x: to_f64(&p.x),
            dy: to_f64(&p.dy),
            gamma: Some(p.gamma_f64()),
            beta: Some(p.beta_f64()),
        };
        let v: Vec<f64> = wide.dy.iter().rev().copied().collect();
        let mut statistics = Statistics::new(c);
        wide.plan().statistics(&wide.x, &mut statistics).unwrap();
        let (mut x, mut dy, mut gamma) = (vec![0.0; shape.len()], vec![0.0; shape.len()], vec![0.0; c]);
        let cotangents = Cotangents { dx: &v, dgamma: wide.beta.as_deref(), dbeta: None };
        let out = SecondGradients { x: Some(&mut x), dy: Some(&mut dy), gamma: Some(&mut gamma) };
        wide.plan().double_backward(&wide.x, &wide.dy, &statistics, wide.affine(), cotangents, out).unwrap();
        let largest = |values: &[f64]| values.iter().fold(1.0f64, |a, b| a.max(b.abs()));
        for (part, expected) in
            [(0..shape.len(), &x), (shape.len()..2 * shape.len(), &dy), (2 * shape.len()..first.len(), &gamma)]
        {
            // Three terms of three factors each: sixteen roundings of the largest term. For gamma, sums over M values.
            let bound =
                16.0 * f32::U * largest(expected) * if part.start == 2 * shape.len() { (o * i) as f64 } else { 4.0 };
            for (found, expected) in first[part].iter().zip(expected) {
                assert!((found - expected).abs() <= bound, "{found} {expected} {bound} {shape:?}");
            }
        }
    }
}

#[test]
fn refuses_an_activation_and_wrong_lengths() {
    let plan = BatchNorm::new(Shape::nc(2, 1).unwrap());
    let statistics = Statistics::from_parts(2.0, vec![0.0], vec![1.0]).unwrap();
    let run = |plan: &BatchNorm, dx: &[f32]| {
        let mut x = [f32::NAN; 2];
        let out = SecondGradients { x: Some(&mut x), dy: None, gamma: None };
        let cotangents = Cotangents { dx, dgamma: None, dbeta: None };
        let result = plan.double_backward(&[1.0, 2.0], &[1.0, 0.0], &statistics, Affine::default(), cotangents, out);
        assert!(result.is_ok() || x.iter().all(|v| v.is_nan()), "written on error");
        result
    };
    assert_eq!(run(&plan, &[1.0, 2.0]), Ok(()));
    let length = Error::Length { argument: "the cotangent of dx", expected: 2, actual: 1 };
    assert_eq!(run(&plan, &[1.0]), Err(length));
    let relu = plan.activation(Activation::Relu).unwrap();
    let error = run(&relu, &[1.0, 2.0]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "double_backward does not support the plan's activation: expected Identity, got Relu"
    );
}
