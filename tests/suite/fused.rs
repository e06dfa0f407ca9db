//! Does everything that is fused to the passes agree with the reference, and keep its bits however it is run?

use crate::common::*;
use crate::fusion::*;
use crate::oracle::Ledger;
use batchnorm::{Activation, Isa, Shape, Threads};

/// Both walks: lengths with whole vectors and tails, several images and one, narrow rows and wide ones.
fn shapes() -> [Shape; 5] {
    [(3, 3, 37), (2, 17, 9), (1, 2, 300), (33, 21, 1), (70, 3, 1)].map(|(o, c, i)| Shape::new(o, c, i).unwrap())
}

/// Every activation, residual, weighting, walk and kind of statistics: against the reference, and then the same bits in
/// every way, given the output or not, on every instruction set.
fn every_combination<T: Number>() {
    let mut ledger = Ledger::default();
    let mut seed = 0;
    for (shape, activation, weighting) in shapes()
        .into_iter()
        .flat_map(|shape| ACTIVATIONS.map(|activation| (shape, activation)))
        .flat_map(|(shape, activation)| WEIGHTINGS.map(|weighting| (shape, activation, weighting)))
    {
        for residual in [false, true] {
            seed += 1;
            let fusion = Fusion::<T>::random(shape, seed, activation, residual, weighting);
            let running = fusion.problem.running();
            for running in [None, Some(&running)] {
                let context = (T::NAME, shape, activation, weighting, residual, running.is_some());
                let plan = fusion.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
                let expected = fusion.run(&plan, running, Way::Fused, false, 0);
                fusion.check(&mut ledger, running, &expected, &context);
                let expected = expected.bits();
                every_isa(|isa| {
                    let plan = fusion.plan().isa(isa).unwrap();
                    for (k, way) in WAYS.into_iter().enumerate() {
                        for given in [false, true] {
                            let step = fusion.run(&plan, running, way, given, 2 * k + usize::from(given));
                            assert_same_arrays(&expected, &step.bits(), &(context, isa, way, given));
                        }
                    }
                });
            }
        }
    }
    ledger.close(&format!("fused {}", T::NAME), 100_000);
}

#[test]
fn every_combination_in_f32() {
    every_combination::<f32>();
}

#[test]
fn every_combination_in_f64() {
    every_combination::<f64>();
}

#[cfg(feature = "half")]
#[test]
fn every_combination_in_bf16() {
    every_combination::<half::bf16>();
}

#[cfg(feature = "half")]
#[test]
fn every_combination_in_f16() {
    every_combination::<half::f16>();
}

#[test]
fn slopes_of_any_size() {
    let mut ledger = Ledger::default();
    for shape in shapes() {
        for slope in [0.0, 1e-3, 1.0, 100.0] {
            let fusion = Fusion::<f32>::random(shape, 71, Activation::LeakyRelu(slope), true, Weighting::Mask);
            let step = fusion.run(&fusion.plan(), None, Way::Fused, true, 0);
            fusion.check(&mut ledger, None, &step, &(shape, slope));
        }
    }
    ledger.close("slopes", 1000);
}
