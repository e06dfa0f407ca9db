//! Values, scales and gradients near the ends of the range.

use super::*;
use crate::oracle;

/// Checks mean, variance, y and gradients against their bounds, for channels whose values are multiplied by each scale.
fn check_scale(scales: &[f64], eps: f64, gamma: Option<f64>) {
    let mut ledger = Ledger::default();
    for shape in walks() {
        for &scale in scales {
            let mut random = Random(56);
            let offset = if gamma.is_some() { 1.5 } else { 0.0 };
            let values: Vec<f64> = (0..24).map(|_| (random.normal().clamp(-3.0, 3.0) + offset) * scale).collect();
            let mut p = Problem::<f32> { eps, ..with_channel(shape, &|i| values[i]) };
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

/// gamma·inv_std is beyond the largest f32 here, but the gradients may be smaller.
#[test]
fn subnormal_values_without_eps() {
    check_scale(&[1e-44, 1e-42, 1e-40, 1e-38], 0.0, None);
}

/// gamma·inv_std is far beyond the largest f32, up to the limit of its two factors, although dx is not.
#[test]
fn scale_of_dx_up_to_its_limit() {
    let mut ledger = Ledger::default();
    let limit = oracle::largest_scale::<f32>();
    for shape in walks() {
        for scale in [1e39, 1e50, 1e60, 1e70, 0.5 * limit, 0.999 * limit] {
            let mut p = Problem::<f32> { eps: 0.0, ..with_channel(shape, &|i| [3e-39, -3e-39, 9e-39][i % 3]) };
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

/// The scale is of ordinary size, although neither of its factors is.
#[test]
fn tiny_values_with_tiny_gammas() {
    for gamma in [1e-44, 1e-42, 1e-41, 1e-40, 1e-38, 1e-30, 1e-20, 1e-10] {
        check_scale(&[1e-44, 3e-42, 1e-42, 1e-40, 1e-38, 1e-35, 1e-31], 0.0, Some(gamma));
    }
}

/// The scale is tiny, and y is subnormal or almost subnormal.
#[test]
fn ordinary_values_with_tiny_gammas() {
    for gamma in [1e-45, 1e-43, 1e-41, 1e-40, 1e-38, 1e-36, 1e-33, 1e-30] {
        check_scale(&[1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 1.0, 1e3, 1e6], 0.0, Some(gamma));
    }
}

/// dx is of ordinary size, although neither dy nor its factor is.
#[test]
fn the_largest_dy_with_the_smallest_gamma() {
    for shape in walks() {
        let mut p = Problem::<f32> { eps: 1e-3, ..with_channel(shape, &|i| i as f64 * 1e-3) };
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

/// dy·x̂ and dy are in the range of lanes here, but dy·(x − mean)/std is not.
#[test]
fn the_largest_dy_where_eps_outweighs_the_variance() {
    for shape in walks() {
        for (size, eps) in [(1e-26, 1e-50), (1e-26, 1e-40), (1e-26, 1.0), (1e-42, 1.0), (1e26, 1e60), (1e26, 1e300)] {
            let mut p = Problem::<f32> { eps, ..with_channel(shape, &|i| if i == 5 { size } else { 0.0 }) };
            for k in reference::indices(shape, 2) {
                p.dy[k] = if p.x[k] != 0.0 { 3e38 } else { 1e30 };
            }
            if size > 1.0 {
                p.dy.iter_mut().for_each(|dy| *dy *= 1e-30);
            } else {
                // Otherwise dx would leave the range.
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

/// The terms of dx are subnormal here, and are rounded once before a scale beyond the range of lanes makes them large.
#[test]
fn the_smallest_dy_with_the_largest_gamma() {
    for shape in walks() {
        for step in 1..200 {
            let x = |i| [1e3, -1e3].get(i).map_or((i * step) as f64 * 1e-4, |&x| x);
            let mut p = Problem::<f32> { eps: 0.0, ..with_channel(shape, &x) };
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
                    // Half a smallest subnormal each for the mean of dy, the product, and the slope of x − mean.
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

/// y and dx of a training step and of one with the same statistics as constants, each with the result of the reference.
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

/// gamma·inv_std is out of the range of f64 here, although y and dx are not.
#[test]
fn scales_beyond_f64() {
    for shape in walks() {
        for (std, gamma, dy) in
            [(1e140, -1e-300, 1e160), (1e100, 4e-324, 1e120), (1e-140, 1e300, 1e-160), (1e-100, -1e308, 1e-120)]
        {
            let mut p = Problem::<f64> { eps: 0.0, ..with_channel(shape, &|i| std * (0.5 + (i % 5) as f64)) };
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

/// gamma·inv_std is too small for two normal factors, but dx is of ordinary size.
#[test]
fn the_largest_dy_with_the_largest_eps_and_the_smallest_gamma() {
    let least_factor = f64::from_bits((1023 - 526) << 52);
    for shape in walks() {
        let mut p = Problem::<f64> { eps: 2.743_597_788_668_523_5e304, ..with_channel(shape, &|i| i as f64) };
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

fn no_gamma_and_the_smallest_eps<T: Float>() {
    for shape in walks() {
        let mut p = Problem::<T> { eps: f64::from_bits(1), ..with_channel(shape, &|_| 3.0) };
        p.gamma.as_mut().unwrap()[2] = T::of(0.0);
        every_isa(|isa| {
            let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
            let beta = p.beta.as_ref().unwrap()[2];
            assert!(channel(shape, 2, &out.y).iter().all(|&y| y == beta), "{isa:?}: {:?}", out.y);
            assert!(channel(shape, 2, &out.dx).iter().all(|dx| dx.to_f64() == 0.0), "{isa:?}: {:?}", out.dx);
        });
    }
}

/// inv_std is as large as possible, and a gamma of 0 removes all of it.
#[test]
fn gamma_zero_and_the_smallest_eps() {
    no_gamma_and_the_smallest_eps::<f32>();
    no_gamma_and_the_smallest_eps::<f64>();
}

/// y follows the formula, without any x̂ if gamma is 0, however far the given statistics are from the data.
#[test]
fn statistics_far_from_the_data() {
    for shape in walks() {
        let mut p = with_channel::<f32>(shape, &|_| 1e38);
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

/// Subnormal data is summed twice, not more, and the results of its neighbours keep their bits. Benchmarks measure its
/// time.
#[test]
fn a_subnormal_channel_leaves_its_neighbours_alone() {
    for shape in walks() {
        let (clean, subnormal) = (Problem::<f32>::random(shape, 51), with_channel(shape, &|i| i as f64 * 1e-41));
        let [clean, subnormal] = [clean, subnormal].map(|p| train(&p.plan(), &p, Way::Fused, 0));
        for c in [0, 1, 3, 4] {
            assert!(same(&channel(shape, c, &clean.y), &channel(shape, c, &subnormal.y)), "channel {c} of {shape:?}");
        }
    }
}
