//! Accuracy for initial weights over five orders of magnitude.

use super::{Context, Finding, Measure, Spread, Unit, Verdict};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure, Series, Style};
use crate::network::{Design, Network};
use crate::optimizers::Rule;
use crate::training::{Training, score};

/// The accuracy from which a network counts as trained.
const GOOD: f64 = 0.9;

pub(super) fn check(context: &Context) -> Result<Finding> {
    let exponents: Vec<i32> = context.effort((-6..=4).collect(), (-3..=2).map(|e| 2 * e).collect());
    let scales: Vec<f64> = exponents.iter().map(|&e| 10f64.powf(f64::from(e) / 2.0)).collect();
    let training =
        Training { rule: Rule::GradientDescent, rate: 0.1, epochs: context.effort(30, 15), ..Training::default() };
    let seeds = context.seeds(4, 2);
    let accuracy = |design: Design| {
        context.parallel(&scales, |&scale| {
            let design = Design { initial_scale: scale as f32, ..design.clone() };
            let accuracies = seeds.iter().map(|&seed| {
                let (split, mut network) = (context.split(seed), Network::new(&design, seed));
                Training { seed, ..training.clone() }.run(&mut network, &split.train, |_, _| Ok(()))?;
                Ok(score(&mut network, &split.test)?.accuracy)
            });
            Ok(Spread::of(accuracies.collect::<Result<Vec<_>>>()?))
        })
    };
    let (with, plain) = (accuracy(Design::default())?, accuracy(Design::default().plain())?);
    let good = |spreads: &[Spread]| spreads.iter().filter(|spread| spread.mean >= GOOD).count();
    let worst = |spreads: &[Spread]| Spread::of(spreads.iter().map(|spread| spread.mean)).low;
    let line = |label: &str, colour, spreads: &[Spread]| {
        let points = spreads.iter().zip(&scales).map(|(spread, &scale)| spread.at(scale)).collect();
        Series { label: label.into(), colour, points, style: Style::Marked }.percent()
    };
    Ok(Finding {
        verdict: match (good(&with), good(&plain)) {
            (with, _) if with == scales.len() => Verdict::Holds,
            (with, plain) if with > plain => Verdict::Partly,
            _ => Verdict::Fails,
        },
        text: format!(
            "of {} scales from 0.001 to 100, {} lead to at least {:.0} % accuracy with batch normalization and {} \
             without; the worst accuracy is {:.0} % with it and {:.0} % without",
            scales.len(),
            good(&with),
            100.0 * GOOD,
            good(&plain),
            100.0 * worst(&with),
            100.0 * worst(&plain),
        ),
        measures: vec![
            Measure::new("worst accuracy over the scales, with normalization", worst(&with), Unit::Percent),
            Measure::new("worst accuracy over the scales, without", worst(&plain), Unit::Percent),
            Measure::new("scales that train, with normalization", good(&with) as f64, Unit::Number),
            Measure::new("scales that train, without", good(&plain) as f64, Unit::Number),
        ],
        figures: vec![Figure {
            name: "initial-weights",
            caption: format!(
                "Accuracy after {} epochs of gradient descent at learning rate {}, from initial weights with standard \
                 deviation scale · sqrt(2 / inputs) in all three layers. Without batch normalization only scales near \
                 1 train. With it, small weights make no difference. Large weights still cost accuracy: a step then \
                 changes the direction of the weights only a little, and the last layer, which is not normalized, \
                 starts with huge logits.",
                training.epochs, training.rate,
            ),
            chart: Chart {
                title: "Accuracy over the scale of the initial weights",
                x: Axis::log("scale of the initial weights"),
                y: Axis::range("held-out accuracy, %", 0.0, 100.0),
                series: vec![
                    line("with normalization", Colour::Blue, &with),
                    line("without", Colour::Vermilion, &plain),
                ],
            },
        }],
    })
}
