//! This crate's module compared with burn's own: `cargo bench -p batchnorm-burn [-- FILTER]`.
//!
//! Both take turns on the same tensors, so that background load affects both equally. The table shows medians in
//! milliseconds. A step is the forward pass in training and the backward pass from a gradient of ones, which burn
//! allocates in each step.

use batchnorm_burn::BatchNorm;
use burn::module::Module;
use burn::nn::{self, BatchNormConfig};
use burn::tensor::{Device, Distribution, Tensor};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 15;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` does not pass this argument; it only checks, on small shapes, that the bench works.
    let test = !std::env::args().any(|a| a == "--bench");
    println!("medians of {ROUNDS} interleaved rounds, milliseconds, f32");
    let columns = ["step", "forward", "inference"].map(|pass| format!(" | {pass:>9}: burn    ours  ratio"));
    println!("{:<17} {:>7}{}", "", "threads", columns.concat());
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        for shape in [&[32, 64, 56, 56][..], &[32, 256, 28, 28], &[32, 512, 7, 7], &[256, 512]] {
            let name = shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
            let large = shape.iter().product::<usize>() > 1 << 18;
            if test && large || !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
                continue;
            }
            let row = pool.install(|| match *shape {
                [n, c] => measure([n, c]),
                [n, c, h, w] => measure([n, c, h, w]),
                _ => unreachable!("the table has no other ranks"),
            });
            let cells = row.map(|[burn, ours]| format!(" | {burn:>15.3} {ours:>7.3} {:>6.1}", burn / ours));
            println!("{name:<17} {threads:>7}{}", cells.concat());
        }
    }
}

/// The medians of burn's module and of ours, for each pass.
fn measure<const D: usize>(shape: [usize; D]) -> [[f64; 2]; 3] {
    let device = Device::flex().autodiff();
    let theirs = BatchNormConfig::new(shape[1]).init(&device);
    let ours = BatchNorm::from(BatchNormConfig::new(shape[1]).init(&device));
    let x = Tensor::<D>::random(shape, Distribution::Normal(1.0, 2.0), &device).require_grad();
    check(&theirs, &ours, &x);

    let (their_inference, our_inference, constant) = (theirs.valid(), ours.valid(), x.clone().inner());
    // Passes over small tensors are repeated, so that they take long enough to be timed.
    let repeat = (1 << 20) / x.shape().num_elements() + 1;
    let mut times: [[Vec<f64>; 2]; 3] = Default::default();
    for round in 0..ROUNDS + 1 {
        let mut clock = |pass: usize, who: usize, run: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..repeat).for_each(|_| run());
            // The first round warms up.
            if round > 0 {
                times[pass][who].push(start.elapsed().as_secs_f64() * 1e3 / repeat as f64);
            }
        };
        clock(0, 0, &mut || drop(black_box(theirs.forward(x.clone()).backward())));
        clock(0, 1, &mut || drop(black_box(ours.forward(x.clone()).backward())));
        clock(1, 0, &mut || drop(black_box(theirs.forward(x.clone()))));
        clock(1, 1, &mut || drop(black_box(ours.forward(x.clone()))));
        clock(2, 0, &mut || drop(black_box(their_inference.forward(constant.clone()))));
        clock(2, 1, &mut || drop(black_box(our_inference.forward(constant.clone()))));
    }
    times.map(|pass| {
        pass.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    })
}

/// What is timed has the same results. Gradients are those of the sum of cubes, as dx from a plain sum is 0.
fn check<const D: usize>(theirs: &nn::BatchNorm, ours: &BatchNorm, x: &Tensor<D>) {
    let step = |y: Tensor<D>| {
        let gradients = (y.clone() * y.clone() * y.clone()).sum().backward();
        [y.inner(), x.grad(&gradients).expect("x requires a gradient")]
    };
    for (theirs, ours) in step(theirs.forward(x.clone())).into_iter().zip(step(ours.forward(x.clone()))) {
        let difference = (theirs - ours).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-3, "results differ by {difference}");
    }
}
