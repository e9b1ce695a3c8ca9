//! The command line: one file a subcommand, the options that several share in `options.rs`.

pub mod bench;
pub mod cache_types;
pub mod chain;
pub mod chat;
pub mod completions;
pub mod conversation;
pub mod convert;
pub mod detokenize;
pub mod doctor;
pub mod drafts;
pub mod embed;
pub mod generate;
mod grammar;
pub mod imatrix;
pub mod inspect;
pub mod interrupt;
#[cfg(feature = "lab")]
pub mod lab;
pub mod log;
pub mod logits;
pub mod models_dir;
pub mod options;
pub mod out_of_memory;
pub mod output;
pub mod overrides;
pub mod perplexity;
pub mod quantize;
pub mod rerank;
pub mod serve;
pub mod split;
pub mod summary;
pub mod tokenize;

use crate::error::Result;
use clap::{Parser, Subcommand};
use log::LogFormat;
use std::process::ExitCode;

/// An inference engine for Qwen, Llama and GPT-2 models whose GPU kernels are written in Rust.
#[derive(Debug, Parser)]
#[command(name = "qernel", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 success; 1 reading or writing failed; 2 the command line or the request is wrong; \
                        3 the model file cannot be used; 4 the device failed or is missing; 5 not enough memory; \
                        130 interrupted."
)]
pub struct Cli {
    /// Log what the engine does on standard error (-v: information, -vv: debugging; RUST_LOG overrides)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Write the log as text or as one JSON object a line
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(Box<generate::GenerateArgs>),
    Chat(Box<chat::ChatArgs>),
    Serve(Box<serve::ServeArgs>),
    Inspect(inspect::InspectArgs),
    Tokenize(tokenize::TokenizeArgs),
    Detokenize(detokenize::DetokenizeArgs),
    Logits(logits::LogitsArgs),
    Embed(Box<embed::EmbedArgs>),
    Rerank(Box<rerank::RerankArgs>),
    Quantize(quantize::QuantizeArgs),
    Convert(convert::ConvertArgs),
    Perplexity(Box<perplexity::PerplexityArgs>),
    Imatrix(imatrix::ImatrixArgs),
    Split(split::SplitArgs),
    Merge(split::MergeArgs),
    Doctor(doctor::DoctorArgs),
    Bench(Box<bench::BenchArgs>),
    #[cfg(feature = "lab")]
    Lab(lab::LabArgs),
    Completions(completions::CompletionsArgs),
}

/// Parses the command line and runs it. Errors carry their own exit code ([`crate::Error::exit_code`]).
pub fn run() -> Result<ExitCode> {
    let cli = Cli::parse_from(drafts::with_long_names(std::env::args_os()));
    crate::disk::end_on_fault();
    let (verbose, format) = (cli.verbose, cli.log_format);
    if !matches!(cli.command, Command::Serve(_)) {
        log::start(verbose, format);
    }
    match cli.command {
        Command::Generate(args) => return generate::run(*args),
        Command::Chat(args) => return chat::run(*args),
        Command::Serve(args) => return Ok(run_server(*args, verbose, format)),
        Command::Bench(args) => return bench::run(*args),
        Command::Quantize(args) => return quantize::run(args),
        Command::Convert(args) => return convert::run(args),
        #[cfg(feature = "lab")]
        Command::Lab(args) => return lab::run(args),
        Command::Inspect(args) => inspect::run(args)?,
        Command::Tokenize(args) => tokenize::run(args)?,
        Command::Detokenize(args) => detokenize::run(args)?,
        Command::Logits(args) => logits::run(args)?,
        Command::Embed(args) => embed::run(*args)?,
        Command::Rerank(args) => rerank::run(*args)?,
        Command::Perplexity(args) => perplexity::run(*args)?,
        Command::Imatrix(args) => imatrix::run(args)?,
        Command::Split(args) => split::split(args)?,
        Command::Merge(args) => split::run_merge(args)?,
        Command::Doctor(args) => doctor::run(args)?,
        Command::Completions(args) => completions::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A server's last words go the way of its log: standard error may be a pipe that nobody reads.
fn run_server(args: serve::ServeArgs, verbose: u8, format: LogFormat) -> ExitCode {
    let queue = log::start_queued(verbose, format);
    let code = serve::run(args).unwrap_or_else(|error| {
        queue.line(output::message(&error).into_bytes());
        error.exit_code()
    });
    queue.flush();
    code
}
