//! Batch normalization before the activation, after it, and nowhere.

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
        (None, "nowhere", Colour::Vermilion),
    ];
    let kinds = [(Activation::Relu, "ReLU"), (Activation::Sigmoid, "sigmoid")];
    let (mut measures, mut columns, mut series) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (norm, place, colour)) in places.into_iter().enumerate() {
        let mut accuracies = Vec::new();
        for (activation, kind) in kinds {
            // The layer after a normalization after the activation needs its bias no less than a plain one.
            let bias = norm != Some(Placement::BeforeActivation);
            let design = Design { activation, norm, bias, ..Design::default() };
            let values = context.parallel(&seeds, |&seed| {
                let (split, mut network) = (context.split(seed), Network::new(&design, seed));
                Training { seed, ..training.clone() }.run(&mut network, &split.train, |_, _| Ok(()))?;
                Ok(score(&mut network, &split.test)?.accuracy)
            })?;
            let mean = Spread::of(values.iter().copied()).mean;
            measures.push(Measure::new(format!("accuracy {place}, {kind}"), mean, Unit::Percent));
            accuracies.push(values);
        }
        let spreads: Vec<_> = accuracies.iter().map(|values| Spread::of(values.iter().copied())).collect();
        series.push(dots(place, colour, &spreads).percent().shifted(0.08 * (i as f64 - 1.0)));
        columns.push(accuracies);
    }
    let [before, after, nowhere] = &columns[..] else { unreachable!("three places") };
    // Worse than nowhere by more than chance, for any activation?
    let harmless = |place: &[Vec<f64>]| {
        place.iter().zip(nowhere).map(|(a, b)| difference(a, b)).all(|(gain, deviation)| gain > -2.0 * deviation)
    };
    let texts: Vec<_> = (0..kinds.len())
        .map(|i| {
            let mean = |place: &[Vec<f64>]| 100.0 * Spread::of(place[i].iter().copied()).mean;
            format!("{:.1}, {:.1} and {:.1} % with {}", mean(before), mean(after), mean(nowhere), kinds[i].1)
        })
        .collect();
    Ok(Finding {
        verdict: match (harmless(before), harmless(after)) {
            (true, true) => Verdict::Holds,
            (false, false) => Verdict::Fails,
            _ => Verdict::Partly,
        },
        text: format!("accuracy before, after and without it: {}", texts.join("; ")),
        measures,
        figures: vec![Figure {
            name: "placement",
            caption: format!(
                "Accuracy of {} networks of each kind, all trained alike by Adam. The paper puts batch normalization \
                 before the activation.",
                seeds.len()
            ),
            chart: Chart {
                title: "Where batch normalization stands",
                x: Axis::names("activation", kinds.map(|(_, kind)| kind)),
                y: Axis::linear("held-out accuracy, %"),
                series,
            },
        }],
    })
}
