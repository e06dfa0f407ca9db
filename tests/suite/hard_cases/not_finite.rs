//! NaN and infinities, in the data and in the parameters.

use super::*;

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

/// Runs a step with another gamma and beta of channel 2. Outputs that do not depend on them must keep their bits;
/// `check` compares the others.
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

/// Problems whose channel 2 has values at its mean, or is constant. Its gamma is 1.
fn plain_channels<T: Float>(shape: Shape) -> [Problem<T>; 2] {
    let values: [fn(usize) -> f64; 2] = [|i| (i % 3) as f64, |_| 3.0];
    values.map(|value| {
        let mut p = with_channel::<T>(shape, &value);
        p.gamma.as_mut().unwrap()[2] = T::of(1.0);
        p
    })
}

/// gamma·x̂, and gamma times the rest of dx, follow IEEE 754, with NaN for Inf·0.
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

/// f64 values whose squares leave the range of f64 have no bound, as documented, but the variance must show it.
#[test]
fn f64_squares_that_overflow_are_not_finite() {
    for shape in walks() {
        let p = with_channel::<f64>(shape, &|i| if i % 2 == 0 { 1e200 } else { -1e200 });
        let out = train(&p.plan(), &p, Way::Fused, 0);
        assert_eq!(out.statistics.mean()[2], 0.0);
        assert_eq!(out.statistics.var()[2], f64::INFINITY);
    }
}

/// The variance of a channel with a value that is not finite is not a number, in both walks and on every tier.
#[test]
fn variances_of_infinite_values_are_not_numbers() {
    fn check<T: Float>(shape: Shape, value: f64) {
        let p = with_channel::<T>(shape, &|i| if i == 3 { value } else { 1.0 });
        every_isa(|isa| {
            let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, 0);
            assert!(out.statistics.var()[2].is_nan() && !out.statistics.mean()[2].is_finite(), "{shape:?} {isa:?}");
        });
    }
    for shape in walks() {
        for value in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            check::<f32>(shape, value);
            check::<f64>(shape, value);
        }
    }
}
