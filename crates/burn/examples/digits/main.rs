//! A convolutional network learns handwritten digits with burn's own BatchNorm and with ours, side by side:
//! `cargo run --release -p batchnorm-burn --example digits [-- --quick]`.

mod data;
mod network;

use batchnorm_burn::BatchNorm;
use burn::module::Module;
use burn::nn;
use burn::tensor::Device;
use data::Images;
use indicatif::{ProgressBar, ProgressStyle};
use network::{Network, Norm, Training};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Channels of the first layer.
const CHANNELS: usize = 32;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let epochs = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => 15,
        ["--quick"] => 2,
        _ => {
            eprintln!("error: expected no argument or --quick, got {arguments:?}");
            return ExitCode::FAILURE;
        }
    };
    match run(epochs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(epochs: usize) -> Result<(), Box<dyn std::error::Error>> {
    let images = Images::load()?;
    let device = Device::flex().autodiff();
    device.seed(1);
    // Both networks start with the same parameters: a record of one loads into the other.
    let theirs = Network::<nn::BatchNorm>::new(CHANNELS, &device);
    let record = theirs.clone().into_record();
    let ours = Network::<BatchNorm>::new(CHANNELS, &device).load_record(record);
    let (mut theirs, mut ours) = (Contender::new(theirs), Contender::new(ours));

    let bar = ProgressBar::new(epochs as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} epoch {pos} of {len}, {msg}")?);
    for _ in 0..epochs {
        // They take turns, so that background load affects both equally.
        theirs.epoch(&images, &device);
        ours.epoch(&images, &device);
        bar.set_message(format!("losses {:.3} and {:.3}", theirs.loss, ours.loss));
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{:<26} {:>9} {:>13} {:>17}", "", "loss", "test accuracy", "seconds per epoch");
    theirs.report("burn::nn::BatchNorm", &images, epochs);
    ours.report("batchnorm_burn::BatchNorm", &images, epochs);
    Ok(())
}

/// A network with one of the modules.
struct Contender<N: Norm> {
    training: Training<N>,
    /// The mean of the last epoch.
    loss: f64,
    time: Duration,
}

impl<N: Norm> Contender<N> {
    fn new(network: Network<N>) -> Self {
        Self { training: Training::new(network, 1), loss: 0.0, time: Duration::ZERO }
    }

    fn epoch(&mut self, images: &Images, device: &Device) {
        let ([train, _], start) = (images.split(), Instant::now());
        let losses = self.training.epoch(images, &train, device);
        self.time += start.elapsed();
        self.loss = losses.iter().sum::<f64>() / losses.len() as f64;
    }

    fn report(&self, name: &str, images: &Images, epochs: usize) {
        let [_, test] = images.split();
        let accuracy = self.training.network.accuracy(images.batch(&test, &Device::flex()));
        let seconds = self.time.as_secs_f64() / epochs as f64;
        println!("{name:<26} {:>9.4} {:>11.1} % {seconds:>17.3}", self.loss, accuracy * 100.0);
    }
}
