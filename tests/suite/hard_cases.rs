//! What are the results in the hard cases? One test or more for each row of the table in docs/numerics.md; here those
//! of channels without variance and of shapes with few values or none.

mod counts;
mod not_finite;
mod range;

use crate::common::*;
use batchnorm::*;

/// Both walks, for 5 channels of 24 values.
fn walks() -> [Shape; 2] {
    [Shape::ncl(3, 5, 8).unwrap(), Shape::nc(24, 5).unwrap()]
}

/// A problem whose channel 2 has the values `value(0)`, `value(1)` and so on.
fn with_channel<T: Float>(shape: Shape, value: &dyn Fn(usize) -> f64) -> Problem<T> {
    let mut p = Problem::random(shape, 51);
    for (i, k) in reference::indices(shape, 2).enumerate() {
        p.x[k] = T::of(value(i));
    }
    p
}

fn channel<T: Copy>(shape: Shape, c: usize, values: &[T]) -> Vec<T> {
    reference::indices(shape, c).map(|k| values[k]).collect()
}

fn zero_variance_gives_beta<T: Float>(constants: &[f64]) {
    for shape in walks() {
        for &constant in constants {
            for eps in [0.0, 1e-5] {
                let p = Problem::<T> { eps, ..with_channel(shape, &|_| constant) };
                every_isa(|isa| {
                    let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
                    let context = (T::NAME, shape, constant, eps, isa);
                    assert_eq!(out.statistics.mean()[2], T::of(constant).to_f64(), "{context:?}");
                    assert_eq!(out.statistics.var()[2], 0.0, "{context:?}");
                    let beta = p.beta.as_ref().unwrap()[2];
                    assert!(channel(shape, 2, &out.y).iter().all(|&y| y == beta), "{context:?}");
                    assert_eq!(out.dgamma[2].to_f64(), 0.0, "{context:?}");
                    let dx = channel(shape, 2, &out.dx);
                    assert!(dx.iter().all(|dx| if eps == 0.0 { dx.to_f64() == 0.0 } else { dx.to_f64().is_finite() }));
                });
            }
        }
    }
}

#[test]
fn zero_variance() {
    let common = [0.0, -0.0, 1.0, -1.0, 0.1, 1.0 / 3.0, 16_777_217.0, 1e-40, -1e-45, 1e-38, 1e20, -3e38];
    zero_variance_gives_beta::<f32>(&common);
    zero_variance_gives_beta::<f32>(&[f32::MAX.into(), f32::MIN_POSITIVE.into()]);
    zero_variance_gives_beta::<f64>(&common);
    zero_variance_gives_beta::<f64>(&[1e-310, 1e150, f64::MIN_POSITIVE]);
}

#[test]
fn zero_running_variance_without_eps() {
    for shape in walks() {
        let p = Problem::<f32> { eps: 0.0, ..Problem::random(shape, 52) };
        let running = RunningStatistics::from_parts(vec![0.5; 5], vec![0.0; 5], 1).unwrap();
        let out = train_frozen(&p.plan(), &p, &running, Way::Fused, 0);
        for c in 0..5 {
            assert!(channel(shape, c, &out.y).iter().all(|&y| y == p.beta.as_ref().unwrap()[c]));
        }
        assert!(out.dx.iter().all(|&dx| dx == 0.0));
    }
}

#[test]
fn one_value_per_channel() {
    for shape in [Shape::nc(1, 3).unwrap(), Shape::nchw(1, 3, 1, 1).unwrap()] {
        let p = Problem::<f32>::random(shape, 53);
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!((out.statistics.count(), out.statistics.var()), (1.0, &[0.0; 3][..]));
        assert_eq!(out.statistics.mean(), to_f64(&p.x));
        assert!(same(&out.y, p.beta.as_ref().unwrap()));

        let mut running = RunningStatistics::new(3);
        let error = running.update(&out.statistics, Momentum::Exponential(0.1));
        assert_eq!(error, Err(Error::TooFewValues { count: 1.0 }));
        assert_eq!(running, RunningStatistics::new(3));
        assert_eq!(
            error.unwrap_err().to_string(),
            "too few values for an unbiased variance: expected more than 1 value per channel, got 1"
        );
        let mut biased = RunningStatistics::new(3).biased(true);
        biased.update(&out.statistics, Momentum::Exponential(1.0)).unwrap();
        assert_eq!((biased.mean(), biased.var()), (out.statistics.mean(), out.statistics.var()));
    }
}

#[test]
fn empty_batch() {
    for shape in [Shape::nc(0, 3), Shape::nchw(0, 3, 2, 2), Shape::nchw(2, 3, 0, 5), Shape::nhwc(2, 0, 5, 3)] {
        let plan = BatchNorm::new(shape.unwrap());
        let (none, mut y) = (&[][..], [0.0f32; 0]);
        let mut statistics = Statistics::from_parts(9.0, vec![7.0; 3], vec![7.0; 3]).unwrap();
        plan.forward_training(none, Affine::default(), &mut y, &mut statistics).unwrap();
        assert_eq!(statistics, Statistics::new(3));
        plan.normalize(none, &statistics, Affine::default(), &mut y).unwrap();

        let (mut dx, mut dgamma, mut dbeta) = ([0.0; 0], [7.0; 3], [7.0; 3]);
        let gradients =
            Gradients { dx: Some(&mut dx), dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta), ..Gradients::default() };
        plan.backward(none, none, &statistics, Affine::default(), gradients).unwrap();
        assert_eq!((dgamma, dbeta), ([0.0; 3], [0.0; 3]));
        let mut sums = GradientSums::from_parts(vec![7.0; 3], vec![7.0; 3]).unwrap();
        plan.gradient_sums(none, none, &statistics, Affine::default(), &mut sums).unwrap();
        assert_eq!(sums, GradientSums::new(3));
        plan.input_gradient(none, none, &statistics, &sums, Affine::default(), &mut dx).unwrap();

        let mut running = RunningStatistics::new(3);
        running.update(&statistics, Momentum::Exponential(0.1)).unwrap();
        running.update(&statistics, Momentum::Cumulative).unwrap();
        assert_eq!(running, RunningStatistics::new(3));
        let gradients =
            Gradients { dx: Some(&mut dx), dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta), ..Gradients::default() };
        plan.backward(none, none, &running, Affine::default(), gradients).unwrap();
        assert_eq!((dgamma, dbeta), ([0.0; 3], [0.0; 3]));
    }
}

/// Computing the size of scratch memory does not overflow.
#[test]
fn empty_batch_of_any_number_of_channels() {
    for channels in [usize::MAX, usize::MAX / 2, usize::MAX / 20, usize::MAX / 1000] {
        for inner in [0, 1] {
            let plan = BatchNorm::new(Shape::new(0, channels, inner).unwrap());
            let mut statistics = Statistics::new(1);
            assert!(plan.statistics::<f32>(&[], &mut statistics).is_err(), "{channels} channels and statistics of 1");
        }
    }
}

#[test]
fn zero_channels() {
    for shape in [Shape::nc(4, 0), Shape::nchw(4, 0, 3, 3)] {
        let p = Problem::<f32>::random(shape.unwrap(), 54);
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!((out.statistics.channels(), out.statistics.count()), (0, p.shape.values_per_channel() as f64));
        train_frozen(&p.plan(), &p, &RunningStatistics::new(0), Way::Fused, 0);
        RunningStatistics::new(0).update(&out.statistics, Momentum::Exponential(0.1)).unwrap();
    }
}

#[test]
fn signed_zeros() {
    for shape in walks() {
        let p = with_channel::<f32>(shape, &|i| if i % 2 == 0 { 0.0 } else { -0.0 });
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!((out.statistics.mean()[2], out.statistics.var()[2]), (0.0, 0.0));
        assert!(channel(shape, 2, &out.y).iter().all(|&y| y == p.beta.as_ref().unwrap()[2]));
    }
}
