//! Bugs of other libraries: one test each, named after the issue or commit and what went wrong.

use crate::common::*;
use crate::oracle;
use batchnorm::*;

/// The output of a constant channel was noise of the size of 1/sqrt(eps), since its variance was not zero.
#[test]
fn pytorch_5410_constant_channel() {
    for shape in [Shape::nchw(8, 2, 5, 5).unwrap(), Shape::nc(200, 2).unwrap()] {
        let constants = [64.16f32, 1e4 / 3.0];
        let mut p = Problem::<f32> { eps: 1e-20, ..Problem::random(shape, 61) };
        for (c, constant) in constants.into_iter().enumerate() {
            reference::indices(shape, c).for_each(|k| p.x[k] = constant);
        }
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!(out.statistics.var(), [0.0, 0.0]);
        for c in 0..2 {
            assert!(reference::indices(shape, c).all(|k| out.y[k] == p.beta.as_ref().unwrap()[c]));
        }
    }
}

/// Squares of large finite values overflowed f32, so y was 0 or NaN.
#[test]
fn pytorch_162489_squares_overflow() {
    for shape in [Shape::ncl(2, 1, 50).unwrap(), Shape::nc(100, 1).unwrap()] {
        let x: Vec<f32> = (0..100).map(|i| if i % 2 == 0 { 1e20 } else { -1e20 }).collect();
        let (mut y, mut statistics) = (vec![0.0; 100], Statistics::new(1));
        BatchNorm::new(shape).forward_training(&x, Affine::default(), &mut y, &mut statistics).unwrap();
        assert!(x.iter().zip(&y).all(|(x, &y)| y == x.signum()), "{y:?}");
        assert_eq!(statistics.mean(), [0.0]);
        let square = f64::from(1e20f32).powi(2);
        assert!((statistics.var()[0] / square - 1.0).abs() <= 8.0 * f32::U);
    }
}

/// An empty batch crashed, or turned the running statistics into NaN.
#[test]
fn pytorch_12013_empty_batch() {
    for shape in [Shape::nc(0, 3).unwrap(), Shape::nchw(0, 3, 4, 4).unwrap()] {
        let plan = BatchNorm::new(shape);
        let (mut statistics, mut running) = (Statistics::new(3), RunningStatistics::new(3));
        plan.forward_training::<f32>(&[], Affine::default(), &mut [], &mut statistics).unwrap();
        running.update(&statistics, Momentum::Exponential(0.1)).unwrap();
        assert_eq!(running, RunningStatistics::new(3));
    }
}

/// Inf in one channel made the others NaN.
#[test]
fn pytorch_90342_infinity_in_one_channel() {
    for shape in [Shape::nchw(2, 3, 4, 4).unwrap(), Shape::nhwc(2, 4, 4, 3).unwrap()] {
        let clean = Problem::<f32>::random(shape, 62);
        let mut bad = clean.clone();
        bad.x[reference::indices(shape, 1).next().unwrap()] = f32::INFINITY;
        let [clean, bad] = [clean, bad].map(|p| train(&p.plan(), &p, Way::Fused, 0));
        for c in [0, 2] {
            assert!(reference::indices(shape, c).all(|k| clean.y[k] == bad.y[k] && clean.dx[k] == bad.dx[k]));
        }
        assert!(reference::indices(shape, 1).any(|k| !bad.y[k].is_finite()));
    }
}

/// A negative running variance gave NaN, silently.
#[test]
fn pytorch_106605_negative_running_variance() {
    let running = RunningStatistics::from_parts(vec![0.0; 2], vec![1.0, -1.0], 1).unwrap();
    let mut y = [7.0f32; 2];
    let error = BatchNorm::new(Shape::nc(1, 2).unwrap()).normalize(&[1.0, 2.0], &running, Affine::default(), &mut y);
    assert_eq!(error, Err(Error::Variance { channel: 1, value: -1.0 }));
    assert_eq!(y, [7.0; 2]);
}

/// eps was rounded to a 16-bit type and became 0. Here it is f64, even if the variance is far below the range of f32.
#[test]
fn tensorflow_24979_eps_lost() {
    for eps in [1e-12, 1e-60, 1e-300] {
        let plan = BatchNorm::new(Shape::nc(2, 1).unwrap()).eps(eps).unwrap();
        let statistics = Statistics::from_parts(2.0, vec![0.0], vec![0.0]).unwrap();
        let mut y = [0.0f64; 2];
        plan.normalize(&[eps.sqrt(), 0.0], &statistics, Affine::default(), &mut y).unwrap();
        assert!((y[0] - 1.0).abs() <= 4.0 * f64::EPSILON, "{eps}: {y:?}");
    }
}

/// A sum left the range of the element type, although the mean does not.
#[test]
fn pytorch_126525_sum_overflow() {
    for shape in [Shape::ncl(1, 1, 1000).unwrap(), Shape::nc(1000, 1).unwrap()] {
        let x: Vec<f32> = (0..1000).map(|i| 3e38 + 1e36 * (i % 7) as f32).collect();
        let p = Problem { shape, eps: 1e-5, dy: vec![1.0; 1000], gamma: None, beta: None, x };
        let out = train(&p.plan(), &p, Way::Fused, 0);
        let mut ledger = Ledger::default();
        oracle::check_forward(&mut ledger, &p, &oracle::statistics(shape, &p.x), &out, &shape);
        ledger.close("sum overflow", 1000);
    }
}

/// Another number of threads gave other bits.
#[cfg(feature = "rayon")]
#[test]
fn onednn_354_threads_change_results() {
    for shape in [Shape::nchw(3, 7, 150, 150).unwrap(), Shape::nhwc(3, 150, 150, 7).unwrap()] {
        let p = Problem::<f32>::random(shape, 63);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(&p.plan(), &p, Way::Fused, 0))
        };
        let expected = run(1);
        for threads in [2, 4, 5, 32] {
            assert_same_bits(&expected, &run(threads), &(shape, threads));
        }
    }
}

/// The same data in another layout gave very different results, since one kernel was much less accurate. The two walks
/// here add in different orders, so their results may differ in the last bits, but both must keep the same bounds.
#[test]
fn pytorch_121651_layout_changes_results() {
    let (n, c, pixels) = (4, 3, 1000);
    let planes = Problem::<f32>::random(Shape::ncl(n, c, pixels).unwrap(), 64);
    let rows_shape = Shape::nhwc(n, 1, pixels, c).unwrap();
    let mut rows = Problem::<f32> { x: planes.x.clone(), dy: planes.dy.clone(), ..planes.clone() };
    rows.shape = rows_shape;
    for channel in 0..c {
        for (from, to) in reference::indices(planes.shape, channel).zip(reference::indices(rows_shape, channel)) {
            (rows.x[to], rows.dy[to]) = (planes.x[from] + 1000.0, planes.dy[from]);
        }
    }
    let mut shifted = planes.clone();
    shifted.x.iter_mut().for_each(|x| *x += 1000.0);
    let [planes_out, rows_out] = [&shifted, &rows].map(|p| train(&p.plan(), p, Way::Fused, 0));
    let exact = oracle::statistics(shifted.shape, &shifted.x);
    assert_eq!(exact, oracle::statistics(rows_shape, &rows.x));
    let mut ledger = Ledger::default();
    oracle::check_forward(&mut ledger, &shifted, &exact, &planes_out, &"planes");
    oracle::check_forward(&mut ledger, &rows, &exact, &rows_out, &"rows");
    ledger.close("layouts", 2 * n * c * pixels);
}

/// Normalizing in place was wrong: inputs were read after they had been overwritten.
#[test]
fn ggml_1519_in_place() {
    let mut shapes = vec![Shape::nchw(3, 5, 9, 9).unwrap(), Shape::nc(77, 33).unwrap()];
    if !cfg!(miri) {
        shapes.push(Shape::nchw(2, 3, 300, 300).unwrap()); // would take Miri an hour
    }
    for shape in shapes {
        let p = Problem::<f32>::random(shape, 65);
        let expected = train(&p.plan(), &p, Way::Fused, 0);
        assert_same_bits(&expected, &train(&p.plan(), &p, Way::FusedInPlace, 0), &shape);
    }
}

/// Parameters shorter than the channels were read past their end.
#[test]
fn pytorch_141203_short_arrays_crash() {
    let plan = BatchNorm::new(Shape::nchw(2, 64, 2, 2).unwrap());
    let (x, mut y, mut statistics) = (vec![1.0f32; 512], vec![7.0; 512], Statistics::new(64));
    for short in [0, 1, 63] {
        let (short, right) = (vec![1.0; short], vec![1.0; 64]);
        for (argument, affine) in [("gamma", Affine::new(&short, &right)), ("beta", Affine::new(&right, &short))] {
            let error = Error::Length { argument, expected: 64, actual: short.len() };
            assert_eq!(plan.forward_training(&x, affine, &mut y, &mut statistics), Err(error));
        }
    }
    assert!(y.iter().all(|&y| y == 7.0) && statistics == Statistics::new(64));
}

/// Running statistics of another length than the channels crashed the process.
#[test]
fn tensorflow_58999_running_statistics_of_another_length() {
    let plan = BatchNorm::new(Shape::nhwc(1, 2, 2, 6).unwrap());
    let mut y = [7.0f32; 24];
    for actual in [0, 1, 5, 7] {
        let error = plan.normalize(&[1.0; 24], &RunningStatistics::new(actual), Affine::default(), &mut y);
        assert_eq!(error, Err(Error::Length { argument: "running statistics", expected: 6, actual }));
    }
    assert_eq!(y, [7.0; 24]);
}

/// Channels that do not fill a vector were read and written past their end (oneDNN 3b27b4c967, d46cec184d, d310bfe968).
/// [`guard_pages`](crate::guard_pages) has inaccessible pages; here, values behind a buffer must not count or change.
#[test]
fn onednn_3b27b4c967_reads_past_the_tail() {
    for channels in 1..=40 {
        for shape in [Shape::nc(9, channels).unwrap(), Shape::ncl(1, 2, channels).unwrap()] {
            let p = Problem::<f32>::random(shape, 66);
            let expected = train(&p.plan(), &p, Way::Fused, 0);
            let (mut x, mut y) = (p.x.clone(), vec![7.0; p.x.len() + 64]);
            x.resize(p.x.len() + 64, f32::NAN);
            let mut statistics = Statistics::new(shape.channels());
            let (inside, behind) = y.split_at_mut(p.x.len());
            p.plan().forward_training(&x[..p.x.len()], p.affine(), inside, &mut statistics).unwrap();
            assert!(same(inside, &expected.y) && behind.iter().all(|&y| y == 7.0), "{shape:?}");
        }
    }
}

/// Work for fewer threads than there are caused a division by zero.
#[test]
fn onednn_9172a741a7_more_threads_than_work() {
    struct Many(usize);
    impl Executor for Many {
        fn threads(&self) -> usize {
            self.0
        }
        fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..n).for_each(task);
        }
    }
    for shape in [Shape::nc(1, 1), Shape::nc(2, 300_000), Shape::ncl(1, 1, 600_000), Shape::ncl(1, 300_000, 2)] {
        let p = Problem::<f32>::random(shape.unwrap(), 67);
        let expected = train(&p.plan().threads(Threads::Sequential), &p, Way::Fused, 0);
        for threads in [0, 1, 2, 1 << 20, usize::MAX] {
            let plan = p.plan().threads(Threads::Executor(std::sync::Arc::new(Many(threads))));
            assert_same_bits(&expected, &train(&plan, &p, Way::Fused, 0), &(p.shape, threads));
        }
    }
}
