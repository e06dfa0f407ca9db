//! Does every pass agree with `reference`, for every walk, element type, instruction set and option?

use crate::common::*;
use crate::oracle::{self, Double};
use batchnorm::{
    Activation, Affine, BatchNorm, GradientSums, Gradients, Isa, RunningStatistics, Shape, Source, Statistics,
    reference,
};
use std::fmt::Debug;

/// Compares a step with the reference: one with constant statistics if `running` is given, otherwise a training step.
fn compare<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    running: Option<&RunningStatistics>,
    out: &Outputs<T>,
    context: &dyn Debug,
) {
    let (shape, x, dy, gamma, beta) = (p.shape, to_f64(&p.x), to_f64(&p.dy), p.gamma_f64(), p.beta_f64());
    let own = reference::statistics(shape, &x);
    let (mean, var) = running.map_or((&own.0[..], &own.1[..]), |r| (r.mean(), r.var()));
    let y = reference::normalize(shape, &x, (mean, var), p.eps, &gamma, &beta);
    let (ones, zeros) = (vec![1.0; shape.channels()], vec![0.0; shape.channels()]);
    let x_hat = reference::normalize(shape, &x, (mean, var), p.eps, &ones, &zeros);
    let backward = if running.is_some() { reference::backward_frozen } else { reference::backward };
    let (dx, dgamma, dbeta) = backward(shape, &x, &dy, (mean, var), p.eps, &gamma);
    let m = shape.values_per_channel().max(1) as f64;
    for c in 0..shape.channels() {
        let f = Factors::new::<T>(kappa(mean[c], var[c]));
        if running.is_none() {
            let rounding = f64::EPSILON / 2.0 * mean[c].abs();
            let error = (out.statistics.mean()[c] - mean[c]).abs();
            ledger.note::<T>("mean", error, f.mean * var[c].sqrt() + rounding, context);
            ledger.note::<T>("var", (out.statistics.var()[c] - var[c]).abs(), f.var * var[c], context);
        }
        let scale = gamma[c] * reference::inv_std(var[c], p.eps);
        let channel = || reference::indices(shape, c);
        let size = channel().map(|k| dy[k].abs()).sum::<f64>();
        let size_x_hat = channel().map(|k| (dy[k] * x_hat[k]).abs()).sum::<f64>();
        ledger.note::<T>("dbeta", (out.dbeta[c].to_f64() - dbeta[c]).abs(), f.sums * size, context);
        ledger.note::<T>("dgamma", (out.dgamma[c].to_f64() - dgamma[c]).abs(), f.sums * size_x_hat, context);
        let [mean_g, mean_g_x_hat] = if running.is_some() { [0.0; 2] } else { [dbeta[c] / m, dgamma[c] / m] };
        // The errors of the sums, as they reach dx.
        let of_sums = if running.is_some() { [0.0; 2] } else { [f.sums * size / m, f.sums * size_x_hat / m] };
        for k in channel() {
            let bound = f.y * (gamma[c].abs() * (1.0 + x_hat[k].abs()) + beta[c].abs()) + T::SMALLEST_SUBNORMAL;
            ledger.note::<T>("y", (out.y[k].to_f64() - y[k]).abs(), bound, context);
            let size = dy[k].abs() + mean_g.abs() + (x_hat[k] * mean_g_x_hat).abs();
            let size = f.dx * size + of_sums[0] + x_hat[k].abs() * of_sums[1];
            let bound = scale.abs() * size + T::SMALLEST_SUBNORMAL;
            ledger.note::<T>("dx", (out.dx[k].to_f64() - dx[k]).abs(), bound, context);
        }
    }
}

/// Compares every shape, each with the next way to call the passes, and some without gamma or beta.
fn compare_all<T: Float>(shapes: &[Shape], isa: Isa, ledger: &mut Ledger) {
    for (i, &shape) in shapes.iter().enumerate() {
        let mut p = Problem::<T>::random(shape, i as u64);
        if i % 3 == 1 {
            p.gamma = None;
        }
        if i % 5 == 2 {
            p.beta = None;
        }
        let plan = p.plan().isa(isa).unwrap();
        let way = WAYS[i % WAYS.len()];
        let context: &dyn Debug = &(T::NAME, shape, isa, way);
        compare(ledger, &p, None, &train(&plan, &p, way, i), context);
        let running = p.running();
        compare(ledger, &p, Some(&running), &train_frozen(&plan, &p, &running, way, i), context);
    }
}

#[test]
fn lengths_around_every_boundary() {
    let mut ledger = Ledger::default();
    every_isa(|isa| {
        compare_all::<f32>(&boundary_shapes(f32::LANES), isa, &mut ledger);
        compare_all::<f64>(&boundary_shapes(f64::LANES), isa, &mut ledger);
    });
    ledger.close("boundaries", 100_000);
}

#[test]
fn channels_cut_into_segments() {
    let mut ledger = Ledger::default();
    every_isa(|isa| {
        compare_all::<f32>(&segmented_shapes(), isa, &mut ledger);
        compare_all::<f64>(&segmented_shapes(), isa, &mut ledger);
    });
    ledger.close("segments", 100_000);
}

#[test]
fn every_offset_of_the_buffers() {
    let mut ledger = Ledger::default();
    for shape in [Shape::ncl(2, 3, 37).unwrap(), Shape::nc(9, 21).unwrap()] {
        let p = Problem::<f32>::random(shape, 1);
        every_isa(|isa| {
            for offset in 0..16 {
                let out = train(&p.plan().isa(isa).unwrap(), &p, WAYS[offset % 4], offset);
                compare(&mut ledger, &p, None, &out, &(shape, isa, offset));
            }
        });
    }
    ledger.close("offsets", 1000);
}

#[test]
fn the_reference_agrees_with_its_oracle() {
    let mut ledger = Ledger::default();
    for shape in [Shape::nchw(3, 4, 5, 7).unwrap(), Shape::nc(100, 5).unwrap()] {
        let p = Problem::<f64>::random(shape, 2);
        let (mean, var) = reference::statistics(shape, &p.x);
        let (gamma, beta) = (p.gamma_f64(), p.beta_f64());
        let y = reference::normalize(shape, &p.x, (&mean, &var), p.eps, &gamma, &beta);
        let (dx, dgamma, dbeta) = reference::backward(shape, &p.x, &p.dy, (&mean, &var), p.eps, &gamma);
        let m = shape.values_per_channel() as f64;
        let statistics = Statistics::from_parts(m, mean.clone(), var.clone()).unwrap();
        let gx = dgamma.iter().zip(&var).map(|(d, v)| d / reference::inv_std(*v, p.eps)).collect();
        let sums = GradientSums::from_parts(dbeta.clone(), gx).unwrap();
        let out = Outputs { statistics, sums, y, dx, dgamma, dbeta };
        let exact: Vec<(Double, Double)> = oracle::statistics(shape, &p.x);
        oracle::check_forward(&mut ledger, &p, &exact, &out, &shape);
        oracle::check_gradients(&mut ledger, &p, (&mean, &var), Some(m), &out, &shape);
    }
    ledger.close("reference", 1000);
}

/// For a logistic s near 1, 1 − s had lost its bits, and exp(−z) was Inf although SiLU was not yet 0.
#[test]
fn the_reference_of_silu_far_from_zero() {
    let z = 36.75;
    let exact = 1.0 + (z - 1.0) * f64::exp(-z); // without terms of z·exp(−2z)
    assert!((reference::activation_gradient(Activation::Silu, z, 1.0) - exact).abs() <= f64::EPSILON);
    let z = -720.0;
    let exact = z * f64::exp(z);
    assert!((reference::activate(Activation::Silu, z) - exact).abs() <= -z * f64::SMALLEST_SUBNORMAL);
}

#[test]
fn each_gradient_is_optional() {
    fn check(p: &Problem<f32>, plan: &BatchNorm, source: Source<'_>) {
        let run = |wanted| {
            let (_, dx, dgamma, dbeta) = backward(plan, p, source, Way::Fused, wanted, 0);
            [dx, dgamma, dbeta]
        };
        let all = run([true; 3]);
        for which in 0..7 {
            let wanted = [1, 2, 4].map(|bit| which & bit != 0);
            for ((one, all), wanted) in run(wanted).iter().zip(&all).zip(wanted) {
                let untouched = one.iter().all(|v| v.is_nan());
                assert!(if wanted { same(one, all) } else { untouched }, "{which:#b} {plan:?}");
            }
        }
    }
    for shape in [Shape::ncl(4, 3, 33).unwrap(), Shape::nc(33, 19).unwrap()] {
        let p = Problem::<f32>::random(shape, 3);
        let mut statistics = Statistics::new(shape.channels());
        p.plan().statistics(&p.x, &mut statistics).unwrap();
        every_isa(|isa| {
            let plan = p.plan().isa(isa).unwrap();
            check(&p, &plan, (&statistics).into());
            check(&p, &plan, (&p.running()).into());
        });
    }
}

#[test]
fn absent_gamma_and_beta_are_one_and_zero() {
    for shape in [Shape::ncl(4, 3, 33).unwrap(), Shape::nc(33, 19).unwrap()] {
        let absent = Problem { gamma: None, beta: None, ..Problem::<f32>::random(shape, 4) };
        let channels = shape.channels();
        let given = Problem { gamma: Some(vec![1.0; channels]), beta: Some(vec![0.0; channels]), ..absent.clone() };
        let run = |p: &Problem<f32>| train(&p.plan(), p, Way::Fused, 0);
        assert_same_bits(&run(&given), &run(&absent), &shape);
    }
}

#[test]
fn frozen_input_gradient_does_not_read_x() {
    for shape in [Shape::ncl(4, 3, 33).unwrap(), Shape::nc(33, 19).unwrap()] {
        let p = Problem::<f32>::random(shape, 5);
        let dx = |x: &[f32]| {
            let mut dx = vec![f32::NAN; shape.len()];
            let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
            p.plan().backward(x, &p.dy, &p.running(), p.affine(), gradients).unwrap();
            dx
        };
        assert!(same(&dx(&p.x), &dx(&vec![f32::NAN; shape.len()])));
    }
}

#[test]
fn parts_of_a_batch_merge_to_the_whole() {
    let (parts, channels, inner) = (5, 3, 37);
    let whole = Problem::<f32>::random(Shape::ncl(parts, channels, inner).unwrap(), 6);
    let one = BatchNorm::new(Shape::ncl(1, channels, inner).unwrap());
    let part = |k: usize| k * channels * inner..(k + 1) * channels * inner;

    let mut merged = Statistics::new(channels);
    for k in 0..parts {
        let mut statistics = Statistics::new(channels);
        one.statistics(&whole.x[part(k)], &mut statistics).unwrap();
        merged.merge(&statistics).unwrap();
    }
    let mut sums = GradientSums::new(channels);
    for k in 0..parts {
        let mut own = GradientSums::new(channels);
        one.gradient_sums(&whole.x[part(k)], &whole.dy[part(k)], &merged, Affine::default(), &mut own).unwrap();
        sums.merge(&own).unwrap();
    }
    let (mut y, mut dx) = (vec![f32::NAN; whole.x.len()], vec![f32::NAN; whole.x.len()]);
    let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
    for k in 0..parts {
        let (x, dy) = (&whole.x[part(k)], &whole.dy[part(k)]);
        one.normalize(x, &merged, whole.affine(), &mut y[part(k)]).unwrap();
        one.input_gradient(x, dy, &merged, &sums, whole.affine(), &mut dx[part(k)]).unwrap();
    }
    one.parameter_gradients(&merged, &sums, Some(&mut dgamma), Some(&mut dbeta)).unwrap();
    let mut ledger = Ledger::default();
    let out = Outputs { statistics: merged, sums, y, dx, dgamma, dbeta };
    compare(&mut ledger, &whole, None, &out, &"merged");
    ledger.close("merged", 1000);
}

/// Random shapes and settings, by a fixed number of seeds. Fuzzing tries others in each run.
#[test]
fn random_shapes() {
    fn check<T: Float>(ledger: &mut Ledger, shape: Shape, seed: u64, random: &mut Random) {
        let mut p = Problem::<T>::random(shape, seed);
        p.gamma = p.gamma.filter(|_| random.below(2) == 0);
        p.beta = p.beta.filter(|_| random.below(2) == 0);
        let isa = Isa::available()[random.below(Isa::available().len())];
        let (way, offset) = (WAYS[random.below(WAYS.len())], random.below(16));
        let context: &dyn Debug = &("seed", seed, shape, isa, way, offset);
        let (plan, running) = (p.plan().isa(isa).unwrap(), p.running());
        compare(ledger, &p, None, &train(&plan, &p, way, offset), context);
        compare(ledger, &p, Some(&running), &train_frozen(&plan, &p, &running, way, offset), context);
    }
    let mut ledger = Ledger::default();
    for seed in 0..300 {
        let mut random = Random(seed);
        let (outer, channels) = (1 + random.below(39), 1 + random.below(39));
        let inner = if random.below(2) == 0 { 1 } else { 1 + random.below(299) };
        let shape = Shape::new(outer, channels, inner).unwrap();
        check::<f32>(&mut ledger, shape, seed, &mut random);
        check::<f64>(&mut ledger, shape, seed, &mut random);
    }
    ledger.close("random shapes", 1_000_000);
}
