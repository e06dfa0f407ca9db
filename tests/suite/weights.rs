//! Does a weighted batch give the results of a batch in which each position occurs as often as its weight says?

use crate::common::*;
use batchnorm::{
    Activation, Affine, BatchNorm, Error, Extras, GradientSums, Gradients, Momentum, RunningStatistics, Shape,
    Statistics, reference,
};

/// Both walks, and lengths of several blocks, chunks and segments.
fn shapes() -> [Shape; 6] {
    [(4, 3, 61), (1, 2, 700), (5, 33, 3), (90, 19, 1), (700, 2, 1), (2, 1, 20_011)].map(shape)
}

fn masked<T: Number>(shape: Shape, seed: u64) -> Fusion<T> {
    Fusion::random(shape, seed, Activation::Silu, true, Weighting::Mask)
}

/// Sets the weights, rounded to their type.
fn set_weights<T: Number>(fusion: &mut Fusion<T>, weight: impl FnMut(usize) -> f64) {
    let weights = (0..fusion.problem.shape.values_per_channel()).map(weight);
    fusion.weights = Some(weights.map(Value::of).collect());
}

/// Checks a step on every instruction set.
fn check<T: Number>(ledger: &mut Ledger, fusion: &Fusion<T>) {
    every_isa(|isa| {
        let step = fusion.run(&fusion.plan().isa(isa).unwrap(), None, Way::Fused, false, 1);
        fusion.check(ledger, None, &step, &(T::NAME, fusion.problem.shape, isa));
    });
}

/// A masked batch gives the results of a smaller one, from which the masked positions were removed.
#[test]
fn as_if_masked_positions_were_cut_out() {
    fn cut<T: Number>(ledger: &mut Ledger, shape: Shape) {
        let whole = masked::<T>(shape, 81);
        let weights = whole.weights_f64();
        let kept = weights.iter().filter(|w| **w > 0.0).count();
        let shape = match shape.inner() {
            1 => Shape::nc(kept, shape.channels()),
            _ => Shape::ncl(1, shape.channels(), kept),
        }
        .unwrap();
        // The element of the whole batch that each remaining one comes from.
        let mut from = vec![0; shape.len()];
        for c in 0..shape.channels() {
            let existing = reference::indices(whole.problem.shape, c).zip(&weights).filter(|(_, w)| **w > 0.0);
            for (to, (k, _)) in reference::indices(shape, c).zip(existing) {
                from[to] = k;
            }
        }
        let pick = |v: &[T]| from.iter().map(|&k| v[k]).collect::<Vec<_>>();
        let p = &whole.problem;
        let left = Fusion {
            problem: Problem { shape, x: pick(&p.x), dy: pick(&p.dy), ..p.clone() },
            residual: whole.residual.as_deref().map(pick),
            weights: None,
            ..whole.clone()
        };
        every_isa(|isa| {
            let mut step = whole.run(&whole.plan().isa(isa).unwrap(), None, Way::Fused, false, 0);
            assert_eq!(step.outputs.statistics.count(), kept as f64);
            step.outputs.y = pick(&step.outputs.y);
            step.outputs.dx = pick(&step.outputs.dx);
            step.dresidual = pick(&step.dresidual);
            left.check(ledger, None, &step, &(T::NAME, shape, isa));
        });
    }
    let mut ledger = Ledger::default();
    for shape in shapes() {
        cut::<f32>(&mut ledger, shape);
        cut::<f64>(&mut ledger, shape);
    }
    ledger.close("cut", 10_000);
}

#[test]
fn nothing_leaks_from_behind_a_mask() {
    for shape in shapes() {
        let mut fusion = masked::<f32>(shape, 82);
        fusion.set_masked(&|_| 0.0);
        let run = |fusion: &Fusion<f32>| fusion.run(&fusion.plan(), None, Way::FusedInPlace, false, 3).bits();
        let expected = run(&fusion);
        for garbage in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 3e38, 1e-45] {
            fusion.set_masked(&|_| garbage);
            assert_same_arrays(&expected, &run(&fusion), &(shape, garbage));
        }
    }
}

/// A position with an integer weight counts as that many copies.
#[test]
fn weights_are_counts() {
    let mut ledger = Ledger::default();
    let copies = |k: usize| [1, 3, 0, 2][k % 4];
    let mut fusion = Fusion::<f32>::random(Shape::nc(300, 5).unwrap(), 83, Activation::Relu, false, Weighting::Samples);
    fusion.set_masked(&|_| 0.0);
    set_weights(&mut fusion, |k| copies(k) as f64);
    let rows = |v: &[f32]| {
        v.chunks(5).enumerate().flat_map(|(k, row)| std::iter::repeat_n(row, copies(k)).flatten().copied()).collect()
    };
    let p = &fusion.problem;
    let x: Vec<f32> = rows(&p.x);
    let shape = Shape::nc(x.len() / 5, 5).unwrap();
    let copied = Problem { shape, dy: rows(&p.dy), x, ..p.clone() };
    let copied = Fusion { problem: copied, residual: None, weights: None, ..fusion.clone() };
    let step = fusion.run(&fusion.plan(), None, Way::Fused, false, 0);
    let expected = copied.run(&copied.plan(), None, Way::Fused, false, 0);
    assert_eq!(step.outputs.statistics.count(), shape.values_per_channel() as f64);
    // With the statistics of the weighted batch, the outputs of the copies must also be right.
    let swapped =
        Step { outputs: Outputs { statistics: step.outputs.statistics.clone(), ..expected.outputs }, ..expected };
    copied.check(&mut ledger, None, &swapped, &"copies");
    fusion.check(&mut ledger, None, &step, &"counts");
    ledger.close("counts", 1000);
}

/// Weights that are all 1 may change bits, since weighted sums have lanes of f64, but results keep their bounds.
#[test]
fn weights_that_are_all_one() {
    let mut ledger = Ledger::default();
    for shape in shapes() {
        let mut fusion = Fusion::<f32>::random(shape, 84, Activation::Relu, false, Weighting::Absent);
        set_weights(&mut fusion, |_| 1.0);
        check(&mut ledger, &fusion);
    }
    ledger.close("ones", 10_000);
}

/// Multiplying all weights by a power of two changes no bit, up to the ends of the range, if no weight is rounded.
#[test]
fn only_the_ratio_of_weights_counts() {
    fn check<T: Number>(shape: Shape, powers: &[i32]) {
        let mut fusion = Fusion::<T>::random(shape, 85, Activation::Silu, true, Weighting::Samples);
        let mut random = Random(85);
        let weights: Vec<f64> = (0..shape.values_per_channel()).map(|_| random.below(9) as f64).collect();
        let mut run = |factor: f64| {
            set_weights(&mut fusion, |k| factor * weights[k]);
            let mut step = fusion.run(&fusion.plan(), None, Way::Fused, false, 0);
            let count = weights.iter().map(|w| factor * w).sum::<f64>();
            assert_eq!(step.outputs.statistics.count(), count);
            step.outputs.sums = GradientSums::new(0);
            step.bits()
        };
        let expected = run(1.0);
        for &power in powers {
            let factor = 2f64.powi(power / 2) * 2f64.powi(power - power / 2);
            assert_same_arrays(&expected, &run(factor), &(T::NAME, shape, power));
        }
    }
    for shape in shapes() {
        check::<f32>(shape, &[-149, -127, -100, -1, 1, 100, 124]);
        check::<f64>(shape, &[-1074, -1000, -1, 1, 1000]);
    }
}

/// The count, the mean and variance, y and dx of a channel.
type Channel = (f64, [f64; 2], Vec<f64>, Vec<f64>);

/// One channel in rows, and in planes.
fn channel<T: Number>(x: &[f64], weights: &[f64], dy: &[f64]) -> [Channel; 2] {
    let of = |values: &[f64]| values.iter().map(|&v| T::of(v)).collect::<Vec<_>>();
    let (x, dy, weights) = (of(x), of(dy), weights.iter().map(|&w| Value::of(w)).collect::<Vec<_>>());
    [Shape::nc(x.len(), 1), Shape::ncl(1, 1, x.len())].map(|shape| {
        let plan = BatchNorm::new(shape.unwrap());
        let with = plan.with(Extras { weights: Some(&weights), ..Extras::default() });
        let mut statistics = Statistics::new(1);
        let [mut y, mut dx] = [(); 2].map(|()| vec![T::of(f64::NAN); x.len()]);
        with.forward_training(&x, Affine::default(), &mut y, &mut statistics).unwrap();
        let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
        with.backward(&x, &dy, &statistics, Affine::default(), gradients).unwrap();
        let [y, dx] = [y, dx].map(|v| v.iter().map(|v| v.to_f64()).collect());
        (statistics.count(), [statistics.mean()[0], statistics.var()[0]], y, dx)
    })
}

fn assert_near(found: &[f64], expected: &[f64], relative: f64) {
    let near = |(f, e): (&f64, &f64)| (f - e).abs() <= relative * e.abs();
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?} {expected:?}");
}

/// Gradients were −Inf and NaN, as Σg divided by the sum of such weights leaves the range of f32.
#[test]
fn two_tiny_weights_have_the_gradients_of_weights_one() {
    for weight in [1.2e-38, 1e-45, 1.0, 3e38] {
        for (_, moments, _, dx) in channel::<f32>(&[1.0, 2.0], &[weight; 2], &[10.0, 0.0]) {
            assert_eq!(moments, [1.5, 0.25]);
            assert_near(&dx, &[4.0e-4, -4.0e-4], 0.01);
        }
    }
}

#[test]
fn tiny_weights_and_a_huge_gradient() {
    for weight in [1e-30, 1.0, 1e38] {
        for (.., dx) in channel::<f32>(&[1.0, 2.0, 4.0], &[weight; 3], &[1e9, 0.0, 0.0]) {
            assert_near(&dx, &[2.291e8, -3.436e8, 1.145e8], 1e-3);
        }
    }
}

/// The mean of g·x̂, times inv_std, is within the range of f32, but twice as much is not.
#[test]
fn weights_of_one_leave_the_gradients_their_range() {
    let (x, dy) = ([0.0438, 0.1146], [-2.18e37, 0.0]);
    let statistics = batchnorm::reference::statistics(Shape::nc(2, 1).unwrap(), &x);
    let statistics = (&statistics.0[..], &statistics.1[..]);
    let (expected, ..) = batchnorm::reference::backward(Shape::nc(2, 1).unwrap(), &x, &dy, statistics, 1e-5, &[1.0]);
    for (.., dx) in channel::<f32>(&x, &[1.0; 2], &dy) {
        assert_near(&dx, &expected, 1e-4);
    }
}

#[test]
fn subnormal_weights_of_f64() {
    for weight in [f64::from_bits(1), 1e-309, 1.0, 8e307] {
        for (count, moments, y, _) in channel::<f64>(&[1.0, 2.0], &[weight; 2], &[0.0, 0.0]) {
            assert_eq!((count, moments), (2.0 * weight, [1.5, 0.25]));
            assert_near(&y, &[-0.99998, 0.99998], 1e-7);
        }
    }
}

#[test]
fn parts_with_tiny_weights_merge() {
    for power in [-1074, -1030, -500, 0, 1022] {
        let count = 2f64.powi(power / 2) * 2f64.powi(power - power / 2);
        let part = |mean, var| Statistics::from_parts(count, vec![mean], vec![var]).unwrap();
        let mut both = part(1.0, 0.5);
        both.merge(&part(3.0, 1.5)).unwrap();
        assert_eq!((both.count(), both.mean(), both.var()), (2.0 * count, &[2.0][..], &[2.0][..]));
    }
}

/// A sum of weights beyond the range of f64 is an error, and nothing is written.
#[test]
fn weights_whose_sum_has_no_value() {
    let plan = BatchNorm::new(Shape::nc(2, 1).unwrap());
    let mut statistics = Statistics::from_parts(1.0, vec![2.0], vec![3.0]).unwrap();
    let extras = Extras { weights: Some(&[1e308; 2]), ..Extras::default() };
    let error = plan.with(extras).statistics(&[1.0f64, 2.0], &mut statistics).unwrap_err();
    assert_eq!(error, Error::Count(f64::INFINITY));
    assert_eq!(statistics, Statistics::from_parts(1.0, vec![2.0], vec![3.0]).unwrap());
}

#[test]
fn no_position_exists() {
    fn none<T: Number>(shape: Shape) {
        let mut fusion = masked::<T>(shape, 86);
        set_weights(&mut fusion, |_| 0.0);
        fusion.set_masked(&|k| [f64::NAN, 1.0, f64::INFINITY][k % 3]);
        every_isa(|isa| {
            for way in WAYS {
                let Step { outputs, dresidual } = fusion.run(&fusion.plan().isa(isa).unwrap(), None, way, false, 0);
                assert_eq!(outputs.statistics, Statistics::new(shape.channels()));
                assert_eq!(outputs.sums, GradientSums::new(shape.channels()));
                for zeros in [&outputs.y, &outputs.dx, &dresidual] {
                    assert!(zeros.iter().all(|v| v.to_f64() == 0.0), "{shape:?} {isa:?} {way:?}");
                }
                assert!(outputs.dgamma.iter().chain(&outputs.dbeta).all(|v| v.to_f64() == 0.0));
                let mut running = RunningStatistics::new(shape.channels());
                running.update(&outputs.statistics, Momentum::Exponential(0.1)).unwrap();
                assert_eq!(running, RunningStatistics::new(shape.channels()));
            }
        });
    }
    for shape in shapes() {
        none::<f32>(shape);
        none::<f64>(shape);
    }
}

/// The first block, chunk, run or segment has no value that could be its pivot.
#[test]
fn the_first_positions_do_not_exist() {
    let mut ledger = Ledger::default();
    for shape in shapes() {
        let m = shape.values_per_channel();
        for first in [1, 8, 64, 128, 129, 300, 16_384, 20_100, m - 1].into_iter().filter(|&first| first < m) {
            let mut fusion = masked::<f32>(shape, 87);
            fusion.set_masked(&|_| 1.0);
            set_weights(&mut fusion, |k| if k < first { 0.0 } else { 1.0 });
            fusion.set_masked(&|_| f64::NAN);
            check(&mut ledger, &fusion);
        }
    }
    ledger.close("first masked", 10_000);
}

/// One value has nearly all of the weight, or the first values have very little of it and are far away.
#[test]
fn weights_of_very_different_size() {
    let mut ledger = Ledger::default();
    for shape in shapes() {
        for seed in 0..3 {
            let mut random = Random(seed);
            let mut fusion = Fusion::<f32>::random(shape, 88 + seed, Activation::Identity, false, Weighting::Absent);
            set_weights(&mut fusion, |_| 10f64.powf(60.0 * random.uniform() - 30.0));
            check(&mut ledger, &fusion);
        }
        let m = shape.values_per_channel();
        for (first, size) in [(1, 1e6), (1, 3e38), (200, 1e6), (m / 2, 1e4)] {
            let mut fusion = Fusion::<f32>::random(shape, 91, Activation::Identity, false, Weighting::Absent);
            set_weights(&mut fusion, |k| if k < first { 1e-30 } else { 1.0 });
            for c in 0..shape.channels() {
                reference::indices(shape, c).take(first).for_each(|k| fusion.problem.x[k] = size as f32);
            }
            // dy is 0 for those with little weight: otherwise their large deviations would dominate the gradients'
            // sums.
            for c in 0..shape.channels() {
                reference::indices(shape, c).take(first).for_each(|k| fusion.problem.dy[k] = 0.0);
            }
            check(&mut ledger, &fusion);
        }
    }
    ledger.close("ratios", 10_000);
}

/// Parts of a weighted batch, one of which has no weight at all, merge to the whole.
#[test]
fn parts_merge_to_the_whole() {
    let mut ledger = Ledger::default();
    for (parts, inner, rows) in [(5, 37, 1), (4, 1, 30)] {
        let channels = 3;
        let shape = Shape::new(parts * rows, channels, inner).unwrap();
        let mut whole = Fusion::<f32>::random(shape, 92, Activation::Silu, true, Weighting::Samples);
        let positions = rows * inner;
        let old = whole.weights_f64();
        let scale = |part: usize| [1e-3, 1.0, 0.0, 1e3, 1.0][part];
        set_weights(&mut whole, |k| scale(k / positions) * old[k]);
        whole.set_masked(&|_| f64::NAN);
        let plan = BatchNorm::new(Shape::new(rows, channels, inner).unwrap()).activation(whole.activation).unwrap();
        let elements = |k: usize| k * positions * channels..(k + 1) * positions * channels;
        let (weights, residual) = (whole.weights.as_ref().unwrap(), whole.residual.as_ref().unwrap());
        let extras = |k: usize| Extras {
            residual: Some(&residual[elements(k)]),
            weights: Some(&weights[k * positions..(k + 1) * positions]),
            ..Extras::default()
        };
        let p = &whole.problem;
        let (mut statistics, mut sums) = (Statistics::new(channels), GradientSums::new(channels));
        for k in 0..parts {
            let mut own = Statistics::new(channels);
            plan.with(extras(k)).statistics(&p.x[elements(k)], &mut own).unwrap();
            statistics.merge(&own).unwrap();
        }
        for k in 0..parts {
            let (x, dy, mut own) = (&p.x[elements(k)], &p.dy[elements(k)], GradientSums::new(channels));
            plan.with(extras(k)).gradient_sums(x, dy, &statistics, p.affine(), &mut own).unwrap();
            sums.merge(&own).unwrap();
        }
        let [mut y, mut dx, mut dresidual] = [(); 3].map(|()| vec![f32::NAN; p.x.len()]);
        let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![f32::NAN; channels]);
        for k in 0..parts {
            let (x, dy, with) = (&p.x[elements(k)], &p.dy[elements(k)], plan.with(extras(k)));
            with.normalize(x, &statistics, p.affine(), &mut y[elements(k)]).unwrap();
            let gradients = Gradients {
                dx: Some(&mut dx[elements(k)]),
                dresidual: Some(&mut dresidual[elements(k)]),
                ..Gradients::default()
            };
            with.input_gradient(x, dy, &statistics, &sums, p.affine(), gradients).unwrap();
        }
        plan.parameter_gradients(&statistics, &sums, Some(&mut dgamma), Some(&mut dbeta)).unwrap();
        let step = Step { outputs: Outputs { statistics, sums, y, dx, dgamma, dbeta }, dresidual };
        whole.check(&mut ledger, None, &step, &shape);
    }
    ledger.close("merged", 1000);
}

/// The sum of the weights, an integer or not, is the count in the unbiased estimate.
#[test]
fn running_averages_of_weighted_batches() {
    let plan = BatchNorm::new(Shape::nc(3, 1).unwrap());
    let statistics = |weights: [f32; 3]| {
        let mut statistics = Statistics::new(1);
        let extras = Extras { weights: Some(&weights), ..Extras::default() };
        plan.with(extras).statistics(&[1.0f32, 2.0, 4.0], &mut statistics).unwrap();
        statistics
    };
    let own = statistics([1.0, 0.5, 0.75]);
    assert_eq!((own.count(), own.mean()[0]), (2.25, 5.0 / 2.25));
    let mut running = RunningStatistics::new(1);
    running.update(&own, Momentum::Exponential(1.0)).unwrap();
    let unbiased = own.var()[0] * 2.25 / 1.25;
    assert!((running.var()[0] - unbiased).abs() <= f64::EPSILON * unbiased, "{running:?} {unbiased}");
    for weights in [[0.25, 0.25, 0.5], [0.0, 1.0, 0.0], [1e-30, 0.0, 1e-30]] {
        let (own, mut running) = (statistics(weights), RunningStatistics::new(1));
        let error = running.update(&own, Momentum::Exponential(0.1));
        assert_eq!(error, Err(Error::TooFewValues { count: own.count() }));
        assert_eq!(running, RunningStatistics::new(1));
    }
}

/// gamma·inv_std is beyond the range of lanes here, so that 0 times it would be NaN.
#[test]
fn nothing_times_infinity() {
    let plan = BatchNorm::new(Shape::nc(2, 1).unwrap()).eps(0.0).unwrap();
    let statistics = Statistics::from_parts(1.0, vec![1.0], vec![1e-200]).unwrap();
    let (x, dy, mut dx) = ([1.0f32, 1.0], [1.0, 1.0], [f32::NAN; 2]);
    let with = plan.with(Extras { weights: Some(&[1.0, 0.0]), ..Extras::default() });
    let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
    with.backward(&x, &dy, &statistics, Affine::default(), gradients).unwrap();
    assert_eq!(dx[1], 0.0);
}
