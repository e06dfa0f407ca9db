//! The gradients, through the statistics of the batch and with constant ones: compared with the reference, and with the
//! same bits however they are run.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{RunningStatistics, Source, Statistics, reference};
use batchnorm_fuzz::{Case, Channel, Place, Scalar, baseline, channels};
use batchnorm_testing::{BackwardOutputs, Bounds, Float, Ledger, Problem, Way, assert_same, backward, to_f64};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    place: Place,
    frozen: bool,
    /// Which gradients are wanted: dx, dgamma, dbeta.
    wanted: [bool; 3],
    /// Mean and variance that are not those of x.
    given: Option<[(Scalar, Scalar); 3]>,
}

fuzz_target!(|input: Input| if input.case.double { run::<f64>(&input) } else { run::<f32>(&input) });

fn run<E: Float>(input: &Input) {
    let p = input.case.problem::<E>();
    let plan = baseline(p.shape, p.eps);
    let mut batch = Statistics::new(p.shape.channels());
    plan.statistics(&p.x, &mut batch).expect("valid arguments");
    if let Some(given) = input.given {
        let each = |v: fn((Scalar, Scalar)) -> f64| (0..p.shape.channels()).map(|c| v(given[c % 3])).collect();
        let [mean, var] = [each(|given| given.0.finite::<f64>()), each(|given| given.1.finite::<f64>().abs())];
        batch = Statistics::from_parts(batch.count(), mean, var).expect("equal lengths");
    }
    // Running averages must not be NaN.
    let known = |v: &[f64]| v.iter().map(|&v| if v.is_nan() { 1.0 } else { v }).collect::<Vec<_>>();
    let running = RunningStatistics::from_parts(known(batch.mean()), known(batch.var()), 1).expect("equal lengths");
    let source: Source = if input.frozen { (&running).into() } else { (&batch).into() };

    let expected = backward(&plan, &p, source, Way::Fused, [true; 3], 0);
    check(&p, source, input.given.is_some(), &expected);

    let way = input.place.way();
    input.place.each_isa(&plan, |plan, isa| {
        let own = backward(plan, &p, source, way, input.wanted, input.place.offset());
        assert_same("Σg", expected.0.g(), own.0.g(), &isa);
        assert_same("Σg·(x − mean)", expected.0.gx(), own.0.gx(), &isa);
        let wanted = [way.in_place() || input.wanted[0], input.wanted[1], input.wanted[2]];
        let outputs = [(&expected.1, own.1), (&expected.2, own.2), (&expected.3, own.3)];
        for ((name, (expected, own)), wanted) in ["dx", "dgamma", "dbeta"].iter().zip(outputs).zip(wanted) {
            if wanted {
                assert_same(name, expected, &own, &isa);
            } else {
                assert!(own.iter().all(|v| v.to_f64().is_nan()), "{name} was written on {isa:?}");
            }
        }
    });
}

/// Compares gradients with the reference for the same statistics, and dx for the same sums as well, since the inputs of
/// a pass count as exact.
fn check<E: Float>(p: &Problem<E>, source: Source<'_>, given: bool, (sums, dx, dgamma, dbeta): &BackwardOutputs<E>) {
    let (x, dy, gamma, shape) = (to_f64(&p.x), to_f64(&p.dy), p.gamma_f64(), p.shape);
    let (statistics, frozen) = match &source {
        Source::Batch(s) => ((s.mean(), s.var()), false),
        Source::Running(r) => ((r.mean(), r.var()), true),
        _ => unreachable!("only statistics of f64 are made here"),
    };
    // The means of dy and dy·x̂ are those of the given sums, and nothing flows through constant statistics.
    let (mut means, mut centred) = (vec![[0.0; 2]; shape.channels()], dy.clone());
    for (c, means) in means.iter_mut().enumerate().filter(|_| !frozen) {
        let (m, inv_std) = (shape.values_per_channel() as f64, reference::inv_std(statistics.1[c], p.eps));
        *means = [sums.g()[c] / m, sums.gx()[c] / m * inv_std];
        for k in reference::indices(shape, c) {
            centred[k] -= means[0] + (x[k] - statistics.0[c]) * inv_std * means[1];
        }
    }
    let (_, dgamma_expected, dbeta_expected) = reference::backward_frozen(shape, &x, &dy, statistics, p.eps, &gamma);
    let (dx_expected, ..) = reference::backward_frozen(shape, &x, &centred, statistics, p.eps, &gamma);
    let mut ledger = Ledger::default();
    for (c, channel) in channels(shape, &p.x).iter().enumerate() {
        let (mean, var) = (statistics.0[c], statistics.1[c]);
        let channel = &if given { channel.given::<E>(mean, var, p.eps) } else { Channel { mean, var, ..*channel } };
        let factors = channel.factors::<E>();
        let bounds = Bounds::new::<E>(factors, var, p.eps, (gamma[c], 0.0), given);
        let of_sums = bounds.sums::<E>(reference::indices(shape, c).map(|k| (dy[k], x[k] - mean)));
        let Some([of_dbeta, of_dgamma]) = of_sums.filter(|_| channel.promised) else {
            continue;
        };
        let context = &(c, gamma[c], channel);
        ledger.note::<E>("dbeta", (dbeta[c].to_f64() - dbeta_expected[c]).abs(), of_dbeta, context);
        ledger.note::<E>("dgamma", (dgamma[c].to_f64() - dgamma_expected[c]).abs(), of_dgamma, context);
        for k in reference::indices(shape, c) {
            if let Some(bound) = bounds.dx::<E>(dy[k], x[k] - mean, 1.0, (!frozen).then_some(means[c])) {
                ledger.compare::<E>("dx", dx_expected[k], dx[k].to_f64(), bound, &(context, k, x[k], dy[k]));
            }
        }
    }
    ledger.close_silently();
}
