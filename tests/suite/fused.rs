//! Do passes with something fused agree with the reference, and have the same bits however they are run?

use crate::common::*;
use crate::same_bits::every_threads;
use batchnorm::{Activation, Isa, RunningStatistics, Shape, Threads};

/// Both walks: lengths with whole vectors and tails, one image and several, narrow and wide rows.
fn shapes() -> [Shape; 5] {
    [(3, 3, 37), (2, 17, 9), (1, 2, 300), (33, 21, 1), (70, 3, 1)].map(shape)
}

/// Compares every activation, residual, weighting, walk and kind of statistics with the reference. All ways to call the
/// passes, with the output and without, on every instruction set, must then give the same bits.
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

/// x is the argument of the activation: mean 0, variance 1, no eps. A beta of −0 preserves the sign of −0.
fn as_they_are<T: Number>(activation: Activation, z: &[f64]) -> Fusion<T> {
    let shape = Shape::nc(z.len(), 1).unwrap();
    let x = z.iter().map(|&z| T::of(z)).collect();
    let dy = (0..z.len()).map(|k| T::of([1.0, -3.0][k % 2])).collect();
    let problem = Problem { shape, eps: 0.0, x, dy, gamma: None, beta: Some(vec![Value::of(-0.0)]) };
    Fusion { problem, activation, residual: None, weights: None }
}

fn special_values<T: Number>() {
    let mut z = vec![0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for size in [T::SMALLEST_SUBNORMAL, 1e-40, 1e-38, 1e-6, 1.0, 89.0, 104.0, 1e4, 1e30, T::LARGEST] {
        z.extend([size, -size]);
    }
    z.extend((-12_000..12_000).map(|k| f64::from(k) * 0.07));
    let z: Vec<f64> = z.into_iter().map(|z| T::of(z).to_f64()).collect();
    let running = RunningStatistics::from_parts(vec![0.0], vec![1.0], 1).unwrap();
    let slopes = [0.0, 1.0, 100.0].map(Activation::LeakyRelu);
    let mut ledger = Ledger::default();
    for activation in ACTIVATIONS.into_iter().chain(slopes) {
        let fusion = as_they_are::<T>(activation, &z);
        every_isa(|isa| {
            let plan = fusion.plan().isa(isa).unwrap();
            let step = fusion.run(&plan, Some(&running), Way::Fused, false, 0);
            let given = fusion.run(&plan, Some(&running), Way::Fused, true, 0);
            for (k, &z) in z.iter().enumerate() {
                let (context, dy) = ((T::NAME, activation, z, isa), fusion.problem.dy[k].to_f64());
                let (y, dresidual) = (step.outputs.y[k].to_f64(), step.dresidual[k].to_f64());
                assert!(!z.is_nan() || y.is_nan(), "{context:?} gives {y}");
                let (exact, error) = output::<T>(activation, z, 0.0);
                ledger.compare::<T>("y", exact, y, stored::<T>(exact, error), &context);
                let (exact, error) = z_gradient::<T>(activation, z, dy, 0.0, dresidual);
                ledger.compare::<T>("dresidual", exact, dresidual, stored::<T>(exact, error), &context);
                let dx = step.outputs.dx[k];
                assert_eq!(dx.bits(), step.dresidual[k].bits(), "dx {dx:?}, dresidual {dresidual}, {context:?}");
                // The sign of z is lost in an output that was rounded to 0, or that is NaN because the slope is 0 and z
                // −Inf.
                if y != 0.0 && y.is_nan() == z.is_nan() {
                    assert_eq!(given.outputs.dx[k].bits(), dx.bits(), "{context:?}");
                }
            }
        });
    }
    ledger.close(&format!("special values in {}", T::NAME), 10_000);
}

#[test]
fn special_arguments() {
    special_values::<f32>();
    special_values::<f64>();
    #[cfg(feature = "half")]
    special_values::<half::bf16>();
    #[cfg(feature = "half")]
    special_values::<half::f16>();
}

/// A residual of zeros changes at most the sign of a zero, and without an activation its gradient is dy.
#[test]
fn residuals_that_are_zero() {
    for shape in shapes() {
        let fusion = Fusion::<f32>::random(shape, 72, Activation::Identity, false, Weighting::Absent);
        let zeros = Fusion { residual: Some(vec![0.0; shape.len()]), ..fusion.clone() };
        let [plain, zeros] = [&fusion, &zeros].map(|fusion| fusion.run(&fusion.plan(), None, Way::Fused, false, 0));
        assert_eq!(plain.outputs.y, zeros.outputs.y);
        assert_same_bits(&plain.outputs, &Outputs { y: plain.outputs.y.clone(), ..zeros.outputs }, &shape);
        assert!(same(&plain.dresidual, &fusion.problem.dy));
        // The plan's own methods give the same.
        assert_same_bits(&plain.outputs, &train(&fusion.plan(), &fusion.problem, Way::Fused, 0), &shape);
    }
}

/// Channels that are cut into segments, and groups of channels and tiles for several threads.
#[test]
fn large_shapes() {
    fn large<T: Number>(ledger: &mut Ledger, shape: Shape, seed: u64) {
        for weighting in WEIGHTINGS {
            let fusion = Fusion::<T>::random(shape, seed, ACTIVATIONS[1 + seed as usize % 3], true, weighting);
            let expected = fusion.run(&fusion.plan().threads(Threads::Sequential), None, Way::Fused, false, 0);
            fusion.check(ledger, None, &expected, &(T::NAME, shape, weighting));
            let expected = expected.bits();
            every_isa(|isa| {
                let plan = fusion.plan().isa(isa).unwrap();
                for (offset, way) in WAYS.into_iter().enumerate() {
                    let given = offset % 2 == 0;
                    let context = (T::NAME, shape, weighting, isa, way);
                    every_threads(&plan, &mut |plan, threads| {
                        let step = fusion.run(plan, None, way, given, offset);
                        assert_same_arrays(&expected, &step.bits(), &(context, threads));
                    });
                }
            });
        }
    }
    let mut ledger = Ledger::default();
    for (seed, (o, c, i)) in [(1, 2, 17_000), (2, 67, 129), (9001, 3, 1), (5, 4001, 1)].into_iter().enumerate() {
        let shape = Shape::new(o, c, i).unwrap();
        large::<f32>(&mut ledger, shape, seed as u64);
        large::<f64>(&mut ledger, shape, 10 + seed as u64);
        #[cfg(feature = "half")]
        large::<half::bf16>(&mut ledger, shape, 20 + seed as u64);
        #[cfg(feature = "half")]
        large::<half::f16>(&mut ledger, shape, 30 + seed as u64);
    }
    ledger.close("large", 100_000);
}

/// Two outputs, and outputs of 16 bits, written past the caches at any alignment.
#[test]
fn streamed_outputs() {
    fn streamed<T: Number>(shapes: [(usize, usize, usize); 2]) {
        for (o, c, i) in shapes {
            let shape = Shape::new(o, c, i).unwrap();
            let fusion = Fusion::<T>::random(shape, 73, Activation::Relu, true, Weighting::Absent);
            let plain = fusion.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
            let expected = fusion.run(&plain, None, Way::FusedInPlace, false, 0).bits();
            every_isa(|isa| {
                let plan = fusion.plan().isa(isa).unwrap();
                for offset in [0, 1] {
                    let step = fusion.run(&plan, None, Way::Fused, true, offset);
                    assert_same_arrays(&expected, &step.bits(), &(T::NAME, shape, isa, offset));
                }
            });
        }
    }
    streamed::<f32>([(2, 5, 105_001), (16_411, 65, 1)]);
    #[cfg(feature = "half")]
    streamed::<half::bf16>([(2, 10, 105_001), (32_811, 65, 1)]);
}
