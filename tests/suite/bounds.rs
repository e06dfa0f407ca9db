//! Do mean, variance, outputs and gradients stay within the bounds of docs/numerics.md on data made to break them?

use crate::common::*;
use crate::oracle;
use batchnorm::reference::indices;
use batchnorm::{BatchNorm, Isa, Shape, Statistics};

/// A name, and the value at `i` of the `m` of a channel.
type Family = (&'static str, fn(usize, usize, &mut Random) -> f64);

/// A channel with one value, at `at`, that is far from the others.
fn outlier(i: usize, at: usize, size: f64, random: &mut Random) -> f64 {
    if i == at { size } else { 1.0 + random.normal() }
}

/// One channel each. The first names give κ.
const FAMILIES: [Family; 30] = [
    ("mean 0", |_, _, r| r.normal()),
    ("kappa 10", |_, _, r| 10.0 + r.normal()),
    ("kappa 1e2", |_, _, r| -1e2 + r.normal()),
    ("kappa 1e3", |_, _, r| 1e3 + r.normal()),
    ("kappa 1e4", |_, _, r| 1e3 + 0.1 * r.normal()),
    ("kappa 1e5", |_, _, r| -1e5 + r.normal()),
    ("kappa 1e6", |_, _, r| 0.999e6 + r.normal()),
    ("kappa 1e6, small", |_, _, r| 0.999e3 + 1e-3 * r.normal()),
    ("uniform", |_, _, r| r.uniform()),
    ("alternating about 0", |i, _, _| if i % 2 == 0 { 1.1 } else { -1.1 }),
    ("alternating about 1e4", |i, _, _| if i % 2 == 0 { 1e4 + 0.3 } else { 1e4 - 0.7 }),
    ("ramp", |i, m, _| i as f64 / m as f64),
    ("falling ramp, kappa 1e4", |i, m, _| 1e4 - 3.3 * i as f64 / m as f64),
    ("step", |i, m, _| if 2 * i < m { 0.1 } else { 1.7 }),
    ("noisy step", |i, m, r| if 2 * i < m { 1e-3 * r.normal() } else { 1.7 + 1e-3 * r.normal() }),
    ("first values apart", |i, _, _| if i < 128 { 0.0 } else { 1.3 }),
    ("slow wave", |i, m, _| (i as f64 * 20.0 / m as f64).sin()),
    ("heavy tails", |_, _, r| r.normal() / r.normal()),
    ("very heavy tails", |_, _, r| (4.0 * r.normal()).exp()),
    ("outlier first", |i, _, r| outlier(i, 0, 1e6, r)),
    ("outlier in the middle", |i, m, r| outlier(i, m / 2, -1e6, r)),
    ("outlier last", |i, m, r| outlier(i, m - 1, 1e6, r)),
    ("huge outlier first", |i, _, r| outlier(i, 0, 3e38, r)),
    ("outlier at 2^64 in the middle", |i, m, r| outlier(i, m / 2, -1.9e19, r)),
    ("subnormal in f32", |_, _, r| 1e-40 * r.normal()),
    ("subnormal squares in f32", |_, _, r| 1e-19 * r.normal()),
    ("1e-25", |_, _, r| 1e-25 * (3.0 + r.normal())),
    ("1e20", |_, _, r| 1e20 * (1.0 + r.normal())),
    ("up to 3e38", |_, _, r| 3e38 * (2.0 * r.uniform() - 1.0)),
    ("nearly constant", |i, _, _| if i % 97 == 5 { 1.000_001 } else { 1.0 }),
];

/// All families as the channels of one problem, so that each has the others as neighbours.
fn families<T: Float>(outer: usize, inner: usize, eps: f64) -> Problem<T> {
    let shape = Shape::new(outer, FAMILIES.len(), inner).unwrap();
    let m = shape.values_per_channel();
    let mut p = Problem::<T>::random(shape, m as u64);
    for (c, (_, family)) in FAMILIES.iter().enumerate() {
        let mut random = Random(c as u64);
        for (i, k) in indices(shape, c).enumerate() {
            p.x[k] = T::of(family(i, m, &mut random));
        }
    }
    p.eps = eps;
    p
}

fn check<T: Float>(ledger: &mut Ledger, p: &Problem<T>, isas: &[Isa]) {
    let exact = oracle::statistics(p.shape, &p.x);
    let m = p.shape.values_per_channel() as f64;
    let mut seen: Option<Outputs<T>> = None;
    for &isa in isas {
        let context = (T::NAME, isa, p.shape, p.eps);
        let out = train(&p.plan().isa(isa).unwrap(), p, Way::Fused, 0);
        // The oracle is slow, and results with the same bits need no second check.
        if let Some(seen) = &seen {
            assert_same_bits(seen, &out, &context);
            continue;
        }
        oracle::check_forward(ledger, p, &exact, &out, &context);
        let statistics = (out.statistics.mean(), out.statistics.var());
        oracle::check_gradients(ledger, p, statistics, Some(m), &out, &context);
        let running = batchnorm::RunningStatistics::from_parts(statistics.0.into(), statistics.1.into(), 1).unwrap();
        let frozen = train_frozen(&p.plan().isa(isa).unwrap(), p, &running, Way::Fused, 0);
        oracle::check_gradients(ledger, p, statistics, None, &frozen, &(context, "frozen"));
        seen = Some(out);
    }
}

/// Both walks for M values per channel, with planes of several images if M can be divided.
fn check_walks<T: Float>(ledger: &mut Ledger, m: usize, isas: &[Isa]) {
    let images = [8, 3, 1].into_iter().find(|&n| m.is_multiple_of(n) && m / n > 1);
    for eps in [1e-5, 0.0] {
        if let Some(images) = images {
            check(ledger, &families::<T>(images, m / images, eps), isas);
        }
        check(ledger, &families::<T>(m, 1, eps), isas);
    }
}

#[test]
fn few_values() {
    let mut ledger = Ledger::default();
    for m in [1, 2, 3, 4, 7, 15, 16, 17, 31, 100] {
        check_walks::<f32>(&mut ledger, m, Isa::available());
        check_walks::<f64>(&mut ledger, m, Isa::available());
    }
    ledger.close("few values", 10_000);
}

#[test]
fn up_to_ten_thousand_values() {
    let mut ledger = Ledger::default();
    for m in [127, 128, 129, 255, 256, 257, 384, 1000, 1024, 4099, 10_000] {
        check_walks::<f32>(&mut ledger, m, Isa::available());
        check_walks::<f64>(&mut ledger, m, Isa::available());
    }
    ledger.close("up to 1e4 values", 100_000);
}

#[test]
fn a_hundred_thousand_values() {
    let mut ledger = Ledger::default();
    for (outer, inner) in [(1, 100_003), (33, 3001), (100_003, 1)] {
        check(&mut ledger, &families::<f32>(outer, inner, 1e-5), Isa::available());
    }
    ledger.close("1e5 values", 100_000);
}

/// Mean, variance and y of channels with mean κ and standard deviation 1.
fn check_many(outer: usize, inner: usize) {
    let kappas = [0.0, 1e3, 0.999e6];
    let shape = Shape::new(outer, kappas.len(), inner).unwrap();
    let mut random = Random(15);
    let mut p = Problem { shape, eps: 1e-5, x: vec![0.0f32; shape.len()], dy: vec![], gamma: None, beta: None };
    for (c, kappa) in kappas.into_iter().enumerate() {
        for k in indices(shape, c) {
            // The sum of two uniform values is smooth enough and fast to generate.
            p.x[k] = (kappa + 2.45 * (random.uniform() + random.uniform() - 1.0)) as f32;
        }
    }
    let mut statistics = Statistics::new(kappas.len());
    let mut y = vec![f32::NAN; shape.len()];
    p.plan().forward_training(&p.x, p.affine(), &mut y, &mut statistics).unwrap();
    let sums = batchnorm::GradientSums::new(kappas.len());
    let out = Outputs { statistics, sums, y, dx: vec![], dgamma: vec![], dbeta: vec![] };
    let mut ledger = Ledger::default();
    oracle::check_forward(&mut ledger, &p, &oracle::statistics(shape, &p.x), &out, &shape);
    ledger.close(&format!("{} values", shape.values_per_channel()), shape.len());
}

#[test]
fn ten_million_values_in_planes() {
    check_many(10, 1_000_000);
}

#[test]
fn ten_million_values_in_rows() {
    check_many(10_000_000, 1);
}

/// Checks mean, var and y of one channel.
fn check_channel(ledger: &mut Ledger, (outer, inner): (usize, usize), x: Vec<f32>, context: &dyn std::fmt::Debug) {
    let shape = Shape::new(outer, 1, inner).unwrap();
    let p = Problem { x, ..Problem::<f32>::random(shape, 19) };
    let out = train(&p.plan(), &p, Way::Fused, 0);
    oracle::check_forward(ledger, &p, &oracle::statistics(shape, &p.x), &out, &(shape, context));
}

/// A block far from its pivot. A search finds values whose rounding errors would add up if lanes summed them: the sum
/// is rounded down, and the squares are rounded up.
#[test]
fn a_step_whose_roundings_add_up() {
    let sum = |v: [f32; 8]| ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    let variance_error = |v: [f32; 8]| {
        let (s, q) = (f64::from(sum(v)), f64::from(sum(v.map(|d| d * d))));
        let (exact_s, exact_q) = v.iter().fold((0.0, 0.0), |(s, q), &d| (s + f64::from(d), q + f64::from(d).powi(2)));
        (q - s * s / 8.0) - (exact_q - exact_s * exact_s / 8.0)
    };
    let mut random = Random(18);
    let mut candidate = || std::array::from_fn(|_| (1.0 + random.below(1 << 15) as f64 * 2.0 * f32::U) as f32);
    let worst = (0..100_000).map(|_| candidate()).max_by(|&a, &b| variance_error(a).total_cmp(&variance_error(b)));
    let worst: [f32; 8] = worst.unwrap();
    let mut ledger = Ledger::default();
    // The first block has 128 values of a plane, or 8 rows.
    for (outer, inner, run) in [(1, 256, 16), (16, 1, 1)] {
        let half = outer * inner / 2;
        let x = (0..2 * half).map(|i| if i < half { 0.0 } else { worst[(i - half) / run] }).collect();
        check_channel(&mut ledger, (outer, inner), x, &"step");
    }
    ledger.close("step", 100);
}

/// Constant blocks, as long as the kernel's. The distance of each from its pivot is rounded by almost u if a value next
/// to the block's level allows it, and in the worst direction: all towards the overall mean, or all away from it.
#[test]
fn blocks_made_against_their_pivots() {
    let mut ledger = Ledger::default();
    let mut random = Random(20);
    for trial in 0..600 {
        let blocks = 2 + random.below(6);
        let levels: Vec<f64> = (0..blocks)
            .map(|b| match trial % 6 {
                0 => f64::from(u8::from(b + 1 == blocks)),
                1 => 0.5f64.powf(b as f64 / 2.0),
                2 => b as f64,
                3 => [1.0, -1.0][b % 2] * 2f64.powi(b as i32),
                4 => random.uniform(),
                _ => random.normal() * 0.7f64.powi(b as i32),
            })
            .collect();
        let scale = 0.5 + random.uniform();
        for (first, rows) in [(128, false), (8, true)] {
            let length = |b: usize| if b == 0 { first } else { first << (b - 1) };
            let m = first << (blocks - 1);
            let mean = (0..blocks).map(|b| levels[b] * length(b) as f64).sum::<f64>() / m as f64;
            for inflate in [1.0, -1.0] {
                let (mut x, mut sum): (Vec<f32>, f64) = (Vec::with_capacity(m), 0.0);
                for (b, &level) in levels.iter().enumerate() {
                    let pivot = if b == 0 { 0.0 } else { (sum / x.len() as f64) as f32 };
                    let towards = inflate * (level - mean).signum();
                    let gain = |v: f32| {
                        let exact = f64::from(v) - f64::from(pivot);
                        towards * (f64::from(v - pivot) - exact) / exact.abs().max(1e-30)
                    };
                    // The first block decides the low bits of all pivots after it.
                    let near =
                        (scale * level) as f32 + if b == 0 { f32::EPSILON * random.uniform() as f32 } else { 0.0 };
                    let candidates = (0..256).map(|k| near * (1.0 + f32::EPSILON * k as f32));
                    let value = candidates.max_by(|&a, &b| gain(a).total_cmp(&gain(b))).unwrap();
                    x.extend(std::iter::repeat_n(value, length(b)));
                    sum += f64::from(value) * length(b) as f64;
                }
                check_channel(&mut ledger, if rows { (m, 1) } else { (1, m) }, x, &(trial, inflate));
            }
        }
    }
    ledger.close("against pivots", 1_000_000);
}

/// Squares that are 0 in f32 although deviations are not, next to channels that are 0 throughout.
#[test]
fn channels_of_zeros_and_of_tiny_values() {
    let mut ledger = Ledger::default();
    for (outer, inner) in [(300, 1), (3, 100), (1, 16)] {
        let shape = Shape::new(outer, 20, inner).unwrap();
        let mut p = Problem::<f32>::random(shape, 23);
        for c in 0..shape.channels() {
            for (i, k) in indices(shape, c).enumerate() {
                p.x[k] = match c % 5 {
                    0 => 0.0,
                    1 => [0.0, -0.0, 0.0][i % 3],
                    2 => [1e-30, -1e-30][i % 2],
                    3 => f32::from_bits(i as u32 % 3),
                    _ => 2.0 + [0.0, f32::EPSILON][i % 2],
                };
            }
        }
        for eps in [0.0, 1e-5] {
            p.eps = eps;
            check(&mut ledger, &p, Isa::available());
        }
    }
    ledger.close("zeros and tiny values", 10_000);
}

/// Integers around a mean: pivots, deviations, squares and their sums have few enough bits to be exact in any order.
#[test]
fn exact_data_is_exact() {
    fn check<T: Float>(m: usize, value: &dyn Fn(usize) -> f64, (mean, var): (f64, f64)) {
        for (outer, inner) in [(m, 1), (1, m), (4, m / 4)] {
            let shape = Shape::new(outer, 1, inner).unwrap();
            let mut p = Problem::<T>::random(shape, 16);
            p.x = (0..m).map(|i| T::of(value(i))).collect();
            (p.eps, p.gamma, p.beta) = (0.0, None, None);
            every_isa(|isa| {
                let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
                assert_eq!(
                    (out.statistics.mean(), out.statistics.var()),
                    (&[mean][..], &[var][..]),
                    "{shape:?} {isa:?}"
                );
                let inv_std = batchnorm::reference::inv_std(var, 0.0);
                let exact = |x: T| (x.to_f64() - mean) * inv_std;
                assert!(p.x.iter().zip(&out.y).all(|(&x, y)| y.to_f64() == exact(x)), "{shape:?} {isa:?}");
            });
        }
    }
    fn both(m: usize, value: &dyn Fn(usize) -> f64, moments: (f64, f64)) {
        check::<f32>(m, value, moments);
        check::<f64>(m, value, moments);
    }
    for m in [8, 64, 128, 512, 4096, 65_536] {
        both(m, &|i| if i % 2 == 0 { 3.0 } else { -1.0 }, (1.0, 4.0));
        both(m, &|i| 65_537.0 + [1.0, -1.0, -1.0, 1.0][i % 4], (65_537.0, 1.0));
        both(m, &|_| 0.1f32.into(), (0.1f32.into(), 0.0));
    }
    // Half of the values are 1001 and half are 999, in any order.
    for m in [8, 64, 256, 512] {
        let mut order: Vec<usize> = (0..m).collect();
        let mut random = Random(17);
        for i in (1..m).rev() {
            order.swap(i, random.below(i + 1));
        }
        both(m, &|i| if order[i].is_multiple_of(2) { 1001.0 } else { 999.0 }, (1000.0, 1.0));
    }
}

/// The quotient of two integers below 2^106, rounded once.
fn quotient(a: i128, b: i128) -> f64 {
    let double = |v: i128| {
        let high = v as f64;
        oracle::Double::from(high) + oracle::Double::from((v - high as i128) as f64)
    };
    (double(a) / double(b)).0
}

/// Whether mean and variance of integers times a unit, in some order, are the exact ones, rounded once.
fn check_integers<T: Number>(shape: Shape, unit: f64, integer: &mut dyn FnMut(usize) -> i64) {
    let (found, exact) = integer_statistics::<T>(shape, unit, integer);
    assert_eq!(found, exact, "{} {shape:?} {unit}", T::NAME);
}

/// The means and variances of integers times a unit, which are the same on every instruction set, and the exact ones.
fn integer_statistics<T: Number>(
    shape: Shape,
    unit: f64,
    integer: &mut dyn FnMut(usize) -> i64,
) -> ([Vec<f64>; 2], [Vec<f64>; 2]) {
    let integers: Vec<i64> = (0..shape.len()).map(integer).collect();
    let m = shape.values_per_channel() as i128;
    let mut exact = [vec![], vec![]];
    for c in 0..shape.channels() {
        let channel = || indices(shape, c).map(|k| i128::from(integers[k]));
        let (sum, squares) = (channel().sum::<i128>(), channel().map(|v| v * v).sum::<i128>());
        exact[0].push(unit * quotient(sum, m));
        exact[1].push(unit * unit * quotient(m * squares - sum * sum, m * m));
    }
    let x: Vec<T> = integers.iter().map(|&v| T::of(unit * v as f64)).collect();
    assert!(x.iter().zip(&integers).all(|(x, &v)| x.to_f64() == unit * v as f64), "the type has no such values");
    let mut found: Option<Statistics> = None;
    every_isa(|isa| {
        let mut statistics = Statistics::new(shape.channels());
        BatchNorm::new(shape).isa(isa).unwrap().statistics(&x, &mut statistics).unwrap();
        assert_eq!(found.get_or_insert_with(|| statistics.clone()), &statistics, "{isa:?}");
    });
    let found = found.unwrap();
    ([found.mean().to_vec(), found.var().to_vec()], exact)
}

/// Ones and their negatives in a plane of three values had a mean of 5e-9.
#[test]
fn mean_and_variance_of_small_integers_with_alternating_signs() {
    let shape = Shape::new(2, 1, 3).unwrap();
    check_integers::<f32>(shape, 1.0, &mut |i| [1, -1][i % 2]);
    check_integers::<f64>(shape, 1.0, &mut |i| [1, -1][i % 2]);
}

/// Any number of values in any order, in both walks: pivots, sums and merges are exact.
#[test]
fn integers_in_any_order_are_exact() {
    let mut random = Random(71);
    for trial in 0..400 {
        let (outer, inner) = match trial % 4 {
            0 => (1 + random.below(2000), 1),
            1 => (1 + random.below(9), 1 + random.below(300)),
            2 => (1 + random.below(300), 2 + random.below(20)),
            _ => (1 + random.below(3), 1 + random.below(5000)),
        };
        let shape = Shape::new(outer, 1 + random.below(4), inner).unwrap();
        let unit = 2f64.powi(random.below(40) as i32 - 20);
        let (range, offset) = (1 + random.below(1 << (1 + trial % 10)), random.below(1 << 23) as i64 - (1 << 22));
        let mut value = |_| offset + random.below(range + 1) as i64;
        check_integers::<f32>(shape, unit, &mut value);
        check_integers::<f64>(shape, unit, &mut value);
    }
}

/// Sums that never cancel, one far value among many equal ones, and lengths of several segments.
#[test]
fn many_integers_are_exact() {
    let mut random = Random(72);
    for (outer, inner) in [(1, 100_003), (7, 30_011), (70_001, 1)] {
        for channels in [1, 3] {
            let shape = Shape::new(outer, channels, inner).unwrap();
            check_integers::<f32>(shape, 1.0, &mut |_| random.below(1024) as i64);
            check_integers::<f32>(shape, 0.25, &mut |i| if i < channels { 1023 } else { 0 });
            check_integers::<f64>(shape, 1.0, &mut |i| if i / channels == outer / 2 { 1 << 20 } else { 1 << 30 });
            let (found, exact) = integer_statistics::<f32>(shape, 1.0, &mut |_| random.below(1 << 20) as i64);
            assert_eq!(found[0], exact[0], "{shape:?}");
        }
    }
}

/// The grid of 16-bit types is coarse, so that all their values span few steps.
#[cfg(feature = "half")]
#[test]
fn integers_of_16_bits_are_exact() {
    let mut random = Random(73);
    for (outer, inner) in [(777, 1), (5, 131)] {
        let shape = Shape::new(outer, 3, inner).unwrap();
        check_integers::<::half::bf16>(shape, 1.0, &mut |_| random.below(257) as i64 - 128);
        check_integers::<::half::f16>(shape, 1.0, &mut |_| random.below(1025) as i64 - 512);
    }
}

/// Mean and variance of f64 have bounds without κ, wherever an outlier stands and however far the data is from 0: half
/// an ulp of the mean and 4u·std, and 16u of the variance, with u = 2⁻⁵³.
#[test]
fn f64_statistics_do_not_depend_on_the_offset() {
    let mut ledger = Ledger::default();
    let u = f64::EPSILON / 2.0;
    let mut check = |(outer, inner): (usize, usize), kappa: f64, step: f64, value: &mut dyn FnMut(usize) -> f64| {
        let shape = Shape::new(outer, 1, inner).unwrap();
        let x: Vec<f64> = (0..shape.len()).map(|i| step * (kappa + value(i))).collect();
        let exact = oracle::statistics(shape, &x)[0];
        every_isa(|isa| {
            let mut statistics = Statistics::new(1);
            BatchNorm::new(shape).isa(isa).unwrap().statistics(&x, &mut statistics).unwrap();
            let error = |found: f64, exact: oracle::Double| (oracle::Double::from(found) - exact).abs().0;
            let context = (shape, isa, kappa, step);
            let bound = u * (exact.0.0.abs() + 4.0 * exact.1.sqrt().0);
            ledger.note::<f64>("mean of f64", error(statistics.mean()[0], exact.0), bound, &context);
            ledger.note::<f64>("var of f64", error(statistics.var()[0], exact.1), 16.0 * u * exact.1.0, &context);
        });
    };
    let mut random = Random(74);
    for kappa in [0.0, 1.0, 1e3, 1e6, 1e8] {
        for extents in [(1, 100), (100, 1), (1, 20_011), (90_001, 1), (700, 19), (3, 40_009)] {
            let m = extents.0 * extents.1;
            for step in [1.0, 0.3e-20, 7e12] {
                check(extents, kappa, step, &mut |_| random.normal());
            }
            check(extents, kappa, 1.0, &mut |i| if i % 2 == 0 { 0.1 } else { -0.1 });
            check(extents, kappa, 1.0, &mut |i| i as f64 / m as f64);
            for outlier in [0, m / 2, m - 1] {
                check(extents, kappa, 1.0, &mut |i| if i == outlier { 1e4 } else { random.normal() });
            }
            check(extents, kappa, 1.0, &mut |i| f64::from(u8::from(i >= m / 2)) + 1e-3 * random.normal());
        }
    }
    for extents in [(10, 1_000_000), (10_000_000, 1)] {
        check(extents, 1e8, 1.0, &mut |i| [0.1, -0.3, 0.7][i % 3]);
    }
    ledger.close("f64 statistics", 100);
}
