//! Inputs whose distribution changes: those of hidden layers during training, and images of another kind afterwards.

use super::{Context, Finding, Measure, Spread, Unit, Verdict, dots};
use crate::Result;
use crate::data::{Images, Split};
use crate::figures::{Axis, Chart, Colour, Figure, Series, Style};
use crate::network::{Design, Mode, Network};
use crate::optimizers::Rule;
use crate::training::{Training, score};
use batchnorm::{BatchNorm, Shape, Statistics};

/// A change of a pixel's value.
type Change = fn(f32) -> f32;

/// How far a hidden layer's inputs moved in each epoch, and for each kind of image the accuracies with running and with
/// re-estimated statistics.
type Run = (Vec<f64>, Vec<(f64, f64)>);

/// The kinds of images after training.
const SHIFTS: [(&str, Change); 4] =
    [("unchanged", |p| p), ("fainter", |p| 0.3 * p), ("grey paper", |p| 0.5 + 0.5 * p), ("inverted", |p| 1.0 - p)];

pub(super) fn check(context: &Context) -> Result<Finding> {
    let hidden = vec![128; 3];
    let design = Design { hidden, ..Design::default() };
    let designs = [design.clone(), design.plain()];
    let training =
        Training { rule: Rule::GradientDescent, rate: 0.1, epochs: context.effort(30, 10), ..Training::default() };
    let seeds = context.seeds(5, 2);

    let jobs: Vec<_> = designs.iter().flat_map(|design| seeds.iter().map(move |&seed| (design, seed))).collect();
    let runs = context.parallel(&jobs, |&(design, seed)| {
        let (split, mut network) = (context.split(seed), Network::new(design, seed));
        let training = Training { seed, ..training.clone() };
        let moves = movement(&training, &mut network, &split.train)?;
        let mut rows = Vec::new();
        for (_, change) in SHIFTS {
            rows.push(adapt(&mut network, &split.test.map(change))?);
        }
        let split = Split::by_writer(&context.images);
        let mut network = Network::new(design, seed);
        training.run(&mut network, &split.train, |_, _| Ok(()))?;
        rows.push(adapt(&mut network, &split.test)?);
        Ok((moves, rows))
    })?;
    let (with, plain) = runs.split_at(seeds.len());

    let names: Vec<_> = SHIFTS.iter().map(|(name, _)| *name).chain(["other writers"]).collect();
    let column = |runs: &[Run], value: fn(&(f64, f64)) -> f64| -> Vec<Spread> {
        (0..names.len()).map(|i| Spread::of(runs.iter().map(|run| value(&run.1[i])))).collect()
    };
    let columns = [
        ("without normalization", Colour::Vermilion, column(plain, |accuracy| accuracy.0)),
        ("running statistics", Colour::Blue, column(with, |accuracy| accuracy.0)),
        ("re-estimated statistics", Colour::Green, column(with, |accuracy| accuracy.1)),
    ];
    let mut measures = Vec::new();
    for (i, name) in names.iter().enumerate() {
        for (label, _, spreads) in &columns {
            measures.push(Measure::new(format!("accuracy, {name}, {label}"), spreads[i].mean, Unit::Percent));
        }
    }
    let epochs = training.epochs;
    let line = |label: &str, colour, runs: &[Run]| {
        let point = |epoch: usize| Spread::of(runs.iter().map(|run| run.0[epoch])).at((epoch + 1) as f64);
        Series { label: label.into(), colour, points: (0..epochs).map(point).collect(), style: Style::Line }
    };
    let total = |runs: &[Run]| Spread::of(runs.iter().map(|run| run.0.iter().sum())).mean;
    let (moved, moved_plain) = (total(with), total(plain));
    measures.push(Measure::new(
        "total movement of a hidden layer's inputs in training, with normalization",
        moved,
        Unit::Number,
    ));
    measures.push(Measure::new(
        "total movement of a hidden layer's inputs in training, without",
        moved_plain,
        Unit::Number,
    ));

    let running = &columns[1].2;
    let adapted = &columns[2].2;
    let recovers = (1..SHIFTS.len()).filter(|&i| adapted[i].mean > running[i].mean + 0.02).count();
    let percent = |i: usize| {
        let [plain, running, adapted] = [0, 1, 2].map(|column| 100.0 * columns[column].2[i].mean);
        format!("{plain:.0}, {running:.0} and {adapted:.0} % ({})", names[i])
    };
    let recovered: Vec<_> = (1..names.len()).map(percent).collect();
    Ok(Finding {
        verdict: match (moved < moved_plain, recovers == SHIFTS.len() - 1) {
            (true, true) => Verdict::Holds,
            (false, false) => Verdict::Fails,
            _ => Verdict::Partly,
        },
        text: format!(
            "during training the inputs of a hidden layer move by {moved:.1} standard deviations with batch \
             normalization and by {moved_plain:.1} without; accuracy without it, with running statistics and with \
             re-estimated statistics: {}",
            recovered.join("; ")
        ),
        measures,
        figures: vec![
            Figure {
                name: "shift-hidden",
                caption: "How far the inputs of the third hidden layer move in each epoch of gradient descent, at \
                          the same learning rate for both networks: the change of each unit's mean and standard \
                          deviation over the training images, as a root mean square over the units, in standard \
                          deviations."
                    .into(),
                chart: Chart {
                    title: "Movement of a hidden layer's inputs",
                    x: Axis::linear("epoch"),
                    y: Axis::log("movement in the epoch, std. deviations"),
                    series: vec![
                        line("with normalization", Colour::Blue, with),
                        line("without", Colour::Vermilion, plain),
                    ],
                },
            },
            Figure {
                name: "shift-images",
                caption: "Accuracy on images of another kind than the training images. Re-estimated statistics \
                          are the mean and the variance of the new images, without their labels; everything else \
                          is unchanged. This is enough if only the scale and the offset of the images change. \
                          Inverted images act like a change of sign of every weight, which no statistics can \
                          undo. Other writers: the last fifth of the file."
                    .into(),
                chart: Chart {
                    title: "Accuracy on images of another kind",
                    x: Axis::names("held-out images", names.iter().copied()),
                    y: Axis::range("accuracy, %", 0.0, 100.0),
                    series: columns
                        .iter()
                        .enumerate()
                        .map(|(i, (label, colour, spreads))| {
                            dots(*label, *colour, spreads).percent().shifted(0.12 * (i as f64 - 1.0))
                        })
                        .collect(),
                },
            },
        ],
    })
}

/// The accuracy on these images with the statistics from training, and with the statistics of these images.
fn adapt(network: &mut Network, images: &Images) -> Result<(f64, f64)> {
    let before = score(network, images)?.accuracy;
    let mut adapted = network.clone();
    adapted.adopt_statistics(&images.pixels, images.len())?;
    Ok((before, score(&mut adapted, images)?.accuracy))
}

/// Trains, and returns for each epoch how far the distribution of the third hidden layer's inputs moved.
fn movement(training: &Training, network: &mut Network, images: &Images) -> Result<Vec<f64>> {
    let mut last = hidden_statistics(network, images)?;
    let mut moves = Vec::new();
    training.run(network, images, |step, network| {
        if step.ends_epoch {
            let now = hidden_statistics(network, images)?;
            let pairs = |f: fn(&Statistics) -> &[f64]| f(&last).iter().zip(f(&now));
            let means: f64 = pairs(Statistics::mean).map(|(a, b)| (a - b).powi(2)).sum();
            let deviations: f64 = pairs(Statistics::var).map(|(a, b)| (a.sqrt() - b.sqrt()).powi(2)).sum();
            moves.push(((means + deviations) / last.var().iter().sum::<f64>()).sqrt());
            last = now;
        }
        Ok(())
    })?;
    Ok(moves)
}

/// The mean and the variance over the images, for each input of the third hidden layer.
fn hidden_statistics(network: &mut Network, images: &Images) -> Result<Statistics> {
    network.forward(&images.pixels, images.len(), Mode::Train)?;
    let x = network.hidden_activations().nth(1).unwrap_or_default();
    let channels = x.len() / images.len();
    let mut statistics = Statistics::new(channels);
    BatchNorm::new(Shape::nc(images.len(), channels)?).statistics(x, &mut statistics)?;
    Ok(statistics)
}
