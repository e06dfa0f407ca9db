//! Is x̂ rebuilt from y within the stated bound, and is an error returned if it cannot be rebuilt?

use crate::common::*;
use batchnorm::{Activation, Affine, BatchNorm, Error, Gradients, Shape, Statistics, reference};
use std::fmt::Debug;

fn shapes() -> [Shape; 3] {
    [Shape::ncl(3, 6, 13), Shape::nc(37, 6), Shape::nc(8, 35)].map(Result::unwrap)
}

const INVERTIBLE: [Activation; 4] =
    [Activation::Identity, Activation::LeakyRelu(0.01), Activation::LeakyRelu(1.0), Activation::LeakyRelu(4.0)];

/// A problem with ratios of beta to gamma up to the largest allowed, and gammas of any size that the type has room for.
pub(crate) fn problem<T: Number>(shape: Shape, seed: u64, activation: Activation, gammas: &[f64]) -> Problem<T> {
    let mut p = Problem::<T>::random(shape, seed);
    let slope = if let Activation::LeakyRelu(slope) = activation { slope } else { 1.0 };
    let root = (shape.values_per_channel() as f64).sqrt();
    let [smallest, largest] = T::INVERTIBLE;
    let (smallest, largest) = (smallest / slope.min(1.0), largest / (root + 64.0) / slope.max(1.0));
    let ratios = [0.0, 64.0, -1.0, 7.0, -64.0];
    for c in 0..shape.channels() {
        // A little inside the range, since gamma is rounded.
        let gamma = gammas[c % gammas.len()].clamp(1.01 * smallest, 0.99 * largest);
        let gamma: T::Param = Value::of(if c % 2 == 0 { gamma } else { -gamma });
        p.beta.as_mut().unwrap()[c] = Value::of(ratios[c % ratios.len()] * gamma.to_f64());
        p.gamma.as_mut().unwrap()[c] = gamma;
    }
    p
}

/// The outputs of a training step that keeps only y.
struct Rebuilt<T: Number> {
    y: Vec<T>,
    statistics: Statistics,
    dx: Vec<T>,
    g: Vec<T>,
    dgamma: Vec<T::Param>,
    dbeta: Vec<T::Param>,
}

fn run<T: Number>(plan: &BatchNorm, p: &Problem<T>) -> Rebuilt<T> {
    let (mut y, dy, mut statistics) =
        (Buffer::new(&p.x, 1), Buffer::new(&p.dy, 3), Statistics::new(p.shape.channels()));
    plan.forward_training_invertible(&mut y, p.affine(), &mut statistics).unwrap();
    let (mut dx, mut g) = (Buffer::output(p.x.len(), 5), Buffer::output(p.x.len(), 7));
    let (mut dgamma, mut dbeta) = (Buffer::output(p.shape.channels(), 2), Buffer::output(p.shape.channels(), 4));
    let gradients =
        Gradients { dx: Some(&mut dx), dresidual: Some(&mut g), dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
    plan.backward_from_output(&y, &dy, &statistics, p.affine(), gradients).unwrap();
    let (y, dx, g, dgamma, dbeta) = (y.to_vec(), dx.to_vec(), g.to_vec(), dgamma.to_vec(), dbeta.to_vec());
    Rebuilt { y, statistics, dx, g, dgamma, dbeta }
}

/// The exact x̂ for given statistics.
fn normalized<T: Number>(p: &Problem<T>, statistics: &Statistics) -> Vec<f64> {
    let (ones, zeros) = (vec![1.0; p.shape.channels()], vec![0.0; p.shape.channels()]);
    reference::normalize(p.shape, &to_f64(&p.x), (statistics.mean(), statistics.var()), p.eps, &ones, &zeros)
}

/// The stated bound of x̂.
fn bound<T: Number>(p: &Problem<T>, c: usize, x_hat: f64) -> f64 {
    rebuilt::<T>(x_hat, p.gamma_f64()[c], p.beta_f64()[c])
}

const GAMMAS: [&[f64]; 3] = [&[1.0, 0.3, 2.0, 1e-2], &[0.0, 1e-30, 1e-3], &[1e300, 1e4, 1e30]];

/// The bound of y, if there is one.
fn y_bound<T: Number>(p: &Problem<T>, c: usize, statistics: &Statistics, x_hat: f64) -> Option<f64> {
    let (mean, var) = (statistics.mean()[c], statistics.var()[c]);
    let affine = (p.gamma_f64()[c], p.beta_f64()[c]);
    Bounds::new::<T>(Factors::new::<T>(kappa(mean, var)), var, p.eps, affine, false).y::<T>(x_hat)
}

/// With dy = 1 at one position and 0 elsewhere, dgamma is x̂ at that position times act'.
pub(crate) fn rebuilt_x_hat<T: Number>(
    ledger: &mut Ledger,
    p: &mut Problem<T>,
    activation: Activation,
    position: usize,
    context: &dyn Debug,
) {
    let (shape, plan) = (p.shape, p.plan().activation(activation).unwrap());
    let at = |c: usize| (position / shape.inner() * shape.channels() + c) * shape.inner() + position % shape.inner();
    p.dy.fill(T::of(0.0));
    (0..shape.channels()).for_each(|c| p.dy[at(c)] = T::of(1.0));
    let out = run(&plan, p);
    let x_hat = normalized(p, &out.statistics);
    for c in 0..shape.channels() {
        let k = at(c);
        if y_bound(p, c, &out.statistics, x_hat[k]).is_none() {
            continue;
        }
        // Exactly 1, or the slope.
        let factor = out.dbeta[c].to_f64();
        let (error, x_hat) = ((out.dgamma[c].to_f64() / factor - x_hat[k]).abs(), x_hat[k]);
        ledger.note::<T>("x̂", error, bound(p, c, x_hat), &(context, "channel", c, k));
    }
}

fn every_x_hat<T: Number>(ledger: &mut Ledger, mut p: Problem<T>, activation: Activation) {
    for position in 0..p.shape.values_per_channel() {
        let context = (p.shape, activation, p.gamma.clone());
        rebuilt_x_hat(ledger, &mut p, activation, position, &context);
    }
}

/// Checks all gradients against the bounds of docs/numerics.md, with the error of x̂ carried through.
fn gradients<T: Number>(ledger: &mut Ledger, shape: Shape, activation: Activation, gammas: &[f64]) {
    let p = problem::<T>(shape, 102, activation, gammas);
    let plan = p.plan().activation(activation).unwrap();
    let out = run(&plan, &p);
    let (x_hat, dy) = (normalized(&p, &out.statistics), to_f64(&p.dy));
    let (g, m) = (to_f64(&out.g), shape.values_per_channel() as f64);
    for (k, g) in g.iter().enumerate() {
        let y = out.y[k].to_f64();
        let exact = reference::activation_gradient(activation, y, dy[k]);
        ledger.note::<T>("g", (g - exact).abs(), stored::<T>(exact, 2.0 * T::Param::U * exact.abs()), &(shape, k));
    }
    let statistics = (out.statistics.mean(), out.statistics.var());
    let (gamma, x) = (p.gamma_f64(), to_f64(&p.x));
    // From dy, since the g in `out` was rounded.
    let g: Vec<f64> =
        dy.iter().zip(&out.y).map(|(dy, y)| reference::activation_gradient(activation, y.to_f64(), *dy)).collect();
    let (dx, dgamma, dbeta) = reference::backward(shape, &x, &g, statistics, p.eps, &gamma);
    for c in 0..shape.channels() {
        let (mean, var) = (statistics.0[c], statistics.1[c]);
        let (f, u) = (Factors::new::<T>(kappa(mean, var)), 2.0 * T::Param::U);
        let sum = |f: &dyn Fn(usize) -> f64| reference::indices(shape, c).map(f).sum::<f64>();
        let of_sums = [
            (f.sums + u) * sum(&|k| g[k].abs()),
            sum(&|k| g[k].abs() * ((f.sums + u) * x_hat[k].abs() + bound(&p, c, x_hat[k]))),
        ];
        let context = (shape, activation, c, gamma[c]);
        let tiny = T::Param::SMALLEST_SUBNORMAL;
        ledger.note::<T>("dbeta", (out.dbeta[c].to_f64() - dbeta[c]).abs(), of_sums[0] + tiny, &context);
        ledger.note::<T>("dgamma", (out.dgamma[c].to_f64() - dgamma[c]).abs(), of_sums[1] + tiny, &context);
        let scale = (gamma[c] * reference::inv_std(var, p.eps)).abs();
        for k in reference::indices(shape, c) {
            let size = g[k].abs() + (dbeta[c] / m).abs() + (x_hat[k] * dgamma[c] / m).abs();
            let of_x_hat = bound(&p, c, x_hat[k]) * (dgamma[c].abs() + of_sums[1]) / m;
            let through = (of_sums[0] + x_hat[k].abs() * of_sums[1]) / m;
            let error = scale * ((f.dx + u) * size + through + of_x_hat) + tiny * (2.0 + size);
            let found = out.dx[k].to_f64();
            if dx[k].abs() + error < T::LARGEST {
                ledger.note::<T>("dx", (found - dx[k]).abs(), stored::<T>(dx[k], error), &context);
            }
        }
    }
    // The same bits as the ordinary training pass, and on every instruction set.
    let (mut y, mut statistics) = (p.x.clone(), Statistics::new(shape.channels()));
    plan.forward_training_in_place(&mut y, p.affine(), &mut statistics).unwrap();
    assert!(same(&y, &out.y) && statistics == out.statistics);
    every_isa(|isa| {
        let own = run(&plan.clone().isa(isa).unwrap(), &p);
        assert!(
            same(&own.y, &out.y) && same(&own.dx, &out.dx) && same(&own.g, &out.g),
            "{context:?}",
            context = (shape, isa)
        );
        assert!(same(&own.dgamma, &out.dgamma) && same(&own.dbeta, &out.dbeta), "{shape:?} {isa:?}");
    });
}

fn every_problem(f: impl Fn(Shape, Activation, &[f64])) {
    for shape in shapes() {
        for activation in INVERTIBLE {
            GAMMAS.iter().for_each(|gammas| f(shape, activation, gammas));
        }
    }
}

#[test]
fn x_hat_within_its_bound() {
    let ledger = std::cell::RefCell::new(Ledger::default());
    every_problem(|shape, activation, gammas| {
        let ledger = &mut ledger.borrow_mut();
        every_x_hat(ledger, problem::<f32>(shape, 101, activation, gammas), activation);
        every_x_hat(ledger, problem::<f64>(shape, 101, activation, gammas), activation);
        #[cfg(feature = "half")]
        every_x_hat(ledger, problem::<half::bf16>(shape, 101, activation, gammas), activation);
        #[cfg(feature = "half")]
        every_x_hat(ledger, problem::<half::f16>(shape, 101, activation, gammas), activation);
    });
    ledger.into_inner().close("rebuilt", 10_000);
}

/// gamma·inv_std, which is an f64, is normal for every gamma that is accepted.
#[test]
fn f64_values_at_both_ends_of_what_is_promised() {
    let mut ledger = Ledger::default();
    for size in [1e-145, 1e145] {
        for shape in shapes() {
            let mut p = Problem { eps: 0.0, ..problem::<f64>(shape, 104, Activation::Identity, &[0.0, 1.0, f64::MAX]) };
            p.x.iter_mut().for_each(|x| *x *= size);
            every_x_hat(&mut ledger, p, Activation::Identity);
        }
    }
    ledger.close("rebuilt at the ends", 1000);
}

#[test]
fn gradients_within_their_bounds() {
    let ledger = std::cell::RefCell::new(Ledger::default());
    every_problem(|shape, activation, gammas| {
        let ledger = &mut ledger.borrow_mut();
        gradients::<f32>(ledger, shape, activation, gammas);
        gradients::<f64>(ledger, shape, activation, gammas);
        #[cfg(feature = "half")]
        gradients::<half::bf16>(ledger, shape, activation, gammas);
        #[cfg(feature = "half")]
        gradients::<half::f16>(ledger, shape, activation, gammas);
    });
    ledger.into_inner().close("gradients from y", 10_000);
}

/// A channel without variance has x̂ = 0. Its dx is 0 without eps, and finite with it.
#[test]
fn channels_without_variance() {
    for shape in shapes() {
        for (eps, activation) in [(0.0, Activation::Identity), (0.0, INVERTIBLE[1]), (1e-5, INVERTIBLE[1])] {
            let mut p = Problem::<f32> { eps, ..problem(shape, 103, activation, &[1.0]) };
            reference::indices(shape, 2).for_each(|k| p.x[k] = 3.25);
            let out = run(&p.plan().activation(activation).unwrap(), &p);
            assert_eq!(out.statistics.var()[2], 0.0);
            let dx: Vec<f32> = reference::indices(shape, 2).map(|k| out.dx[k]).collect();
            assert!(dx.iter().all(|dx| if eps == 0.0 { *dx == 0.0 } else { dx.is_finite() }), "{dx:?}");
            if eps == 0.0 {
                assert_eq!(out.dgamma[2], 0.0);
            }
            assert!(out.dx.iter().all(|dx| dx.is_finite()));
        }
    }
}

#[test]
fn no_values() {
    let plan = BatchNorm::new(Shape::nc(0, 2).unwrap());
    let mut statistics = Statistics::from_parts(4.0, vec![1.0; 2], vec![1.0; 2]).unwrap();
    plan.forward_training_invertible::<f32>(&mut [], Affine::default(), &mut statistics).unwrap();
    assert_eq!(statistics, Statistics::new(2));
    let (mut dgamma, mut dbeta) = ([7.0; 2], [7.0; 2]);
    let gradients = Gradients { dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta), ..Gradients::default() };
    plan.backward_from_output::<f32>(&[], &[], &statistics, Affine::default(), gradients).unwrap();
    assert_eq!((dgamma, dbeta), ([0.0; 2], [0.0; 2]));
}

/// Values for three channels.
fn two_rows<T: Number>() -> [T; 6] {
    [1.0, 2.0, 3.0, 4.0, 5.0, 7.0].map(T::of)
}

/// Asserts that both passes return the same error and write nothing; returns its message.
fn refused<T: Number>(plan: &BatchNorm, gamma: [f64; 3], beta: [f64; 3]) -> String {
    let (gamma, beta) = (gamma.map(<T::Param as Value>::of), beta.map(<T::Param as Value>::of));
    let (affine, x) = (Affine::new(&gamma[..], &beta[..]), two_rows::<T>());
    let (mut y, mut statistics) = (x, Statistics::new(3));
    let error = plan.forward_training_invertible(&mut y, affine, &mut statistics).unwrap_err();
    assert!(same(&x, &y) && statistics == Statistics::new(3), "written in spite of {error}");
    let statistics = Statistics::from_parts(2.0, vec![1.0; 3], vec![1.0; 3]).unwrap();
    let (mut dx, mut dgamma) = ([T::NAN; 6], [T::Param::NAN; 3]);
    let gradients = Gradients { dx: Some(&mut dx), dgamma: Some(&mut dgamma), ..Gradients::default() };
    let from_output = plan.backward_from_output(&x, &x, &statistics, affine, gradients).unwrap_err();
    assert_eq!(from_output.to_string(), error.to_string());
    assert!(same(&dx, &[T::NAN; 6]) && same(&dgamma, &[T::Param::NAN; 3]), "written in spite of {error}");
    error.to_string()
}

/// The error message for a channel with this gamma, beta and slope.
fn message<T: Number>([gamma, beta, slope]: [f64; 3], channel: usize) -> String {
    let [least, most] = T::INVERTIBLE;
    format!(
        "channel {channel} cannot be rebuilt from its output: expected |beta| <= 64*|gamma| and |output| from {least:e} to \
         {most:e}, got gamma {gamma:?}, beta {beta:?} and slope {slope:?}"
    )
}

fn accepted<T: Number>(plan: &BatchNorm, gamma: f64, beta: f64) {
    let (gamma, beta) = ([<T::Param as Value>::of(gamma); 3], [<T::Param as Value>::of(beta); 3]);
    let mut y = two_rows::<T>();
    plan.forward_training_invertible(&mut y, Affine::new(&gamma, &beta), &mut Statistics::new(3)).unwrap();
    assert!(y.iter().all(|y| y.to_f64().is_finite()));
}

fn refusals<T: Number>() {
    let shape = Shape::nc(2, 3).unwrap();
    let plan = |activation| BatchNorm::new(shape).activation(activation).unwrap();
    for activation in [Activation::Relu, Activation::Silu, Activation::LeakyRelu(0.0)] {
        assert_eq!(
            refused::<T>(&plan(activation), [1.0; 3], [0.0; 3]),
            format!(
                "rebuilding x from y does not support the plan's activation: expected Identity or a LeakyRelu with a \
                 positive slope, got {activation:?}"
            )
        );
    }
    // The range also limits slopes, below 1 and above.
    let [smallest, largest] = T::INVERTIBLE;
    for (limit, past) in [(smallest, 0.5 * smallest), (largest / 2.0, 2.0 * largest)] {
        accepted::<T>(&plan(Activation::LeakyRelu(limit)), 1.0, 0.0);
        let refused = refused::<T>(&plan(Activation::LeakyRelu(past)), [1.0; 3], [0.0; 3]);
        assert_eq!(refused, message::<T>([1.0, 0.0, past], 0));
    }
    for (activation, slope) in
        [(Activation::Identity, 1.0f64), (Activation::LeakyRelu(0.25), 0.25), (Activation::LeakyRelu(4.0), 4.0)]
    {
        let plan = plan(activation);
        // At each limit, and beyond it.
        let next = 1.0 + 4.0 * T::Param::U;
        let [smallest, largest] = T::INVERTIBLE;
        let (smallest, largest) = (smallest / slope.min(1.0), largest / slope.max(1.0) / 2f64.sqrt());
        for (gamma, beta) in
            [(1.0, 64.0), (-1.0, -64.0), (smallest, 0.0), (-smallest, 64.0 * smallest), (largest / next, 0.0)]
        {
            accepted::<T>(&plan, gamma, beta);
        }
        for (gamma, beta) in [
            (1.0, 64.0 * next),
            (-1.0, -64.0 * next),
            (0.0, 0.0),
            (0.0, 1.0),
            (smallest * (1.0 - 2.0 * T::Param::U), 0.0),
            (largest * next, 0.0),
            (largest / next, largest / 4.0),
            (f64::NAN, 0.0),
            (1.0, f64::NAN),
            (f64::INFINITY, 0.0),
            (1.0, f64::INFINITY),
        ] {
            let (gamma, beta) = (<T::Param as Value>::of(gamma).to_f64(), <T::Param as Value>::of(beta).to_f64());
            for channel in 0..3 {
                let (mut gammas, mut betas) = ([1.0; 3], [0.5; 3]);
                (gammas[channel], betas[channel]) = (gamma, beta);
                assert_eq!(refused::<T>(&plan, gammas, betas), message::<T>([gamma, beta, slope], channel));
            }
        }
    }
}

#[test]
fn what_cannot_be_rebuilt_is_refused() {
    refusals::<f32>();
    refusals::<f64>();
    #[cfg(feature = "half")]
    refusals::<half::bf16>();
    #[cfg(feature = "half")]
    refusals::<half::f16>();
}

#[test]
fn wrong_lengths_and_empty_statistics() {
    let plan = BatchNorm::new(Shape::nc(2, 3).unwrap());
    let length = |argument, expected, actual| Err(Error::Length { argument, expected, actual });
    let (mut x, dy, statistics) =
        ([1.0f32; 6], [1.0; 6], Statistics::from_parts(2.0, vec![1.0; 3], vec![1.0; 3]).unwrap());
    let forward = |x: &mut [f32], affine, channels| {
        let mut statistics = Statistics::new(channels);
        plan.forward_training_invertible(x, affine, &mut statistics)
    };
    assert_eq!(forward(&mut x[..5], Affine::default(), 3), length("x", 6, 5));
    assert_eq!(forward(&mut x, Affine { gamma: Some(&[1.0; 2]), beta: None }, 3), length("gamma", 3, 2));
    assert_eq!(forward(&mut x, Affine { gamma: None, beta: Some(&[1.0; 4]) }, 3), length("beta", 3, 4));
    assert_eq!(forward(&mut x, Affine::default(), 2), length("statistics", 3, 2));
    assert_eq!(x, [1.0; 6]);
    let backward = |y: &[f32], dy: &[f32], statistics: &Statistics, len: usize| {
        let mut dx = vec![7.0; len];
        let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
        let result = plan.backward_from_output(y, dy, statistics, Affine::default(), gradients);
        assert!(dx.iter().all(|&dx| dx == 7.0));
        result
    };
    assert_eq!(backward(&x[..5], &dy, &statistics, 6), length("y", 6, 5));
    assert_eq!(backward(&x, &dy[..4], &statistics, 6), length("dy", 6, 4));
    assert_eq!(backward(&x, &dy, &Statistics::new(4), 6), length("statistics", 3, 4));
    assert_eq!(backward(&x, &dy, &Statistics::new(3), 6), Err(Error::EmptyStatistics));
    assert_eq!(backward(&x, &dy, &statistics, 7), length("dx", 6, 7));
}
