//! What do the hard cases get? One test for each row of the table in docs/numerics.md.

use crate::common::*;
use crate::oracle;
use batchnorm::*;

/// Both walks, for 5 channels of 24 values.
fn walks() -> [Shape; 2] {
    [Shape::ncl(3, 5, 8).unwrap(), Shape::nc(24, 5).unwrap()]
}

/// A problem whose channel 2 holds what `value` gives for 0, 1, 2..
fn with_channel<T: Float>(shape: Shape, value: impl Fn(usize) -> f64) -> Problem<T> {
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
                let p = Problem::<T> { eps, ..with_channel(shape, |_| constant) };
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

/// The sizes of scratch memory do not overflow.
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
fn nan_and_infinity_stay_in_their_channel() {
    fn check<T: Float>(shape: Shape, poison: f64, at: usize, in_dy: bool) {
        let clean = Problem::<T>::random(shape, 55);
        let mut bad = clean.clone();
        let place = reference::indices(shape, 2).nth(at).unwrap();
        if in_dy {
            bad.dy[place] = T::of(poison)
        } else {
            bad.x[place] = T::of(poison)
        }
        every_isa(|isa| {
            let run = |p: &Problem<T>| train(&p.plan().isa(isa).unwrap(), p, Way::Fused, 0);
            let (clean, bad) = (run(&clean), run(&bad));
            let context = (T::NAME, shape, poison, at, in_dy, isa);
            let mut running = [RunningStatistics::new(5), RunningStatistics::new(5)];
            for (running, out) in running.iter_mut().zip([&clean, &bad]) {
                running.update(&out.statistics, Momentum::Exponential(0.1)).unwrap();
            }
            for c in [0, 1, 3, 4] {
                let kept = |values: fn(&Outputs<T>) -> &[T]| {
                    same(&channel(shape, c, values(&clean)), &channel(shape, c, values(&bad)))
                };
                assert!(kept(|o| &o.y) && kept(|o| &o.dx), "channel {c}: {context:?}");
                let of_channel = |o: &Outputs<T>, r: &RunningStatistics| {
                    let parameters = [o.dgamma[c].bits(), o.dbeta[c].bits()];
                    (parameters, [r.mean()[c].to_bits(), r.var()[c].to_bits()])
                };
                assert_eq!(of_channel(&clean, &running[0]), of_channel(&bad, &running[1]), "channel {c}: {context:?}");
            }
            let concerned = if in_dy { bad.dbeta[2].to_f64() } else { bad.statistics.var()[2] };
            assert!(!concerned.is_finite(), "{context:?}");
        });
    }
    for shape in walks() {
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for at in [0, 7, 23] {
                for in_dy in [false, true] {
                    check::<f32>(shape, poison, at, in_dy);
                    check::<f64>(shape, poison, at, in_dy);
                }
            }
        }
    }
}

/// Mean, variance, y and gradients by the bounds, for channels of values times `scale`.
fn check_scale(scales: &[f64], eps: f64, gamma: Option<f64>) {
    let mut ledger = Ledger::default();
    for shape in walks() {
        for &scale in scales {
            let mut random = Random(56);
            let offset = if gamma.is_some() { 1.5 } else { 0.0 };
            let values: Vec<f64> = (0..24).map(|_| (random.normal().clamp(-3.0, 3.0) + offset) * scale).collect();
            let mut p = Problem::<f32> { eps, ..with_channel(shape, |i| values[i]) };
            if let (Some(value), Some(gamma), Some(beta)) = (gamma, &mut p.gamma, &mut p.beta) {
                (gamma[2], beta[2]) = (value as f32, 0.0);
            }
            every_isa(|isa| {
                let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
                let context = (shape, scale, eps, gamma, isa);
                oracle::check_forward(&mut ledger, &p, &oracle::statistics(shape, &p.x), &out, &context);
                let statistics = (out.statistics.mean(), out.statistics.var());
                oracle::check_gradients(&mut ledger, &p, statistics, Some(24.0), &out, &context);
            });
        }
    }
    ledger.close("scales", 500 * scales.len());
}

#[test]
fn subnormal_and_tiny_values() {
    check_scale(&[1e-45, 1e-44, 1e-42, 1e-40, 1e-38, 1e-36, 1e-30, 1e-25, 1e-20, 1e-18, 1e-15], 1e-5, None);
}

#[test]
fn tiny_values_without_eps() {
    check_scale(&[1e-36, 1e-33, 1e-30, 1e-27, 1e-25, 1e-20, 1e-19, 1e-18, 1e-15, 1e-10], 0.0, None);
}

/// gamma·inv_std passes the largest f32 here, the gradients need not.
#[test]
fn subnormal_values_without_eps() {
    check_scale(&[1e-44, 1e-42, 1e-40, 1e-38], 0.0, None);
}

/// gamma·inv_std is far beyond the largest f32, up to where its two factors end, and dx is not.
#[test]
fn scale_of_dx_up_to_its_limit() {
    let mut ledger = Ledger::default();
    let limit = oracle::largest_scale::<f32>();
    for shape in walks() {
        for scale in [1e39, 1e50, 1e60, 1e70, 0.5 * limit, 0.999 * limit] {
            let mut p = Problem::<f32> { eps: 0.0, ..with_channel(shape, |i| [3e-39, -3e-39, 9e-39][i % 3]) };
            let var = oracle::statistics(shape, &p.x)[2].1;
            if let Some(gamma) = &mut p.gamma {
                gamma[2] = (scale * var.sqrt().0) as f32;
            }
            for k in reference::indices(shape, 2) {
                p.dy[k] = (f64::from(p.dy[k]) * 3e37 / scale) as f32;
            }
            every_isa(|isa| {
                let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
                assert!(channel(shape, 2, &out.dx).iter().any(|dx| dx.abs() > 1e37), "{shape:?} {scale}");
                let statistics = (out.statistics.mean(), out.statistics.var());
                oracle::check_gradients(&mut ledger, &p, statistics, Some(24.0), &out, &(shape, scale, isa));
            });
        }
    }
    ledger.close("scales of dx", 1000);
}

#[test]
fn huge_values() {
    check_scale(&[1e10, 1e15, 1e18, 1e19, 1e20, 1e25, 1e30, 1e35, 1e38], 1e-5, None);
}

#[test]
fn gammas_of_any_size() {
    for gamma in [0.0, 1e-44, 1e-38, 1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30] {
        check_scale(&[1e-3, 1.0, 1e3, 1e6], 1e-5, Some(gamma));
        check_scale(&[1e20], 1e-5, Some(gamma));
        check_scale(&[1e-10], 0.0, Some(gamma));
    }
}

/// The scale is ordinary where both of its factors are not.
#[test]
fn tiny_values_with_tiny_gammas() {
    for gamma in [1e-44, 1e-42, 1e-41, 1e-40, 1e-38, 1e-30, 1e-20, 1e-10] {
        check_scale(&[1e-44, 3e-42, 1e-42, 1e-40, 1e-38, 1e-35, 1e-31], 0.0, Some(gamma));
    }
}

/// The scale is tiny, and y subnormal or nearly so.
#[test]
fn ordinary_values_with_tiny_gammas() {
    for gamma in [1e-45, 1e-43, 1e-41, 1e-40, 1e-38, 1e-36, 1e-33, 1e-30] {
        check_scale(&[1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 1.0, 1e3, 1e6], 0.0, Some(gamma));
    }
}

/// dx is ordinary where neither dy nor its factor is.
#[test]
fn the_largest_dy_with_the_smallest_gamma() {
    for shape in walks() {
        let mut p = Problem::<f32> { eps: 1e-3, ..with_channel(shape, |i| i as f64 * 1e-3) };
        p.gamma.as_mut().unwrap()[2] = f32::MIN_POSITIVE;
        let at = reference::indices(shape, 2).nth(5).unwrap();
        p.dy[at] = 3e38;
        every_isa(|isa| {
            let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
            let statistics = (out.statistics.mean(), out.statistics.var());
            let (x, dy) = (to_f64(&p.x), to_f64(&p.dy));
            let expected = reference::backward(shape, &x, &dy, statistics, p.eps, &p.gamma_f64()).0[at];
            let dx = f64::from(out.dx[at]);
            assert!((dx - expected).abs() <= 1e-6 * expected.abs(), "{shape:?} {isa:?}: {dx:e} for {expected:e}");
        });
    }
}

/// dy·x̂ and dy are in the range of lanes here, and dy·(x − mean)/std is not.
#[test]
fn the_largest_dy_where_eps_outweighs_the_variance() {
    for shape in walks() {
        for (size, eps) in [(1e-26, 1e-50), (1e-26, 1e-40), (1e-26, 1.0), (1e-42, 1.0), (1e26, 1e60), (1e26, 1e300)] {
            let mut p = Problem::<f32> { eps, ..with_channel(shape, |i| if i == 5 { size } else { 0.0 }) };
            for k in reference::indices(shape, 2) {
                p.dy[k] = if p.x[k] != 0.0 { 3e38 } else { 1e30 };
            }
            if size > 1.0 {
                p.dy.iter_mut().for_each(|dy| *dy *= 1e-30);
            } else {
                // Or dx would leave the range.
                p.gamma.as_mut().unwrap()[2] = 1e-30;
            }
            every_isa(|isa| {
                let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
                let statistics = (out.statistics.mean(), out.statistics.var());
                let (x, dy) = (to_f64(&p.x), to_f64(&p.dy));
                let (dx, dgamma, _) = reference::backward(shape, &x, &dy, statistics, p.eps, &p.gamma_f64());
                let near = |what: &str, v: f32, expected: f64| {
                    let error = (f64::from(v) - expected).abs();
                    let case = format!("{what} of {size:e} with eps {eps:e} on {isa:?}");
                    assert!(error <= 1e-6 * expected.abs() + 2e-45, "{case}: {v:e} for {expected:e}");
                };
                near("dgamma", out.dgamma[2], dgamma[2]);
                reference::indices(shape, 2).for_each(|k| near("dx", out.dx[k], dx[k]));
            });
        }
    }
}

/// What dx is made of is subnormal here, and rounded once before a scale beyond the range of lanes makes it large.
#[test]
fn the_smallest_dy_with_the_largest_gamma() {
    for shape in walks() {
        for step in 1..200 {
            let x = |i| [1e3, -1e3].get(i).map_or((i * step) as f64 * 1e-4, |&x| x);
            let mut p = Problem::<f32> { eps: 0.0, ..with_channel(shape, x) };
            p.gamma.as_mut().unwrap()[2] = -2e38;
            for (i, k) in reference::indices(shape, 2).enumerate() {
                p.dy[k] = if i == 0 { 1e-40 + step as f32 * 1e-42 } else { 0.0 };
            }
            every_isa(|isa| {
                let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
                let (mean, var) = (out.statistics.mean(), out.statistics.var());
                let (x, dy) = (to_f64(&p.x), to_f64(&p.dy));
                let (dx, _, _) = reference::backward(shape, &x, &dy, (mean, var), p.eps, &p.gamma_f64());
                let inv_std = reference::inv_std(var[2], p.eps);
                for k in reference::indices(shape, 2) {
                    // Half a smallest subnormal each for the mean of dy and the product, and for the slope of x − mean.
                    let subnormals = 1.0 + 0.5 * (x[k] - mean[2]).abs();
                    let bound = 2e38 * inv_std * subnormals * f64::from(f32::from_bits(1)) + 1e-6 * dx[k].abs();
                    let error = (f64::from(out.dx[k]) - dx[k]).abs();
                    assert!(
                        error <= bound,
                        "dx[{k}] of {step} on {isa:?}: off by {error:e}, {:.2} of the bound",
                        error / bound
                    );
                }
            });
        }
    }
}

/// y and dx of a training step, then of one with its statistics as constants, each beside what the reference makes of it.
fn both_steps(plan: &BatchNorm, p: &Problem<f64>) -> [(&'static str, Vec<f64>, Vec<f64>); 4] {
    let out = train(plan, p, Way::Fused, 0);
    let (mean, var) = (out.statistics.mean(), out.statistics.var());
    let running = RunningStatistics::from_parts(mean.to_vec(), var.to_vec(), 1).unwrap();
    let frozen = train_frozen(plan, p, &running, Way::Fused, 0);
    let (statistics, gamma) = ((mean, var), p.gamma_f64());
    let y = reference::normalize(p.shape, &p.x, statistics, p.eps, &gamma, &p.beta_f64());
    let dx = reference::backward(p.shape, &p.x, &p.dy, statistics, p.eps, &gamma).0;
    let frozen_dx = reference::backward_frozen(p.shape, &p.x, &p.dy, statistics, p.eps, &gamma).0;
    [("y", out.y, y.clone()), ("y at test time", frozen.y, y), ("dx", out.dx, dx), ("frozen dx", frozen.dx, frozen_dx)]
}

/// gamma·inv_std is in the range of no f64 here, and y and dx are.
#[test]
fn scales_beyond_f64() {
    for shape in walks() {
        for (std, gamma, dy) in
            [(1e140, -1e-300, 1e160), (1e100, 4e-324, 1e120), (1e-140, 1e300, 1e-160), (1e-100, -1e308, 1e-120)]
        {
            let mut p = Problem::<f64> { eps: 0.0, ..with_channel(shape, |i| std * (0.5 + (i % 5) as f64)) };
            p.gamma.as_mut().unwrap()[2] = gamma;
            p.beta.as_mut().unwrap()[2] = 0.0;
            p.dy.iter_mut().for_each(|v| *v *= dy);
            every_isa(|isa| {
                let plan = p.plan().isa(isa).unwrap();
                for (name, actual, expected) in both_steps(&plan, &p) {
                    let (actual, expected) = (channel(shape, 2, &actual), channel(shape, 2, &expected));
                    let size = expected.iter().fold(0.0f64, |size, v| size.max(v.abs()));
                    assert!(size > 0.0 && size.is_finite(), "{name} of gamma {gamma:e} tells nothing");
                    for (actual, expected) in actual.iter().zip(expected) {
                        let near = (actual - expected).abs() <= 1e-12 * size + 5e-324;
                        assert!(near, "{name} of gamma {gamma:e} on {isa:?}: {actual:e} for {expected:e}");
                    }
                }
            });
        }
    }
}

/// gamma·inv_std is smaller than what two factors hold, and dx is ordinary.
#[test]
fn the_largest_dy_with_the_largest_eps_and_the_smallest_gamma() {
    let least_factor = f64::from_bits((1023 - 526) << 52);
    for shape in walks() {
        let mut p = Problem::<f64> { eps: 2.743_597_788_668_523_5e304, ..with_channel(shape, |i| i as f64) };
        p.gamma.as_mut().unwrap()[2] = 3.5e-323;
        let at = reference::indices(shape, 2).nth(5).unwrap();
        p.dy[at] = -5.5e303;
        every_isa(|isa| {
            let plan = p.plan().isa(isa).unwrap();
            for (name, actual, expected) in both_steps(&plan, &p).into_iter().skip(2) {
                let (actual, expected) = (actual[at], expected[at]);
                let bound = p.dy[at].abs() * least_factor * f64::SMALLEST_SUBNORMAL + 1e-13 * expected.abs();
                assert!((actual - expected).abs() <= bound, "{name} on {isa:?}: {actual:e} for {expected:e}");
            }
        });
    }
}

fn no_gamma_beside_the_smallest_eps<T: Float>() {
    for shape in walks() {
        let mut p = Problem::<T> { eps: f64::from_bits(1), ..with_channel(shape, |_| 3.0) };
        p.gamma.as_mut().unwrap()[2] = T::of(0.0);
        every_isa(|isa| {
            let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
            let beta = p.beta.as_ref().unwrap()[2];
            assert!(channel(shape, 2, &out.y).iter().all(|&y| y == beta), "{isa:?}: {:?}", out.y);
            assert!(channel(shape, 2, &out.dx).iter().all(|dx| dx.to_f64() == 0.0), "{isa:?}: {:?}", out.dx);
        });
    }
}

/// inv_std is as large as it gets, and nothing of it is left.
#[test]
fn gamma_zero_and_the_smallest_eps() {
    no_gamma_beside_the_smallest_eps::<f32>();
    no_gamma_beside_the_smallest_eps::<f64>();
}

/// y is what the formula says, nothing of x̂ where gamma is 0, however far given statistics are from the data.
#[test]
fn statistics_far_from_the_data() {
    for shape in walks() {
        let mut p = with_channel::<f32>(shape, |_| 1e38);
        for (mean, var, gamma) in [
            (0.0, 1e-70, 0.0),
            (-3e38, 1e-140, 0.0),
            (1e-40, 1e-300, 0.0),
            (3e38, 1e76, 0.0),
            (0.0, 1e-68, -1e-41),
            (1e-40, 1e-80, 1e-40),
            (0.0, 1e-62, 1e-38),
            (0.0, 1e-64, 3e-32),
        ] {
            p.gamma = Some(vec![gamma as f32; shape.channels()]);
            let running = RunningStatistics::from_parts(vec![mean; shape.channels()], vec![var; shape.channels()], 1);
            every_isa(|isa| {
                let plan = BatchNorm::new(shape).eps(0.0).unwrap().isa(isa).unwrap();
                let mut y = vec![f32::NAN; shape.len()];
                plan.normalize(&p.x, running.as_ref().unwrap(), p.affine(), &mut y).unwrap();
                let (gamma, beta) = (p.gamma_f64()[2], p.beta_f64()[2]);
                let expected = (f64::from(1e38f32) - mean) / var.sqrt() * gamma + beta;
                let near = |y: &f32| (f64::from(*y) - expected).abs() <= 1e-6 * (expected - beta).abs();
                assert!(channel(shape, 2, &y).iter().all(near), "{isa:?} {mean:e} {var:e}: {expected:e}, {y:?}");
            });
        }
    }
}

#[test]
fn signed_zeros() {
    for shape in walks() {
        let p = with_channel::<f32>(shape, |i| if i % 2 == 0 { 0.0 } else { -0.0 });
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!((out.statistics.mean()[2], out.statistics.var()[2]), (0.0, 0.0));
        assert!(channel(shape, 2, &out.y).iter().all(|&y| y == p.beta.as_ref().unwrap()[2]));
    }
}

/// Subnormal data is summed twice, not more: its time is measured by the benches; here, that the results of its
/// neighbours keep their bits.
#[test]
fn a_subnormal_channel_leaves_its_neighbours_alone() {
    for shape in walks() {
        let (clean, subnormal) = (Problem::<f32>::random(shape, 51), with_channel(shape, |i| i as f64 * 1e-41));
        let [clean, subnormal] = [clean, subnormal].map(|p| train(&p.plan(), &p, Way::Fused, 0));
        for c in [0, 1, 3, 4] {
            assert!(same(&channel(shape, c, &clean.y), &channel(shape, c, &subnormal.y)), "channel {c} of {shape:?}");
        }
    }
}

#[test]
fn momentum_zero_and_one() {
    let batch = Statistics::from_parts(5.0, vec![3.0; 4], vec![2.0; 4]).unwrap();
    let old = [f64::NAN, f64::INFINITY, -0.0, 1e-310];
    let running = || RunningStatistics::from_parts(old.to_vec(), old.to_vec(), 3).unwrap();
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();

    let mut kept = running();
    kept.update(&batch, Momentum::Exponential(0.0)).unwrap();
    assert_eq!((bits(kept.mean()), bits(kept.var())), (bits(&old), bits(&old)));
    assert_eq!(kept.batches(), 4);
    let mut replaced = running();
    replaced.update(&batch, Momentum::Exponential(1.0)).unwrap();
    assert_eq!((replaced.mean(), replaced.var()), (&[3.0; 4][..], &[2.5; 4][..]));
    let nan = Statistics::from_parts(5.0, vec![f64::NAN], vec![f64::NAN]).unwrap();
    let mut kept = RunningStatistics::new(1);
    kept.update(&nan, Momentum::Exponential(0.0)).unwrap();
    assert_eq!((kept.mean(), kept.var()), (&[0.0][..], &[1.0][..]));
}

#[test]
fn cumulative_momentum_over_very_many_batches() {
    let mut running = RunningStatistics::new(1);
    for k in 0..1000 {
        let batch = Statistics::from_parts(2.0, vec![f64::from(k)], vec![f64::from(k)]).unwrap();
        running.update(&batch, Momentum::Cumulative).unwrap();
    }
    assert_eq!(running.batches(), 1000);
    assert!((running.mean()[0] - 499.5).abs() < 1e-10, "{running:?}");
    assert!((running.var()[0] - 999.0).abs() < 1e-10, "{running:?}");

    // Beyond 2^53 a count in floating point would no longer grow.
    let batches = (1 << 53) + 1;
    let mut running = RunningStatistics::from_parts(vec![1.0], vec![1.0], batches).unwrap();
    let batch = Statistics::from_parts(2.0, vec![2.0], vec![1.0]).unwrap();
    running.update(&batch, Momentum::Cumulative).unwrap();
    assert_eq!(running.batches(), batches + 1);
    let mut running = RunningStatistics::from_parts(vec![1.0], vec![1.0], u64::MAX).unwrap();
    running.update(&batch, Momentum::Cumulative).unwrap();
    assert_eq!(running.batches(), u64::MAX);
}

/// 2^24 + 1 ones and one value apart: a count, or a sum of ones, in f32 would stop at 2^24.
#[test]
fn more_than_2_to_the_24_values() {
    for (outer, inner) in [(1 << 24 | 2, 1), (1, 1 << 24 | 2)] {
        let shape = Shape::new(outer, 1, inner).unwrap();
        let mut x = vec![1.0f32; shape.len()];
        x[shape.len() - 1] = 3.0;
        let mut statistics = Statistics::new(1);
        BatchNorm::new(shape).statistics(&x, &mut statistics).unwrap();
        let m = shape.len() as f64;
        let (mean, var) = (1.0 + 2.0 / m, 4.0 / m * (1.0 - 1.0 / m));
        assert_eq!(statistics.count(), m);
        assert!((statistics.mean()[0] - mean).abs() <= 2.0 * f32::U * var.sqrt(), "{statistics:?}");
        assert!((statistics.var()[0] - var).abs() <= 4.0 * f32::U * var, "{statistics:?}");
    }
}

/// Counts are f64, exact to 2^53.
#[test]
fn merged_counts_beyond_2_to_the_32() {
    let mut whole = Statistics::new(1);
    for _ in 0..4 {
        let part = Statistics::from_parts(f64::from(u32::MAX), vec![1.0], vec![2.0]).unwrap();
        whole.merge(&part).unwrap();
    }
    assert_eq!((whole.count(), whole.mean(), whole.var()), (4.0 * f64::from(u32::MAX), &[1.0][..], &[2.0][..]));
    whole.merge(&Statistics::from_parts(1.0, vec![1.0], vec![2.0]).unwrap()).unwrap();
    assert_eq!(whole.count(), 4.0 * f64::from(u32::MAX) + 1.0);
}

#[test]
fn merged_counts_beyond_f64() {
    let part = |count| Statistics::from_parts(count, vec![1.0], vec![0.5]).unwrap();
    let mut half = part(f64::MAX / 2.0);
    half.merge(&part(f64::MAX / 2.0)).unwrap();
    assert_eq!(half, part(f64::MAX));
    assert_eq!(half.merge(&part(f64::MAX / 2.0)), Err(Error::Count(f64::INFINITY)));
    assert_eq!(half, part(f64::MAX));
}

/// What gives channel 2 a gamma or beta of its own; what does not depend on it keeps its bits.
fn with_parameters<T: Float>(finite: &Problem<T>, gamma: f64, beta: f64, check: impl Fn(&Outputs<T>, &Outputs<T>)) {
    let shape = finite.shape;
    let mut p = finite.clone();
    p.gamma.as_mut().unwrap()[2] = T::of(gamma);
    p.beta.as_mut().unwrap()[2] = T::of(beta);
    every_isa(|isa| {
        let [finite, out] = [finite, &p].map(|p| train(&p.plan().isa(isa).unwrap(), p, Way::Fused, 0));
        assert_eq!(finite.statistics, out.statistics);
        assert!(same(&finite.dgamma, &out.dgamma) && same(&finite.dbeta, &out.dbeta), "gamma {gamma} beta {beta}");
        for c in [0, 1, 3, 4] {
            let kept = |a: &[T], b: &[T]| same(&channel(shape, c, a), &channel(shape, c, b));
            assert!(kept(&finite.y, &out.y) && kept(&finite.dx, &out.dx), "gamma {gamma} beta {beta}, channel {c}");
        }
        check(&finite, &out);
    });
}

/// A channel with a value at its mean, and one that is constant; gamma is 1.
fn plain_channels<T: Float>(shape: Shape) -> [Problem<T>; 2] {
    let values: [fn(usize) -> f64; 2] = [|i| (i % 3) as f64, |_| 3.0];
    values.map(|value| {
        let mut p = with_channel::<T>(shape, value);
        p.gamma.as_mut().unwrap()[2] = T::of(1.0);
        p
    })
}

/// gamma·x̂ and gamma times the rest of dx as IEEE 754 has them, with NaN for Inf·0.
#[test]
fn infinite_and_nan_gamma() {
    fn check<T: Float>(p: &Problem<T>, gamma: f64) {
        let beta = p.beta.as_ref().unwrap()[2].to_f64();
        with_parameters(p, gamma, beta, |finite, out| {
            for k in reference::indices(p.shape, 2) {
                let y = gamma * (p.x[k].to_f64() - out.statistics.mean()[2]);
                assert_eq!(out.y[k].bits(), T::of(y).bits(), "y[{k}] with gamma {gamma}");
                assert_eq!(out.dx[k].bits(), T::of(gamma * finite.dx[k].to_f64()).bits(), "dx[{k}] with gamma {gamma}");
            }
        });
    }
    for shape in walks() {
        for gamma in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            plain_channels::<f32>(shape).iter().for_each(|p| check(p, gamma));
            plain_channels::<f64>(shape).iter().for_each(|p| check(p, gamma));
        }
    }
}

#[test]
fn infinite_and_nan_beta() {
    fn check<T: Float>(p: &Problem<T>, beta: f64) {
        with_parameters(p, 1.0, beta, |finite, out| {
            assert!(channel(p.shape, 2, &out.y).iter().all(|y| y.bits() == T::of(beta).bits()), "y with beta {beta}");
            assert!(same(&finite.dx, &out.dx), "dx with beta {beta}");
        });
    }
    for shape in walks() {
        for beta in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            plain_channels::<f32>(shape).iter().for_each(|p| check(p, beta));
            plain_channels::<f64>(shape).iter().for_each(|p| check(p, beta));
        }
    }
}

/// Not f32: what leaves the range of f64's own squares is documented to be out of bounds, but must not go unnoticed.
#[test]
fn f64_squares_that_overflow_are_not_finite() {
    for shape in walks() {
        let p = with_channel::<f64>(shape, |i| if i % 2 == 0 { 1e200 } else { -1e200 });
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!(out.statistics.mean()[2], 0.0);
        assert_eq!(out.statistics.var()[2], f64::INFINITY);
    }
}
