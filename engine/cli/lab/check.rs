//! `lab check`: every variant, dtype and ragged shape against the reference in f64.

use super::all_reduce;
use super::table::Table;
use crate::cli::output::Output;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::lab::all_reduce::OP;
use crate::lab::case::Session;
use crate::lab::check::{CaseResult, CheckOptions, Outcome, Summary, check, summarise};
use crate::lab::device::{self, LabDevice};
use serde::Serialize;
use std::process::ExitCode;

/// Check kernels against references in f64: every variant, dtype and ragged shape
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The operation, or all; all_reduce for ranks on devices of their own
    #[arg(value_parser = super::op_name)]
    op: String,
    /// Only this variant
    #[arg(long, requires = "op")]
    variant: Option<String>,
    /// Only this format: f32, f16 or bf16
    #[arg(long, value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Seed of the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to compute: auto (a GPU if there is one, else emulation), cuda, cuda:N or emulated
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: LabDevice,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A dtype by its name.
pub(super) fn dtype(text: &str) -> std::result::Result<Dtype, String> {
    Dtype::ALL
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| format!("expected f32, f16 or bf16, found {text:?}"))
}

/// Failures that are printed in full.
const SHOWN: usize = 10;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    device: String,
    seed: u64,
    passed: bool,
    summaries: &'a [Summary],
    failures: Vec<&'a CaseResult>,
}

pub(super) fn run(args: CheckArgs) -> Result<ExitCode> {
    if args.op == OP {
        all_reduce::expect_no_variant(args.variant.as_deref())?;
        return all_reduce::run(args.device, all_reduce::RANKS, args.seed, args.json);
    }
    let op = (args.op != "all").then(|| args.op.clone());
    if op.is_none() && args.variant.is_some() {
        return Err(Error::Request("--variant needs one operation, not all".into()));
    }
    // A wrong name is told before a device is looked for.
    if let (Some(op), variant) = (&op, &args.variant) {
        let op = crate::lab::kernels::operation(op)?;
        variant.as_deref().map(|name| op.variant(name)).transpose()?;
    }
    let device = args.device.open(args.seed)?;
    let options = CheckOptions {
        op,
        variant: args.variant,
        dtype: args.dtype,
        seed: args.seed,
        max_work: device::max_work(&device),
    };
    let mut out = Output::stdout();
    let results = check(&mut Session::new(&device), &options, &mut |_| {})?;
    let summaries = summarise(&results);
    let failures: Vec<_> = results.iter().filter(|result| result.outcome == Outcome::Failed).collect();
    let passed = failures.is_empty();
    let code = if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        let device = device::describe(&device);
        out.json(&Report { device, seed: args.seed, passed, summaries: &summaries, failures })?;
        return Ok(code);
    }
    out.line(&format!("{}, seed {}", device::describe(&device), args.seed))?;
    out.text(&table(&summaries).to_string())?;
    for result in failures.iter().take(SHOWN) {
        let CaseResult { op, variant, dtype, shape, seed, notes, .. } = result;
        out.line(&format!("\nFAILED {op}={variant} {dtype} {shape}, seed {seed}"))?;
        for note in notes {
            out.line(&format!("    {note}"))?;
        }
    }
    if failures.len() > SHOWN {
        out.line(&format!("\n… and {} more: --json has them all", failures.len() - SHOWN))?;
    }
    for summary in summaries.iter().filter(|summary| summary.passed + summary.failed == 0) {
        let Summary { op, variant, dtype, .. } = summary;
        let why = results.iter().find(|r| (r.op, r.variant, r.dtype) == (*op, *variant, *dtype));
        let why = why.and_then(|result| result.notes.first()).map_or("", String::as_str);
        out.line(&format!("\nnot run: {op}={variant} {dtype}: {why}"))?;
    }
    let cases = results.iter().filter(|result| result.outcome != Outcome::Skipped).count();
    out.line(&match failures.len() {
        0 => format!("\n{cases} cases passed"),
        wrong => format!("\n{wrong} of {cases} cases FAILED"),
    })?;
    Ok(code)
}

fn table(summaries: &[Summary]) -> Table {
    let mut table = Table::new(&[
        "operation",
        "variant",
        "dtype",
        "<",
        "cases",
        "error/tolerance",
        "largest error",
        "<worst at",
    ]);
    for summary in summaries {
        let verdict = match (summary.failed, summary.passed) {
            (0, 0) => "not run",
            (0, _) => "ok",
            _ => "FAILED",
        };
        let worst = summary.worst.as_ref();
        let place = worst.and_then(|worst| {
            let (of, index) = worst.worst_at?;
            Some(format!("{of}[{index}] of {}", worst.shape))
        });
        table.row([
            summary.op.to_owned(),
            summary.variant.to_owned(),
            summary.dtype.to_owned(),
            verdict.to_owned(),
            (summary.passed + summary.failed).to_string(),
            place.as_ref().and(worst).map_or(String::new(), |worst| format!("{:.3}", worst.worst_error)),
            match summary.absolute_error {
                0.0 if summary.failed > 0 || worst.is_none() => String::new(),
                0.0 => "0".to_owned(),
                error => format!("{error:.2e}"),
            },
            place.unwrap_or_default(),
        ]);
    }
    table
}
