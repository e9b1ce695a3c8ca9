//! `lab`: the kernel laboratory, one file a subcommand.

mod all_reduce;
mod bench;
mod check;
mod list;
mod model;
mod new;
mod ptx;
mod report;
mod table;
mod trace;
mod watch;

use super::options::FileArgs;
use crate::error::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// The kernel laboratory: list kernels, check them against references, time them
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    List(list::ListArgs),
    New(new::NewArgs),
    Ptx(ptx::PtxArgs),
    Model(model::LabModelArgs),
    Trace(trace::TraceArgs),
    Watch(watch::WatchArgs),
    Check(check::CheckArgs),
    Bench(bench::BenchArgs),
    Report(report::ReportArgs),
}

impl LabArgs {
    /// The options that name the model, of a subcommand that has them.
    pub(super) fn file_args(&mut self) -> Option<&mut FileArgs> {
        match &mut self.command {
            LabCommand::Model(args) => Some(&mut args.file),
            LabCommand::Trace(args) => Some(&mut args.file),
            _ => None,
        }
    }
}

/// Reads the name of an operation, or another that it is known by.
fn op_name(text: &str) -> std::result::Result<String, std::convert::Infallible> {
    Ok(crate::cuda::operation_name(text).to_owned())
}

/// Runs a subcommand. What is found wrong with a kernel is an exit code, not an error.
pub fn run(args: LabArgs) -> Result<ExitCode> {
    match args.command {
        LabCommand::Bench(args) => bench::run(args),
        LabCommand::Report(args) => report::run(args),
        LabCommand::Check(args) => check::run(args),
        LabCommand::List(args) => list::run(args),
        LabCommand::New(args) => new::run(args),
        LabCommand::Ptx(args) => ptx::run(args),
        LabCommand::Model(args) => model::run(args),
        LabCommand::Trace(args) => trace::run(args),
        LabCommand::Watch(args) => watch::run(args),
    }
}
