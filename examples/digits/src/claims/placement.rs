//! Batch normalization before the activation, after the activation, and none.

use super::{Context, Finding, Measure, Spread, Unit, Verdict, difference, dots};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure};
use crate::network::{Activation, Design, Network, Placement};
use crate::training::{Training, score};

pub(super) fn check(context: &Context) -> Result<Finding> {
    let seeds = context.seeds(8, 3);
    let training = Training { epochs: context.effort(30, 10), ..Training::default() };
    let places = [
        (Some(Placement::BeforeActivation), "before the activation", Colour::Blue),
        (Some(Placement::AfterActivation), "after the activation", Colour::Green),
        (None, "without normalization", Colour::Vermilion),
    ];
    let kinds = [(Activation::Relu, "ReLU"), (Activation::Sigmoid, "sigmoid")];
    let (mut measures, mut columns, mut series) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (norm, place, colour)) in places.into_iter().enumerate() {
        let mut accuracies = Vec::new();
        for (activation, kind) in kinds {
            // Only a linear layer directly before a normalization can do without its bias.
            let bias = norm != Some(Placement::BeforeActivation);
            let design = Design { activation, norm, bias, ..Design::default() };
            let values = context.parallel(&seeds, |&seed| {
                let (split, mut network) = (context.split(seed), Network::new(&design, seed));
                Training { seed, ..training.clone() }.run(&mut network, &split.train, |_, _| Ok(()))?;
                Ok(score(&mut network, &split.test)?.accuracy)
            })?;
            let mean = Spread::of(values.iter().copied()).mean;
            measures.push(Measure::new(format!("accuracy, {kind}, {place}"), mean, Unit::Percent));
            accuracies.push(values);
        }
        let spreads: Vec<_> = accuracies.iter().map(|values| Spread::of(values.iter().copied())).collect();
        series.push(dots(place, colour, &spreads).percent().shifted(0.08 * (i as f64 - 1.0)));
        columns.push(accuracies);
    }
    let [before, after, without] = &columns[..] else { unreachable!("three places") };
    // Whether, for both activations, it is not worse than no normalization by more than chance.
    let harmless = |place: &[Vec<f64>]| {
        place.iter().zip(without).map(|(a, b)| difference(a, b)).all(|(gain, error)| gain > -2.0 * error)
    };
    let texts: Vec<_> = (0..kinds.len())
        .map(|i| {
            let mean = |place: &[Vec<f64>]| 100.0 * Spread::of(place[i].iter().copied()).mean;
            format!("{:.1}, {:.1} and {:.1} % with {}", mean(before), mean(after), mean(without), kinds[i].1)
        })
        .collect();
    Ok(Finding {
        verdict: match (harmless(before), harmless(after)) {
            (true, true) => Verdict::Holds,
            (false, false) => Verdict::Fails,
            _ => Verdict::Partly,
        },
        text: format!(
            "accuracy with it before the activation, with it after the activation, and without it: {}",
            texts.join("; ")
        ),
        measures,
        figures: vec![Figure {
            name: "placement",
            caption: format!(
                "Accuracy of {} networks of each kind, all trained by Adam with the same settings. The paper (Ioffe \
                 and Szegedy, 2015) places batch normalization before the activation.",
                seeds.len()
            ),
            chart: Chart {
                title: "Placement of batch normalization",
                x: Axis::names("activation", kinds.map(|(_, kind)| kind)),
                y: Axis::linear("held-out accuracy, %"),
                series,
            },
        }],
    })
}
