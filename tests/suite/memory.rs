//! Do passes give the same results into memory that is not initialized, and with arguments of other types?

use crate::common::*;
use batchnorm::{
    Activation, Affine, BatchNorm, Cotangents, Error, Extras, Gradients, Momentum, RunningStatistics, SecondGradients,
    Shape, Statistics,
};
use std::mem::MaybeUninit;

/// Memory that is not initialized, for `len` values.
fn room<T>(len: usize) -> Box<[MaybeUninit<T>]> {
    Box::new_uninit_slice(len)
}

/// Values that a pass has written. Under Miri, reading one that it has not is found.
fn written<T>(room: Box<[MaybeUninit<T>]>) -> Vec<T> {
    // SAFETY: what the test is about.
    unsafe { room.assume_init() }.into_vec()
}

fn small_shapes() -> [Shape; 4] {
    [(2, 3, 5), (3, 2, 37), (9, 3, 1), (35, 18, 1)].map(shape)
}

/// Every output of every pass.
fn uninitialized<T: Number>() {
    for shape in small_shapes() {
        let (p, len, channels) = (Problem::<T>::random(shape, 31), shape.len(), shape.channels());
        let plan = p.plan().threads(batchnorm::Threads::Sequential);
        let (affine, mut statistics) = (p.affine(), Statistics::new(channels));
        let uninit = plan.with(Extras::default()).uninit();
        let expected = p_outputs(&plan, &p);

        let [mut y, mut again, mut dx, mut dresidual] = [(); 4].map(|()| room::<T>(len));
        let [mut dgamma, mut dbeta] = [(); 2].map(|()| room::<T::Param>(channels));
        uninit.forward_training(&p.x, affine, &mut y, &mut statistics).unwrap();
        uninit.normalize(&p.x, &statistics, affine, &mut again).unwrap();
        let gradients = Gradients {
            dx: Some(&mut dx[..]),
            dresidual: Some(&mut dresidual[..]),
            dgamma: Some(&mut dgamma[..]),
            dbeta: Some(&mut dbeta[..]),
        };
        uninit.backward(&p.x, &p.dy, &statistics, affine, gradients).unwrap();
        let [y, again, dx, dresidual] = [y, again, dx, dresidual].map(written);
        let found = (bits_of(&y), bits_of(&dx), bits_of(&written(dgamma)), bits_of(&written(dbeta)));
        assert_eq!(found, expected, "{shape:?}");
        assert_eq!((bits_of(&again), bits_of(&dresidual)), (found.0, bits_of(&p.dy)), "{shape:?}");

        let mut sums = batchnorm::GradientSums::new(channels);
        plan.gradient_sums(&p.x, &p.dy, &statistics, affine, &mut sums).unwrap();
        let mut dx = room(len);
        let gradients = Gradients { dx: Some(&mut dx[..]), ..Gradients::default() };
        uninit.input_gradient(&p.x, &p.dy, &statistics, &sums, affine, gradients).unwrap();
        assert_eq!(bits_of(&written(dx)), found.1, "{shape:?}");

        let [mut of_x, mut of_dy] = [(); 2].map(|()| vec![T::default(); len]);
        let cotangents = Cotangents { dx: &p.dy, dgamma: None, dbeta: None };
        let second = SecondGradients { x: Some(&mut of_x[..]), dy: Some(&mut of_dy[..]), gamma: None };
        plan.double_backward(&p.x, &p.dy, &statistics, affine, cotangents, second).unwrap();
        let ([mut x, mut dy], mut gamma) = ([(); 2].map(|()| room::<T>(len)), room(channels));
        let second = SecondGradients { x: Some(&mut x[..]), dy: Some(&mut dy[..]), gamma: Some(&mut gamma[..]) };
        plan.double_backward_uninit(&p.x, &p.dy, &statistics, affine, cotangents, second).unwrap();
        assert_eq!([x, dy].map(|v| bits_of(&written(v))), [bits_of(&of_x), bits_of(&of_dy)], "{shape:?}");
        assert_eq!(written(gamma).len(), channels);
    }
}

/// y, dx, dgamma and dbeta of a training step, as bits.
fn p_outputs<T: Number>(plan: &BatchNorm, p: &Problem<T>) -> (Vec<u64>, Vec<u64>, Vec<u64>, Vec<u64>) {
    let out = train(plan, p, Way::Fused, 0);
    (bits_of(&out.y), bits_of(&out.dx), bits_of(&out.dgamma), bits_of(&out.dbeta))
}

#[test]
fn outputs_need_not_be_initialized() {
    uninitialized::<f32>();
    uninitialized::<f64>();
    #[cfg(feature = "half")]
    uninitialized::<half::bf16>();
}

#[test]
fn gradients_from_the_output_need_not_be_initialized() {
    let shape = Shape::nc(5, 3).unwrap();
    let p = Problem::<f32>::random(shape, 32);
    let plan = p.plan().activation(Activation::LeakyRelu(0.5)).unwrap();
    let (mut y, mut statistics, mut expected) = (p.x.clone(), Statistics::new(3), vec![0.0; 15]);
    plan.forward_training_invertible(&mut y, Affine::default(), &mut statistics).unwrap();
    let gradients = Gradients { dx: Some(&mut expected[..]), ..Gradients::default() };
    plan.backward_from_output(&y, &p.dy, &statistics, Affine::default(), gradients).unwrap();
    let mut dx = room::<f32>(15);
    let gradients = Gradients { dx: Some(&mut dx[..]), ..Gradients::default() };
    plan.backward_from_output_uninit(&y, &p.dy, &statistics, Affine::default(), gradients).unwrap();
    assert_eq!(written(dx), expected);
}

/// After an error outputs are as they were.
#[test]
fn outputs_of_the_wrong_length_stay_untouched() {
    let plan = BatchNorm::new(Shape::nc(4, 2).unwrap());
    let (x, mut statistics) = ([1.0f32; 8], Statistics::new(2));
    let with = plan.with(Extras::default()).uninit();
    for wrong in [0, 7, 9] {
        let mut y = vec![MaybeUninit::new(7.0f32); wrong];
        let error = Error::Length { argument: "y", expected: 8, actual: wrong };
        assert_eq!(with.forward_training(&x, Affine::default(), &mut y, &mut statistics), Err(error.clone()));
        assert_eq!(with.normalize(&x, &Statistics::new(2), Affine::default(), &mut y), Err(error));
        let (mut dx, mut dgamma) = (vec![MaybeUninit::new(7.0f32); wrong], [MaybeUninit::new(7.0f32); 2]);
        let gradients = Gradients { dx: Some(&mut dx[..]), dgamma: Some(&mut dgamma[..]), ..Gradients::default() };
        let error = Error::Length { argument: "dx", expected: 8, actual: wrong };
        let given = Statistics::from_parts(4.0, vec![0.0; 2], vec![1.0; 2]).unwrap();
        assert_eq!(with.backward(&x, &x, &given, Affine::default(), gradients), Err(error));
        // SAFETY: all values were initialized, and no pass makes them anything else.
        assert!(y.iter().chain(&dx).chain(&dgamma).all(|v| unsafe { v.assume_init() } == 7.0));
        assert_eq!(statistics.count(), 0.0);
    }
}

/// Parameters of 16 bits are widened, and their gradients rounded once.
#[cfg(feature = "half")]
#[test]
fn parameters_of_16_bits() {
    fn check<T: Number<Param = f32>, P: Number<Param = f32>>() {
        for shape in small_shapes() {
            let channels = shape.channels();
            let mut p = Problem::<T>::random(shape, 33);
            let narrow = |v: &Option<Vec<f32>>| v.iter().flatten().map(|v| P::from_f32(*v)).collect::<Vec<_>>();
            let (gamma, beta) = (narrow(&p.gamma), narrow(&p.beta));
            p.gamma = Some(gamma.iter().map(|v| v.to_f32()).collect());
            p.beta = Some(beta.iter().map(|v| v.to_f32()).collect());
            let expected = train(&p.plan(), &p, Way::Fused, 0);
            let plan = p.plan();
            let (with, affine) = (plan.with(Extras::default()).parameters_of::<P>(), Affine::new(&gamma, &beta));
            let [mut y, mut dx] = [(); 2].map(|()| vec![T::NAN; shape.len()]);
            let [mut dgamma, mut dbeta] = [(); 2].map(|()| vec![P::NAN; channels]);
            let mut statistics = Statistics::new(channels);
            with.forward_training(&p.x, affine, &mut y, &mut statistics).unwrap();
            let gradients = Gradients {
                dx: Some(&mut dx[..]),
                dgamma: Some(&mut dgamma[..]),
                dbeta: Some(&mut dbeta[..]),
                ..Gradients::default()
            };
            with.backward(&p.x, &p.dy, &statistics, affine, gradients).unwrap();
            let rounded = |v: &[f32]| v.iter().map(|v| P::from_f32(*v)).collect::<Vec<_>>();
            assert_eq!(bits_of(&y), bits_of(&expected.y));
            assert_eq!(bits_of(&dx), bits_of(&expected.dx));
            assert_eq!(bits_of(&dgamma), bits_of(&rounded(&expected.dgamma)));
            assert_eq!(bits_of(&dbeta), bits_of(&rounded(&expected.dbeta)));
        }
    }
    check::<half::bf16, half::bf16>();
    check::<half::f16, half::f16>();
    check::<f32, half::bf16>();
    check::<half::bf16, f32>();
}

/// Statistics of f32 are those of f64, rounded once, and are used as the numbers that they are.
#[test]
fn statistics_of_f32() {
    for shape in small_shapes() {
        let (p, channels) = (Problem::<f32>::random(shape, 34), shape.channels());
        let (plan, affine) = (p.plan(), p.affine());
        let [mut y, mut expected] = [(); 2].map(|()| vec![f32::NAN; shape.len()]);
        let mut wide = Statistics::new(channels);
        plan.forward_training(&p.x, affine, &mut expected, &mut wide).unwrap();
        let zeros = || vec![0.0f32; channels];
        let mut narrow = Statistics::empty(zeros(), zeros()).unwrap();
        plan.forward_training(&p.x, affine, &mut y, &mut narrow).unwrap();
        let rounded = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
        assert_eq!(
            (narrow.count(), narrow.mean(), narrow.var()),
            (wide.count(), &rounded(wide.mean())[..], &rounded(wide.var())[..])
        );
        assert_eq!(bits_of(&y), bits_of(&expected));

        // The same numbers in f64.
        let exact = |v: &[f32]| v.iter().copied().map(f64::from).collect::<Vec<_>>();
        let widened = Statistics::from_parts(narrow.count(), exact(narrow.mean()), exact(narrow.var())).unwrap();
        plan.normalize(&p.x, &narrow, affine, &mut y).unwrap();
        plan.normalize(&p.x, &widened, affine, &mut expected).unwrap();
        assert_eq!(bits_of(&y), bits_of(&expected));
        plan.backward_in_place(&p.x, &mut y, &narrow, affine, None, None).unwrap();
        plan.backward_in_place(&p.x, &mut expected, &widened, affine, None, None).unwrap();
        assert_eq!(bits_of(&y), bits_of(&expected));

        let (mut running, mut mean, mut var) = (RunningStatistics::new(channels), zeros(), vec![1.0f32; channels]);
        running.update(&wide, Momentum::Exponential(0.25)).unwrap();
        let mut narrow_running = RunningStatistics::from_parts(&mut mean[..], &mut var[..], 0).unwrap();
        narrow_running.update(&wide, Momentum::Exponential(0.25)).unwrap();
        assert_eq!(narrow_running.batches(), 1);
        plan.normalize(&p.x, &narrow_running, affine, &mut y).unwrap();
        assert_eq!((mean, var), (rounded(running.mean()), rounded(running.var())));

        let (mut merged, mut of_f32) = (wide.clone(), widened.clone());
        merged.merge(&narrow).unwrap();
        of_f32.merge(&wide).unwrap();
        narrow.merge(&wide).unwrap();
        assert_eq!((narrow.mean(), narrow.var()), (&rounded(of_f32.mean())[..], &rounded(of_f32.var())[..]));
        assert_eq!(merged.count(), of_f32.count());
    }
}

/// A negative variance of f32 is found, and named.
#[test]
fn invalid_statistics_of_f32() {
    let plan = BatchNorm::new(Shape::nc(1, 2).unwrap());
    let running = RunningStatistics::from_parts(vec![0.0f32; 2], vec![1.0, -1.0], 1).unwrap();
    let (x, mut y) = ([1.0f64; 2], [7.0; 2]);
    let error = plan.normalize(&x, &running, Affine::default(), &mut y).unwrap_err();
    assert_eq!((error, y), (Error::Variance { channel: 1, value: -1.0 }, [7.0; 2]));
}

/// What engines hold is shared between threads, and survives a panic of theirs.
#[test]
fn plans_can_be_shared() {
    fn check<T: Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    check::<BatchNorm>();
}

/// A plan for a smaller batch gives the results of a new one, whatever the memory that it shares has been used for.
#[test]
fn plans_for_another_shape_share_memory() {
    for (first, second) in [((32, 5, 7), (3, 5, 7)), ((9, 40, 1), (700, 3, 1)), ((2, 3, 5), (4, 90, 49))] {
        let [first, second] = [first, second].map(shape);
        let p = Problem::<f32>::random(second, 35);
        let expected = train(&p.plan(), &p, Way::Fused, 0);
        let plan = Problem::<f32>::random(first, 36).plan();
        train(&plan, &Problem::<f32>::random(first, 36), Way::Fused, 0);
        let memory = Box::new_uninit_slice(plan.scratch_bytes::<f32>(1));
        for plan in [plan.clone(), plan.scratch::<f32>(memory).unwrap()] {
            let reshaped = plan.reshape(second).eps(p.eps).unwrap();
            assert_eq!(reshaped.shape(), second);
            assert_same_bits(&expected, &train(&reshaped, &p, Way::Fused, 0), &(first, second));
        }
    }
}

/// Scratch memory is a small part of a tensor of planes, and proportional to the channels of rows.
#[test]
fn scratch_memory_is_small() {
    for (outer, channels, inner) in [(1, 2048, 49), (32, 2048, 49), (32, 64, 3136), (1, 64, 3136), (8, 512, 196)] {
        let plan = BatchNorm::new(shape((outer, channels, inner))).threads(batchnorm::Threads::Sequential);
        assert!(plan.scratch_bytes::<f32>(1) * 25 < 4 * plan.shape().len(), "{:?}", plan.shape());
    }
    for (rows, channels) in [(256, 512), (32, 512), (200, 1000)] {
        let plan = BatchNorm::new(Shape::nc(rows, channels).unwrap()).threads(batchnorm::Threads::Sequential);
        assert!(plan.scratch_bytes::<f32>(1) < 150 * channels, "{:?}", plan.shape());
    }
}
