//! Everything that is fused to the passes, in every element type: against the reference, the same bits however it is
//! run, and x̂ rebuilt from y where a channel has an inverse.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{Activation, BatchNorm, Error, GradientSums, Gradients, RunningStatistics, Source, Statistics};
use batchnorm_fuzz::{Case, Float, Fusing, Number, Place, Problem, Step, Type, baseline};
use half::{bf16, f16};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    place: Place,
    fusing: Fusing,
    frozen: bool,
    /// Whether the backward pass is given y.
    given: bool,
}

fuzz_target!(|input: Input| match input.fusing.element {
    Type::F32 => run::<f32>(&input),
    Type::F64 => run::<f64>(&input),
    Type::Bf16 => run::<bf16>(&input),
    Type::F16 => run::<f16>(&input),
});

fn run<E: Number>(input: &Input) {
    let p = input.fusing.problem::<E>(&input.case);
    let plan = baseline(p.shape, p.eps).activation(p.activation).expect("a valid slope");
    let mut batch = Statistics::new(p.shape.channels());
    plan.with(p.extras()).statistics(&p.x, &mut batch).expect("valid arguments");
    let known = |v: &[f64]| v.iter().map(|&v| if v.is_nan() { 1.0 } else { v }).collect::<Vec<_>>();
    let running = RunningStatistics::from_parts(known(batch.mean()), known(batch.var()), 1).expect("equal lengths");
    let source: Source = if input.frozen { (&running).into() } else { (&batch).into() };

    let mut plain = input.place;
    (plain.in_place, plain.halves) = (false, false);
    let expected = step(&plan, &p, source, None, plain);
    p.check(input.frozen, &batch, &expected);
    // y tells what z was, unless it was rounded to 0, or was NaN where z was Inf.
    let telling = |y: &E| y.wide() != 0.0 && !y.wide().is_nan();
    let given = (input.given && expected.y.iter().all(telling)).then_some(&expected.y[..]);
    input.place.each_isa(&plan, |plan, isa| {
        let own = step(plan, &p, source, given, input.place);
        for ((name, expected), (_, actual)) in bits(&expected).into_iter().zip(bits(&own)) {
            if let Some(k) = (0..expected.len()).find(|&k| expected[k] != actual[k]) {
                panic!("{name}[{k}] on {isa:?}: expected {:#x}, got {:#x}", expected[k], actual[k]);
            }
        }
        if p.residual.is_none() && p.weights.is_none() {
            rebuild(plan, &p);
        }
    });
}

/// Every output by name, as bits.
fn bits<E: Number>(step: &Step<E>) -> [(&'static str, Vec<u64>); 5] {
    let of = |v: &[E]| v.iter().map(|v| v.pattern()).collect();
    let of_channels = |v: &[E::Param]| v.iter().map(|v| v.bits()).collect();
    [
        ("y", of(&step.y)),
        ("dx", of(&step.dx)),
        ("dresidual", of(&step.dresidual)),
        ("dgamma", of_channels(&step.dgamma)),
        ("dbeta", of_channels(&step.dbeta)),
    ]
}

fn step<E: Number>(plan: &BatchNorm, p: &Problem<E>, source: Source, given: Option<&[E]>, place: Place) -> Step<E> {
    let (len, channels) = (p.shape.len(), p.shape.channels());
    let nan = || place.buffer(&vec![E::narrow(f64::NAN); len]);
    let (x, dy) = (place.buffer(&p.x), place.buffer(&p.dy));
    let (mut y, mut dx, mut dresidual) = (nan(), nan(), nan());
    let nan = || place.buffer(&vec![E::Param::of(f64::NAN); channels]);
    let (mut dgamma, mut dbeta) = (nan(), nan());
    let with = plan.with(p.extras());
    if place.in_place {
        y.copy_from_slice(&x);
    }
    let mut own = Statistics::new(channels);
    match (source, place.halves, place.in_place) {
        (Source::Batch(_), false, false) => with.forward_training(&x, p.affine(), &mut y, &mut own),
        (Source::Batch(_), false, true) => with.forward_training_in_place(&mut y, p.affine(), &mut own),
        (_, _, false) => with.normalize(&x, source, p.affine(), &mut y),
        (_, _, true) => with.normalize_in_place(&mut y, source, p.affine()),
    }
    .expect("valid arguments");
    let with = plan.with(batchnorm::Extras { output: given, ..p.extras() });
    let parameters = (Some(&mut dgamma[..]), Some(&mut dbeta[..]));
    match source {
        _ if place.in_place => {
            dx.copy_from_slice(&dy);
            let gradients =
                Gradients { dx: None, dresidual: Some(&mut dresidual), dgamma: parameters.0, dbeta: parameters.1 };
            with.backward_in_place(&x, &mut dx, source, p.affine(), gradients)
        }
        Source::Batch(batch) if place.halves => {
            let mut sums = GradientSums::new(channels);
            with.gradient_sums(&x, &dy, source, p.affine(), &mut sums).expect("valid arguments");
            let gradients = Gradients {
                dx: Some(&mut dx),
                dresidual: Some(&mut dresidual),
                dgamma: parameters.0,
                dbeta: parameters.1,
            };
            with.input_gradient(&x, &dy, &batch, &sums, p.affine(), gradients)
        }
        _ => {
            let gradients = Gradients {
                dx: Some(&mut dx),
                dresidual: Some(&mut dresidual),
                dgamma: parameters.0,
                dbeta: parameters.1,
            };
            with.backward(&x, &dy, source, p.affine(), gradients)
        }
    }
    .expect("valid arguments");
    let (y, dx, dresidual) = (y.to_vec(), dx.to_vec(), dresidual.to_vec());
    Step { y, dx, dresidual, dgamma: dgamma.to_vec(), dbeta: dbeta.to_vec() }
}

/// Either a channel is refused, and nothing is written, or x̂ comes back within its bound: seen in dgamma where dy is 1
/// at the first position.
fn rebuild<E: Number>(plan: &BatchNorm, p: &Problem<E>) {
    let (mut y, mut statistics) = (p.x.clone(), Statistics::new(p.shape.channels()));
    match plan.forward_training_invertible(&mut y, p.affine(), &mut statistics) {
        Ok(()) => {}
        Err(Error::Activation { .. } | Error::NotInvertible { .. }) => {
            assert!(y.iter().zip(&p.x).all(|(y, x)| y.pattern() == x.pattern()), "written in spite of an error");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    if p.shape.is_empty() {
        return;
    }
    let firsts = (0..p.shape.channels()).map(|c| c * p.shape.inner()).collect::<Vec<_>>();
    let mut dy = vec![E::narrow(0.0); y.len()];
    firsts.iter().for_each(|&k| dy[k] = E::narrow(1.0));
    let mut dgamma = vec![E::Param::of(f64::NAN); firsts.len()];
    let gradients = Gradients { dgamma: Some(&mut dgamma), ..Gradients::default() };
    plan.backward_from_output(&y, &dy, &statistics, p.affine(), gradients).expect("accepted before");
    for (c, &k) in firsts.iter().enumerate() {
        let (x, mean, var) = (p.x[k].wide(), statistics.mean()[c], statistics.var()[c]);
        let kappa = (1.0 + mean * mean / var).sqrt();
        let inv_std = batchnorm::reference::inv_std(var, p.eps);
        if !(x.is_finite() && kappa <= 1e3 && (1e-100..1e100).contains(&inv_std)) {
            continue;
        }
        let slope = match p.activation {
            Activation::LeakyRelu(slope) if y[k].wide() <= 0.0 => slope,
            _ => 1.0,
        };
        let [gamma, beta] = [&p.gamma, &p.beta].map(|v| v.as_ref().map(|v| v[c].f64()));
        let (gamma, beta) = (gamma.unwrap_or(1.0), beta.unwrap_or(0.0));
        let x_hat = (x - mean) * inv_std;
        // κ: f64 has one lane for the mean.
        let bound = (10.0 * E::ROUNDING + 1e-13 * kappa) * (1.0 + x_hat.abs() + (beta / gamma).abs());
        let error = (dgamma[c].f64() / slope - x_hat).abs();
        assert!(error <= bound, "channel {c}: x̂ {x_hat:e} came back off by {error:e}, bound {bound:e}");
    }
}
