//! How much time fusion and 16-bit types save: `cargo bench --bench fused [-- FILTER]`.
//!
//! Each fused pass is compared with the plain pass followed by a separate sweep for the rest, on the same number of
//! threads, and each 16-bit type with f32. The alternatives take turns, so that background load affects all of them
//! equally. Times are medians in milliseconds.

use batchnorm::{Activation, Affine, BatchNorm, Element, Extras, Gradients, Shape, Statistics};
use half::{bf16, f16};
use rayon::prelude::*;
use std::time::Instant;

const ROUNDS: usize = 9;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` does not pass this argument; it only checks, on small shapes, that the bench works.
    let test = !std::env::args().any(|a| a == "--bench");
    println!("{} threads of rayon, medians of {ROUNDS} interleaved rounds, milliseconds", rayon::current_num_threads());
    let (c, side) = if test { (8, 7) } else { (256, 56) };
    let shapes = [("NCHW", Shape::nchw(32, c, side, side)), ("NHWC", Shape::nhwc(32, side, side, c))];
    for (layout, shape) in shapes {
        let name = format!("{layout} 32x{c}x{side}x{side}");
        if filter.is_empty() || filter.iter().any(|f| name.contains(f.as_str())) {
            let shape = shape.expect("a shape of the table");
            fusions(&name, shape);
            halves(&name, shape);
        }
    }
}

/// Medians of passes that take turns, in milliseconds; the first round is a warm-up.
fn medians<const N: usize>(mut passes: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=ROUNDS {
        for (pass, times) in passes.iter_mut().zip(&mut times) {
            let start = Instant::now();
            pass();
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    times.map(|mut t: Vec<f64>| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    })
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

/// A parallel sweep over two tensors.
fn sweep(y: &mut [f32], x: &[f32], f: impl Fn(&mut f32, f32) + Sync) {
    const TASK: usize = 1 << 16;
    y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| f(y, *x)));
}

fn fusions(name: &str, shape: Shape) {
    let n = shape.len();
    let (x, dy, residual) = (values(n), values(n), values(n));
    let [mut y, mut dx, mut dresidual, mut g, mut other] = [(); 5].map(|()| vec![0.0f32; n]);
    let (mut statistics, mut own) = (Statistics::new(shape.channels()), Statistics::new(shape.channels()));
    let affine = Affine::default();
    let plain = BatchNorm::new(shape);
    let with = |activation| BatchNorm::new(shape).activation(activation).expect("a valid activation");
    let (relu, silu) = (with(Activation::Relu), with(Activation::Silu));
    let ok = "valid arguments";

    let [plain_alone, fused, unfused, silu] = medians([
        &mut || plain.forward_training(&x, affine, &mut other, &mut Statistics::new(shape.channels())).expect(ok),
        &mut || relu.forward_training(&x, affine, &mut y, &mut own).expect(ok),
        &mut || {
            plain.forward_training(&x, affine, &mut g, &mut statistics).expect(ok);
            g.par_chunks_mut(1 << 16).for_each(|g| g.iter_mut().for_each(|v| *v = v.max(0.0)));
        },
        &mut || silu.forward_training(&x, affine, &mut dx, &mut Statistics::new(shape.channels())).expect(ok),
    ]);
    println!(
        "{name} forward, ReLU:            fused {fused:.2}, unfused {unfused:.2} (speedup {:.2}), \
         without activation {plain_alone:.2}",
        unfused / fused
    );
    println!("{name} forward, SiLU:            fused {silu:.2} ({:.2} times as long as with ReLU)", silu / fused);

    let extras = Extras { residual: Some(&residual), ..Extras::default() };
    let [fused, unfused] =
        medians([&mut || relu.with(extras).forward_training(&x, affine, &mut y, &mut own).expect(ok), &mut || {
            plain.forward_training(&x, affine, &mut g, &mut statistics).expect(ok);
            sweep(&mut g, &residual, |y, r| *y = (*y + r).max(0.0));
        }]);
    println!(
        "{name} forward, residual + ReLU: fused {fused:.2}, unfused {unfused:.2} (speedup {:.2})",
        unfused / fused
    );

    let extras = Extras { output: Some(&y), ..Extras::default() };
    let [fused, unfused] = medians([
        &mut || {
            let gradients = Gradients { dx: Some(&mut dx), dresidual: Some(&mut dresidual), ..Gradients::default() };
            relu.with(extras).backward(&x, &dy, &statistics, affine, gradients).expect(ok);
        },
        &mut || {
            let masked = dy.par_chunks(1 << 16).zip(y.par_chunks(1 << 16)).zip(g.par_chunks_mut(1 << 16));
            masked.for_each(|((dy, y), g)| {
                dy.iter().zip(y).zip(g).for_each(|((dy, y), g)| *g = if *y > 0.0 { *dy } else { 0.0 });
            });
            let gradients = Gradients { dx: Some(&mut other), ..Gradients::default() };
            plain.backward(&x, &g, &statistics, affine, gradients).expect(ok);
        },
    ]);
    println!(
        "{name} backward, residual + ReLU: fused {fused:.2}, unfused {unfused:.2} (speedup {:.2})",
        unfused / fused
    );
}

fn halves(name: &str, shape: Shape) {
    let x = values(shape.len());
    let mut single = Typed::new(shape, x.clone());
    let mut brain = Typed::new(shape, x.iter().map(|v| bf16::from_f32(*v)).collect());
    let mut half = Typed::new(shape, x.iter().map(|v| f16::from_f32(*v)).collect());
    let forward = medians([&mut || single.forward(), &mut || brain.forward(), &mut || half.forward()]);
    let backward = medians([&mut || single.backward(), &mut || brain.backward(), &mut || half.backward()]);
    for (pass, [single, brain, half]) in [("forward", forward), ("backward", backward)] {
        println!(
            "{name} {pass}: f32 {single:.2}, bf16 {brain:.2} (speedup {:.2}), f16 {half:.2} (speedup {:.2})",
            single / brain,
            single / half
        );
    }
}

/// A training step in the element type `E`.
struct Typed<E> {
    plan: BatchNorm,
    x: Vec<E>,
    y: Vec<E>,
    statistics: Statistics,
}

impl<E: Element> Typed<E> {
    fn new(shape: Shape, x: Vec<E>) -> Self {
        Self { plan: BatchNorm::new(shape), y: x.clone(), x, statistics: Statistics::new(shape.channels()) }
    }

    fn forward(&mut self) {
        let (y, statistics) = (&mut self.y, &mut self.statistics);
        self.plan.forward_training(&self.x, Affine::default(), y, statistics).expect("valid arguments");
    }

    fn backward(&mut self) {
        let gradients = Gradients { dx: Some(&mut self.y), ..Gradients::default() };
        let (x, statistics) = (&self.x, &self.statistics);
        self.plan.backward(x, x, statistics, Affine::default(), gradients).expect("valid arguments");
    }
}
