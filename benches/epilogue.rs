//! What it saves to take statistics in the epilogue of a convolution: `cargo bench --bench epilogue [-- FILTER]`.
//!
//! The 1×1 convolution of `examples/engine` is followed by a normalization in training: by `forward_training`, or by
//! `normalize` if the convolution has taken the statistics of each tile while it was in cache. The time of a
//! normalization is what it adds to that of the convolution alone. The alternatives take turns, so that background load
//! affects all of them equally. Times are medians in milliseconds, differences those of the same round.

use batchnorm::{Affine, BatchNorm, Shape, Statistics, Threads};
use engine::conv::Pointwise;
use engine::threads::ThreadPool;
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: usize = 31;

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    // `cargo test --benches` does not pass this argument; it only checks, on small shapes, that the bench works.
    let test = !std::env::args().any(|a| a == "--bench");
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = Arc::new(ThreadPool::new(threads).expect("threads"));
    println!("{threads} threads of the engine, medians of {ROUNDS} interleaved rounds, milliseconds");
    // Layers of MobileNet and ResNet that expand, whose convolution is short, and one that does not.
    for (inputs, outputs, side) in [(16, 96, 112), (64, 64, 112), (64, 256, 56), (128, 512, 28)] {
        let side = if test { 7 } else { side };
        let name = format!("NHWC 16x{outputs}x{side}x{side} from {inputs}");
        if filter.is_empty() || filter.iter().any(|f| name.contains(f.as_str())) {
            measure(&name, &Pointwise { images: 16, pixels: side * side, inputs, outputs }, &pool);
        }
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

fn measure(name: &str, conv: &Pointwise, pool: &Arc<ThreadPool>) {
    let &Pointwise { images, pixels, inputs, outputs } = conv;
    let (x, weight) = (values(images * pixels * inputs), values(inputs * outputs));
    let [mut conv_y, mut y] = [(); 2].map(|()| vec![0.0; images * pixels * outputs]);
    let shape = Shape::nc(images * pixels, outputs).expect("a shape of the table");
    let plan = BatchNorm::new(shape).threads(Threads::Executor(pool.clone()));
    let (affine, mut statistics, ok) = (Affine::default(), Statistics::new(outputs), "valid arguments");

    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let times = [0, 1, 2].map(|way| {
            let start = Instant::now();
            match way {
                0 => conv.run(&x, &weight, &mut conv_y, pool).expect(ok),
                1 => {
                    conv.run(&x, &weight, &mut conv_y, pool).expect(ok);
                    plan.forward_training(&conv_y, affine, &mut y, &mut statistics).expect(ok);
                }
                _ => {
                    let statistics = conv.run_with_statistics(&x, &weight, &mut conv_y, pool).expect(ok);
                    plan.normalize(&conv_y, &statistics, affine, &mut y).expect(ok);
                }
            }
            start.elapsed().as_secs_f64() * 1e3
        });
        // The first round warms up.
        if round > 0 {
            rounds.push(times);
        }
    }
    let median = |of: &dyn Fn(&[f64; 3]) -> f64| {
        let mut times: Vec<f64> = rounds.iter().map(of).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let alone = median(&|t| t[0]);
    let [separate, fused] = [1, 2].map(|way| median(&|t| t[way] - t[0]));
    println!(
        "{name:<30} convolution {alone:.2}; normalization {separate:.2}, with statistics in the epilogue {fused:.2} \
         (speedup {:.2}; with the convolution {:.2})",
        separate / fused,
        median(&|t| t[1] / t[2])
    );
}
