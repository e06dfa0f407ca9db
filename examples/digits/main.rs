//! What batch normalization does, shown on handwritten digits: `cargo run --release --example digits`.
//!
//! Read `network.rs` for how a network uses the crate, then any file of `claims`.

mod claims;
mod data;
mod figures;
mod network;
mod optimizers;
mod report;
mod training;

use claims::{CLAIMS, Claim, Context, progress_bar};
use clap::Parser;
use data::Pictures;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Shows on handwritten digits what batch normalization does, and writes a report with pictures.
#[derive(Parser)]
struct Arguments {
    /// Train fewer networks for fewer epochs: half a minute instead of three
    #[arg(long)]
    quick: bool,
    /// Check one claim
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Where all randomness comes from: the same seed gives the same figures, times aside
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    /// Folder for the report
    #[arg(long, value_name = "FOLDER", default_value = "target/digits")]
    out: PathBuf,
    /// Read other pictures: gzip-compressed lines of 64 pixels from 0 to 16 and a digit
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let claims = chosen(arguments.only.as_deref())?;
    let pictures = match &arguments.data {
        None => Pictures::built_in()?,
        Some(path) => std::fs::read(path)
            .map_err(Into::into)
            .and_then(|bytes| Pictures::parse(&bytes))
            .map_err(|e| format!("cannot read pictures from {}: {e}", path.display()))?,
    };
    let mut report = Report::create(&arguments.out)?;
    let start = Instant::now();
    let mut context =
        Context { pictures, seed: arguments.seed, quick: arguments.quick, bar: indicatif::ProgressBar::hidden() };
    for claim in claims {
        context.bar = progress_bar(claim.name)?;
        let finding = (claim.check)(&context)?;
        context.bar.finish_and_clear();
        println!("{}: {}", claim.name, finding.text);
        report.add(claim, finding)?;
    }
    println!("\n{}", report.table());
    println!("{:.0} s. The report: {}", start.elapsed().as_secs_f64(), report.finish()?.display());
    Ok(())
}

/// The claims to check: one, or all.
fn chosen(only: Option<&str>) -> Result<Vec<&'static Claim>> {
    let chosen: Vec<_> = CLAIMS.iter().filter(|claim| only.is_none_or(|name| name == claim.name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = CLAIMS.iter().map(|claim| claim.name).collect();
        return Err(format!("unknown claim {:?}: expected one of {}", only.unwrap_or(""), names.join(", ")).into());
    }
    Ok(chosen)
}
