//! The module against candle's own: `cargo bench -p batchnorm-candle [-- FILTER]`.
//!
//! A training step is the forward pass and the backward pass for x, weight and bias. Modules take turns, so that
//! background load affects both equally. The table shows medians in milliseconds, and how many times as fast this crate
//! is. Each row has a process of its own, since candle sizes its pools once per process, and since what the allocator
//! returns to the operating system, and candle then waits for, depends on what was allocated before.

use candle_core::{DType, Device, Result, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use std::process::{Command, exit};
use std::time::Instant;

const ROUNDS: usize = 11;
/// The first argument of a process that measures; the second is the shape.
const ROW: &str = "--row";
const SHAPES: [&[usize]; 4] = [&[32, 64, 56, 56], &[32, 256, 28, 28], &[32, 512, 7, 7], &[256, 512]];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [ROW, row, ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return SHAPES.iter().find(|shape| name(shape) == row).map_or(Ok(()), |shape| measure(shape, ROUNDS));
    }
    // `cargo test --benches` does not pass this argument; it only checks, on the smallest shape, that the bench works.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return measure(SHAPES[3], 1);
    }
    let filter: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    println!("medians of {ROUNDS} interleaved rounds, milliseconds: candle's module, this one, ratio");
    println!("{:<23} {:>23} | {:>23} | {:>23}", "", "training step", "forward in training", "inference");
    let program = std::env::current_exe()?;
    for threads in ["1", "2"] {
        for name in SHAPES.map(name) {
            if filter.is_empty() || filter.iter().any(|filter| name.contains(filter.as_str())) {
                let mut command = Command::new(&program);
                for pool in ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"] {
                    command.env(pool, threads);
                }
                if !command.args([ROW, &name]).status()?.success() {
                    exit(1)
                }
            }
        }
    }
    Ok(())
}

fn name(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

type Pass<'a> = &'a dyn Fn(&dyn ModuleT) -> Result<()>;

fn measure(dims: &[usize], rounds: usize) -> Result<()> {
    let x = Var::randn(0.5f32, 2.0, dims, &Device::Cpu)?;
    let [of_candle, of_ours] = [VarMap::new(), VarMap::new()];
    let [vb_candle, vb_ours] = [&of_candle, &of_ours].map(|map| VarBuilder::from_varmap(map, DType::F32, &Device::Cpu));
    let theirs = candle_nn::batch_norm(dims[1], 1e-5, vb_candle)?;
    let ours = batchnorm_candle::batch_norm(dims[1], 1e-5, vb_ours)?;
    let modules: [&dyn ModuleT; 2] = [&theirs, &ours];
    // The tests compare more closely; this shows that both do the same work.
    let [y_candle, y_ours] = [modules[0].forward_t(&x, true)?, modules[1].forward_t(&x, true)?];
    let difference = (y_candle - y_ours)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    assert!(difference < 1e-4, "{}: the modules differ by {difference}", name(dims));

    let step = |module: &dyn ModuleT| module.forward_t(&x, true)?.backward().map(drop);
    let forward = |module: &dyn ModuleT| module.forward_t(&x, true).map(drop);
    let inference = |module: &dyn ModuleT| module.forward_t(&x, false).map(drop);
    let passes: [Pass; 3] = [&step, &forward, &inference];
    // Passes over small tensors are repeated, so that they take long enough to be timed.
    let repeat = (1 << 20) / x.elem_count() + 1;
    let mut times: [[Vec<f64>; 2]; 3] = Default::default();
    // The first round warms up.
    for round in 0..=rounds {
        for (pass, times) in passes.iter().zip(&mut times) {
            for (module, times) in modules.iter().zip(times) {
                let start = Instant::now();
                (0..repeat).try_for_each(|_| pass(*module))?;
                if round > 0 {
                    times.push(start.elapsed().as_secs_f64() * 1e3 / repeat as f64);
                }
            }
        }
    }
    let columns = times.map(|times| {
        let [theirs, ours] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        format!("{theirs:>8.3} {ours:>7.3} {:>5.1}×", theirs / ours)
    });
    let threads = candle_core::utils::barrier_pool().n_workers() + 1;
    let threads = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
    println!("{:<13} {threads:<9} {}", name(dims), columns.join(" | "));
    Ok(())
}
