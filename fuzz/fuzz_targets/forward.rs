//! Statistics, the training pass and inference: against the reference, and the same bits however they are run.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{BatchNorm, RunningStatistics, Source, Statistics, reference};
use batchnorm_fuzz::{Case, Channel, Data, Float, Place, Value, baseline, channels, same, widen, within};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    place: Place,
    /// Mean and variance at test time.
    running: [(Value, Value); 3],
}

fuzz_target!(|input: Input| if input.case.double { run::<f64>(&input) } else { run::<f32>(&input) });

fn run<E: Float>(input: &Input) {
    let data = input.case.data::<E>();
    let plan = baseline(data.shape, data.eps);
    let x = widen(&data.x);
    let exact = channels::<E>(data.shape, &x);

    let (y, statistics) = train(&plan, &data);
    check_statistics::<E>(&exact, &statistics);
    let of_batch = (exact.iter().map(|c| c.mean).collect::<Vec<_>>(), exact.iter().map(|c| c.var).collect::<Vec<_>>());
    check_y(&data, &x, &exact, (&of_batch.0, &of_batch.1), &y);
    check_neighbours(&plan, &data, &exact, &y, &statistics);

    let (mean, var) = (0..data.shape.channels()).map(|c| input.running[c % 3]).unzip();
    let [mean, var]: [Vec<f64>; 2] = [mean, var].map(|v: Vec<Value>| v.iter().map(|v| v.finite::<f64>()).collect());
    let var: Vec<f64> = var.iter().map(|v| v.abs()).collect();
    let running = RunningStatistics::from_parts(mean.clone(), var.clone(), 1).expect("equal lengths");
    let inferred = normalize(&plan, &data, &running);
    let given: Vec<Channel> =
        exact.iter().zip(mean.iter().zip(&var)).map(|(c, (&mean, &var))| c.given::<E>(mean, var, data.eps)).collect();
    check_y(&data, &x, &given, (&mean, &var), &inferred);

    input.place.each_isa(&plan, |plan, isa| {
        let mut own = Statistics::new(data.shape.channels());
        let source = input.place.buffer(&data.x);
        let mut out = input.place.buffer(&vec![E::of(f64::NAN); data.x.len()]);
        match (input.place.halves, input.place.in_place) {
            (false, false) => plan.forward_training(&source, data.affine(), &mut out, &mut own),
            (false, true) => {
                out.copy_from_slice(&source);
                plan.forward_training_in_place(&mut out, data.affine(), &mut own)
            }
            (true, false) => plan
                .statistics::<E>(&source, &mut own)
                .and_then(|()| plan.normalize::<E>(&source, &own, data.affine(), &mut out)),
            (true, true) => {
                out.copy_from_slice(&source);
                plan.statistics::<E>(&out, &mut own)
                    .and_then(|()| plan.normalize_in_place::<E>(&mut out, &own, data.affine()))
            }
        }
        .expect("valid arguments");
        same("y", isa, &y, &out);
        same("mean", isa, statistics.mean(), own.mean());
        same("var", isa, statistics.var(), own.var());
        same("y at test time", isa, &inferred, &normalize(plan, &data, &running));
    });
}

fn train<E: Float>(plan: &BatchNorm, data: &Data<E>) -> (Vec<E>, Statistics) {
    let mut y = vec![E::of(f64::NAN); data.x.len()];
    let mut statistics = Statistics::new(data.shape.channels());
    plan.forward_training(&data.x, data.affine(), &mut y, &mut statistics).expect("valid arguments");
    (y, statistics)
}

fn normalize<'s, E: Float>(plan: &BatchNorm, data: &Data<E>, source: impl Into<Source<'s>>) -> Vec<E> {
    let mut y = vec![E::of(f64::NAN); data.x.len()];
    match plan.normalize(&data.x, source, data.affine(), &mut y) {
        Ok(()) => y,
        Err(error) => panic!("{error}"),
    }
}

fn check_statistics<E: Float>(exact: &[Channel], actual: &Statistics) {
    for (c, exact) in exact.iter().enumerate() {
        let (mean, var) = (actual.mean()[c], actual.var()[c]);
        if exact.constant {
            assert_eq!((mean, var), (exact.mean, 0.0), "mean and var of constant channel {c}");
        } else if exact.promised {
            within("mean", c, exact, exact.mean, mean, exact.mean_bound::<E>());
            within("var", c, exact, exact.var, var, exact.var_bound::<E>());
        } else if !exact.finite {
            assert!(var.is_nan(), "var of channel {c} with NaN or Inf is {var}");
        }
    }
}

/// y with the given mean and variance.
fn check_y<E: Float>(data: &Data<E>, x: &[f64], channels: &[Channel], (mean, var): (&[f64], &[f64]), y: &[E]) {
    let (gamma, beta) = data.params();
    let expected = reference::normalize(data.shape, x, (mean, var), data.eps, &gamma, &beta);
    for (c, channel) in channels.iter().enumerate() {
        let (gamma, beta) = (gamma[c], beta[c]);
        let inv_std = reference::inv_std(var[c], data.eps);
        // A scale is two factors in lanes.
        let held = (gamma * inv_std).abs() <= E::LARGEST_SCALE;
        let promised = channel.promised && held;
        for k in reference::indices(data.shape, c) {
            let (normalized, y) = ((x[k] - mean[c]) * inv_std, y[k].f64());
            let bound = channel.y_bound::<E>(gamma, beta, normalized);
            let scaled = (gamma * normalized).abs() * if gamma.abs() < E::MIN_NORMAL { 2.0 } else { 1.0 };
            let fits = scaled + beta.abs() + bound <= E::MAX;
            if channel.constant && x[k] == mean[c] {
                assert_eq!(y, beta, "y[{k}] of constant channel {c} of {x}", x = x[k]);
            } else if !channel.finite {
                assert!(y.is_nan(), "y[{k}] of channel {c} with NaN or Inf is {y}");
            } else if promised && x[k].is_finite() && fits {
                within("y", k, channel, expected[k], y, bound);
            }
        }
    }
}

/// NaN and Inf stay in their channels: the others do not change when those are taken away.
fn check_neighbours<E: Float>(plan: &BatchNorm, data: &Data<E>, exact: &[Channel], y: &[E], statistics: &Statistics) {
    if exact.iter().all(|c| c.finite) {
        return;
    }
    let mut healed = data.x.clone();
    for (c, _) in exact.iter().enumerate().filter(|(_, channel)| !channel.finite) {
        reference::indices(data.shape, c).for_each(|k| healed[k] = E::of(0.0));
    }
    let (mut healed_y, mut healed_statistics) = (y.to_vec(), statistics.clone());
    plan.forward_training(&healed, data.affine(), &mut healed_y, &mut healed_statistics).expect("valid arguments");
    for (c, _) in exact.iter().enumerate().filter(|(_, channel)| channel.finite) {
        let numbers = |s: &Statistics| (s.mean()[c].bits(), s.var()[c].bits());
        assert_eq!(numbers(statistics), numbers(&healed_statistics), "statistics of channel {c} beside NaN or Inf");
        for k in reference::indices(data.shape, c) {
            assert_eq!(y[k].bits(), healed_y[k].bits(), "y[{k}] in channel {c} beside NaN or Inf");
        }
    }
}
