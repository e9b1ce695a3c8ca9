//! `lab model`: the running model with other kernels.

use super::table::Table;
use crate::cli::cache_types::CacheTypeArgs;
use crate::cli::options::FileArgs;
use crate::cli::output::{Output, note};
use crate::config::Config;
use crate::cuda::KernelChoice;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::lab::model::{LOGIT_ROWS, Measured, NUM_SEQUENCES, Place, Plan, Report, Share, measure};
use crate::load::{
    DeviceChoice, DtypeChoice, KvType, RunnerOptions, fit_cpu, fit_cuda, matrix_dtype, open_device,
};
use crate::stats::Stats;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run a model with other kernels than the default ones: its speed, where its time goes, and whether its answers change
#[derive(Debug, clap::Args)]
pub struct LabModelArgs {
    #[command(flatten)]
    pub(super) file: FileArgs,
    /// Variants to compare with the default ones, such as rms_norm=plain,attention=split
    #[arg(long, value_name = "OP=VARIANT,…")]
    kernel: Option<String>,
    /// Compare with these variants instead of the default ones: layer=separate, where --kernel replaces a part of what the
    /// fused layers compute, leaves that part as the only difference
    #[arg(long, value_name = "OP=VARIANT,…", requires = "kernel")]
    against: Option<String>,
    /// Where to compute: auto (a GPU if there is one), cuda, cuda:N, emulated or cpu
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Format of matrices on a GPU: auto (the file's, but f16 for bf16), f16 or bf16
    #[arg(long, default_value = "auto", value_name = "DTYPE")]
    dtype: DtypeChoice,
    #[command(flatten)]
    cache_types: CacheTypeArgs,
    /// Text whose tokens are the prompt [default: a paragraph about kernels]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of the prompt: the text is cut, or repeated
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    prompt_tokens: usize,
    /// Decode steps after it
    #[arg(short = 'n', long, default_value_t = 64, value_name = "TOKENS")]
    decode_tokens: usize,
    /// How often both are timed
    #[arg(long, default_value_t = 5, value_name = "N")]
    repetitions: usize,
    /// Rows of a prefill step
    #[arg(short = 'b', long, default_value_t = 512, value_name = "TOKENS")]
    batch_size: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The prompt where none is given.
const TEXT: &str = "\
A kernel is a small program that thousands of threads run at the same time, each on its own piece of the data. It is
written once, for one thread: the thread asks for its number, works out which elements are its own, loads them, computes
and stores the result. What makes it fast is seldom the arithmetic. Threads that stand beside each other should read
values that stand beside each other, for then one transaction with the memory serves all of them. A value that is needed
twice should be kept where it is near, in a register or in the memory that the threads of a block share. And while some
threads wait for their data, others should have something to do. Whoever writes a kernel therefore counts bytes before
operations, asks how far the measured time is from the time that the memory needs at least, and changes one thing at a
time: wider loads, another order of the loops, fewer barriers. Most of these changes bring nothing, some make it slower,
and now and then one of them makes it twice as fast, for a reason that is plain once it has been seen.
";

pub(super) fn run(args: LabModelArgs) -> Result<ExitCode> {
    let mut asked = RunnerOptions::default();
    asked.choose_kernels(args.kernel.as_deref().unwrap_or_default())?;
    let RunnerOptions { kernels, cpu_blocks, .. } = asked;
    let against = args.against.as_deref().map(KernelChoice::parse).transpose()?.unwrap_or_default();
    let gguf = args.file.open()?;
    let config = Config::from_gguf(&gguf)?;
    let weights = Weights::from_gguf(&gguf, &config)?;
    let text = match &args.text {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?),
        None => None,
    };
    let plan = Plan {
        against,
        prompt: prompt_tokens(&gguf, text.as_deref(), args.prompt_tokens)?,
        decode_tokens: args.decode_tokens,
        repetitions: args.repetitions,
        batch_size: args.batch_size,
    };
    plan.check(&config)?;
    let options = RunnerOptions {
        device: args.device,
        dtype: args.dtype,
        kv_types: args.cache_types.types(KvType::Auto),
        max_model_len: Some(plan.max_model_len()),
        max_num_tokens: Some(plan.max_num_tokens()),
        max_num_sequences: NUM_SEQUENCES,
        max_num_logits: LOGIT_ROWS,
        ..RunnerOptions::default()
    };
    let device = open_device(options.device)?;
    let (ops_config, layout) = match &device {
        None => fit_cpu(&config, &options)?,
        Some(device) => fit_cuda(device, &weights, &config, &options)?,
    };
    let dtype = matrix_dtype(&weights, &options);
    let place = Place { device, ops_config, layout, dtype, cpu_blocks };
    let report = measure(&weights, &config, &place, &kernels, &plan)?;
    let mut out = Output::stdout();
    if args.json {
        out.json(&report)?;
    } else {
        let kernels = args.kernel.as_deref().unwrap_or_default();
        print(&mut out, &report, kernels, args.against.as_deref().unwrap_or("the default variants"))?;
    }
    if report.device == "emulated device" {
        note("note: an emulated device's times mean nothing; its answers are those of the kernels");
    }
    if report.chosen.is_none() {
        let why = match report.device.starts_with("CPU") && kernels != KernelChoice::default() {
            false => "no other variants were asked for (--kernel op=variant)",
            true => {
                "the CPU measures one way at a time, and only --kernel matmul_blocks=exact chooses another"
            }
        };
        note(format_args!("note: {why}: there is nothing to compare with"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The first `count` tokens of a text that is repeated; where none is given, of a paragraph about kernels.
pub(super) fn prompt_tokens(gguf: &Gguf, text: Option<&str>, count: usize) -> Result<Vec<u32>> {
    let tokens = Tokenizer::from_gguf(gguf)?.encode(text.unwrap_or(TEXT), false)?;
    if tokens.is_empty() {
        return Err(Error::Request("the text has no token; give one with at least a word".into()));
    }
    Ok(tokens.into_iter().cycle().take(count).collect())
}

fn print(out: &mut Output, report: &Report, kernels: &str, against: &str) -> Result<()> {
    out.line(&format!(
        "{}; {} prompt tokens, {} decode steps, {} repetitions",
        report.device, report.prompt_tokens, report.decode_tokens, report.repetitions
    ))?;
    let runs: Vec<(&str, &Measured)> =
        [("default", Some(&report.default)), ("chosen", report.chosen.as_ref())]
            .into_iter()
            .filter_map(|(name, measured)| Some((name, measured?)))
            .collect();
    if report.chosen.is_some() {
        out.line(&format!("chosen: {kernels}; default: {against}"))?;
    }
    out.line("")?;
    out.text(&speeds(report, &runs).to_string())?;
    for (what, is_prefill) in [("prefill", true), ("decode step", false)] {
        out.line("")?;
        out.text(&shares(what, is_prefill, &runs).to_string())?;
        for (name, run) in &runs {
            let (shares, untimed) = if is_prefill {
                (&run.prefill, run.prefill_s.median)
            } else {
                (&run.decode, run.decode_step_s.median)
            };
            let sum: f64 = shares.operations.iter().map(|share| share.seconds).sum();
            out.line(&format!(
                "{name}: operations {} µs in sum; the whole took {} µs while each was timed, {} µs untimed",
                us(sum),
                us(shares.timed_s),
                us(untimed)
            ))?;
        }
    }
    if let Some(agreement) = &report.agreement {
        out.line(&format!(
            "\nKL divergence from the default: mean {:.3e}, largest {:.3e} at position {} of {}",
            agreement.kl_mean, agreement.kl_max, agreement.kl_max_at, agreement.positions
        ))?;
        out.line(&format!(
            "same likeliest token at {:.2} % of positions; greedy continuations have their first {} of {} tokens in common",
            100.0 * agreement.same_argmax,
            agreement.common_prefix,
            report.decode_tokens + 1
        ))?;
    }
    Ok(())
}

/// Tokens a second of each run.
fn speeds(report: &Report, runs: &[(&str, &Measured)]) -> Table {
    let mut table = Table::new(&["", "<", "<", "prefill tokens/s", "± %", "decode tokens/s", "± %"]);
    let spread = |stats: &Stats| format!("{:.1}", 50.0 * (stats.p90 - stats.p10) / stats.median);
    for (name, run) in runs {
        table.row([
            (*name).to_owned(),
            String::new(),
            String::new(),
            format!("{:.1}", run.prefill_tokens_per_s),
            spread(&run.prefill_s),
            format!("{:.1}", run.decode_tokens_per_s),
            spread(&run.decode_step_s),
        ]);
    }
    if let Some(chosen) = &report.chosen {
        let times = |new: f64, old: f64| format!("x {:.3}", new / old);
        table.row([
            "chosen / default".to_owned(),
            String::new(),
            String::new(),
            times(chosen.prefill_tokens_per_s, report.default.prefill_tokens_per_s),
            String::new(),
            times(chosen.decode_tokens_per_s, report.default.decode_tokens_per_s),
            String::new(),
        ]);
    }
    table
}

/// Where the time goes.
fn shares(what: &str, is_prefill: bool, runs: &[(&str, &Measured)]) -> Table {
    let mut titles = vec![what.to_owned(), "<".into(), "<".into(), "calls".into()];
    for (name, _) in runs {
        titles.extend([format!("{name} µs"), "share".to_owned()]);
    }
    let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    let of = |run: &Measured| if is_prefill { run.prefill.clone() } else { run.decode.clone() };
    // Fused operations replace others, so the runs need not have the same ones.
    let mut rows: Vec<Share> = Vec::new();
    for share in runs.iter().flat_map(|(_, run)| of(run).operations) {
        match rows.iter_mut().find(|row| row.op == share.op) {
            Some(row) => row.seconds = row.seconds.max(share.seconds),
            None => rows.push(share),
        }
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for row in rows {
        let mut cells = vec![row.op.to_owned(), String::new(), String::new(), format!("{:.0}", row.calls)];
        for (_, run) in runs {
            let found = of(run).operations.into_iter().find(|share| share.op == row.op);
            cells.push(found.as_ref().map_or(String::new(), |found| us(found.seconds)));
            cells.push(found.map_or(String::new(), |found| format!("{:.1} %", 100.0 * found.share)));
        }
        table.row(cells);
    }
    table
}

fn us(seconds: f64) -> String {
    format!("{:.1}", seconds * 1e6)
}
