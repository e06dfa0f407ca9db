//! Is every wrong argument an `Error` that reports the expected and the actual value, with all outputs unchanged?

use crate::common::*;
use batchnorm::*;

const SHAPE: (usize, usize, usize) = (3, 4, 5);

fn problem() -> Problem<f32> {
    Problem::random(Shape::new(SHAPE.0, SHAPE.1, SHAPE.2).unwrap(), 41)
}

/// All arguments of the passes, of which one may be wrong.
#[derive(Clone, Debug, PartialEq)]
struct Arguments {
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    statistics: Statistics,
    running: RunningStatistics,
    sums: GradientSums,
    residual: Vec<f32>,
    output: Vec<f32>,
    weights: Vec<f32>,
    dresidual: Vec<f32>,
}

impl Arguments {
    fn new() -> Self {
        let p = problem();
        let (len, channels) = (p.shape.len(), p.shape.channels());
        let mut statistics = Statistics::new(channels);
        p.plan().statistics(&p.x, &mut statistics).unwrap();
        let running = p.running();
        let outputs = |n: usize| vec![7.0f32; n];
        Self {
            y: outputs(len),
            dx: outputs(len),
            dgamma: outputs(channels),
            dbeta: outputs(channels),
            dresidual: outputs(len),
            residual: vec![1.0; len],
            output: vec![1.0; len],
            weights: vec![1.0; p.shape.values_per_channel()],
            sums: GradientSums::new(channels),
            gamma: p.gamma.unwrap(),
            beta: p.beta.unwrap(),
            x: p.x,
            dy: p.dy,
            statistics,
            running,
        }
    }
}

/// A pass and the names of its arguments.
type Pass = (&'static str, &'static [&'static str], fn(&BatchNorm, &mut Arguments) -> Result<(), Error>);

fn all_gradients(a: &mut Arguments) -> Gradients<'_, f32> {
    Gradients { dx: Some(&mut a.dx), dgamma: Some(&mut a.dgamma), dbeta: Some(&mut a.dbeta), ..Gradients::default() }
}

const PASSES: [Pass; 15] = [
    ("statistics", &["x", "statistics"], |plan, a| plan.statistics(&a.x, &mut a.statistics)),
    ("forward_training", &["x", "y", "gamma", "beta", "statistics"], |plan, a| {
        plan.forward_training(&a.x, Affine::new(&a.gamma, &a.beta), &mut a.y, &mut a.statistics)
    }),
    ("forward_training_in_place", &["x", "gamma", "beta", "statistics"], |plan, a| {
        plan.forward_training_in_place(&mut a.x, Affine::new(&a.gamma, &a.beta), &mut a.statistics)
    }),
    ("normalize", &["x", "y", "gamma", "beta", "statistics"], |plan, a| {
        plan.normalize(&a.x, &a.statistics, Affine::new(&a.gamma, &a.beta), &mut a.y)
    }),
    ("normalize, running", &["x", "y", "gamma", "beta", "running statistics"], |plan, a| {
        plan.normalize(&a.x, &a.running, Affine::new(&a.gamma, &a.beta), &mut a.y)
    }),
    ("normalize_in_place", &["x", "gamma", "beta", "statistics"], |plan, a| {
        plan.normalize_in_place(&mut a.x, &a.statistics, Affine::new(&a.gamma, &a.beta))
    }),
    ("gradient_sums", &["x", "dy", "statistics", "sums"], |plan, a| {
        plan.gradient_sums(&a.x, &a.dy, &a.statistics, Affine::default(), &mut a.sums)
    }),
    ("gradient_sums, running", &["x", "dy", "running statistics", "sums"], |plan, a| {
        plan.gradient_sums(&a.x, &a.dy, &a.running, Affine::default(), &mut a.sums)
    }),
    ("input_gradient", &["x", "dy", "dx", "gamma", "beta", "statistics", "sums"], |plan, a| {
        plan.input_gradient(&a.x, &a.dy, &a.statistics, &a.sums, Affine::new(&a.gamma, &a.beta), &mut a.dx)
    }),
    ("input_gradient_in_place", &["x", "dy", "gamma", "beta", "statistics", "sums"], |plan, a| {
        plan.input_gradient_in_place(&a.x, &mut a.dy, &a.statistics, &a.sums, Affine::new(&a.gamma, &a.beta))
    }),
    ("parameter_gradients", &["dgamma", "dbeta", "statistics", "sums"], |plan, a| {
        plan.parameter_gradients(&a.statistics, &a.sums, Some(&mut a.dgamma), Some(&mut a.dbeta))
    }),
    ("parameter_gradients, running", &["dgamma", "dbeta", "running statistics", "sums"], |plan, a| {
        plan.parameter_gradients(&a.running, &a.sums, Some(&mut a.dgamma), Some(&mut a.dbeta))
    }),
    ("backward", &["x", "dy", "dx", "gamma", "beta", "dgamma", "dbeta", "statistics"], |plan, a| {
        let (x, dy, gamma, beta) = (a.x.clone(), a.dy.clone(), a.gamma.clone(), a.beta.clone());
        let statistics = a.statistics.clone();
        plan.backward(&x, &dy, &statistics, Affine::new(&gamma, &beta), all_gradients(a))
    }),
    ("backward, running", &["x", "dy", "dx", "gamma", "beta", "dgamma", "dbeta", "running statistics"], |plan, a| {
        let (x, dy, gamma, beta) = (a.x.clone(), a.dy.clone(), a.gamma.clone(), a.beta.clone());
        let running = a.running.clone();
        plan.backward(&x, &dy, &running, Affine::new(&gamma, &beta), all_gradients(a))
    }),
    ("backward_in_place", &["x", "dy", "gamma", "beta", "dgamma", "dbeta", "statistics"], |plan, a| {
        let affine = Affine::new(&a.gamma, &a.beta);
        plan.backward_in_place(&a.x, &mut a.dy, &a.statistics, affine, Some(&mut a.dgamma), Some(&mut a.dbeta))
    }),
];

/// The passes that take extras, with all of them.
const WITH: [Pass; 8] = [
    ("with statistics", &["x", "statistics", "residual", "output", "weights"], |plan, a| {
        plan.with(extras(&a.residual, &a.output, &a.weights)).statistics(&a.x, &mut a.statistics)
    }),
    (
        "with forward_training",
        &["x", "y", "gamma", "beta", "statistics", "residual", "output", "weights"],
        |plan, a| {
            let with = plan.with(extras(&a.residual, &a.output, &a.weights));
            with.forward_training(&a.x, Affine::new(&a.gamma, &a.beta), &mut a.y, &mut a.statistics)
        },
    ),
    (
        "with forward_training_in_place",
        &["x", "gamma", "beta", "statistics", "residual", "output", "weights"],
        |plan, a| {
            let with = plan.with(extras(&a.residual, &a.output, &a.weights));
            with.forward_training_in_place(&mut a.x, Affine::new(&a.gamma, &a.beta), &mut a.statistics)
        },
    ),
    (
        "with normalize, running",
        &["x", "y", "gamma", "beta", "running statistics", "residual", "output", "weights"],
        |plan, a| {
            let with = plan.with(extras(&a.residual, &a.output, &a.weights));
            with.normalize(&a.x, &a.running, Affine::new(&a.gamma, &a.beta), &mut a.y)
        },
    ),
    ("with normalize_in_place", &["x", "gamma", "beta", "statistics", "residual", "output", "weights"], |plan, a| {
        let with = plan.with(extras(&a.residual, &a.output, &a.weights));
        with.normalize_in_place(&mut a.x, &a.statistics, Affine::new(&a.gamma, &a.beta))
    }),
    (
        "with gradient_sums",
        &["x", "dy", "gamma", "beta", "statistics", "sums", "residual", "output", "weights"],
        |plan, a| {
            let with = plan.with(extras(&a.residual, &a.output, &a.weights));
            with.gradient_sums(&a.x, &a.dy, &a.statistics, Affine::new(&a.gamma, &a.beta), &mut a.sums)
        },
    ),
    (
        "with input_gradient",
        &["x", "dy", "dx", "dresidual", "gamma", "beta", "dgamma", "dbeta", "statistics", "sums", "weights"],
        |plan, a| {
            let with = plan.with(extras(&a.residual, &a.output, &a.weights));
            let gradients = Gradients {
                dx: Some(&mut a.dx),
                dresidual: Some(&mut a.dresidual),
                dgamma: Some(&mut a.dgamma),
                dbeta: Some(&mut a.dbeta),
            };
            with.input_gradient(&a.x, &a.dy, &a.statistics, &a.sums, Affine::new(&a.gamma, &a.beta), gradients)
        },
    ),
    (
        "with backward_in_place",
        &["x", "dy", "dresidual", "gamma", "beta", "dgamma", "dbeta", "statistics", "residual", "output", "weights"],
        |plan, a| {
            let with = plan.with(extras(&a.residual, &a.output, &a.weights));
            let gradients = Gradients {
                dx: None,
                dresidual: Some(&mut a.dresidual),
                dgamma: Some(&mut a.dgamma),
                dbeta: Some(&mut a.dbeta),
            };
            with.backward_in_place(&a.x, &mut a.dy, &a.statistics, Affine::new(&a.gamma, &a.beta), gradients)
        },
    ),
];

fn extras<'a>(residual: &'a [f32], output: &'a [f32], weights: &'a [f32]) -> Extras<'a, f32> {
    Extras { residual: Some(residual), output: Some(output), weights: Some(weights) }
}

/// Gives the named argument the length `len`.
fn resize(a: &mut Arguments, name: &str, len: usize) {
    match name {
        "x" => a.x.resize(len, 1.0),
        "dy" => a.dy.resize(len, 1.0),
        "y" => a.y.resize(len, 7.0),
        "dx" => a.dx.resize(len, 7.0),
        "gamma" => a.gamma.resize(len, 1.0),
        "beta" => a.beta.resize(len, 1.0),
        "dgamma" => a.dgamma.resize(len, 7.0),
        "dbeta" => a.dbeta.resize(len, 7.0),
        "statistics" => a.statistics = Statistics::from_parts(1.0, vec![0.0; len], vec![1.0; len]).unwrap(),
        "running statistics" => a.running = RunningStatistics::new(len),
        "sums" => a.sums = GradientSums::new(len),
        "residual" => a.residual.resize(len, 1.0),
        "output" => a.output.resize(len, 1.0),
        "weights" => a.weights.resize(len, 1.0),
        "dresidual" => a.dresidual.resize(len, 7.0),
        _ => unreachable!("{name}"),
    }
}

fn assert_unchanged(before: &Arguments, pass: &Pass, plan: &BatchNorm, expected: &Error) {
    let mut after = before.clone();
    assert_eq!((pass.2)(plan, &mut after).as_ref(), Err(expected), "{}", pass.0);
    assert_eq!(&after, before, "{} wrote something", pass.0);
}

#[test]
fn every_argument_of_every_pass_with_every_wrong_length() {
    let plan = problem().plan();
    for pass in PASSES.iter().chain(&WITH) {
        let mut right = Arguments::new();
        (pass.2)(&plan, &mut right).expect(pass.0);
        for &argument in pass.1 {
            let expected = match argument {
                "x" | "dy" | "y" | "dx" | "residual" | "output" | "dresidual" => plan.shape().len(),
                "weights" => plan.shape().values_per_channel(),
                _ => plan.shape().channels(),
            };
            for actual in [0, 1, expected - 1, expected + 1, 2 * expected] {
                let mut wrong = Arguments::new();
                resize(&mut wrong, argument, actual);
                let error = Error::Length { argument, expected, actual };
                assert_unchanged(&wrong, pass, &plan, &error);
                let message = error.to_string();
                let parts = [argument, &format!("expected {expected} elements"), &format!("got {actual}")];
                assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            }
        }
    }
}

#[test]
fn empty_statistics_for_a_batch_with_values() {
    let plan = problem().plan();
    for pass in PASSES.iter().filter(|p| p.1.contains(&"statistics") && !p.0.contains("parameter")) {
        if ["statistics", "forward_training", "forward_training_in_place"].contains(&pass.0) {
            continue; // statistics are outputs of these
        }
        let empty = Arguments { statistics: Statistics::new(SHAPE.1), ..Arguments::new() };
        assert_unchanged(&empty, pass, &plan, &Error::EmptyStatistics);
    }
    let message = Error::EmptyStatistics.to_string();
    assert!(message.contains("expected") && message.contains("got 0"), "{message}");
}

#[test]
fn running_variances_that_are_none() {
    let plan = problem().plan();
    let running = PASSES.iter().filter(|p| p.1.contains(&"running statistics"));
    let mut passes = 0;
    for pass in running {
        passes += 1;
        for value in [-1e-300, -1.0, f64::NEG_INFINITY] {
            let var = vec![1.0, 0.0, value, -5.0];
            let running = RunningStatistics::from_parts(vec![0.0; 4], var, 1).unwrap();
            let error = Error::Variance { channel: 2, value };
            assert_unchanged(&Arguments { running, ..Arguments::new() }, pass, &plan, &error);
            let message = error.to_string();
            assert!(message.contains("channel 2") && message.contains(&format!("got {value}")), "{message}");
        }
        // NaN is not equal to itself, so its message is compared.
        let running = RunningStatistics::from_parts(vec![0.0; 4], vec![1.0, f64::NAN, 1.0, 1.0], 1).unwrap();
        let mut arguments = Arguments { running, ..Arguments::new() };
        let (y, dx) = (arguments.y.clone(), arguments.dx.clone());
        let message = (pass.2)(&plan, &mut arguments).unwrap_err().to_string();
        assert_eq!(message, "variance of channel 1 is invalid: expected a number >= 0, got NaN");
        assert!(arguments.y == y && arguments.dx == dx && arguments.sums == GradientSums::new(4));
    }
    assert_eq!(passes, 4);
}

#[test]
fn eps_out_of_range() {
    for eps in [-1e-300, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let message = problem().plan().eps(eps).unwrap_err().to_string();
        assert_eq!(message, format!("eps is out of range: expected a finite number >= 0, got {eps}"));
    }
    for eps in [0.0, 5e-324, 1e-5, f64::MAX] {
        assert!(problem().plan().eps(eps).is_ok(), "{eps}");
    }
}

#[test]
fn momentum_out_of_range() {
    let batch = Statistics::from_parts(4.0, vec![1.0], vec![1.0]).unwrap();
    for momentum in [-1e-300, 1.0 + f64::EPSILON, f64::NAN, f64::INFINITY] {
        let mut running = RunningStatistics::new(1);
        let message = running.update(&batch, Momentum::Exponential(momentum)).unwrap_err().to_string();
        assert_eq!(message, format!("momentum is out of range: expected a number in [0, 1], got {momentum}"));
        assert_eq!(running, RunningStatistics::new(1));
    }
}

#[test]
fn an_update_of_other_channels() {
    let mut running = RunningStatistics::new(2);
    for channels in [0, 1, 3] {
        let error = running.update(&Statistics::new(channels), Momentum::Cumulative).unwrap_err();
        assert_eq!(error, Error::Length { argument: "batch", expected: 2, actual: channels });
    }
    assert_eq!(running, RunningStatistics::new(2));
}

#[test]
fn merging_other_channels() {
    let one = Statistics::from_parts(2.0, vec![1.0; 3], vec![1.0; 3]).unwrap();
    let (mut statistics, mut sums) = (one.clone(), GradientSums::new(3));
    let error = Error::Length { argument: "other", expected: 3, actual: 2 };
    assert_eq!(statistics.merge(&Statistics::new(2)), Err(error.clone()));
    assert_eq!(sums.merge(&GradientSums::new(2)), Err(error));
    assert_eq!((statistics, sums), (one, GradientSums::new(3)));
}

#[test]
fn parts_that_do_not_fit_each_other() {
    let error = |argument| Error::Length { argument, expected: 2, actual: 3 };
    assert_eq!(Statistics::from_parts(1.0, vec![0.0; 2], vec![1.0; 3]), Err(error("var")));
    assert_eq!(RunningStatistics::from_parts(vec![0.0; 2], vec![1.0; 3], 0), Err(error("var")));
    assert_eq!(GradientSums::from_parts(vec![0.0; 2], vec![1.0; 3]), Err(error("gx")));
}

#[test]
fn counts_and_variances_that_are_none() {
    for count in [-1.0, f64::NAN, f64::INFINITY] {
        let message = Statistics::from_parts(count, vec![0.0], vec![1.0]).unwrap_err().to_string();
        assert_eq!(message, format!("count is out of range: expected a finite number >= 0, got {count}"));
    }
    let negative = Statistics::from_parts(2.0, vec![0.0; 2], vec![1.0, -0.5]);
    assert_eq!(negative, Err(Error::Variance { channel: 1, value: -0.5 }));
}

#[test]
fn shapes_too_large_to_address() {
    let limit = isize::MAX as usize / 8;
    let large = [
        (Shape::new(usize::MAX, 2, 1), vec![usize::MAX, 2, 1]),
        (Shape::nc(limit + 1, 1), vec![limit + 1, 1]),
        (Shape::ncl(1 << 30, 1 << 30, 1), vec![1 << 30, 1 << 30, 1]),
        (Shape::nchw(2, 1 << 20, 1 << 20, 1 << 20), vec![2, 1 << 20, 1 << 20, 1 << 20]),
        (Shape::ncdhw(1 << 13, 1 << 13, 1 << 13, 1 << 13, 1 << 13), vec![1 << 13; 5]),
        (Shape::nhwc(usize::MAX, usize::MAX, 1, 1), vec![usize::MAX, usize::MAX, 1, 1]),
        (Shape::ndhwc(1 << 16, 1 << 16, 1 << 16, 1 << 16, 0), vec![1 << 16, 1 << 16, 1 << 16, 1 << 16, 0]),
    ];
    for (shape, dims) in large {
        let error = shape.unwrap_err();
        assert_eq!(error, Error::ShapeOverflow { dims: dims.clone() });
        assert!(error.to_string().contains(&format!("{dims:?}")), "{error}");
    }
    assert_eq!(Shape::nc(limit, 1).unwrap().len(), limit);
}

#[test]
fn strides_of_no_dense_tensor() {
    let dims = [2, 3, 4, 5];
    let strides = |strides: [isize; 4]| Shape::from_strides(&dims, &strides, 1).unwrap_err().to_string();
    let order = "by their strides its axes are in the order";
    let copy = "and a copy in standard layout has strides [60, 20, 5, 1]";
    for (wrong, expected, sorted) in [
        ([120, 1, 30, 6], "expected stride 3 for axis 3, got 6, which leaves gaps", "[0, 2, 3, 1]"),
        ([60, 20, -5, 1], "expected stride 5 for axis 2, got -5, which goes backwards", "[0, 1, 2, 3]"),
        ([60, 0, 5, 1], "expected stride 1 for axis 1, got 0, which repeats elements", "[0, 2, 3, 1]"),
        ([40, 20, 5, 1], "expected stride 60 for axis 0, got 40, which makes elements overlap", "[0, 1, 2, 3]"),
        ([1, 1, 1, 1], "expected stride 5 for axis 2, got 1, which makes elements overlap", "[0, 1, 2, 3]"),
    ] {
        let message = format!("the tensor is not dense in memory: {expected}; {order} {sorted}, {copy}");
        assert_eq!(strides(wrong), message);
    }
    for actual in [0, 3, 5] {
        let error = Shape::from_strides(&dims, &vec![1; actual], 1).unwrap_err();
        assert_eq!(error, Error::Length { argument: "strides", expected: 4, actual });
    }
    for (dims, strides, actual) in [(&dims[..], &[60, 20, 5, 1][..], 4), (&dims, &[0; 4], usize::MAX), (&[], &[], 0)] {
        let error = Shape::from_strides(dims, strides, actual).unwrap_err();
        assert_eq!(error, Error::ChannelAxis { axes: dims.len(), actual });
        let axes = dims.len();
        let message = format!("the channel axis is out of range: expected one of {axes} axes, got axis {actual}");
        assert_eq!(error.to_string(), message);
    }
    let large = [1 << 20, 1 << 20, 1 << 20];
    let error = Shape::from_strides(&large, &[0; 3], 1).unwrap_err();
    assert_eq!(error, Error::ShapeOverflow { dims: large.into() });
}

#[test]
fn an_instruction_set_that_the_cpu_lacks() {
    let best = Isa::best();
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
        let plan = problem().plan().isa(isa);
        if Isa::available().contains(&isa) {
            assert!(plan.is_ok(), "{isa:?}");
        } else {
            let error = plan.unwrap_err();
            assert_eq!(error, Error::UnsupportedIsa { isa, best });
            let expected = "expected one of its own instruction sets, the fastest of which is";
            assert_eq!(error.to_string(), format!("this CPU does not support {isa:?}: {expected} {best:?}"));
        }
    }
}

#[test]
fn weights_that_are_none() {
    for activation in [Activation::Identity, Activation::Relu, Activation::Silu] {
        let plan = problem().plan().activation(activation).unwrap();
        for pass in &WITH {
            for value in [-1e-30f32, -1.0, f32::INFINITY, f32::NEG_INFINITY] {
                let mut arguments = Arguments::new();
                (arguments.weights[7], arguments.weights[9]) = (value, -5.0);
                let error = Error::Weight { position: 7, value: value.into() };
                assert_unchanged(&arguments, pass, &plan, &error);
                let value = f64::from(value);
                let message = format!("weight of position 7 is invalid: expected a finite number >= 0, got {value}");
                assert_eq!(error.to_string(), message);
            }
            let mut arguments = Arguments::new();
            arguments.weights[14] = f32::NAN;
            let message = (pass.2)(&plan, &mut arguments).unwrap_err().to_string();
            assert_eq!(message, "weight of position 14 is invalid: expected a finite number >= 0, got NaN");
        }
    }
}

#[test]
fn slopes_out_of_range() {
    for slope in [-1e-300, -0.01, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let message = problem().plan().activation(Activation::LeakyRelu(slope)).unwrap_err().to_string();
        assert_eq!(message, format!("slope is out of range: expected a finite number >= 0, got {slope}"));
    }
    for slope in [0.0, -0.0, 5e-324, 1.0, 100.0] {
        assert!(problem().plan().activation(Activation::LeakyRelu(slope)).is_ok(), "{slope}");
    }
}

#[test]
fn dx_twice() {
    let (a, mut dy, mut dx) = (Arguments::new(), Arguments::new().dy, vec![7.0; 60]);
    let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
    let plan = problem().plan();
    let with = plan.with(Extras::default());
    let error = with.backward_in_place(&a.x, &mut dy, &a.statistics, Affine::default(), gradients).unwrap_err();
    let message = "dx, which takes the place of dy, has the wrong length: expected 0 elements, got 60";
    assert_eq!(error.to_string(), message);
    assert!(dy == a.dy && dx == [7.0; 60]);
}

/// Empty statistics are accepted if all weights are 0, and only then.
#[test]
fn empty_statistics_with_weights() {
    let plan = problem().plan();
    let passes = WITH.iter().filter(|pass| pass.1.contains(&"statistics")).filter(|pass| !pass.0.contains("training"));
    for pass in passes.filter(|pass| pass.0 != "with statistics") {
        let mut empty = Arguments { statistics: Statistics::new(SHAPE.1), ..Arguments::new() };
        assert_unchanged(&empty, pass, &plan, &Error::EmptyStatistics);
        empty.weights.fill(0.0);
        (pass.2)(&plan, &mut empty).unwrap();
    }
}
