//! Statistics, the training pass and inference: compared with the reference, and with the same bits however they are
//! run.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{RunningStatistics, Source, Statistics, reference};
use batchnorm_fuzz::{Case, Channel, Place, Scalar, baseline, channels};
use batchnorm_testing::{Float, Ledger, Problem, Value, Way, assert_same, forward, normalize, to_f64};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    place: Place,
    /// Mean and variance for inference.
    running: [(Scalar, Scalar); 3],
}

fuzz_target!(|input: Input| if input.case.double { run::<f64>(&input) } else { run::<f32>(&input) });

fn run<E: Float>(input: &Input) {
    let p = input.case.problem::<E>();
    let plan = baseline(p.shape, p.eps);
    let exact = channels(p.shape, &p.x);
    let mut ledger = Ledger::default();

    let (y, statistics) = forward(&plan, &p, Way::Fused, 0);
    check_statistics::<E>(&mut ledger, &exact, &statistics);
    let (mean, var) = exact.iter().map(|c| (c.mean, c.var)).unzip::<_, _, Vec<_>, Vec<_>>();
    check_y(&mut ledger, &p, &exact, (&mean, &var), &y);
    if exact.iter().any(|c| !c.finite) {
        check_neighbours(&p, &exact, &y, &statistics);
    }

    let given = (0..p.shape.channels()).map(|c| input.running[c % 3]);
    let (mean, var): (Vec<f64>, Vec<f64>) =
        given.map(|(mean, var)| (mean.finite::<f64>(), var.finite::<f64>().abs())).unzip();
    let running = RunningStatistics::from_parts(mean.clone(), var.clone(), 1).expect("equal lengths");
    let inferred = normalize(&plan, &p, Source::from(&running), Way::Fused, 0);
    let given = exact.iter().zip(mean.iter().zip(&var)).map(|(c, (&mean, &var))| c.given::<E>(mean, var, p.eps));
    check_y(&mut ledger, &p, &given.collect::<Vec<_>>(), (&mean, &var), &inferred);
    ledger.close_silently();

    let (way, offset) = (input.place.way(), input.place.offset());
    input.place.each_isa(&plan, |plan, isa| {
        let (own_y, own) = forward(plan, &p, way, offset);
        assert_same("y", &y, &own_y, &isa);
        assert_same("mean", statistics.mean(), own.mean(), &isa);
        assert_same("var", statistics.var(), own.var(), &isa);
        let own = normalize(plan, &p, Source::from(&running), way, offset);
        assert_same("y of inference", &inferred, &own, &isa);
    });
}

fn check_statistics<E: Float>(ledger: &mut Ledger, exact: &[Channel], actual: &Statistics) {
    for (c, exact) in exact.iter().enumerate() {
        let (mean, var) = (actual.mean()[c], actual.var()[c]);
        if exact.constant {
            assert_eq!((mean, var), (exact.mean, 0.0), "mean and var of constant channel {c}");
        } else if exact.promised {
            ledger.note::<E>("mean", (mean - exact.mean).abs(), exact.mean_bound::<E>(), exact);
            ledger.note::<E>("var", (var - exact.var).abs(), exact.var_bound::<E>(), exact);
        } else if !exact.finite {
            assert!(var.is_nan(), "var of channel {c} with NaN or Inf is {var}");
        }
    }
}

/// Checks y for the given mean and variance.
fn check_y<E: Float>(
    ledger: &mut Ledger,
    p: &Problem<E>,
    channels: &[Channel],
    (mean, var): (&[f64], &[f64]),
    y: &[E],
) {
    let (x, gamma, beta) = (to_f64(&p.x), p.gamma_f64(), p.beta_f64());
    let expected = reference::normalize(p.shape, &x, (mean, var), p.eps, &gamma, &beta);
    // In lanes a scale is two factors.
    let largest_scale = E::LARGEST * (E::LARGEST_FACTOR / 64.0);
    for (c, channel) in channels.iter().enumerate() {
        let (gamma, beta) = (gamma[c], beta[c]);
        let inv_std = reference::inv_std(var[c], p.eps);
        let promised = channel.promised && (gamma * inv_std).abs() <= largest_scale;
        for k in reference::indices(p.shape, c) {
            let (normalized, y) = ((x[k] - mean[c]) * inv_std, y[k].to_f64());
            let bound = channel.y_bound::<E>(gamma, beta, normalized);
            let scaled = (gamma * normalized).abs() * if gamma.abs() < E::SMALLEST_NORMAL { 2.0 } else { 1.0 };
            let fits = scaled + beta.abs() + bound <= E::LARGEST;
            if channel.constant && x[k] == mean[c] {
                assert_eq!(y, beta, "y[{k}] of constant channel {c} of {x}", x = x[k]);
            } else if !channel.finite {
                assert!(y.is_nan(), "y[{k}] of channel {c} with NaN or Inf is {y}");
            } else if promised && x[k].is_finite() && fits {
                ledger.note::<E>("y", (y - expected[k]).abs(), bound, &(k, x[k], gamma, beta, channel));
            }
        }
    }
}

/// NaN and Inf stay in their channels: the other channels have the same bits without them.
fn check_neighbours<E: Float>(p: &Problem<E>, exact: &[Channel], y: &[E], statistics: &Statistics) {
    let mut healed = p.clone();
    for (c, _) in exact.iter().enumerate().filter(|(_, channel)| !channel.finite) {
        reference::indices(p.shape, c).for_each(|k| healed.x[k] = E::of(0.0));
    }
    let (healed_y, healed_statistics) = forward(&baseline(p.shape, p.eps), &healed, Way::Fused, 0);
    for (c, _) in exact.iter().enumerate().filter(|(_, channel)| channel.finite) {
        let numbers = |s: &Statistics| (s.mean()[c].bits(), s.var()[c].bits());
        assert_eq!(numbers(statistics), numbers(&healed_statistics), "statistics of channel {c} next to NaN or Inf");
        for k in reference::indices(p.shape, c) {
            assert_eq!(y[k].bits(), healed_y[k].bits(), "y[{k}] in channel {c} next to NaN or Inf");
        }
    }
}
