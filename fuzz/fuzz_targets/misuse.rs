//! Wrong arguments of every kind: each gives an error and leaves all outputs unchanged, and none a panic.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{
    Activation, Affine, BatchNorm, Error, Extras, GradientSums, Gradients, Isa, Momentum, RunningStatistics, Shape,
    Source, Statistics,
};
use batchnorm_fuzz::{Dims, Place, Scalar, baseline};
use batchnorm_testing::Float;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    extents: [usize; 5],
    dims: Dims,
    double: bool,
    place: Place,
    eps: Scalar,
    /// The errors in the lengths of arguments, most of them 0.
    lengths: Lengths,
    gamma: bool,
    beta: bool,
    source: Averages,
    call: Call,
    fusing: Fusing,
}

/// An activation and extras, valid or not.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Fusing {
    activation: Act,
    residual: Option<Delta>,
    output: Option<Delta>,
    dresidual: Option<Delta>,
    /// The number of weights, their value, and that of the last.
    weights: Option<(Delta, Scalar, Scalar)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Identity,
    Relu,
    LeakyRelu(Scalar),
    Silu,
}

impl Act {
    fn activation(self) -> Activation {
        match self {
            Self::Identity => Activation::Identity,
            Self::Relu => Activation::Relu,
            Self::LeakyRelu(slope) => Activation::LeakyRelu(slope.f64()),
            Self::Silu => Activation::Silu,
        }
    }

    fn valid(self) -> bool {
        !matches!(self, Self::LeakyRelu(slope) if !(slope.f64() >= 0.0 && slope.f64().is_finite()))
    }
}

#[derive(Arbitrary, Clone, Copy, Debug, Default)]
struct Lengths {
    x: Delta,
    dy: Delta,
    out: Delta,
    gamma: Delta,
    beta: Delta,
    dgamma: Delta,
    dbeta: Delta,
    source: Delta,
    sums: Delta,
    statistics: Delta,
}

/// A length that is right most of the time.
#[derive(Arbitrary, Clone, Copy, Debug, Default)]
enum Delta {
    #[default]
    Right,
    AlsoRight,
    RightToo,
    Off(i8),
    Empty,
}

impl Delta {
    fn apply(self, n: usize) -> usize {
        match self {
            Self::Right | Self::AlsoRight | Self::RightToo => n,
            Self::Off(by) => n.saturating_add_signed(isize::from(by)),
            Self::Empty => 0,
        }
    }
}

/// Statistics to normalize with, valid or not.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Averages {
    Batch { count: Scalar, mean: Scalar, var: Scalar },
    Running { mean: Scalar, var: Scalar, last_var: Scalar },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Call {
    Statistics,
    ForwardTraining,
    ForwardTrainingInPlace,
    Normalize,
    NormalizeInPlace,
    GradientSums,
    InputGradient,
    InputGradientInPlace,
    ParameterGradients,
    Backward,
    BackwardInPlace,
    Invertible,
    FromOutput,
}

fuzz_target!(|input: Input| {
    shapes(input.extents);
    settings(&input);
    if input.double { run::<f64>(&input) } else { run::<f32>(&input) }
});

/// The result if there is one; otherwise the error must have a message.
fn told<T>(result: Result<T, Error>) -> Option<T> {
    result.map_err(|error| assert!(!error.to_string().is_empty())).ok()
}

/// A shape is valid exactly if its bytes can be addressed.
fn shapes([a, b, c, d, e]: [usize; 5]) {
    let fits = |dims: &[usize]| {
        let bytes = dims.iter().try_fold(8u128, |product, &dim| product.checked_mul(dim as u128));
        bytes.is_some_and(|bytes| bytes <= isize::MAX as u128)
    };
    let check = |dims: &[usize], shape: Result<Shape, Error>| {
        let shape = told(shape);
        // If an extent is 0, the product of the others decides.
        if dims.iter().all(|&dim| dim > 0) {
            assert_eq!(shape.is_some(), fits(dims), "{dims:?}");
        }
        if let Some(shape) = shape {
            assert_eq!(shape.len() as u128, dims.iter().map(|&dim| dim as u128).product::<u128>());
            assert_eq!(shape.is_empty(), shape.len() == 0);
            assert!(shape.channels() == 0 || shape.len() == shape.values_per_channel() * shape.channels());
        }
    };
    check(&[a, b, c], Shape::new(a, b, c));
    check(&[a, b], Shape::nc(a, b));
    check(&[a, b, c], Shape::ncl(a, b, c));
    check(&[a, b, c, d], Shape::nchw(a, b, c, d));
    check(&[a, b, c, d, e], Shape::ncdhw(a, b, c, d, e));
    check(&[a, b, c, d], Shape::nhwc(a, b, c, d));
    check(&[a, b, c, d, e], Shape::ndhwc(a, b, c, d, e));
    // A plan can be made for any shape, and rejects arguments that are too short for it.
    if let Some(shape) = told(Shape::new(a, b, c)).filter(|shape| shape.len() > 1) {
        let mut statistics = Statistics::new(1);
        let wrong = BatchNorm::new(shape).forward_training(&[0.0f32], Affine::default(), &mut [0.0], &mut statistics);
        assert_eq!(wrong, Err(Error::Length { argument: "x", expected: shape.len(), actual: 1 }));
    }
}

fn settings(input: &Input) {
    let plan = BatchNorm::new(input.dims.shape());
    let eps = input.eps.f64();
    assert_eq!(told(plan.eps(eps)).is_some(), eps >= 0.0 && eps.is_finite(), "eps {eps}");
    let act = input.fusing.activation;
    let plan = BatchNorm::new(input.dims.shape());
    assert_eq!(told(plan.activation(act.activation())).is_some(), act.valid(), "{act:?}");
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
        let plan = BatchNorm::new(input.dims.shape());
        assert_eq!(told(plan.isa(isa)).is_some(), Isa::available().contains(&isa), "{isa:?}");
    }
}

fn run<E: Float>(input: &Input) {
    let shape = input.dims.shape();
    let Some(source) = Owned::new(input.source, input.lengths.source.apply(shape.channels())) else { return };
    let Ok(plan) = baseline(shape, 1e-5).activation(input.fusing.activation.activation()) else { return };
    input.place.each_isa(&plan, |plan, _| {
        let mut arguments = Arguments::<E>::new(input, shape);
        let mut before = arguments.clone();
        let valid = arguments.valid(input, shape, &source);
        let result = arguments.call(input.call, plan, &source);
        assert_eq!(told(result.clone()).is_some(), valid, "{result:?}");
        if !valid {
            // Weights, which may be NaN, are borrowed immutably.
            (before.weights, arguments.weights) = (None, None);
            assert_eq!(before, arguments, "after {result:?}");
        }
        arguments.merge();
    });
}

enum Owned {
    Batch(Statistics),
    Running(RunningStatistics),
}

impl Owned {
    fn new(averages: Averages, channels: usize) -> Option<Self> {
        let all = |v: Scalar| vec![v.f64(); channels];
        match averages {
            Averages::Batch { count, mean, var } => {
                let statistics = told(Statistics::from_parts(count.f64(), all(mean), all(var)));
                let valid = count.f64() >= 0.0 && count.f64().is_finite() && !(channels > 0 && var.f64() < 0.0);
                assert_eq!(statistics.is_some(), valid, "{averages:?}");
                statistics.map(Self::Batch)
            }
            Averages::Running { mean, var, last_var } => {
                let mut var = all(var);
                if let Some(last) = var.last_mut() {
                    *last = last_var.f64();
                }
                told(RunningStatistics::from_parts(all(mean), var, 1)).map(Self::Running)
            }
        }
    }

    fn channels(&self) -> usize {
        match self {
            Self::Batch(s) => s.channels(),
            Self::Running(r) => r.channels(),
        }
    }

    fn source(&self) -> Source<'_> {
        match self {
            Self::Batch(s) => s.into(),
            Self::Running(r) => r.into(),
        }
    }
}

/// Everything that a call may read or write.
#[derive(Clone, Debug, PartialEq)]
struct Arguments<E> {
    x: Vec<E>,
    dy: Vec<E>,
    out: Vec<E>,
    gamma: Option<Vec<E>>,
    beta: Option<Vec<E>>,
    dgamma: Option<Vec<E>>,
    dbeta: Option<Vec<E>>,
    residual: Option<Vec<E>>,
    output: Option<Vec<E>>,
    dresidual: Option<Vec<E>>,
    weights: Option<Vec<E>>,
    statistics: Statistics,
    sums: GradientSums,
}

impl<E: Float> Arguments<E> {
    fn new(input: &Input, shape: Shape) -> Self {
        let (lengths, channels) = (input.lengths, shape.channels());
        let values = |delta: Delta, n| vec![E::of(0.125); delta.apply(n)];
        let wide = |delta: Delta| vec![0.125; delta.apply(channels)];
        let weights = |(delta, all, last): (Delta, Scalar, Scalar)| {
            let mut weights = vec![E::of(all.f64()); delta.apply(shape.values_per_channel())];
            if let Some(weight) = weights.last_mut() {
                *weight = E::of(last.f64());
            }
            weights
        };
        Self {
            x: values(lengths.x, shape.len()),
            dy: values(lengths.dy, shape.len()),
            out: values(lengths.out, shape.len()),
            gamma: input.gamma.then(|| values(lengths.gamma, channels)),
            beta: input.beta.then(|| values(lengths.beta, channels)),
            dgamma: input.gamma.then(|| values(lengths.dgamma, channels)),
            dbeta: input.beta.then(|| values(lengths.dbeta, channels)),
            residual: input.fusing.residual.map(|delta| values(delta, shape.len())),
            output: input.fusing.output.map(|delta| values(delta, shape.len())),
            dresidual: input.fusing.dresidual.map(|delta| values(delta, shape.len())),
            weights: input.fusing.weights.map(weights),
            statistics: Statistics::from_parts(7.0, wide(lengths.statistics), wide(lengths.statistics))
                .expect("valid parts"),
            sums: GradientSums::from_parts(wide(lengths.sums), wide(lengths.sums)).expect("equal lengths"),
        }
    }

    /// Whether the call should succeed.
    fn valid(&self, input: &Input, shape: Shape, source: &Owned) -> bool {
        let (n, channels) = (shape.len(), shape.channels());
        let fits = |v: &Option<Vec<E>>| v.as_ref().is_none_or(|v| v.len() == channels);
        let [x, dy, out] = [&self.x, &self.dy, &self.out].map(|v| v.len() == n);
        let affine = fits(&self.gamma) && fits(&self.beta);
        let parameters = fits(&self.dgamma) && fits(&self.dbeta);
        let (statistics, sums) = (self.statistics.channels() == channels, self.sums.channels() == channels);
        let of_shape = |v: &Option<Vec<E>>| v.as_ref().is_none_or(|v| v.len() == n);
        let dresidual = of_shape(&self.dresidual);
        let weight = |w: &E| w.to_f64() >= 0.0 && w.to_f64().is_finite();
        let extras = [&self.residual, &self.output].into_iter().all(of_shape)
            && self.weights.as_ref().is_none_or(|w| w.len() == shape.values_per_channel() && w.iter().all(weight));
        let usable = source.channels() == channels
            && match source {
                Owned::Batch(s) => {
                    s.count() > 0.0 || self.none(shape) || matches!(input.call, Call::ParameterGradients)
                }
                Owned::Running(r) => r.var().iter().all(|&var| var >= 0.0),
            };
        match input.call {
            Call::Statistics => x && statistics && extras,
            Call::ForwardTraining => x && out && affine && statistics && extras,
            Call::ForwardTrainingInPlace => x && affine && statistics && extras,
            Call::Normalize => x && usable && affine && out && extras,
            Call::NormalizeInPlace => x && usable && affine && extras,
            Call::GradientSums => x && dy && usable && affine && sums && extras,
            Call::InputGradient => {
                let given = self.given(source, shape, self.none(shape));
                x && dy && given && sums && affine && out && extras && parameters && dresidual
            }
            Call::InputGradientInPlace => x && dy && self.given(source, shape, n == 0) && sums && affine,
            Call::ParameterGradients => usable && sums && parameters,
            Call::Backward => x && dy && usable && affine && out && parameters && extras && dresidual,
            Call::BackwardInPlace => x && dy && usable && affine && parameters && extras && dresidual,
            Call::Invertible => x && affine && statistics && self.invertible(input, shape),
            Call::FromOutput => {
                let given = self.given(source, shape, n == 0) && self.invertible(input, shape);
                x && dy && given && affine && out && parameters && dresidual
            }
        }
    }

    /// Whether x can be rebuilt from y. All channels have the same gamma and beta.
    fn invertible(&self, input: &Input, shape: Shape) -> bool {
        let slope = match input.fusing.activation {
            Act::Identity => 1.0,
            Act::LeakyRelu(slope) => slope.f64(),
            Act::Relu | Act::Silu => 0.0,
        };
        let (gamma, beta) = (self.gamma.as_ref().map_or(1.0, |_| 0.125), self.beta.as_ref().map_or(0.0, |_| 0.125));
        let largest = gamma * (shape.values_per_channel() as f64).sqrt() + beta;
        let [least, most] = E::INVERTIBLE;
        let fits = gamma * slope.min(1.0) >= least && largest * slope.max(1.0) <= most;
        slope > 0.0 && (fits || shape.channels() == 0)
    }

    /// Whether no value exists.
    fn none(&self, shape: Shape) -> bool {
        shape.is_empty() || self.weights.as_ref().is_some_and(|w| w.iter().all(|w| w.to_f64() == 0.0))
    }

    /// The statistics for a pass that does not take running ones.
    fn batch<'a>(&'a self, source: &'a Owned) -> &'a Statistics {
        match source {
            Owned::Batch(s) => s,
            Owned::Running(_) => &self.statistics,
        }
    }

    fn given(&self, source: &Owned, shape: Shape, none: bool) -> bool {
        let batch = self.batch(source);
        batch.channels() == shape.channels() && (batch.count() > 0.0 || none)
    }

    fn call(&mut self, call: Call, plan: &BatchNorm, owned: &Owned) -> Result<(), Error> {
        let source = owned.source();
        let batch = self.batch(owned).clone();
        let affine = Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() };
        let (x, dy, out) = (&mut self.x, &mut self.dy, &mut self.out);
        let (dgamma, dbeta) = (self.dgamma.as_deref_mut(), self.dbeta.as_deref_mut());
        let dresidual = self.dresidual.as_deref_mut();
        let (residual, output, weights) = (self.residual.as_deref(), self.output.as_deref(), self.weights.as_deref());
        let with = plan.with(Extras { residual, output, weights });
        match call {
            Call::Statistics => with.statistics(x, &mut self.statistics),
            Call::ForwardTraining => with.forward_training(x, affine, out, &mut self.statistics),
            Call::ForwardTrainingInPlace => with.forward_training_in_place(x, affine, &mut self.statistics),
            Call::Normalize => with.normalize(x, source, affine, out),
            Call::NormalizeInPlace => with.normalize_in_place(x, source, affine),
            Call::GradientSums => with.gradient_sums(x, dy, source, affine, &mut self.sums),
            Call::InputGradient => {
                let gradients = Gradients { dx: Some(out), dresidual, dgamma, dbeta };
                with.input_gradient(x, dy, &batch, &self.sums, affine, gradients)
            }
            Call::InputGradientInPlace => plan.input_gradient_in_place(x, dy, &batch, &self.sums, affine),
            Call::ParameterGradients => plan.parameter_gradients(source, &self.sums, dgamma, dbeta),
            Call::Backward => {
                with.backward(x, dy, source, affine, Gradients { dx: Some(out), dresidual, dgamma, dbeta })
            }
            Call::BackwardInPlace => {
                with.backward_in_place(x, dy, source, affine, Gradients { dx: None, dresidual, dgamma, dbeta })
            }
            Call::Invertible => plan.forward_training_invertible(x, affine, &mut self.statistics),
            Call::FromOutput => {
                let gradients = Gradients { dx: Some(out), dresidual, dgamma, dbeta };
                plan.backward_from_output(x, dy, &batch, affine, gradients)
            }
        }
    }

    /// Statistics and sums of another number of channels do not merge, and change nothing.
    fn merge(&self) {
        let channels = self.statistics.channels();
        let (mut statistics, mut sums) = (Statistics::new(channels + 1), GradientSums::new(channels + 1));
        let mut running = RunningStatistics::new(channels + 1);
        let (statistics_before, sums_before, running_before) = (statistics.clone(), sums.clone(), running.clone());
        let other_sums = GradientSums::new(channels);
        assert!(told(statistics.merge(&self.statistics)).is_none());
        assert!(told(sums.merge(&other_sums)).is_none());
        assert!(told(running.update(&self.statistics, Momentum::Cumulative)).is_none());
        assert_eq!((statistics, sums, running), (statistics_before, sums_before, running_before));
        assert!(told(Statistics::from_parts(1.0, vec![0.0; channels], vec![0.0; channels + 1])).is_none());
        assert!(told(GradientSums::from_parts(vec![0.0; channels], vec![0.0; channels + 1])).is_none());
        assert!(told(RunningStatistics::from_parts(vec![0.0; channels], vec![0.0; channels + 1], 0)).is_none());
    }
}
