//! Do passes over arrays give the bits of passes over slices, and is every array refused that does not fit?

use crate::common::*;
use batchnorm::{
    Activation, Affine, ArrayExtras, ArrayGradients, BatchNorm, Error, Extras, GradientSums, Gradients, Shape,
    Statistics,
};
use ndarray::{Array, Array1, Array4, ArrayD, ArrayRef, Axis, Dimension, Ix2, Ix3, Ix4, Ix5, IxDyn, s};

/// An array whose axes lie in memory in this order, outermost first; `values` in the order of memory.
fn array<T: Clone, D: Dimension>(values: &[T], dims: &[usize], order: &[usize]) -> Array<T, D> {
    let in_memory: Vec<_> = order.iter().map(|&axis| dims[axis]).collect();
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &axis)| places[axis] = place);
    let array = ArrayD::from_shape_vec(in_memory, values.to_vec()).unwrap().permuted_axes(places);
    array.into_dimensionality().unwrap()
}

fn bits<T: Value, D: Dimension>(array: &ArrayRef<T, D>) -> Vec<u64> {
    bits_of(array.as_slice_memory_order().unwrap())
}

/// dims, the order of axes in memory, the channel axis, and the shape: all ways of 2 to 5 dimensions.
type Case = (&'static [usize], &'static [usize], usize, (usize, usize, usize));

const CASES: [Case; 12] = [
    (&[7, 3], &[0, 1], 1, (7, 3, 1)),
    (&[3, 7], &[0, 1], 0, (1, 3, 7)),
    (&[7, 3], &[1, 0], 1, (1, 3, 7)),
    (&[2, 3, 5], &[0, 1, 2], 1, (2, 3, 5)),
    (&[2, 3, 5], &[0, 2, 1], 1, (10, 3, 1)),
    (&[2, 3, 4, 5], &[0, 1, 2, 3], 1, (2, 3, 20)),
    (&[2, 3, 4, 5], &[0, 2, 3, 1], 1, (40, 3, 1)),
    (&[2, 3, 4, 5], &[1, 2, 3, 0], 1, (1, 3, 40)),
    (&[2, 3, 4, 5], &[3, 2, 1, 0], 1, (20, 3, 2)),
    (&[2, 4, 5, 3], &[0, 1, 2, 3], 3, (40, 3, 1)),
    (&[2, 3, 2, 4, 5], &[0, 1, 2, 3, 4], 1, (2, 3, 40)),
    (&[2, 3, 2, 4, 5], &[0, 2, 3, 4, 1], 1, (80, 3, 1)),
];

/// Runs `f` with every case as an array of static and of dynamic dimension.
macro_rules! every_case {
    ($f:ident::<$type:ty>) => {
        for case in CASES {
            match case.0.len() {
                2 => $f::<$type, Ix2>(case),
                3 => $f::<$type, Ix3>(case),
                4 => $f::<$type, Ix4>(case),
                _ => $f::<$type, Ix5>(case),
            }
            $f::<$type, IxDyn>(case);
        }
    };
}

/// A training step in every way, compared with that over slices.
fn steps<T: Number, D: Dimension>((dims, order, axis, extents): Case) {
    let p = Problem::<T>::random(shape(extents), 61);
    let context = format!("{dims:?} in order {order:?}");
    let of = |values: &[T]| array::<T, D>(values, dims, order);
    let (x, dy) = (of(&p.x), of(&p.dy));
    let [gamma, beta] = [&p.gamma, &p.beta].map(|v| Array1::from(v.clone().unwrap()));
    let affine = Affine::of_arrays(Some(&gamma), Some(&beta)).unwrap();
    let plan = BatchNorm::for_array(&x.view(), Axis(axis)).unwrap();
    assert_eq!(plan.shape(), p.shape, "{context}");
    let (arrays, channels) = (plan.arrays(Axis(axis)), p.shape.channels());
    let expected = train(&plan, &p, Way::Fused, 0);
    let outputs = || of(&vec![T::NAN; p.x.len()]);
    let (expected_y, expected_dx) = (bits_of(&expected.y), bits_of(&expected.dx));

    let (mut y, mut statistics) = (outputs(), Statistics::new(channels));
    arrays.forward_training(&x.view(), affine, &mut y.view_mut(), &mut statistics).unwrap();
    assert_eq!((bits(&y), &statistics), (expected_y.clone(), &expected.statistics), "{context}");
    let (mut y, mut statistics) = (x.clone(), Statistics::new(channels));
    arrays.forward_training_in_place(&mut y, affine, &mut statistics).unwrap();
    assert_eq!((bits(&y), &statistics), (expected_y.clone(), &expected.statistics), "{context}");
    let (mut y, mut statistics) = (outputs(), Statistics::new(channels));
    arrays.statistics(&x, &mut statistics).unwrap();
    arrays.normalize(&x, &statistics, affine, &mut y).unwrap();
    assert_eq!((bits(&y), &statistics), (expected_y.clone(), &expected.statistics), "{context}");
    let mut y = x.clone();
    arrays.normalize_in_place(&mut y, &statistics, affine).unwrap();
    assert_eq!(bits(&y), expected_y, "{context}");

    let (mut dx, mut dresidual) = (outputs(), outputs());
    let [mut dgamma, mut dbeta] = [(); 2].map(|()| Array1::from_elem(channels, <T::Param>::NAN));
    let gradients = ArrayGradients {
        dx: Some(&mut dx),
        dresidual: Some(&mut dresidual),
        dgamma: Some(&mut dgamma),
        dbeta: Some(&mut dbeta),
    };
    arrays.backward(&x, &dy, &statistics, affine, gradients).unwrap();
    assert_eq!((bits(&dx), bits(&dresidual)), (expected_dx.clone(), bits(&dy)), "{context}");
    let parameters = (bits_of(&expected.dgamma), bits_of(&expected.dbeta));
    assert_eq!((bits(&dgamma), bits(&dbeta)), parameters, "{context}");
    let mut dx = dy.clone();
    dgamma.fill(<T::Param>::NAN);
    let gradients = ArrayGradients { dgamma: Some(&mut dgamma), ..ArrayGradients::default() };
    arrays.backward_in_place(&x, &mut dx, &statistics, affine, gradients).unwrap();
    assert_eq!((bits(&dx), bits(&dgamma)), (expected_dx.clone(), parameters.0.clone()), "{context}");

    let (mut dx, mut sums) = (outputs(), GradientSums::new(channels));
    arrays.gradient_sums(&x, &dy, &statistics, affine, &mut sums).unwrap();
    let gradients = ArrayGradients { dx: Some(&mut dx), dbeta: Some(&mut dbeta), ..ArrayGradients::default() };
    arrays.input_gradient(&x, &dy, &statistics, &sums, affine, gradients).unwrap();
    assert_eq!((bits(&dx), bits(&dbeta), &sums), (expected_dx.clone(), parameters.1, &expected.sums), "{context}");
    let mut dx = dy.clone();
    let none = ArrayGradients::default();
    arrays.input_gradient_in_place(&x, &mut dx, &statistics, &sums, affine, none).unwrap();
    assert_eq!(bits(&dx), expected_dx, "{context}");

    let room = || array::<_, D>(&vec![std::mem::MaybeUninit::new(T::NAN); p.x.len()], dims, order);
    let (mut y, mut again, mut dx, mut dbeta) = (room(), room(), room(), Array::uninit(channels));
    arrays.forward_training_uninit(&x, affine, &mut y, &mut statistics).unwrap();
    arrays.normalize_uninit(&x, &statistics, affine, &mut again).unwrap();
    let gradients = ArrayGradients { dx: Some(&mut dx), dbeta: Some(&mut dbeta), ..ArrayGradients::default() };
    arrays.backward_uninit(&x, &dy, &statistics, affine, gradients).unwrap();
    // SAFETY: the passes have written all of them.
    let ([y, again, dx], dbeta) = unsafe { ([y, again, dx].map(|v| v.assume_init()), dbeta.assume_init()) };
    assert_eq!([bits(&y), bits(&again), bits(&dx)], [expected_y.clone(), expected_y, expected_dx], "{context}");
    assert_eq!(bits(&dbeta), bits_of(&expected.dbeta), "{context}");
}

#[test]
fn steps_over_arrays() {
    every_case!(steps::<f32>);
    every_case!(steps::<f64>);
    #[cfg(feature = "half")]
    every_case!(steps::<half::bf16>);
}

/// A residual, the output and weights.
fn fused<T: Number, D: Dimension>((dims, order, axis, extents): Case) {
    let p = Problem::<T>::random(shape(extents), 62);
    let of = |values: &[T]| array::<T, D>(values, dims, order);
    let (x, dy, residual) = (of(&p.x), of(&p.dy), of(&p.dy));
    let weights: Vec<_> = (0..p.shape.values_per_channel()).map(|k| T::Param::of((k % 3) as f64)).collect();
    let plan = p.plan().activation(Activation::Relu).unwrap();
    let (mut expected, mut y) = (vec![T::NAN; p.x.len()], of(&p.x));
    let [mut statistics, mut found] = [(); 2].map(|()| Statistics::new(p.shape.channels()));
    let extras = Extras { residual: Some(&p.dy[..]), weights: Some(&weights), ..Extras::default() };
    plan.with(extras).forward_training(&p.x, p.affine(), &mut expected, &mut statistics).unwrap();
    let extras = ArrayExtras { residual: Some(&residual), weights: Some(&weights), ..ArrayExtras::default() };
    plan.arrays(Axis(axis)).with(extras).forward_training(&x, p.affine(), &mut y, &mut found).unwrap();
    assert_eq!((bits(&y), &found), (bits_of(&expected), &statistics), "{dims:?} in order {order:?}");

    let (mut dx, mut array_dx) = (vec![T::NAN; p.x.len()], x.clone());
    let extras = Extras { output: Some(&expected[..]), weights: Some(&weights), ..Extras::default() };
    let gradients = Gradients { dx: Some(&mut dx[..]), ..Gradients::default() };
    plan.with(extras).backward(&p.x, &p.dy, &statistics, p.affine(), gradients).unwrap();
    let extras = ArrayExtras { output: Some(&y), weights: Some(&weights), ..ArrayExtras::default() };
    let gradients = ArrayGradients { dx: Some(&mut array_dx), ..ArrayGradients::default() };
    plan.arrays(Axis(axis)).with(extras).backward(&x, &dy, &statistics, p.affine(), gradients).unwrap();
    assert_eq!(bits(&array_dx), bits_of(&dx), "{dims:?} in order {order:?}");
}

#[test]
fn fused_passes_over_arrays() {
    every_case!(fused::<f32>);
    every_case!(fused::<f64>);
}

/// A part of a larger array that is dense is one, and so are axes of extent 1 with other strides, and empty arrays.
#[test]
fn views_that_are_dense() {
    let all = Array4::from_shape_fn((5, 2, 3, 4), |(n, c, h, w)| (n * n + 7 * c + h * w) as f32);
    let (x, mut y, mut statistics) = (all.slice(s![1..3, .., .., ..]), Array4::zeros((2, 2, 3, 4)), Statistics::new(2));
    let plan = BatchNorm::for_array(&x, Axis(1)).unwrap();
    assert_eq!(Ok(plan.shape()), Shape::nchw(2, 2, 3, 4));
    plan.arrays(Axis(1)).forward_training(&x, Affine::default(), &mut y, &mut statistics).unwrap();
    let mut expected = [0.0; 48];
    let values = x.to_owned().into_raw_vec_and_offset().0;
    plan.forward_training(&values, Affine::default(), &mut expected, &mut Statistics::new(2)).unwrap();
    assert_eq!(bits(&y), bits_of(&expected));

    // One example of a batch: its first axis keeps the stride of the batch, or has none of its own.
    let (one, mut y) = (all.slice(s![3..4, .., .., ..]), Array4::zeros((1, 2, 3, 4)));
    let plan = BatchNorm::for_array(&one, Axis(1)).unwrap();
    let reversed = all.slice(s![3..4;-1, .., .., ..]);
    for x in [one, reversed] {
        plan.arrays(Axis(1)).forward_training(&x, Affine::default(), &mut y, &mut statistics).unwrap();
        assert_eq!(statistics.count(), 12.0);
    }

    let (empty, mut y) = (all.slice(s![.., .., ..;2, 4..]), Array4::zeros((5, 2, 2, 0)));
    let plan = BatchNorm::for_array(&empty, Axis(1)).unwrap();
    plan.arrays(Axis(1)).forward_training(&empty, Affine::default(), &mut y, &mut statistics).unwrap();
    assert_eq!(statistics.count(), 0.0);
}

#[test]
fn arrays_that_are_not_dense() {
    let all = Array4::<f32>::zeros((4, 3, 4, 5));
    let axis = |x: &ArrayRef<f32, Ix4>| match BatchNorm::for_array(x, Axis(1)).unwrap_err() {
        Error::NotDense { argument: "x", axis, expected, actual, .. } => (axis, expected, actual),
        error => panic!("{error:?}"),
    };
    assert_eq!(axis(&all.slice(s![..;2, .., .., ..])), (0, 60, 120));
    assert_eq!(axis(&all.slice(s![.., 1.., .., ..])), (0, 40, 60));
    assert_eq!(axis(&all.slice(s![.., .., .., ..4])), (2, 4, 5));
    assert_eq!(axis(&all.slice(s![.., ..;-1, .., ..])), (1, 20, -20));
    let row = Array1::<f32>::zeros(5);
    assert_eq!(axis(&row.broadcast((4, 3, 4, 5)).unwrap()), (2, 1, 0));
    let channels_last = all.permuted_axes([0, 2, 3, 1]);
    let error = BatchNorm::for_array(&channels_last.slice(s![.., ..;2, .., ..]), Axis(3)).unwrap_err();
    let message = "x is not dense in memory: expected stride 5 for axis 1, got 10, which leaves gaps; by their strides \
                   its axes are in the order [0, 3, 1, 2], and a copy in standard layout has strides [30, 15, 3, 1]";
    assert_eq!(error.to_string(), message);
    let error = BatchNorm::for_array(&channels_last, Axis(4)).unwrap_err();
    assert_eq!(error, Error::ChannelAxis { axes: 4, actual: 4 });
    let error = BatchNorm::for_array(&ArrayD::<f32>::zeros(vec![]), Axis(0)).unwrap_err();
    assert_eq!(error, Error::ChannelAxis { axes: 0, actual: 0 });
}

/// The gradient of a sum is often a broadcast 1.
#[test]
fn a_broadcast_dy() {
    let (x, mut dx, one) = (SEVENS(), SEVENS(), Array1::from_elem(1, 1.0));
    let plan = BatchNorm::for_array(&x, Axis(1)).unwrap();
    let gradients = ArrayGradients { dx: Some(&mut dx), ..ArrayGradients::default() };
    let dy = one.broadcast((2, 3, 4, 5)).unwrap();
    let error = plan.arrays(Axis(1)).backward(&x, &dy, &GIVEN(), Affine::default(), gradients).unwrap_err();
    let message = "dy has the wrong strides: expected those of x, [60, 20, 5, 1], got [0, 0, 0, 0]";
    assert_eq!((error.to_string().as_str(), dx), (message, SEVENS()));
}

/// x of another shape than the plan's.
#[test]
fn a_plan_for_other_arrays() {
    let plan = BatchNorm::new(Shape::nchw(2, 3, 4, 5).unwrap());
    let x = Array4::<f32>::zeros((2, 4, 5, 3)).permuted_axes([0, 3, 1, 2]);
    let error = plan.arrays(Axis(1)).statistics(&x, &mut Statistics::new(3)).unwrap_err();
    let message = "x does not have the plan's shape: expected outer 2, channels 3 and inner 20, got outer 40, channels \
                   3 and inner 1";
    assert_eq!(error.to_string(), message);
    let (expected, actual) = (plan.shape(), Shape::nc(40, 3).unwrap());
    assert_eq!(error, Error::Layout { argument: "x", expected, actual });
}

/// All arrays that passes take besides x, of which one may be wrong.
#[derive(Clone, Debug, PartialEq)]
struct Others {
    y: Array4<f32>,
    dy: Array4<f32>,
    dx: Array4<f32>,
    dresidual: Array4<f32>,
    residual: Array4<f32>,
    output: Array4<f32>,
    dgamma: Array1<f32>,
}

const SEVENS: fn() -> Array4<f32> = || Array4::from_elem((2, 3, 4, 5), 7.0);

impl Others {
    fn new() -> Self {
        let [y, dy, dx, dresidual, residual, output] = [(); 6].map(|()| SEVENS());
        Self { y, dy, dx, dresidual, residual, output, dgamma: Array1::from_elem(3, 7.0) }
    }

    fn array(&mut self, name: &str) -> &mut Array4<f32> {
        match name {
            "y" => &mut self.y,
            "dy" => &mut self.dy,
            "dx" => &mut self.dx,
            "dresidual" => &mut self.dresidual,
            "residual" => &mut self.residual,
            "output" => &mut self.output,
            _ => unreachable!("{name}"),
        }
    }

    fn gradients(&mut self) -> (ArrayGradients<'_, f32, Ix4>, &Array4<f32>) {
        let gradients = ArrayGradients {
            dx: Some(&mut self.dx),
            dresidual: Some(&mut self.dresidual),
            dgamma: Some(&mut self.dgamma),
            dbeta: None,
        };
        (gradients, &self.dy)
    }
}

/// A pass, and the names of the arrays that it takes besides x.
type Pass = (&'static [&'static str], Run);
type Run = fn(&BatchNorm, &mut Array4<f32>, &mut Others) -> Result<(), Error>;

const GIVEN: fn() -> Statistics = || Statistics::from_parts(40.0, vec![0.0; 3], vec![1.0; 3]).unwrap();

const PASSES: [Pass; 10] = [
    (&["y", "residual", "output"], |plan, x, o| {
        let extras = ArrayExtras { residual: Some(&o.residual), output: Some(&o.output), weights: None };
        let mut statistics = Statistics::new(3);
        plan.arrays(Axis(1)).with(extras).forward_training(x, Affine::default(), &mut o.y, &mut statistics)
    }),
    (&["residual"], |plan, x, o| {
        let extras = ArrayExtras { residual: Some(&o.residual), ..ArrayExtras::default() };
        plan.arrays(Axis(1)).with(extras).forward_training_in_place(x, Affine::default(), &mut Statistics::new(3))
    }),
    (&["output"], |plan, x, o| {
        let extras = ArrayExtras { output: Some(&o.output), ..ArrayExtras::default() };
        plan.arrays(Axis(1)).with(extras).statistics(x, &mut Statistics::new(3))
    }),
    (&["y"], |plan, x, o| plan.arrays(Axis(1)).normalize(x, &GIVEN(), Affine::default(), &mut o.y)),
    (&["residual"], |plan, x, o| {
        let extras = ArrayExtras { residual: Some(&o.residual), ..ArrayExtras::default() };
        plan.arrays(Axis(1)).with(extras).normalize_in_place(x, &GIVEN(), Affine::default())
    }),
    (&["dy"], |plan, x, o| {
        let mut sums = GradientSums::new(3);
        plan.arrays(Axis(1)).gradient_sums(x, &o.dy, &GIVEN(), Affine::default(), &mut sums)
    }),
    (&["dy", "dx", "dresidual"], |plan, x, o| {
        let (gradients, dy) = o.gradients();
        let sums = GradientSums::new(3);
        plan.arrays(Axis(1)).input_gradient(x, dy, &GIVEN(), &sums, Affine::default(), gradients)
    }),
    (&["dy", "dx", "dresidual"], |plan, x, o| {
        let (gradients, dy) = o.gradients();
        plan.arrays(Axis(1)).backward(x, dy, &GIVEN(), Affine::default(), gradients)
    }),
    (&["dy", "dresidual"], |plan, x, o| {
        let (gradients, sums) =
            (ArrayGradients { dresidual: Some(&mut o.dresidual), ..ArrayGradients::default() }, GradientSums::new(3));
        plan.arrays(Axis(1)).input_gradient_in_place(x, &mut o.dy, &GIVEN(), &sums, Affine::default(), gradients)
    }),
    (&["dy", "dresidual"], |plan, x, o| {
        let gradients = ArrayGradients { dresidual: Some(&mut o.dresidual), ..ArrayGradients::default() };
        plan.arrays(Axis(1)).backward_in_place(x, &mut o.dy, &GIVEN(), Affine::default(), gradients)
    }),
];

/// Every array with other dims and other strides than x is refused by its name, and nothing is written.
#[test]
fn every_argument_of_another_layout() {
    let plan = BatchNorm::new(Shape::nchw(2, 3, 4, 5).unwrap());
    let mut passes_and_arguments = 0;
    for (names, pass) in PASSES {
        pass(&plan, &mut SEVENS(), &mut Others::new()).unwrap();
        for &argument in names {
            passes_and_arguments += 1;
            for dims in [(2, 3, 5, 4), (2, 3, 4, 6), (1, 3, 4, 5), (3, 2, 4, 5)] {
                let actual = vec![dims.0, dims.1, dims.2, dims.3];
                let error = Error::Dims { argument, expected: vec![2, 3, 4, 5], actual };
                refused(&plan, pass, argument, Array4::from_elem(dims, 7.0), &error);
            }
            // In another order, although its shape may be the same: with height and width exchanged, and channels last.
            let exchanged = Array4::from_elem((2, 3, 5, 4), 7.0).permuted_axes([0, 1, 3, 2]);
            let channels_last = Array4::from_elem((2, 4, 5, 3), 7.0).permuted_axes([0, 3, 1, 2]);
            // With gaps and reversed.
            let gaps = Array4::from_elem((2, 3, 8, 5), 7.0).slice_move(s![.., .., ..;2, ..]);
            let reversed = Array4::from_elem((2, 3, 4, 5), 7.0).slice_move(s![.., .., .., ..;-1]);
            for (wrong, actual) in [
                (exchanged, [60, 20, 1, 4]),
                (channels_last, [60, 1, 15, 3]),
                (gaps, [120, 40, 10, 1]),
                (reversed, [60, 20, 5, -1]),
            ] {
                let error = Error::Strides { argument, expected: vec![60, 20, 5, 1], actual: actual.into() };
                refused(&plan, pass, argument, wrong, &error);
            }
        }
        // x itself.
        let x = Array4::from_elem((2, 3, 4, 5), 7.0).slice_move(s![.., .., ..;-1, ..]);
        let (mut after, mut others) = (x.clone(), Others::new());
        let error = pass(&plan, &mut after, &mut others).unwrap_err();
        assert!(matches!(error, Error::NotDense { argument: "x", axis: 2, expected: 5, actual: -5, .. }), "{error:?}");
        assert_eq!((after, others), (x, Others::new()));
    }
    assert_eq!(passes_and_arguments, 18);
}

fn refused(plan: &BatchNorm, pass: Run, argument: &str, wrong: Array4<f32>, error: &Error) {
    let (mut x, mut others) = (SEVENS(), Others::new());
    *others.array(argument) = wrong;
    let before = others.clone();
    assert_eq!(pass(plan, &mut x, &mut others).as_ref(), Err(error));
    assert_eq!((x, others), (SEVENS(), before), "{argument}");
    let message = error.to_string();
    assert!(message.contains(argument) && message.contains("expected those of x, ["), "{message}");
}

/// Arrays of one value per channel that are not contiguous are errors: nothing is skipped.
#[test]
fn strided_parameters() {
    let every_second = Array1::from_elem(6, 7.0f32).slice_move(s![..;2]);
    let backwards = Array1::from_elem(3, 7.0f32).slice_move(s![..;-1]);
    for (wrong, actual) in [(every_second, 2), (backwards, -1)] {
        let named =
            |argument| Error::NotDense { argument, axis: 0, expected: 1, actual, order: vec![0], standard: vec![1] };
        assert_eq!(Affine::of_arrays(Some(&wrong), None).unwrap_err(), named("gamma"));
        assert_eq!(Affine::of_arrays(None, Some(&wrong)).unwrap_err(), named("beta"));
        let plan = BatchNorm::new(Shape::nchw(2, 3, 4, 5).unwrap());
        let (x, mut dx, mut d) = (SEVENS(), SEVENS(), wrong.clone());
        let gradients = ArrayGradients { dx: Some(&mut dx), dgamma: Some(&mut d), ..ArrayGradients::default() };
        let result = plan.arrays(Axis(1)).backward(&x, &x, &GIVEN(), Affine::default(), gradients);
        assert_eq!(result, Err(named("dgamma")));
        let gradients = ArrayGradients { dx: Some(&mut dx), dbeta: Some(&mut d), ..ArrayGradients::default() };
        let result = plan.arrays(Axis(1)).backward(&x, &x, &GIVEN(), Affine::default(), gradients);
        assert_eq!(result, Err(named("dbeta")));
        assert_eq!((dx, d), (SEVENS(), wrong));
    }
    let plan = BatchNorm::new(Shape::nchw(2, 3, 4, 5).unwrap());
    let (x, mut long) = (SEVENS(), Array1::from_elem(4, 7.0));
    let gradients = ArrayGradients { dgamma: Some(&mut long), ..ArrayGradients::default() };
    let result = plan.arrays(Axis(1)).backward(&x, &x, &GIVEN(), Affine::default(), gradients);
    assert_eq!(result, Err(Error::Length { argument: "dgamma", expected: 3, actual: 4 }));
    assert_eq!(long, Array1::from_elem(4, 7.0));
}
