//! The command line: one file a subcommand, the options that several share in `options.rs`, where their values come from in `settings/`.

pub mod bench;
pub mod cache_types;
pub mod chain;
pub mod chat;
pub mod completions;
pub mod config;
pub mod conversation;
pub mod convert;
pub mod detokenize;
pub mod doctor;
pub mod drafts;
pub mod embed;
pub mod generate;
mod grammar;
pub mod hub;
pub mod imatrix;
pub mod inspect;
pub mod interrupt;
#[cfg(feature = "lab")]
pub mod lab;
pub mod log;
pub mod logits;
mod man;
pub mod models;
pub mod models_dir;
pub mod options;
pub mod out_of_memory;
pub mod output;
pub mod overrides;
pub mod perplexity;
pub mod quantize;
pub mod rerank;
pub mod serve;
pub mod settings;
pub mod split;
mod split_mode;
pub mod summary;
pub mod tokenize;

use crate::error::Result;
use crate::hub::Event;
use clap::{Parser, Subcommand};
use log::LogFormat;
use std::ffi::OsString;
use std::path::PathBuf;
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
    /// Read options from this file [default: qernel/qernel.toml in $XDG_CONFIG_HOME, ~/.config or /etc, whichever there is first]
    #[arg(long, global = true, value_name = "FILE", env = "QERNEL_CONFIG")]
    config: Option<PathBuf>,
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
    Pull(models::PullArgs),
    List(models::ListArgs),
    Rm(models::RmArgs),
    Doctor(doctor::DoctorArgs),
    Bench(Box<bench::BenchArgs>),
    #[cfg(feature = "lab")]
    Lab(lab::LabArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    /// Loads the model that is named, of a command that opens it at once.
    ///
    /// # Errors
    /// As [`hub::HubArgs::open`].
    fn fetch(&mut self, show: &mut dyn FnMut(Event)) -> Result<()> {
        match self {
            Self::Generate(args) => args.model.fetch(show),
            Self::Chat(args) => args.model.fetch(show),
            Self::Inspect(args) => args.file.fetch(show),
            Self::Tokenize(args) => args.file.fetch(show),
            Self::Detokenize(args) => args.file.fetch(show),
            Self::Logits(args) => args.file.fetch(show),
            Self::Embed(args) => args.model.fetch(show),
            Self::Rerank(args) => args.model.fetch(show),
            Self::Perplexity(args) => args.model.fetch(show),
            Self::Imatrix(args) => args.model.fetch(show),
            Self::Bench(args) => args.model.fetch(show),
            #[cfg(feature = "lab")]
            Self::Lab(args) => args.file_args().map_or(Ok(()), |file| file.fetch(show)),
            // The server's port is open while it loads.
            Self::Serve(_) => Ok(()),
            Self::Quantize(_) | Self::Convert(_) | Self::Split(_) | Self::Merge(_) => Ok(()),
            Self::Pull(_) | Self::List(_) | Self::Rm(_) | Self::Doctor(_) => Ok(()),
            Self::Config(_) | Self::Completions(_) | Self::Man(_) => Ok(()),
        }
    }
}

/// Parses the command line and runs it. Errors carry their own exit code ([`crate::Error::exit_code`]).
pub fn run() -> Result<ExitCode> {
    let args: Vec<OsString> = with_long_names(std::env::args_os()).collect();
    let mut cli = settings::parse(&args)?;
    crate::disk::end_on_fault();
    let (verbose, format) = (cli.verbose, cli.log_format);
    if !matches!(cli.command, Command::Serve(_)) {
        log::start(verbose, format);
    }
    let mut display = hub::Display::default();
    cli.command.fetch(&mut |event| display.show(event))?;
    drop(display);
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
        Command::Pull(args) => models::pull(args)?,
        Command::List(args) => models::list(args)?,
        Command::Rm(args) => models::rm(args)?,
        Command::Doctor(args) => doctor::run(args, cli.config.as_deref())?,
        Command::Config(args) => config::run(args, cli.config.as_deref())?,
        Command::Completions(args) => completions::run(args)?,
        Command::Man(args) => man::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// llama.cpp's short names of more than one letter, as the parser takes them.
fn with_long_names(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut are_options = true;
    args.map(move |arg| {
        are_options &= arg != "--";
        match arg.to_str().filter(|_| are_options) {
            Some("-hf" | "-hfr") => "--hf-repo".into(),
            Some("-hff") => "--hf-file".into(),
            Some("-md") => "--model-draft".into(),
            Some("-sm") => "--split-mode".into(),
            Some("-ts") => "--tensor-split".into(),
            Some("-mg") => "--main-gpu".into(),
            _ => arg,
        }
    })
}

/// A server's last words go the way of its log: standard error may be a pipe that nobody reads.
fn run_server(args: serve::ServeArgs, verbose: u8, format: LogFormat) -> ExitCode {
    let queue = log::start_queued(verbose, format);
    let code = serve::run(args, &queue).unwrap_or_else(|error| {
        queue.line(output::message(&error).into_bytes());
        error.exit_code()
    });
    queue.flush();
    code
}
