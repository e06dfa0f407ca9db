//! The same network with and without batch normalization, each at its own best learning rate.

use super::{Context, Finding, Measure, Spread, Unit, Verdict, best_rate, series};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure, Series};
use crate::network::{Activation, Design, Network};
use crate::optimizers::Rule;
use crate::training::{Trace, Training};

/// The accuracy to reach.
const GOAL: f64 = 0.95;

pub(super) fn check(context: &Context) -> Result<Finding> {
    // The network in section 4.1 of the paper (Ioffe and Szegedy, 2015) has three hidden layers of 100 sigmoid units;
    // today ReLU is more common.
    let hidden = vec![100; 3];
    let training = Training { rule: Rule::GradientDescent, epochs: context.effort(40, 25), ..Training::default() };
    let (mut measures, mut faster) = (Vec::new(), Vec::new());
    let [mut loss, mut accuracy]: [Vec<Series>; 2] = Default::default();
    for (activation, name, colours) in [
        (Activation::Relu, "ReLU", [Colour::Blue, Colour::Vermilion]),
        (Activation::Sigmoid, "sigmoid", [Colour::Sky, Colour::Orange]),
    ] {
        let with = Design { hidden: hidden.clone(), activation, ..Design::default() };
        let plain = with.clone().plain();
        let mut goals = Vec::new();
        for (design, label, colour) in [(with, "with normalization", colours[0]), (plain, "without", colours[1])] {
            let rate = best_rate(context, &design, &training, &[0.03, 0.1, 0.3, 1.0, 3.0])?;
            let traces = context.each(&context.seeds(5, 3), |&seed| {
                let training = Training { rate, seed, ..training.clone() };
                Trace::of(&training, &mut Network::new(&design, seed), &context.split(seed))
            })?;
            let label = format!("{name}, {label}");
            let step = |trace: &Trace, epoch: usize| trace.steps[epoch] as f64;
            loss.push(series(label.as_str(), colour, &traces, step, |trace| &trace.loss));
            let second = |trace: &Trace, epoch: usize| trace.seconds[epoch];
            accuracy.push(series(label.as_str(), colour, &traces, second, |trace| &trace.accuracy).percent());
            // A training run that does not reach the goal counts with its full length.
            let last = training.epochs - 1;
            let reached: Vec<usize> = traces.iter().map(|trace| trace.first_at(GOAL).unwrap_or(last)).collect();
            let mean = |x: fn(&Trace, usize) -> f64| {
                Spread::of(traces.iter().zip(&reached).map(|(trace, &epoch)| x(trace, epoch))).mean
            };
            let steps = mean(|trace, epoch| trace.steps[epoch] as f64);
            measures.extend([
                Measure::new(format!("best learning rate, {label}"), f64::from(rate), Unit::Number),
                Measure::new(format!("steps to {:.0} % accuracy, {label}", 100.0 * GOAL), steps, Unit::Steps),
                Measure::new(
                    format!("time to {:.0} % accuracy, {label}", 100.0 * GOAL),
                    mean(|trace, epoch| trace.seconds[epoch]),
                    Unit::Seconds,
                ),
                Measure::new(
                    format!("final accuracy, {label}"),
                    Spread::of(traces.iter().map(Trace::last_accuracy)).mean,
                    Unit::Percent,
                ),
            ]);
            goals.push(steps);
        }
        faster.push((name, goals[0], goals[1]));
    }
    let texts: Vec<_> =
        faster.iter().map(|(name, with, plain)| format!("{with:.0} and {plain:.0} for {name}")).collect();
    Ok(Finding {
        verdict: match faster.iter().filter(|(_, with, plain)| with < plain).count() {
            2 => Verdict::Holds,
            1 => Verdict::Partly,
            _ => Verdict::Fails,
        },
        text: format!(
            "steps to {:.0} % accuracy with and without batch normalization, each at its best learning rate: {}",
            100.0 * GOAL,
            texts.join(", ")
        ),
        measures,
        figures: vec![
            Figure {
                name: "speed-loss",
                caption: "Training loss of networks with three hidden layers of 100 units, with and without batch \
                          normalization between each linear layer and its activation, trained by gradient descent \
                          at the best learning rate for each network."
                    .into(),
                chart: Chart {
                    title: "Training loss, with and without batch normalization",
                    x: Axis::linear("step"),
                    y: Axis::log("training loss, nats"),
                    series: loss,
                },
            },
            Figure {
                name: "speed-accuracy",
                caption: "The same training runs against time: a step with batch normalization takes longer, but \
                          fewer steps are needed. (Accuracies below 70 % are drawn at 70 %.)"
                    .into(),
                chart: Chart {
                    title: "Held-out accuracy against time",
                    x: Axis::linear("training time on one core, s"),
                    y: Axis::range("held-out accuracy, %", 70.0, 100.0),
                    series: accuracy,
                },
            },
        ],
    })
}
