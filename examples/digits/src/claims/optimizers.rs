//! Four optimizers that treat W, gamma and beta alike.

use super::{Context, Finding, Measure, Spread, Unit, Verdict, best_rate, series};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure};
use crate::network::{Design, Network, Role};
use crate::optimizers::Rule;
use crate::training::{Trace, Training};

pub(super) fn check(context: &Context) -> Result<Finding> {
    let rules = [
        (Rule::GradientDescent, [0.03, 0.1, 0.3, 1.0], Colour::Blue),
        (Rule::MOMENTUM, [0.03, 0.1, 0.3, 1.0], Colour::Vermilion),
        (Rule::RMS_PROP, [0.0003, 0.001, 0.003, 0.01], Colour::Green),
        (Rule::ADAM, [0.0003, 0.001, 0.003, 0.01], Colour::Purple),
    ];
    let seeds = context.seeds(5, 2);
    let (mut measures, mut texts, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    let (mut good, mut moved_all) = (0, true);
    for (rule, rates, colour) in rules {
        let training = Training { rule, epochs: context.effort(30, 10), ..Training::default() };
        let mut finals = Vec::new();
        for (design, label) in [(Design::default(), "with normalization"), (Design::default().plain(), "without")] {
            let rate = best_rate(context, &design, &training, &rates)?;
            let runs = context.parallel(&seeds, |&seed| {
                let (mut network, training) =
                    (Network::new(&design, seed), Training { rate, seed, ..training.clone() });
                let start: Vec<Vec<f32>> = network.parameters().map(|parameter| parameter.value.clone()).collect();
                let trace = Trace::of(&training, &mut network, &context.split(seed))?;
                Ok((trace, moved(&mut network, &start)))
            })?;
            let (traces, moves): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
            let accuracy = Spread::of(traces.iter().map(Trace::last_accuracy)).mean;
            finals.push(accuracy);
            let name = rule.name();
            measures.push(Measure::new(format!("best learning rate, {name}, {label}"), f64::from(rate), Unit::Number));
            measures.push(Measure::new(format!("accuracy, {name}, {label}"), accuracy, Unit::Percent));
            if design.norm.is_some() {
                let epoch = |_: &Trace, epoch: usize| (epoch + 1) as f64;
                lines.push(series(name, colour, &traces, epoch, |trace| &trace.loss));
                good += usize::from(accuracy >= 0.97);
                for (i, parameter) in ["W", "gamma", "beta"].into_iter().enumerate() {
                    let moved = Spread::of(moves.iter().map(|moved| moved[i])).mean;
                    moved_all &= moved > 0.0;
                    measures.push(Measure::new(
                        format!("change of {parameter} by {name}, root mean square"),
                        moved,
                        Unit::Number,
                    ));
                }
            }
        }
        texts.push(format!("{} {:.1} % ({:.1} %)", rule.name(), 100.0 * finals[0], 100.0 * finals[1]));
    }
    Ok(Finding {
        verdict: match (moved_all, good) {
            (true, 4) => Verdict::Holds,
            (true, 1..) => Verdict::Partly,
            _ => Verdict::Fails,
        },
        text: format!("accuracy with batch normalization (and without): {}", texts.join(", ")),
        measures,
        figures: vec![Figure {
            name: "optimizers",
            caption: "Each optimizer at its own best learning rate, with batch normalization. The update rules do not \
                      know about layers: W, gamma and beta are just numbers with gradients. The table lists how far \
                      each of them moved (root mean square)."
                .into(),
            chart: Chart {
                title: "Four optimizers with batch normalization",
                x: Axis::linear("epoch"),
                y: Axis::log("training loss, nats"),
                series: lines,
            },
        }],
    })
}

/// How far W, gamma and beta are from their initial values, as root mean squares.
fn moved(network: &mut Network, start: &[Vec<f32>]) -> [f64; 3] {
    let parameters: Vec<_> = network.parameters().zip(start).collect();
    [Role::Weight, Role::Gamma, Role::Beta].map(|role| {
        let chosen = parameters.iter().filter(|(parameter, _)| parameter.role == role);
        let moves = chosen.flat_map(|(parameter, start)| parameter.value.iter().zip(*start));
        let squares: Vec<f64> = moves.map(|(end, start)| f64::from(end - start).powi(2)).collect();
        if squares.is_empty() { 0.0 } else { Spread::of(squares).mean.sqrt() }
    })
}
