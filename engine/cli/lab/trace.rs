//! `lab trace`: the timeline of a step.

use super::model::prompt_tokens;
use super::table::Table;
use crate::cli::cache_types::CacheTypeArgs;
use crate::cli::options::FileArgs;
use crate::cli::output::{Output, note, save_text};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lab::trace::{Place, Plan, Recorder, Share, Trace, page, trace};
use crate::load::{DeviceChoice, DtypeChoice, KvType, RunnerOptions, fit_cuda, matrix_dtype};
use crate::weights::Weights;
use std::path::PathBuf;
use std::process::ExitCode;

/// Trace one step of a model on a GPU: when each block of each kernel began, stopped waiting for the kernel before it, and ended
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub(super) file: FileArgs,
    /// The page with the timeline
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Tokens of each sequence before the step
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Rows of the decode step, one a sequence
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), conflicts_with = "prompt")]
    sequences: u32,
    /// Trace the step of the prompt instead of a decode step
    #[arg(long)]
    prompt: bool,
    /// Rows of a step of prompts at most
    #[arg(long, default_value_t = 2048, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    ubatch_size: u32,
    /// Variants of kernels to take, such as attention=split
    #[arg(long, value_name = "OP=VARIANT,…", default_value = "")]
    kernel: String,
    /// Where to compute: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Format of matrices: auto (the file's, but f16 for bf16), f16 or bf16
    #[arg(long, default_value = "auto", value_name = "DTYPE")]
    dtype: DtypeChoice,
    #[command(flatten)]
    cache_types: CacheTypeArgs,
    /// Print one JSON object: every block of every launch
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: TraceArgs) -> Result<ExitCode> {
    let ordinal = match args.device {
        DeviceChoice::Cuda(ordinal) => ordinal,
        DeviceChoice::Auto => None,
        other => {
            return Err(Error::Request(format!("a step is traced on a GPU (--device cuda), not on {other}")));
        }
    };
    let gguf = args.file.open()?;
    let config = Config::from_gguf(&gguf)?;
    let weights = Weights::from_gguf(&gguf, &config)?;
    let plan = Plan {
        prompt: prompt_tokens(&gguf, None, args.prompt_tokens as usize)?,
        sequences: args.sequences as usize,
        of_prompt: args.prompt,
    };
    if plan.max_model_len() > config.max_position_embeddings {
        return Err(Error::Request(format!(
            "{} prompt tokens and the steps behind them are more than this model's context of {}",
            args.prompt_tokens, config.max_position_embeddings
        )));
    }
    let mut recorder = Recorder::open(ordinal)?;
    let mut options = RunnerOptions {
        device: args.device,
        dtype: args.dtype,
        kv_types: args.cache_types.types(KvType::Auto),
        max_model_len: Some(plan.max_model_len()),
        max_num_tokens: Some((args.ubatch_size as usize).min(plan.prompt.len()).max(plan.sequences)),
        max_num_sequences: plan.sequences,
        max_num_logits: plan.sequences,
        ..RunnerOptions::default()
    };
    options.choose_kernels(&args.kernel)?;
    let (ops_config, layout) = fit_cuda(recorder.device(), &weights, &config, &options)?;
    let dtype = matrix_dtype(&weights, &options);
    let place = Place { ops_config, layout, dtype, kernels: options.kernels };
    let found = trace(&mut recorder, &weights, &config, place, &plan)?;
    if let Some(path) = &args.output {
        save_text(path, args.file.model.as_deref(), &page(&found))?;
    }
    let mut out = Output::stdout();
    if args.json {
        out.json(&found)?;
    } else {
        print(&mut out, &found)?;
    }
    if found.dropped > 0 {
        note(format_args!("note: {} warps are missing: there was no room for them", found.dropped));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut Output, trace: &Trace) -> Result<()> {
    let us = |seconds: f64| format!("{:.2}", seconds * 1e6);
    let (rows, context, device) = (trace.rows, trace.context, &trace.device);
    let total = us(trace.nanoseconds() as f64 * 1e-9);
    out.line(&format!(
        "{device}: {rows} rows behind {context} tokens each, {} launches, {total} µs",
        trace.launches.len()
    ))?;
    let mut table = Table::new(&[
        "<kernel",
        "launches",
        "blocks",
        "µs of the step",
        "ready",
        "hand-over",
        "work",
        "ragged",
    ]);
    for Share { kernel, launches, blocks, seconds, hand_over, work, ragged, ready } in trace.shares() {
        let times = [seconds, ready, hand_over, work, ragged].map(us);
        table.row([kernel, launches.to_string(), blocks.to_string()].into_iter().chain(times));
    }
    out.text(&table.to_string())
}
