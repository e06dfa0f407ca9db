//! Passes with everything fused, in every element type: compared with the reference, with the same bits however they
//! are run, and with x̂ rebuilt from y if a channel has an inverse.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{Activation, BatchNorm, Element, Error, Gradients, RunningStatistics, Statistics};
use batchnorm_fuzz::{Case, Fusing, Place, Type, baseline, reference_errors};
use batchnorm_testing::{Given, Ledger, Number, Problem, Value, Way, assert_same_arrays, kappa, rebuilt, same};
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
    let fusion = input.fusing.fusion::<E>(&input.case);
    let p = &fusion.problem;
    let plan = baseline(p.shape, p.eps).activation(fusion.activation).expect("a valid slope");
    let mut batch = Statistics::new(p.shape.channels());
    plan.with(fusion.extras()).statistics(&p.x, &mut batch).expect("valid arguments");
    let known = |v: &[f64]| v.iter().map(|&v| if v.is_nan() { 1.0 } else { v }).collect::<Vec<_>>();
    let running = RunningStatistics::from_parts(known(batch.mean()), known(batch.var()), 1).expect("equal lengths");
    let running = input.frozen.then_some(&running);

    let expected = fusion.run(&plan, running, Way::Fused, false, 0);
    let errors = reference_errors(&fusion, batch.mean(), batch.var());
    let statistics = (batch.mean(), batch.var());
    let given = Given { forward: statistics, backward: statistics, frozen: input.frozen, channels: &|c| errors[c] };
    let mut ledger = Ledger::default();
    fusion.compare(&mut ledger, &given, &expected, &"fused");
    ledger.close_silently();
    // The sign of z can be told from y unless y was rounded to 0, or is NaN because z was Inf.
    let telling = |y: &E| y.to_f64() != 0.0 && !y.to_f64().is_nan();
    let given = input.given && expected.outputs.y.iter().all(telling);
    let expected = expected.bits();
    input.place.each_isa(&plan, |plan, isa| {
        let own = fusion.run(plan, running, input.place.way(), given, input.place.offset());
        assert_same_arrays(&expected, &own.bits(), &isa);
        if fusion.residual.is_none() && fusion.weights.is_none() {
            rebuild(plan, p, fusion.activation);
        }
    });
}

/// Either a channel is refused and nothing is written, or x̂ is rebuilt within its bound. With dy = 1 at the first
/// position and 0 elsewhere, dgamma is that x̂.
fn rebuild<E: Number>(plan: &BatchNorm, p: &Problem<E>, activation: Activation) {
    let (mut y, mut statistics) = (p.x.clone(), Statistics::new(p.shape.channels()));
    match plan.forward_training_invertible(&mut y, p.affine(), &mut statistics) {
        Ok(()) => {}
        Err(Error::Activation { .. } | Error::NotInvertible { .. }) => {
            assert!(same(&y, &p.x), "written in spite of an error");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    if p.shape.is_empty() {
        return;
    }
    let firsts = (0..p.shape.channels()).map(|c| c * p.shape.inner()).collect::<Vec<_>>();
    let mut dy = vec![E::of(0.0); y.len()];
    firsts.iter().for_each(|&k| dy[k] = E::of(1.0));
    let mut dgamma = vec![E::Param::NAN; firsts.len()];
    let gradients = Gradients { dgamma: Some(&mut dgamma), ..Gradients::default() };
    plan.backward_from_output(&y, &dy, &statistics, p.affine(), gradients).expect("accepted before");
    let (gamma, beta) = (p.gamma_f64(), p.beta_f64());
    for (c, &k) in firsts.iter().enumerate() {
        let (x, mean, var) = (p.x[k].to_f64(), statistics.mean()[c], statistics.var()[c]);
        let kappa = kappa(mean, var);
        let inv_std = batchnorm::reference::inv_std(var, p.eps);
        if !(x.is_finite() && kappa <= 1e3 && (1e-100..1e100).contains(&inv_std)) {
            continue;
        }
        let slope = match activation {
            Activation::LeakyRelu(slope) if y[k].to_f64() <= 0.0 => slope,
            _ => 1.0,
        };
        let (gamma, beta) = (gamma[c], beta[c]);
        let x_hat = (x - mean) * inv_std;
        // With κ, since f64 has one lane value for the mean.
        let bound = rebuilt::<E>(x_hat, gamma, beta) * (1.0 + 1e-14 * kappa / E::U);
        let error = (Element::to_f64(dgamma[c]) / slope - x_hat).abs();
        assert!(error <= bound, "channel {c}: x̂ {x_hat:e} was rebuilt with error {error:e}, bound {bound:e}");
    }
}
