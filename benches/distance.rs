//! How close the passes come to the limits of the machine's memory: `cargo bench --bench distance [-- FILTER]`.
//!
//! The passes are compared with sweeps that only move memory. All of them take turns, so that background load affects
//! all of them equally. The table shows medians in milliseconds, and ratios of passes to sweeps.

mod limits;

use batchnorm::{Affine, BatchNorm, Gradients, RunningStatistics, Shape, Statistics};
use std::time::Instant;

const ROUNDS: usize = 11;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` does not pass this argument; it only checks, on small shapes, that the bench works.
    let test = !std::env::args().any(|a| a == "--bench");
    println!("{} threads, medians of {ROUNDS} interleaved rounds, milliseconds", rayon::current_num_threads());
    println!(
        "{:<22} {:>7} {:>7} {:>7} | {:>9} {:>5} | {:>9} {:>5} | {:>9} {:>5}",
        "", "read", "copy", "add", "forward", "ratio", "inference", "ratio", "backward", "ratio"
    );
    for (name, shape) in shapes() {
        if test && shape.len() > 1 << 18 || !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        measure(&name, shape);
    }
    println!(
        "ratios: forward / copy for NCHW, forward / (read + copy) for NHWC and NC; inference / copy; backward / add"
    );
}

/// Layers of ResNet-50 at batch 32 in both layouts, fully connected layers, and small tensors.
fn shapes() -> Vec<(String, Shape)> {
    let mut shapes = Vec::new();
    let resnet = [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)];
    for (c, side) in resnet {
        shapes.push((format!("NCHW 32x{c}x{side}x{side}"), Shape::nchw(32, c, side, side)));
    }
    for (c, side) in resnet {
        shapes.push((format!("NHWC 32x{c}x{side}x{side}"), Shape::nhwc(32, side, side, c)));
    }
    shapes.push(("NC 4096x1024".into(), Shape::nc(4096, 1024)));
    shapes.push(("NC 256x512".into(), Shape::nc(256, 512)));
    shapes.push(("NCHW 1x64x56x56".into(), Shape::nchw(1, 64, 56, 56)));
    shapes.push(("NCHW 1x64x7x7".into(), Shape::nchw(1, 64, 7, 7)));
    shapes.into_iter().map(|(name, shape)| (name, shape.expect("a shape of the table"))).collect()
}

fn measure(name: &str, shape: Shape) {
    let (n, c) = (shape.len(), shape.channels());
    let x: Vec<f32> = (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 + 1.0).collect();
    let dy: Vec<f32> = x.iter().rev().map(|v| v - 1.5).collect();
    let (mut y, mut dx) = (vec![0.0f32; n], vec![0.0f32; n]);
    let (gamma, beta) = (vec![1.5f32; c], vec![0.5f32; c]);
    let (mut dgamma, mut dbeta) = (vec![0.0f32; c], vec![0.0f32; c]);
    let affine = Affine::new(&gamma, &beta);
    let plan = BatchNorm::new(shape);
    let mut statistics = Statistics::new(c);
    let running = RunningStatistics::new(c);

    // Passes over small tensors are repeated, so that they take long enough to be timed.
    let repeat = (1 << 22) / n.max(1) + 1;
    let mut times: [Vec<f64>; 6] = Default::default();
    for round in 0..ROUNDS + 1 {
        let mut clock = |slot: usize, pass: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..repeat).for_each(|_| pass());
            // The first round warms up.
            if round > 0 {
                times[slot].push(start.elapsed().as_secs_f64() * 1e3 / repeat as f64);
            }
        };
        clock(0, &mut || limits::read(&x));
        clock(3, &mut || plan.forward_training(&x, affine, &mut y, &mut statistics).expect("valid arguments"));
        clock(1, &mut || limits::streaming_copy(&x, &mut y));
        clock(5, &mut || {
            let gradients = Gradients {
                dx: Some(&mut dx),
                dgamma: Some(&mut dgamma),
                dbeta: Some(&mut dbeta),
                ..Gradients::default()
            };
            plan.backward(&x, &dy, &statistics, affine, gradients).expect("valid arguments");
        });
        clock(2, &mut || limits::streaming_add(&x, &dy, &mut dx));
        clock(4, &mut || plan.normalize(&x, &running, affine, &mut y).expect("valid arguments"));
    }
    let [read, copy, add, forward, inference, backward] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    });
    let sweeps = if shape.inner() == 1 { read + copy } else { copy };
    println!(
        "{name:<22} {read:>7.3} {copy:>7.3} {add:>7.3} | {forward:>9.3} {:>5.2} | {inference:>9.3} {:>5.2} | \
         {backward:>9.3} {:>5.2}",
        forward / sweeps,
        inference / copy,
        backward / add
    );
}
