//! The accuracy and the training time of one network, with and without batch normalization.

use super::{Context, Finding, Measure, Spread, Unit, Verdict};
use crate::Result;
use crate::network::{Backend, Design, Network};
use crate::training::{Score, Training, score};
use std::time::{Duration, Instant};

struct Run {
    test: Score,
    total: f64,
    norm: f64,
    passes: usize,
}

pub(super) fn check(context: &Context) -> Result<Finding> {
    let seeds = context.seeds(5, 3);
    let kernels = Design::default();
    let reference = Design { backend: Backend::Reference, ..kernels.clone() };
    let runs = |design: Design| {
        context.each(&seeds, |&seed| {
            let split = context.split(seed);
            let mut network = Network::new(&design, seed);
            let start = Instant::now();
            Training { seed, ..Training::default() }.run(&mut network, &split.train, |_, _| Ok(()))?;
            let test = score(&mut network, &split.test)?;
            Ok(Run {
                test,
                total: start.elapsed().as_secs_f64(),
                norm: network.norms().map(|norm| norm.time).sum::<Duration>().as_secs_f64(),
                passes: network.norms().map(|norm| norm.passes).sum(),
            })
        })
    };
    let (plain, with, reference) = (runs(kernels.clone().plain())?, runs(kernels)?, runs(reference)?);
    let mean = |runs: &[Run], value: fn(&Run) -> f64| Spread::of(runs.iter().map(value)).mean;
    let accuracy = |runs: &[Run]| mean(runs, |run| run.test.accuracy);
    let (norm, norm_reference) = (mean(&with, |run| run.norm), mean(&reference, |run| run.norm));
    let measures = vec![
        Measure::new("held-out accuracy with batch normalization", accuracy(&with), Unit::Percent),
        Measure::new("held-out accuracy without batch normalization", accuracy(&plain), Unit::Percent),
        Measure::new("held-out accuracy with `reference` instead of the kernels", accuracy(&reference), Unit::Percent),
        Measure::new("held-out loss with batch normalization", mean(&with, |run| run.test.loss), Unit::Number),
        Measure::new("held-out loss without batch normalization", mean(&plain, |run| run.test.loss), Unit::Number),
        Measure::new("time of one training run with batch normalization", mean(&with, |run| run.total), Unit::Seconds),
        Measure::new(
            "time of one training run without batch normalization",
            mean(&plain, |run| run.total),
            Unit::Seconds,
        ),
        Measure::new("passes of batch normalization in one training run", with[0].passes as f64, Unit::Number),
        Measure::new("time of these passes with the kernels", norm, Unit::Seconds),
        Measure::new("time of these passes with `reference`", norm_reference, Unit::Seconds),
    ];
    let better = accuracy(&with) > accuracy(&plain);
    Ok(Finding {
        verdict: if accuracy(&with) >= 0.97 && better { Verdict::Holds } else { Verdict::Fails },
        text: format!(
            "{:.1} % of the held-out digits are classified correctly with batch normalization and {:.1} % without; its \
             passes take {:.1} ms of a training run of {:.0} ms, and {:.0} times as long with `reference` instead of \
             the kernels",
            100.0 * accuracy(&with),
            100.0 * accuracy(&plain),
            1000.0 * norm,
            1000.0 * mean(&with, |run| run.total),
            norm_reference / norm,
        ),
        measures,
        figures: Vec::new(),
    })
}
