//! Trains a small convolutional network on handwritten digits, once with candle's own batch normalization and once with
//! this crate's: `cargo run --release -p batchnorm-candle --example digits [-- --quick]`.

mod network;

use candle_core::{DType, Device, Result, bail};
use candle_nn::{AdamW, ModuleT, VarBuilder, VarMap};
use indicatif::{ProgressBar, ProgressStyle};
use network::{Digits, Network, copy};
use std::time::{Duration, Instant};

const BATCH: usize = 64;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let epochs = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => 10u32,
        ["--quick"] => 2,
        _ => bail!("expected no arguments, or --quick for 2 epochs instead of 10, got {arguments:?}"),
    };
    let [train, test] = Digits::split(DType::F32)?;
    let variables = [VarMap::new(), VarMap::new()];
    let builders = variables.each_ref().map(|map| VarBuilder::from_varmap(map, DType::F32, &Device::Cpu));
    let [vb_candle, vb_ours] = builders;
    let networks = [
        Network::new(vb_candle, |c, vb| Ok(Box::new(candle_nn::batch_norm(c, 1e-5, vb)?) as Box<dyn ModuleT>))?,
        // The line that a user changes.
        Network::new(vb_ours, |c, vb| Ok(Box::new(batchnorm_candle::batch_norm(c, 1e-5, vb)?) as Box<dyn ModuleT>))?,
    ];
    // Both start with the same weights.
    copy(&variables[0], &variables[1])?;
    let mut optimizers = Vec::new();
    for map in &variables {
        optimizers.push(AdamW::new_lr(map.all_vars(), 0.003)?);
    }

    let steps = train.len() / BATCH;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {elapsed}, {msg}")
        .unwrap_or(ProgressStyle::default_bar());
    let bar = ProgressBar::new(u64::from(2 * epochs) * steps as u64).with_style(style);
    let mut order: Vec<u32> = (0..train.len() as u32).collect();
    let mut random = fastrand::Rng::with_seed(0);
    let mut times = [Duration::ZERO; 2];
    for _ in 0..epochs {
        random.shuffle(&mut order);
        for picks in order.chunks_exact(BATCH) {
            let batch = train.select(picks)?;
            for ((network, optimizer), time) in networks.iter().zip(&mut optimizers).zip(&mut times) {
                let start = Instant::now();
                let loss = network.step(&batch, optimizer)?;
                *time += start.elapsed();
                bar.inc(1);
                bar.set_message(format!("loss {loss:.3}"));
            }
        }
    }
    bar.finish_and_clear();

    println!("{} images for training, {} for testing, {epochs} epochs", train.len(), test.len());
    for ((name, network), time) in ["candle_nn", "batchnorm-candle"].into_iter().zip(&networks).zip(times) {
        let seconds = time.as_secs_f64() / f64::from(epochs);
        println!("{name:<17} test accuracy {:.1} %, {seconds:.3} s per epoch", 100.0 * network.accuracy(&test)?);
    }
    Ok(())
}
