//! A bias added before batch normalization is subtracted again with the mean.

use super::{Context, Finding, Measure, Unit, Verdict, series};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure, Series, Style};
use crate::network::{Design, Network, Role};
use crate::optimizers::Rule;
use crate::training::{Trace, Training};

pub(super) fn check(context: &Context) -> Result<Finding> {
    let split = context.split(context.seed);
    let training = Training {
        rule: Rule::MOMENTUM,
        rate: 0.1,
        epochs: context.effort(30, 10),
        seed: context.seed,
        ..Training::default()
    };
    // Both networks start from the same weights: a bias starts at 0 and uses no random number.
    let design = |bias: bool| Design { bias, ..Design::default() };
    let traces = context.parallel(&[true, false], |&bias| {
        Trace::of(&training, &mut Network::new(&design(bias), context.seed), &split)
    })?;
    let largest = context.each(&[()], |()| {
        let (mut bias, mut beta) = (0.0f32, 0.0f32);
        training.run(&mut Network::new(&design(true), context.seed), &split.train, |_, network| {
            let largest = |role: Role, network: &mut Network| {
                let gradients = network.parameters().filter(|parameter| parameter.role == role);
                gradients.flat_map(|parameter| &parameter.gradient).fold(0.0, |max: f32, g| max.max(g.abs()))
            };
            bias = bias.max(largest(Role::Bias, network));
            beta = beta.max(largest(Role::Beta, network));
            Ok(())
        })?;
        Ok((f64::from(bias), f64::from(beta)))
    })?;
    let (bias, beta) = largest[0];
    let apart = |y: fn(&Trace) -> &[f64]| {
        y(&traces[0]).iter().zip(y(&traces[1])).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let (loss_apart, accuracy_apart) = (apart(|trace| &trace.loss), apart(|trace| &trace.accuracy));
    let epoch = |_: &Trace, epoch: usize| (epoch + 1) as f64;
    // The gradient is a sum over the batch, whose terms cancel except for one rounding error each.
    let rounding = training.batch as f64 * f64::from(f32::EPSILON);
    Ok(Finding {
        verdict: match (bias <= rounding * beta, loss_apart < 1e-3) {
            (true, true) => Verdict::Holds,
            (false, false) => Verdict::Fails,
            _ => Verdict::Partly,
        },
        text: format!(
            "the largest gradient of a bias in training is {:.0e} times that of beta; the training losses with and \
             without a bias differ by at most {loss_apart:.0e}",
            bias / beta
        ),
        measures: vec![
            Measure::new("largest gradient of a bias before batch normalization", bias, Unit::Number),
            Measure::new("largest gradient of beta", beta, Unit::Number),
            Measure::new("largest difference between the training losses", loss_apart, Unit::Number),
            Measure::new("largest difference between the accuracies", accuracy_apart, Unit::Percent),
        ],
        figures: vec![Figure {
            name: "bias",
            caption: "Training loss from the same initial weights with and without biases before batch normalization."
                .into(),
            chart: Chart {
                title: "Training loss with and without the redundant bias",
                x: Axis::linear("epoch"),
                y: Axis::log("training loss, nats"),
                series: vec![
                    series("without bias", Colour::Blue, &traces[1..], epoch, |trace| &trace.loss),
                    Series {
                        style: Style::Points,
                        ..series("with bias", Colour::Vermilion, &traces[..1], epoch, |trace| &trace.loss)
                    },
                ],
            },
        }],
    })
}
