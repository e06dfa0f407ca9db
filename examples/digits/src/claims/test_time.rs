//! Which statistics to use for a single example at test time.

use super::{Context, Finding, Measure, Spread, Unit, Verdict};
use crate::Result;
use crate::data::{Images, PIXELS};
use crate::figures::{Axis, Chart, Colour, Figure, Point, Series, Style};
use crate::network::{Design, Mode, Network};
use crate::training::Training;
use batchnorm::{Momentum, RunningStatistics};

/// Weights of a new mini-batch in the running averages.
const MOMENTA: [f64; 7] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9];

pub(super) fn check(context: &Context) -> Result<Finding> {
    // Small batches, whose statistics differ much from those of all training images.
    let training = Training { batch: 16, epochs: context.effort(15, 6), ..Training::default() };
    // Momentum 1 keeps only the statistics of the last mini-batch.
    let momenta: Vec<_> =
        MOMENTA.into_iter().chain([1.0]).map(Momentum::Exponential).chain([Momentum::Cumulative]).collect();
    let runs = context.parallel(&context.seeds(6, 3), |&seed| {
        let (split, mut network) = (context.split(seed), Network::new(&Design::default(), seed));
        let fresh: Vec<_> = network.norms().map(|norm| norm.running.clone()).collect();
        let mut averages = vec![fresh; momenta.len()];
        Training { seed, ..training.clone() }.run(&mut network, &split.train, |_, network| {
            for (averages, momentum) in averages.iter_mut().zip(&momenta) {
                for (running, norm) in averages.iter_mut().zip(network.norms()) {
                    running.update(&norm.batch, *momentum)?;
                }
            }
            Ok(())
        })?;
        let mut accuracies = Vec::new();
        for averages in averages {
            accuracies.push(one_by_one(&mut network, averages, &split.test)?);
        }
        network.adopt_statistics(&split.train.pixels, split.train.len())?;
        let population = network.norms().map(|norm| norm.running.clone()).collect();
        accuracies.push(one_by_one(&mut network, population, &split.test)?);
        Ok(accuracies)
    })?;
    let spreads: Vec<_> =
        (0..=momenta.len()).map(|i| Spread::of(runs.iter().map(|accuracies| accuracies[i]))).collect();
    let (averaged, others) = spreads.split_at(MOMENTA.len());
    let &[last, cumulative, population] = others else { unreachable!("three more than momenta") };
    let best = (0..MOMENTA.len()).max_by(|&a, &b| averaged[a].mean.total_cmp(&averaged[b].mean)).unwrap_or(0);

    let mut measures: Vec<_> = MOMENTA
        .iter()
        .zip(averaged)
        .map(|(momentum, spread)| Measure::new(format!("accuracy, momentum {momentum}"), spread.mean, Unit::Percent))
        .collect();
    measures.extend([
        Measure::new("accuracy, last mini-batch", last.mean, Unit::Percent),
        Measure::new("accuracy, plain average of all mini-batches", cumulative.mean, Unit::Percent),
        Measure::new("accuracy, all training images", population.mean, Unit::Percent),
    ]);
    let level = |label: &str, colour, spread: Spread| {
        let points =
            [MOMENTA[0], MOMENTA[MOMENTA.len() - 1]].map(|momentum| Point::new(momentum, spread.mean)).to_vec();
        Series { label: label.into(), colour, points, style: Style::Line }.percent()
    };
    let percent = |spread: Spread| 100.0 * spread.mean;
    Ok(Finding {
        verdict: match (averaged[best].mean > last.mean, averaged[best].mean > population.mean - 0.01) {
            (true, true) => Verdict::Holds,
            (false, false) => Verdict::Fails,
            _ => Verdict::Partly,
        },
        text: format!(
            "accuracy, one digit at a time: {:.1} % with running averages of momentum {}, {:.1} % with momentum 0.001, \
             {:.1} % with the statistics of the last mini-batch, {:.1} % with those of all training images",
            percent(averaged[best]),
            MOMENTA[best],
            percent(averaged[0]),
            percent(last),
            percent(population),
        ),
        measures,
        figures: vec![Figure {
            name: "test-time",
            caption: format!(
                "One network for each of {} seeds, trained with mini-batches of {}, and tested one digit at a time \
                 with different statistics. If the momentum is too small, the averages still depend on their initial \
                 values, mean 0 and variance 1. If it is too large, they follow the noise of the last mini-batches.",
                runs.len(),
                training.batch
            ),
            chart: Chart {
                title: "Statistics for test time",
                x: Axis::log("momentum: weight of the new mini-batch"),
                y: Axis::linear("accuracy, one digit at a time, %"),
                series: vec![
                    level("all training images", Colour::Green, population),
                    level("last mini-batch", Colour::Vermilion, last),
                    Series {
                        label: "running averages".into(),
                        colour: Colour::Blue,
                        points: averaged.iter().zip(MOMENTA).map(|(spread, m)| spread.at(m)).collect(),
                        style: Style::Marked,
                    }
                    .percent(),
                ],
            },
        }],
    })
}

/// The fraction of images that are classified correctly, one at a time.
fn one_by_one(network: &mut Network, running: Vec<RunningStatistics>, images: &Images) -> Result<f64> {
    for (norm, running) in network.norms_mut().zip(running) {
        norm.running = running;
    }
    let mut right = 0;
    for (image, &label) in images.pixels.chunks_exact(PIXELS).zip(&images.labels) {
        let logits = network.forward(image, 1, Mode::Test)?;
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        right += usize::from(best == Some(usize::from(label)));
    }
    Ok(right as f64 / images.len() as f64)
}
