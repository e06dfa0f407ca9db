//! How close the passes come to the limits of the machine's memory: `cargo bench --bench distance [-- FILTER]`.
//!
//! The passes are compared with sweeps that only move memory. All of them take turns, so that background load affects
//! all of them equally. The table shows medians in milliseconds, and ratios of passes to sweeps. The passes run on
//! rayon's pool, as the sweeps do, and on a pool of this crate with as many threads, which is also that of the C
//! interface; `peers/run` times them on OpenMP's threads.

mod limits;

use batchnorm::{Affine, BatchNorm, Gradients, RunningStatistics, Shape, Statistics, ThreadPool, Threads};
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: usize = 11;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` does not pass this argument; it only checks, on small shapes, that the bench works.
    let test = !std::env::args().any(|a| a == "--bench");
    let threads = rayon::current_num_threads();
    let pool = Arc::new(ThreadPool::new(threads).expect("threads can be started"));
    println!("{threads} threads, medians of {ROUNDS} interleaved rounds, milliseconds");
    println!(
        "{:<22} {:<6} {:>7} {:>7} {:>7} | {:>9} {:>5} | {:>9} {:>5} | {:>9} {:>5}",
        "", "pool", "read", "copy", "add", "forward", "ratio", "inference", "ratio", "backward", "ratio"
    );
    for (name, shape) in shapes() {
        if test && shape.len() > 1 << 18 || !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        measure(&name, shape, &pool);
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

fn measure(name: &str, shape: Shape, pool: &Arc<ThreadPool>) {
    let (n, c) = (shape.len(), shape.channels());
    let x: Vec<f32> = (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 + 1.0).collect();
    let dy: Vec<f32> = x.iter().rev().map(|v| v - 1.5).collect();
    let (mut y, mut dx) = (vec![0.0f32; n], vec![0.0f32; n]);
    let (gamma, beta) = (vec![1.5f32; c], vec![0.5f32; c]);
    let (mut dgamma, mut dbeta) = (vec![0.0f32; c], vec![0.0f32; c]);
    let affine = Affine::new(&gamma, &beta);
    let plans = [
        ("rayon", BatchNorm::new(shape).threads(Threads::Rayon)),
        ("own", BatchNorm::new(shape).threads(Threads::Pool(pool.clone()))),
    ];
    let mut statistics = Statistics::new(c);
    let running = RunningStatistics::new(c);

    // Passes over small tensors are repeated, so that they take long enough to be timed.
    let repeat = (1 << 22) / n.max(1) + 1;
    let mut sweeps: [Vec<f64>; 3] = Default::default();
    let mut passes: [[Vec<f64>; 3]; 2] = Default::default();
    for round in 0..ROUNDS + 1 {
        let clock = |times: &mut Vec<f64>, pass: &mut dyn FnMut()| {
            let start = Instant::now();
            (0..repeat).for_each(|_| pass());
            // The first round warms up.
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3 / repeat as f64);
            }
        };
        let [read, copy, add] = &mut sweeps;
        clock(read, &mut || limits::read(&x));
        clock(copy, &mut || limits::streaming_copy(&x, &mut y));
        clock(add, &mut || limits::streaming_add(&x, &dy, &mut dx));
        for ((_, plan), [forward, inference, backward]) in plans.iter().zip(&mut passes) {
            clock(forward, &mut || {
                plan.forward_training(&x, affine, &mut y, &mut statistics).expect("valid arguments");
            });
            clock(backward, &mut || {
                let gradients = Gradients {
                    dx: Some(&mut dx),
                    dgamma: Some(&mut dgamma),
                    dbeta: Some(&mut dbeta),
                    ..Gradients::default()
                };
                plan.backward(&x, &dy, &statistics, affine, gradients).expect("valid arguments");
            });
            clock(inference, &mut || plan.normalize(&x, &running, affine, &mut y).expect("valid arguments"));
        }
    }
    let [read, copy, add] = sweeps.map(median);
    for ((pool, _), times) in plans.iter().zip(passes) {
        let [forward, inference, backward] = times.map(median);
        println!(
            "{name:<22} {pool:<6} {read:>7.3} {copy:>7.3} {add:>7.3} | {forward:>9.3} {:>5.2} | {inference:>9.3} \
             {:>5.2} | {backward:>9.3} {:>5.2}",
            forward / if shape.inner() == 1 { read + copy } else { copy },
            inference / copy,
            backward / add
        );
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
