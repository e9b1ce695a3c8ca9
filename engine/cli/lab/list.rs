//! `lab list`: operations, variants and the kernels behind them.

use crate::cli::output::Output;
use crate::cuda;
use crate::error::Result;
use crate::lab::kernels;
use std::process::ExitCode;

/// List operations, their variants in order of preference, and the kernels behind each
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only this operation
    op: Option<String>,
}

pub(super) fn run(args: ListArgs) -> Result<ExitCode> {
    let operations = match &args.op {
        Some(name) => vec![kernels::operation(name)?],
        None => cuda::operations(),
    };
    let all = kernels::all();
    let mut out = Output::stdout();
    for op in &operations {
        for variant in &op.variants {
            out.line(&format!("{}={}", op.name, variant.name))?;
            for kernel in kernels::of_variant(&all, variant) {
                out.line(&format!("    {:<44} {}", kernel.name, kernel.targets.join(" ")))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
