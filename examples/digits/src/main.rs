//! What batch normalization does, shown on handwritten digits: `cargo run --release -p digits`.
//!
//! Start with `network/norm.rs`, which shows how a network uses the crate, then read any file in `claims`.

mod claims;
mod data;
mod figures;
mod network;
mod optimizers;
mod report;
mod training;

use claims::{CLAIMS, Claim, Context, progress_bar};
use clap::Parser;
use data::Images;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Checks claims about batch normalization on handwritten digits, and writes a report with charts
#[derive(Parser)]
struct Arguments {
    /// Train fewer networks for fewer epochs, which takes half a minute instead of three minutes
    #[arg(long)]
    quick: bool,
    /// Check only this claim
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Seed of all random numbers: the same seed gives the same results, except for times
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    /// Folder for the report
    #[arg(long, value_name = "FOLDER", default_value = "target/digits")]
    out: PathBuf,
    /// Read other images from this gzip-compressed file; each line has 64 pixels from 0 to 16 and the digit, separated
    /// by commas
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
    let images = match &arguments.data {
        None => Images::built_in()?,
        Some(path) => std::fs::read(path)
            .map_err(Into::into)
            .and_then(|bytes| Images::parse(&bytes))
            .map_err(|e| format!("cannot read images from {}: {e}", path.display()))?,
    };
    let mut report = Report::create(&arguments.out)?;
    let start = Instant::now();
    let mut context =
        Context { images, seed: arguments.seed, quick: arguments.quick, bar: indicatif::ProgressBar::hidden() };
    for claim in claims {
        context.bar = progress_bar(claim.name)?;
        let finding = (claim.check)(&context)?;
        context.bar.finish_and_clear();
        println!("{}: {}", claim.name, finding.text);
        report.add(claim, finding)?;
    }
    println!("\n{}", report.table());
    println!(
        "Finished in {:.0} s. The report is {}",
        start.elapsed().as_secs_f64(),
        report.finish(context.images.len())?.display()
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program with these arguments. Returns the test's own folder, which contains the report, and the result.
    fn run_with(folder: &str, arguments: &[&str]) -> (PathBuf, Result<()>) {
        let folder = std::env::temp_dir().join(format!("batchnorm-digits-{}-{folder}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let out = folder.join("report").display().to_string();
        let arguments = ["digits", "--quick", "--out", &out].into_iter().chain(arguments.iter().copied());
        (folder, run(&Arguments::parse_from(arguments)))
    }

    #[test]
    fn an_unknown_claim_is_an_error_that_lists_the_known_ones() {
        let (folder, result) = run_with("unknown", &["--only", "magic"]);
        let message = result.unwrap_err().to_string();
        assert!(message.starts_with("unknown claim \"magic\": expected one of summary, inputs, speed, "), "{message}");
        assert!(!message.contains('\n') && !folder.join("report").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_corrupted_data_file_is_an_error_that_names_it() {
        let file = std::env::temp_dir().join(format!("batchnorm-digits-{}.csv.gz", std::process::id()));
        std::fs::write(&file, b"not gzip").unwrap();
        let (folder, result) = run_with("corrupted", &["--data", &file.display().to_string()]);
        let message = result.unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot read images from {}: expected gzip", file.display())));
        assert!(!message.contains('\n') && !folder.join("report").exists());
        std::fs::remove_file(file).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_an_error() {
        let file = std::env::temp_dir().join(format!("batchnorm-digits-{}-file", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let out = file.join("report").display().to_string();
        let message = run(&Arguments::parse_from(["digits", "--out", &out])).unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot create the folder {out}: ")) && !message.contains('\n'));
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_page_that_cannot_be_written_is_an_error() {
        let (folder, _) = run_with("unwritable", &["--only", "magic"]);
        let page = folder.join("report/report.html");
        std::fs::create_dir_all(&page).unwrap();
        let (_, result) = run_with("unwritable", &[]);
        let message = result.unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot write {}: ", page.display())) && !message.contains('\n'));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_report_contains_its_charts_and_is_the_same_for_the_same_seed() {
        let pages = ["first", "second"].map(|name| {
            let (folder, result) = run_with(name, &["--only", "inputs"]);
            result.unwrap();
            let page = std::fs::read_to_string(folder.join("report/report.html")).unwrap();
            let chart = std::fs::read_to_string(folder.join("report/inputs-steps.svg")).unwrap();
            assert!(page.contains(&chart) && page.contains("<section id=\"inputs\">"));
            std::fs::remove_dir_all(folder).unwrap();
            page
        });
        assert_eq!(pages[0], pages[1]);
    }
}
