//! How noisy the statistics of a mini-batch are, and whether the noise regularizes.

use super::{Context, Finding, Measure, Spread, Unit, Verdict, difference, dots, points_of};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure, Point, Series, Style};
use crate::network::{Design, Mode, Network};
use crate::training::{Training, score};
use batchnorm::{BatchNorm, Shape, Statistics};

/// Images per mini-batch. In training, a mini-batch is normalized in groups.
const BATCH: usize = 128;

pub(super) fn check(context: &Context) -> Result<Finding> {
    let sizes: Vec<usize> = (1..=9).map(|e| 1 << e).collect();
    let noise = noise(context, &sizes)?;

    let groups = [4, 8, 16, 32, 64, BATCH];
    let seeds = context.seeds(16, 3);
    let dropout = Some(0.3);
    let mut designs = vec![
        ("none".to_string(), Design::default().plain()),
        ("dropout".to_string(), Design { dropout, ..Design::default().plain() }),
        ("normalization and dropout".to_string(), Design { dropout, ..Design::default() }),
    ];
    let fixed = designs.len();
    designs.extend(groups.map(|group| (format!("{group}"), Design { group: Some(group), ..Design::default() })));
    let training = Training { batch: BATCH, epochs: context.effort(30, 15), ..Training::default() };
    let jobs: Vec<_> = designs.iter().flat_map(|design| seeds.iter().map(move |&seed| (&design.1, seed))).collect();
    let gaps = context.parallel(&jobs, |&(design, seed)| {
        let (split, mut network) = (context.split(seed), Network::new(design, seed));
        Training { seed, ..training.clone() }.run(&mut network, &split.train, |_, _| Ok(()))?;
        let (train, test) = (score(&mut network, &split.train)?, score(&mut network, &split.test)?);
        Ok((train.accuracy - test.accuracy, test.loss))
    })?;
    let gap: Vec<Vec<f64>> = gaps.chunks(seeds.len()).map(|runs| runs.iter().map(|run| run.0).collect()).collect();
    let spreads: Vec<_> = gap.iter().map(|gaps| Spread::with_error(gaps)).collect();
    let mut measures = Vec::new();
    for (i, (name, _)) in designs.iter().enumerate() {
        let name =
            if i < fixed { format!("regularization: {name}") } else { format!("normalization in groups of {name}") };
        let loss = Spread::of(gaps[i * seeds.len()..(i + 1) * seeds.len()].iter().map(|run| run.1)).mean;
        measures.push(Measure::new(format!("train–test gap, {name}"), spreads[i].mean, Unit::Percent));
        measures.push(Measure::new(format!("held-out loss, {name}"), loss, Unit::Number));
    }
    let (none, best, whole) = (0, fixed + 1, designs.len() - 1);
    let regularizes = difference(&gap[none], &gap[best]);
    let fades = difference(&gap[whole], &gap[best]);
    let beyond_chance = |(mean, error): (f64, f64)| mean > 2.0 * error;
    // The noise of a mean should fall as 1/sqrt(size).
    let (first, last) = (noise[2], noise[sizes.len() - 1]);
    let falls = (first.0 / last.0) / (sizes[sizes.len() - 1] as f64 / sizes[2] as f64).sqrt();
    measures.push(Measure::new("noise of the mean in a batch of 8, standard deviations", first.0, Unit::Number));
    measures.push(Measure::new("noise of the variance in a batch of 8, relative", first.1, Unit::Number));

    let points = |value: fn(&(f64, f64)) -> f64| {
        sizes.iter().zip(&noise).map(|(&size, noise)| Point::new(size as f64, value(noise))).collect()
    };
    Ok(Finding {
        verdict: match (beyond_chance(regularizes), beyond_chance(fades) && (0.8..1.25).contains(&falls)) {
            (true, true) => Verdict::Holds,
            (false, false) => Verdict::Fails,
            _ => Verdict::Partly,
        },
        text: format!(
            "the mean of 8 examples is off by {:.2} standard deviations, that of 512 by {:.2}; the train–test gap of \
             the accuracy is {:.1} points without regularization, {:.1} with dropout, {:.1} with normalization in \
             groups of 8, and {:.1} with normalization and dropout; it is wider with groups of {BATCH} than with \
             groups of 8 by {} points (mean ± standard error)",
            first.0,
            last.0,
            100.0 * spreads[none].mean,
            100.0 * spreads[1].mean,
            100.0 * spreads[best].mean,
            100.0 * spreads[2].mean,
            points_of(fades),
        ),
        measures,
        figures: vec![
            Figure {
                name: "noise-statistics",
                caption: "Mean and variance of mini-batches compared with those of all training images, at the input \
                          of the first batch normalization of a trained network: root mean square error over its \
                          channels and over 200 random mini-batches of each size. The line is the theory for the mean: \
                          1/sqrt(size)."
                    .into(),
                chart: Chart {
                    title: "Noise of mini-batch statistics",
                    x: Axis::log("examples in the mini-batch"),
                    y: Axis::log("error, relative"),
                    series: vec![
                        Series {
                            label: "1/sqrt(size)".into(),
                            colour: Colour::Orange,
                            points: sizes.iter().map(|&s| Point::new(s as f64, 1.0 / (s as f64).sqrt())).collect(),
                            style: Style::Line,
                        },
                        Series {
                            label: "mean, in std. deviations".into(),
                            colour: Colour::Blue,
                            points: points(|noise| noise.0),
                            style: Style::Points,
                        },
                        Series {
                            label: "variance, relative".into(),
                            colour: Colour::Green,
                            points: points(|noise| noise.1),
                            style: Style::Points,
                        },
                    ],
                },
            },
            Figure {
                name: "noise-gap",
                caption: format!(
                    "Accuracy on training images minus accuracy on held-out images, for {} networks of each kind. All \
                     are trained with mini-batches of {BATCH}. Numbers are sizes of the groups within a mini-batch \
                     that are normalized together, so that only the noise of the statistics differs. Whiskers are \
                     standard errors.",
                    seeds.len()
                ),
                chart: Chart {
                    title: "Train–test gap",
                    x: Axis::names(
                        "regularization, or group size of batch normalization",
                        designs.iter().map(|(name, _)| if name.contains(" and ") { "both" } else { name }),
                    ),
                    y: Axis::linear("gap, percentage points"),
                    series: vec![dots("mean ± standard error", Colour::Blue, &spreads).percent()],
                },
            },
        ],
    })
}

/// For each batch size, the error of a mini-batch's mean in standard deviations and the relative error of its variance,
/// as root mean squares.
fn noise(context: &Context, sizes: &[usize]) -> Result<Vec<(f64, f64)>> {
    let split = context.split(context.seed);
    let mut network = Network::new(&Design::default(), context.seed);
    Training { seed: context.seed, epochs: 5, ..Training::default() }.run(&mut network, &split.train, |_, _| Ok(()))?;
    network.forward(&split.train.pixels, split.train.len(), Mode::Train)?;
    let x = network.norm_inputs().next().unwrap_or_default();
    let all = &network.norms().next().ok_or("the network has no batch normalization")?.batch;
    let channels = all.channels();
    context.parallel(sizes, |&size| {
        let plan = BatchNorm::new(Shape::nc(size, channels)?);
        let mut random = fastrand::Rng::with_seed(context.seed);
        let mut batch = Statistics::new(channels);
        let draws = 200;
        let (mut mean, mut var) = (0.0, 0.0);
        for _ in 0..draws {
            let rows = (0..size).map(|_| random.usize(0..split.train.len()));
            let rows: Vec<f32> = rows.flat_map(|row| &x[row * channels..(row + 1) * channels]).copied().collect();
            plan.statistics(&rows, &mut batch)?;
            for c in 0..channels {
                mean += (batch.mean()[c] - all.mean()[c]).powi(2) / all.var()[c];
                var += (batch.var()[c] / all.var()[c] - 1.0).powi(2);
            }
        }
        let n = (draws * channels) as f64;
        Ok(((mean / n).sqrt(), (var / n).sqrt()))
    })
}
