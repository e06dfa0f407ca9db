//! Running averages, and the merging of statistics and of gradient sums.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{Affine, BatchNorm, GradientSums, Momentum, RunningStatistics, Shape, Statistics, reference};
use batchnorm_fuzz::{Case, Scalar, baseline, channels, subnormal};
use batchnorm_testing::{Float, Ledger, Problem, Value, assert_same};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    /// The positions where the batch is cut into parts.
    cuts: [u8; 3],
    running: [(Scalar, Scalar); 3],
    batches: u64,
    biased: bool,
    updates: [Update; 3],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Update {
    Cumulative,
    Old,
    New,
    Exponential(Scalar),
    Decay(f32),
}

impl Update {
    fn momentum(self) -> Momentum {
        match self {
            Self::Cumulative => Momentum::Cumulative,
            Self::Old => Momentum::Exponential(0.0),
            Self::New => Momentum::Exponential(1.0),
            Self::Exponential(v) => Momentum::Exponential(v.f64()),
            Self::Decay(v) => Momentum::from_decay(f64::from(v)),
        }
    }
}

fuzz_target!(|input: Input| if input.case.double { run::<f64>(&input) } else { run::<f32>(&input) });

fn run<E: Float>(input: &Input) {
    let p = input.case.problem::<E>();
    let parts = parts(&p, input.cuts);
    let whole = merge_statistics(&p, &parts);
    merge_sums(&p, &parts, &whole);
    update(input, &[&whole, &parts[0].1, &parts[1].1]);
}

/// A part of a batch: the plan for it, its statistics and its elements.
type Part = (BatchNorm, Statistics, std::ops::Range<usize>);

/// Cuts a batch into four parts along its outer extent; some may be empty.
fn parts<E: Float>(p: &Problem<E>, cuts: [u8; 3]) -> Vec<Part> {
    let shape = p.shape;
    let mut at = cuts.map(|cut| usize::from(cut) % (shape.outer() + 1));
    at.sort_unstable();
    let ends = at.into_iter().chain([shape.outer()]);
    let starts = [0].into_iter().chain(at);
    let part = |(start, end): (usize, usize)| {
        let plan = baseline(Shape::new(end - start, shape.channels(), shape.inner()).expect("a part"), p.eps);
        let stride = shape.channels() * shape.inner();
        let range = start * stride..end * stride;
        let mut statistics = Statistics::new(shape.channels());
        plan.statistics(&p.x[range.clone()], &mut statistics).expect("valid arguments");
        (plan, statistics, range)
    };
    starts.zip(ends).map(part).collect()
}

/// Merged in either order, parts give the statistics of the whole batch.
fn merge_statistics<E: Float>(p: &Problem<E>, parts: &[Part]) -> Statistics {
    let exact = channels(p.shape, &p.x);
    let merge = |parts: &mut dyn Iterator<Item = &Part>| {
        let mut whole = Statistics::new(p.shape.channels());
        parts.for_each(|(_, part, _)| whole.merge(part).expect("equal numbers of channels"));
        whole
    };
    let whole = merge(&mut parts.iter());
    let mut ledger = Ledger::default();
    for merged in [&whole, &merge(&mut parts.iter().rev())] {
        assert_eq!(merged.count(), p.shape.values_per_channel() as f64);
        for (c, exact) in exact.iter().enumerate() {
            let (mean, var) = (merged.mean()[c], merged.var()[c]);
            if exact.constant {
                assert_eq!((mean, var), (exact.mean, 0.0), "constant channel {c}, merged");
            } else if exact.promised {
                ledger.note::<E>("merged mean", (mean - exact.mean).abs(), exact.mean_bound::<E>(), exact);
                ledger.note::<E>("merged var", (var - exact.var).abs(), exact.var_bound::<E>(), exact);
            } else if !exact.finite {
                assert!(var.is_nan(), "var of channel {c} with NaN or Inf is {var}");
            }
        }
    }
    ledger.close_silently();
    let mut same_again = whole.clone();
    same_again.merge(&Statistics::new(p.shape.channels())).expect("equal numbers of channels");
    assert_same("mean", whole.mean(), same_again.mean(), &"merged with nothing");
    assert_same("var", whole.var(), same_again.var(), &"merged with nothing");
    whole
}

/// The merged gradient sums of the parts, with the mean of the whole batch, are those of the whole.
fn merge_sums<E: Float>(p: &Problem<E>, parts: &[Part], whole: &Statistics) {
    let sums = |plan: &BatchNorm, range: std::ops::Range<usize>| {
        let mut sums = GradientSums::new(p.shape.channels());
        let (x, dy) = (&p.x[range.clone()], &p.dy[range]);
        plan.gradient_sums(x, dy, whole, Affine::default(), &mut sums).expect("valid arguments");
        sums
    };
    let expected = sums(&baseline(p.shape, p.eps), 0..p.x.len());
    let mut merged = GradientSums::new(p.shape.channels());
    parts.iter().for_each(|(plan, _, range)| merged.merge(&sums(plan, range.clone())).expect("equal channels"));
    let mut ledger = Ledger::default();
    for (c, exact) in channels(p.shape, &p.x).iter().enumerate() {
        let (mut g, mut gx) = (0.0, 0.0);
        for k in reference::indices(p.shape, c) {
            let (dy, x) = (p.dy[k].to_f64().abs(), p.x[k].to_f64());
            g += dy;
            gx += dy * (x - whole.mean()[c]).abs();
        }
        // The sums must stay in the range of lanes, and so must those of dgamma in a tiny channel.
        if exact.promised && g <= E::LARGEST && gx <= E::LARGEST * exact.var.sqrt().min(1.0) {
            // Both may have the error of one sum.
            let relative = 2.0 * exact.factors::<E>().sums;
            let [error_g, error_gx] =
                [(expected.g()[c], merged.g()[c]), (expected.gx()[c], merged.gx()[c])].map(|(a, b)| (a - b).abs());
            ledger.note::<E>("merged Σg", error_g, relative * g, exact);
            ledger.note::<E>(
                "merged Σg·(x − mean)",
                error_gx,
                relative * gx + 4.0 * exact.values * subnormal::<E>(),
                exact,
            );
        }
    }
    ledger.close_silently();
}

/// Updates follow their formula bit for bit, or are errors that change nothing.
fn update(input: &Input, batches: &[&Statistics]) {
    let channels = batches[0].channels();
    let (mean, var): (Vec<f64>, Vec<f64>) =
        (0..channels).map(|c| input.running[c % 3]).map(|(mean, var)| (mean.f64(), var.f64())).unzip();
    let mut running = RunningStatistics::from_parts(mean, var, input.batches).expect("equal lengths");
    running = running.biased(input.biased);
    for (batch, update) in batches.iter().zip(input.updates) {
        let (before, momentum) = (running.clone(), update.momentum());
        let result = running.update(batch, momentum);
        let bad_momentum = matches!(momentum, Momentum::Exponential(m) if m.is_nan() || m < 0.0 || m > 1.0);
        let too_few = !input.biased && batch.count() == 1.0;
        assert_eq!(result.is_err(), bad_momentum || too_few, "{momentum:?} of {batch:?}: {result:?}");
        let unchanged = result.is_err() || batch.count() == 0.0;
        let count = if unchanged { before.batches() } else { before.batches().saturating_add(1) };
        assert_eq!(running.batches(), count);
        let weight = match momentum {
            Momentum::Exponential(m) => m,
            Momentum::Cumulative => 1.0 / count as f64,
        };
        let n = batch.count();
        let average = |old: f64, new: f64| match weight {
            _ if unchanged || weight == 0.0 => old,
            1.0 => new,
            _ => (1.0 - weight) * old + weight * new,
        };
        for c in 0..channels {
            let new = if input.biased { batch.var()[c] } else { batch.var()[c] * n / (n - 1.0) };
            assert_eq!(running.mean()[c].bits(), average(before.mean()[c], batch.mean()[c]).bits(), "mean of {c}");
            assert_eq!(running.var()[c].bits(), average(before.var()[c], new).bits(), "var of {c}");
        }
    }
}
