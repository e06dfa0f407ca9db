//! Claims about batch normalization, each with a function that checks it by training networks.

mod bias;
mod gamma_beta;
mod initial_weights;
mod inputs;
mod noise;
mod optimizers;
mod placement;
mod shift;
mod speed;
mod summary;
mod test_time;

use crate::Result;
use crate::data::{Images, Split};
use crate::figures::{Colour, Figure, Point, Series, Style};
use crate::network::{Design, Network};
use crate::training::{Trace, Training};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A claim about batch normalization.
pub(crate) struct Claim {
    /// The name that `--only` takes.
    pub(crate) name: &'static str,
    pub(crate) statement: &'static str,
    pub(crate) check: fn(&Context) -> Result<Finding>,
}

impl Claim {
    const fn new(name: &'static str, statement: &'static str, check: fn(&Context) -> Result<Finding>) -> Self {
        Self { name, statement, check }
    }
}

/// All claims, in the order in which they are shown.
pub(crate) const CLAIMS: [Claim; 11] = [
    Claim::new("summary", "Batch normalization improves a network that recognizes digits", summary::check),
    Claim::new("inputs", "Inputs on the same scale allow a larger learning rate and faster convergence", inputs::check),
    Claim::new("speed", "Normalizing every hidden layer speeds up training", speed::check),
    Claim::new("initial-weights", "Training depends less on the scale of the initial weights", initial_weights::check),
    Claim::new(
        "gamma-beta",
        "gamma and beta can undo the normalization, and learning them improves accuracy",
        gamma_beta::check,
    ),
    Claim::new("placement", "Batch normalization works both before and after the activation", placement::check),
    Claim::new("bias", "A bias before batch normalization is redundant", bias::check),
    Claim::new(
        "noise",
        "Mini-batch statistics are noisy, which regularizes slightly, and less with larger batches",
        noise::check,
    ),
    Claim::new(
        "optimizers",
        "Gradient descent, momentum, RMSprop and Adam update W, gamma and beta alike",
        optimizers::check,
    ),
    Claim::new(
        "shift",
        "Batch normalization stabilizes the inputs of hidden layers, and re-estimated statistics adapt it to new data",
        shift::check,
    ),
    Claim::new(
        "test-time",
        "At test time, running averages of the statistics suffice to classify a single example",
        test_time::check,
    ),
];

/// The input of every check.
pub(crate) struct Context {
    pub(crate) images: Images,
    pub(crate) seed: u64,
    /// Whether to use fewer seeds and epochs.
    pub(crate) quick: bool,
    pub(crate) bar: ProgressBar,
}

impl Context {
    /// `quick` in a quick run, otherwise `full`.
    pub(crate) fn effort<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// This many seeds, derived from the program's seed.
    pub(crate) fn seeds(&self, full: usize, quick: usize) -> Vec<u64> {
        (0..self.effort(full, quick) as u64).map(|i| self.seed.wrapping_mul(1000).wrapping_add(i)).collect()
    }

    /// The images that the network of this seed is trained and tested on.
    pub(crate) fn split(&self, seed: u64) -> Split {
        Split::random(&self.images, seed)
    }

    /// Runs the jobs one after the other, so that their times are comparable, and advances the progress bar after each.
    pub(crate) fn each<T, R>(&self, jobs: &[T], mut work: impl FnMut(&T) -> Result<R>) -> Result<Vec<R>> {
        self.bar.inc_length(jobs.len() as u64);
        jobs.iter().map(|job| work(job).inspect(|_| self.bar.inc(1))).collect()
    }

    /// Runs the jobs on all cores, and advances the progress bar after each. The results are in the order of the jobs.
    pub(crate) fn parallel<T: Sync, R: Send>(
        &self,
        jobs: &[T],
        work: impl Fn(&T) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        self.bar.inc_length(jobs.len() as u64);
        let next = AtomicUsize::new(0);
        let worker = || -> Vec<(usize, Result<R>)> {
            let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < jobs.len());
            std::iter::from_fn(claim).map(|i| (i, work(&jobs[i]))).inspect(|_| self.bar.inc(1)).collect()
        };
        let mut results = std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            let join =
                |w: std::thread::ScopedJoinHandle<'_, _>| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            workers.into_iter().flat_map(join).collect::<Vec<_>>()
        });
        results.sort_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

/// A progress bar for the jobs of one claim.
pub(crate) fn progress_bar(name: &'static str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{prefix:16} {bar:40} {pos}/{len} runs, {elapsed}")?;
    Ok(ProgressBar::new(0).with_style(style).with_prefix(name))
}

/// Whether a claim holds on these digits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    Holds,
    /// Only a part of it holds, or the difference is within chance.
    Partly,
    Fails,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Partly => "partly",
            Self::Fails => "does not hold",
        }
    }
}

/// The result of checking a claim.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) verdict: Verdict,
    /// One sentence with the numbers that decide.
    pub(crate) text: String,
    /// Further numbers.
    pub(crate) measures: Vec<Measure>,
    pub(crate) figures: Vec<Figure>,
}

#[derive(Clone, Debug)]
pub(crate) struct Measure {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// A fraction, shown in percent.
    Percent,
    Seconds,
    Steps,
    Number,
}

impl Measure {
    pub(crate) fn new(what: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { what: what.into(), value, unit }
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.unit {
            Unit::Percent => write!(f, "{:.2} %", 100.0 * self.value),
            Unit::Seconds if self.value < 1.0 => write!(f, "{:.1} ms", 1000.0 * self.value),
            Unit::Seconds => write!(f, "{:.2} s", self.value),
            Unit::Steps => write!(f, "{:.0} steps", self.value),
            Unit::Number if self.value != 0.0 && !(1e-3..1e4).contains(&self.value.abs()) => {
                write!(f, "{:.1e}", self.value)
            }
            Unit::Number => write!(f, "{:.3}", self.value),
        }
    }
}

impl Finding {
    #[cfg(test)]
    pub(crate) fn measured(&self, what: &str) -> f64 {
        let measure = self.measures.iter().find(|measure| measure.what == what);
        measure.unwrap_or_else(|| panic!("{what:?} is measured")).value
    }
}

/// The learning rate with the highest accuracy. It is a mean over all epochs and a few seeds, so that both fast
/// convergence and final accuracy count.
pub(crate) fn best_rate(context: &Context, design: &Design, training: &Training, rates: &[f32]) -> Result<f32> {
    let means = context.parallel(rates, |&rate| {
        let seeds = context.seeds(2, 1);
        let traces = seeds.iter().map(|&seed| {
            let training = Training { rate, seed, ..training.clone() };
            Trace::of(&training, &mut Network::new(design, seed), &context.split(seed))
        });
        let traces = traces.collect::<Result<Vec<_>>>()?;
        Ok(Spread::of(traces.into_iter().flat_map(|trace| trace.accuracy)).mean)
    })?;
    let best = (0..rates.len()).max_by(|&a, &b| means[a].total_cmp(&means[b]));
    best.map(|best| rates[best]).ok_or_else(|| "no learning rates to choose from".into())
}

/// The mean and the range of several seeds' traces in each epoch.
pub(crate) fn series(
    label: impl Into<String>,
    colour: Colour,
    traces: &[Trace],
    x: impl Fn(&Trace, usize) -> f64,
    y: impl Fn(&Trace) -> &[f64],
) -> Series {
    let epochs = traces.first().map_or(0, |trace| trace.steps.len());
    let point = |epoch: usize| {
        let x = Spread::of(traces.iter().map(|trace| x(trace, epoch))).mean;
        Spread::of(traces.iter().map(|trace| y(trace)[epoch])).at(x)
    };
    Series { label: label.into(), colour, points: (0..epochs).map(point).collect(), style: Style::Line }
}

/// A dot with a whisker for each spread, at the positions 0, 1, 2, …
pub(crate) fn dots(label: impl Into<String>, colour: Colour, spreads: &[Spread]) -> Series {
    let points = spreads.iter().enumerate().map(|(i, spread)| spread.at(i as f64)).collect();
    Series { label: label.into(), colour, points, style: Style::Points }
}

/// The mean difference of the pairs, and its standard error.
pub(crate) fn difference(a: &[f64], b: &[f64]) -> (f64, f64) {
    let n = a.len() as f64;
    let mean = a.iter().zip(b).map(|(a, b)| a - b).sum::<f64>() / n;
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - b - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

/// A difference of fractions and its standard error, in percentage points.
pub(crate) fn points_of((mean, error): (f64, f64)) -> String {
    format!("{:+.2} ± {:.2}", 100.0 * mean, 100.0 * error)
}

/// The mean and the range of several seeds' results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// The mean with its standard error instead of the range.
    pub(crate) fn with_error(values: &[f64]) -> Self {
        let (mean, error) = difference(values, &vec![0.0; values.len()]);
        Self { mean, low: mean - error, high: mean + error }
    }

    /// The point of a chart at this `x`.
    pub(crate) fn at(self, x: f64) -> Point {
        Point { x, y: self.mean, low: self.low, high: self.high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick(check: fn(&Context) -> Result<Finding>) -> Finding {
        let images = Images::built_in().unwrap();
        check(&Context { images, seed: 0, quick: true, bar: ProgressBar::hidden() }).unwrap()
    }

    #[test]
    fn training_is_faster() {
        let finding = quick(speed::check);
        for activation in ["ReLU", "sigmoid"] {
            let steps = |label: &str| finding.measured(&format!("steps to 95 % accuracy, {activation}, {label}"));
            assert!(steps("with normalization") < 0.8 * steps("without"), "{activation}: {}", finding.text);
            assert!(finding.measured(&format!("final accuracy, {activation}, with normalization")) > 0.93);
        }
    }

    #[test]
    fn initial_weights_matter_less() {
        let finding = quick(initial_weights::check);
        let worst = |label: &str| finding.measured(&format!("worst accuracy over the scales, {label}"));
        assert!(worst("with normalization") > 0.7 && worst("without") < 0.3, "{}", finding.text);
    }

    #[test]
    fn the_bias_is_redundant() {
        let finding = quick(bias::check);
        assert_eq!(finding.verdict, Verdict::Holds, "{}", finding.text);
    }

    #[test]
    fn averages_suffice_for_a_single_example() {
        let finding = quick(test_time::check);
        let accuracy = |statistics: &str| finding.measured(&format!("accuracy, {statistics}"));
        assert!(accuracy("momentum 0.1") > accuracy("last mini-batch"), "{}", finding.text);
        assert!((accuracy("momentum 0.1") - accuracy("all training images")).abs() < 0.02, "{}", finding.text);
    }

    #[test]
    fn parallel_keeps_the_order_and_reports_errors() {
        let images = Images::default();
        let context = Context { images, seed: 0, quick: true, bar: ProgressBar::hidden() };
        let jobs: Vec<usize> = (0..100).collect();
        assert_eq!(context.parallel(&jobs, |&job| Ok(2 * job)).unwrap(), (0..200).step_by(2).collect::<Vec<_>>());
        let error = context.parallel(&jobs, |&job| if job == 7 { Err("seven".into()) } else { Ok(job) }).unwrap_err();
        assert_eq!(error.to_string(), "seven");
    }
}
