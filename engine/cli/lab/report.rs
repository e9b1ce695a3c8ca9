//! `lab report`: a page with charts from a stored run.

use crate::cli::output::save_text;
use crate::error::Result;
use crate::lab::report;
use crate::lab::run::Run;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a page with charts from what `lab bench --json` printed
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The run
    run: PathBuf,
    /// Compare with an earlier run
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// The page
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(args: ReportArgs) -> Result<ExitCode> {
    let mut run = Run::read(&args.run)?;
    if let Some(path) = &args.baseline {
        run.compare_with(&Run::read(path)?);
    }
    save_text(&args.output, None, &report::page(&run))?;
    Ok(ExitCode::SUCCESS)
}
