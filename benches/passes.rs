//! Every pass in every layout, with criterion: `cargo bench --bench passes [-- FILTER]`.
//!
//! The report with plots is `target/criterion/report/index.html`. To compare two commits, run
//! `cargo bench --bench passes -- --save-baseline before` on the first and
//! `cargo bench --bench passes -- --baseline before` on the second.
//!
//! Each group is one pass on one shape: the kernel, `reference`, and a streaming copy of a tensor of that shape.
//! Throughput counts the bytes that the pass must read from and write to memory at least once, so the copy shows the
//! limit. Each kernel is checked against `reference` before it is timed.

mod limits;

use approx::assert_abs_diff_eq;
use batchnorm::{Affine, BatchNorm, Gradients, RunningStatistics, Shape, Statistics, reference};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Layers of ResNet-50 at batch 32 in both layouts, fully connected layers, and small tensors.
fn shapes() -> Vec<(String, Shape)> {
    let resnet = [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)];
    let planes = resnet.map(|(c, s)| (format!("NCHW/32x{c}x{s}x{s}"), Shape::nchw(32, c, s, s)));
    let rows = resnet.map(|(c, s)| (format!("NHWC/32x{s}x{s}x{c}"), Shape::nhwc(32, s, s, c)));
    let others = [
        ("NC/4096x1024".to_owned(), Shape::nc(4096, 1024)),
        ("NC/256x512".to_owned(), Shape::nc(256, 512)),
        ("NCHW/1x64x56x56".to_owned(), Shape::nchw(1, 64, 56, 56)),
        ("NHWC/1x56x56x64".to_owned(), Shape::nhwc(1, 56, 56, 64)),
    ];
    let all = planes.into_iter().chain(rows).chain(others);
    // `cargo test --benches` does not pass this argument; it only checks, on small shapes, that the bench works.
    let largest = if std::env::args().any(|a| a == "--bench") { usize::MAX } else { 1 << 18 };
    all.map(|(name, shape)| (name, shape.expect("a shape of the table"))).filter(|(_, s)| s.len() <= largest).collect()
}

/// The arguments of the passes on one shape.
struct Case {
    plan: BatchNorm,
    shape: Shape,
    x: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
    statistics: Statistics,
    running: RunningStatistics,
    wide: Wide,
}

/// The inputs and their statistics in f64, for `reference`.
struct Wide {
    x: Vec<f64>,
    dy: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    mean: Vec<f64>,
    var: Vec<f64>,
}

const EPS: f64 = 1e-5;

impl Case {
    fn new(shape: Shape) -> Self {
        let (n, c) = (shape.len(), shape.channels());
        let x: Vec<f32> =
            (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 + 1.0).collect();
        let dy: Vec<f32> = x.iter().rev().map(|v| v - 1.5).collect();
        let gamma: Vec<f32> = (0..c).map(|i| 1.0 + i as f32 / c as f32).collect();
        let beta: Vec<f32> = (0..c).map(|i| i as f32 / c as f32).collect();
        let widen = |v: &[f32]| v.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (mean, var) = reference::statistics(shape, &widen(&x));
        let wide = Wide { x: widen(&x), dy: widen(&dy), gamma: widen(&gamma), beta: widen(&beta), mean, var };
        let running = RunningStatistics::from_parts(wide.mean.clone(), wide.var.clone(), 1).expect("equal lengths");
        Self {
            plan: BatchNorm::new(shape).eps(EPS).expect("a valid eps"),
            shape,
            x,
            dy,
            y: vec![0.0; n],
            gamma,
            beta,
            dgamma: vec![0.0; c],
            dbeta: vec![0.0; c],
            statistics: Statistics::new(c),
            running,
            wide,
        }
    }

    fn forward(&mut self) {
        let affine = Affine::new(&self.gamma, &self.beta);
        self.plan.forward_training(&self.x, affine, &mut self.y, &mut self.statistics).expect("valid arguments");
    }

    fn inference(&mut self) {
        let affine = Affine::new(&self.gamma, &self.beta);
        self.plan.normalize(&self.x, &self.running, affine, &mut self.y).expect("valid arguments");
    }

    fn backward(&mut self) {
        let affine = Affine::new(&self.gamma, &self.beta);
        let gradients = Gradients {
            dx: Some(&mut self.y),
            dgamma: Some(&mut self.dgamma),
            dbeta: Some(&mut self.dbeta),
            ..Gradients::default()
        };
        self.plan.backward(&self.x, &self.dy, &self.statistics, affine, gradients).expect("valid arguments");
    }

    fn reference_forward(&self) -> Vec<f64> {
        let (mean, var) = reference::statistics(self.shape, &self.wide.x);
        let w = &self.wide;
        reference::normalize(self.shape, &w.x, (&mean, &var), EPS, &w.gamma, &w.beta)
    }

    fn reference_inference(&self) -> Vec<f64> {
        let w = &self.wide;
        reference::normalize(self.shape, &w.x, (&w.mean, &w.var), EPS, &w.gamma, &w.beta)
    }

    fn reference_backward(&self) -> Vec<f64> {
        let w = &self.wide;
        reference::backward(self.shape, &w.x, &w.dy, (&w.mean, &w.var), EPS, &w.gamma).0
    }

    fn check(&self, expected: &[f64]) {
        for (y, expected) in self.y.iter().zip(expected) {
            // The values are below 16, so this allows 8 roundings of f32.
            assert_abs_diff_eq!(f64::from(*y), *expected, epsilon = 16.0 * 8.0 * f64::from(f32::EPSILON) / 2.0);
        }
    }
}

/// A pass: its name, how many tensors it must at least read or write, and the two calls that are timed.
type Pass = (&'static str, u64, fn(&mut Case), fn(&Case) -> Vec<f64>);

fn passes(criterion: &mut Criterion) {
    let passes: [Pass; 3] = [
        ("forward_training", 2, Case::forward, Case::reference_forward),
        ("inference", 2, Case::inference, Case::reference_inference),
        ("backward", 3, Case::backward, Case::reference_backward),
    ];
    for (name, shape) in shapes() {
        // Made by the shape's first benchmark that the filter selects.
        let mut case: Option<Case> = None;
        for (pass, sweeps, kernel, reference) in passes {
            let mut group = criterion.benchmark_group(format!("{pass}/{name}"));
            group.sample_size(10).sampling_mode(SamplingMode::Flat);
            group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
            let bytes = (shape.len() * size_of::<f32>()) as u64;
            group.throughput(Throughput::Bytes(sweeps * bytes));
            group.bench_function(BenchmarkId::from_parameter("kernel"), |b| {
                let case = case.get_or_insert_with(|| Case::new(shape));
                case.forward();
                kernel(case);
                case.check(&reference(case));
                b.iter(|| kernel(case));
            });
            group.bench_function(BenchmarkId::from_parameter("reference"), |b| {
                let case = case.get_or_insert_with(|| Case::new(shape));
                b.iter(|| reference(case));
            });
            group.throughput(Throughput::Bytes(2 * bytes));
            group.bench_function(BenchmarkId::from_parameter("streaming copy"), |b| {
                let case = case.get_or_insert_with(|| Case::new(shape));
                b.iter(|| limits::streaming_copy(&case.x, &mut case.y));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, passes);
criterion_main!(benches);
