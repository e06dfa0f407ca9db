//! How far the passes are from the machine's limit: `cargo bench --bench distance [-- FILTER]`.
//!
//! Every pass is timed round by round beside sweeps that only move memory, so that what else the machine does meets
//! all of them; the table has medians in milliseconds and ratios.

mod limits;

use batchnorm::{Affine, BatchNorm, Gradients, RunningStatistics, Shape, Statistics};
use std::time::Instant;

const ROUNDS: usize = 11;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` comes without this argument: then small shapes show that it works.
    let test = !std::env::args().any(|a| a == "--bench");
    println!("{} threads, medians of {ROUNDS} interleaved rounds, milliseconds", rayon::current_num_threads());
    println!(
        "{:<22} {:>7} {:>7} {:>7} | {:>7} {:>5} | {:>7} {:>5} | {:>7} {:>5}",
        "", "read", "copy", "add", "forward", "ratio", "infer", "ratio", "backwd", "ratio"
    );
    for (name, shape) in shapes() {
        if test && shape.len() > 1 << 18 || !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        measure(&name, shape);
    }
    println!(
        "ratios: NCHW forward to a copy, NHWC and NC to a read and a copy; inference to a copy; backward to an add"
    );
}

/// The layers of ResNet-50 at batch 32 in both layouts, and shapes of fully connected layers.
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

    // Small tensors are repeated until a round takes long enough to be timed.
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
    let [read, copy, add, forward, infer, backward] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    });
    let sweeps = if shape.inner() == 1 { read + copy } else { copy };
    println!(
        "{name:<22} {read:>7.3} {copy:>7.3} {add:>7.3} | {forward:>7.3} {:>5.2} | {infer:>7.3} {:>5.2} | {backward:>7.3} {:>5.2}",
        forward / sweeps,
        infer / copy,
        backward / add
    );
}
