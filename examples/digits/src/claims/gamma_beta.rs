//! gamma = sqrt(var + eps) and beta = mean restore the input; learned values may work better than 1 and 0.

use super::{Context, Finding, Measure, Spread, Unit, Verdict, difference, dots, points_of};
use crate::Result;
use crate::figures::{Axis, Chart, Colour, Figure};
use crate::network::{Activation, Design, Mode, Network};
use crate::training::{Training, score};
use batchnorm::{Affine, BatchNorm, Shape, Statistics};

pub(super) fn check(context: &Context) -> Result<Finding> {
    let error = identity_error(context)?;
    let seeds = context.seeds(10, 3);
    let training = Training { epochs: context.effort(30, 10), ..Training::default() };
    let kinds = [(Activation::Relu, "ReLU"), (Activation::Sigmoid, "sigmoid")];
    let accuracies = |affine: bool| {
        kinds.map(|(activation, _)| {
            let design = Design { activation, affine, ..Design::default() };
            context.parallel(&seeds, |&seed| {
                let (split, mut network) = (context.split(seed), Network::new(&design, seed));
                Training { seed, ..training.clone() }.run(&mut network, &split.train, |_, _| Ok(()))?;
                Ok(score(&mut network, &split.test)?.accuracy)
            })
        })
    };
    let ([relu, sigmoid], [fixed_relu, fixed_sigmoid]) = (accuracies(true), accuracies(false));
    let (learned, fixed) = ([relu?, sigmoid?], [fixed_relu?, fixed_sigmoid?]);
    let gains = [0, 1].map(|i| difference(&learned[i], &fixed[i]));
    let improved = gains.iter().filter(|(gain, error)| *gain > 2.0 * error).count();
    let spread = |accuracies: &[Vec<f64>; 2]| [0, 1].map(|i| Spread::of(accuracies[i].iter().copied()));

    let mut measures =
        vec![Measure::new("largest error of the restored input, relative to its largest value", error, Unit::Number)];
    for (i, (_, name)) in kinds.iter().enumerate() {
        measures.extend([
            Measure::new(
                format!("accuracy with learned gamma and beta, {name}"),
                spread(&learned)[i].mean,
                Unit::Percent,
            ),
            Measure::new(
                format!("accuracy with gamma = 1 and beta = 0, {name}"),
                spread(&fixed)[i].mean,
                Unit::Percent,
            ),
        ]);
    }
    let exact = error < 16.0 * f64::from(f32::EPSILON);
    Ok(Finding {
        verdict: match (exact, improved) {
            (true, 2) => Verdict::Holds,
            (true, _) => Verdict::Partly,
            _ => Verdict::Fails,
        },
        text: format!(
            "gamma = sqrt(var + eps) and beta = mean restore the input, with errors up to {error:.0e} of its largest \
             value; learning them changes the accuracy by {} points (mean ± standard error) with ReLU and by {} points \
             with sigmoid",
            points_of(gains[0]),
            points_of(gains[1]),
        ),
        measures,
        figures: vec![Figure {
            name: "gamma-beta",
            caption: format!(
                "Accuracy of {} networks of each kind. With ReLU, the weights of the next layer can do the same as \
                 gamma; with sigmoid, gamma also determines how much of the curve is used.",
                seeds.len()
            ),
            chart: Chart {
                title: "gamma and beta: learned, or fixed at 1 and 0",
                x: Axis::names("activation", kinds.map(|(_, name)| name)),
                y: Axis::linear("held-out accuracy, %"),
                series: vec![
                    dots("learned", Colour::Blue, &spread(&learned)).percent().shifted(-0.05),
                    dots("fixed", Colour::Vermilion, &spread(&fixed)).percent().shifted(0.05),
                ],
            },
        }],
    })
}

/// The largest difference of output and input with gamma = sqrt(var + eps) and beta = mean, relative to the largest
/// input. The inputs are those of the first batch normalization of a network, for all images.
fn identity_error(context: &Context) -> Result<f64> {
    let mut network = Network::new(&Design::default(), context.seed);
    let rows = context.images.len();
    network.forward(&context.images.pixels, rows, Mode::Train)?;
    let x = network.norm_inputs().next().unwrap_or_default();
    let channels = x.len() / rows;
    let plan = BatchNorm::new(Shape::nc(rows, channels)?);
    let mut batch = Statistics::new(channels);
    plan.statistics(x, &mut batch)?;
    let gamma: Vec<f32> = batch.var().iter().map(|var| (var + 1e-5).sqrt() as f32).collect();
    let beta: Vec<f32> = batch.mean().iter().map(|&mean| mean as f32).collect();
    let mut y = vec![0.0; x.len()];
    plan.normalize(x, &batch, Affine::new(&gamma, &beta), &mut y)?;
    let error = x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    Ok(f64::from(error / x.iter().map(|x| x.abs()).fold(0.0, f32::max)))
}
