//! `lab bench`: how fast each variant is, and how far from the device's ceiling.

use super::all_reduce;
use super::check::dtype;
use super::table::Table;
use crate::cli::hub::{Display, HubArgs};
use crate::cli::output::{Output, save_text};
use crate::config::{Config, MAX_RANKS};
use crate::cuda;
use crate::disk::Access;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::lab::all_reduce::OP;
use crate::lab::bench::{BenchOptions, bench, nothing_to_time};
use crate::lab::case::{Session, Workload};
use crate::lab::device::LabDevice;
use crate::lab::kernels;
use crate::lab::report;
use crate::lab::run::{LeftOut, Run, Timing};
use crate::load::{DtypeChoice, open_gguf};
use crate::model::{published_config, published_names};
use crate::stats::StopRule;
use crate::weights::Weights;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Time kernels: check them, then launch them with a cold and a warm L2 cache and compare with the device's ceiling
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The operation, or all; all_reduce for ranks on GPUs of their own
    #[arg(value_parser = super::op_name)]
    op: String,
    /// GPUs of all_reduce, those from --device on
    #[arg(long, value_name = "N", default_value_t = all_reduce::RANKS as u8, value_parser = clap::value_parser!(u8).range(2..=MAX_RANKS as i64))]
    gpus: u8,
    /// Only this variant
    #[arg(long)]
    variant: Option<String>,
    /// Only cases whose shape has this text in it, such as "weight q4_k"
    #[arg(long, value_name = "TEXT")]
    shape: Option<String>,
    /// Format of the weights: f32, f16 or bf16 [default: the model's, but f16 for bf16, as on a GPU]
    #[arg(long, value_parser = dtype)]
    dtype: Option<Dtype>,
    /// GGUF file whose shapes to time
    #[arg(short, long, value_name = "FILE", conflicts_with = "like")]
    model: Option<PathBuf>,
    #[command(flatten)]
    hub: HubArgs,
    /// Published model whose shapes to time: qwen2.5-0.5b, qwen2.5-1.5b or qwen2.5-7b
    #[arg(long, default_value = published_names()[0], value_name = "MODEL")]
    like: String,
    /// Rows of a step, each a case; attention takes up to 64 as sequences that generate, more as a prompt
    #[arg(long, value_delimiter = ',', default_value = "1,8,512", value_name = "ROWS",
          value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    rows: Vec<u32>,
    /// Tokens in the cache of each sequence, each a case of attention
    #[arg(long, value_delimiter = ',', default_value = "512,8192", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    context: Vec<u32>,
    /// Longest time for each of a variant's two times in a shape; it is shorter where the median is stable
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    seconds: f64,
    /// Seed of the inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The GPU: auto, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: LabDevice,
    /// Compare with an earlier run, a file that --json printed
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Print the run as one JSON object, for --baseline and for `lab report`
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print the timings as comma-separated values
    #[arg(long)]
    csv: bool,
    /// Write a page with charts, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) fn run(mut args: BenchArgs) -> Result<ExitCode> {
    // What is wrong with the arguments is told before a device is looked for.
    let op = (args.op != "all").then(|| args.op.clone());
    if op.is_none() && args.variant.is_some() {
        return Err(Error::Request("--variant needs one operation, not all".into()));
    }
    if let (Some(op), variant) = (op.as_ref().filter(|op| *op != OP), &args.variant) {
        let op = kernels::operation(op)?;
        variant.as_deref().map(|name| op.variant(name)).transpose()?;
    }
    if !(args.seconds > 0.0 && args.seconds <= 600.0) {
        return Err(Error::Request(format!(
            "--seconds: expected more than 0, at most 600; found {}",
            args.seconds
        )));
    }
    let baseline = args.baseline.as_deref().map(Run::read).transpose()?;
    let mut display = Display::default();
    if let Some(model) = args.hub.open(false, &mut |event| display.show(event))? {
        args.model = Some(model.path);
    }
    if args.op == OP {
        all_reduce::expect_no_variant(args.variant.as_deref())?;
        if args.device == LabDevice::Emulated || cuda::probe().is_err() {
            return Err(nothing_to_time());
        }
        return all_reduce::run(args.device, usize::from(args.gpus), args.seed, args.json);
    }
    let workload = workload(&args)?;
    if args.device == LabDevice::Emulated || cuda::probe().is_err() {
        return Err(nothing_to_time());
    }
    let options = BenchOptions {
        op,
        variant: args.variant,
        shape: args.shape,
        workload,
        seed: args.seed,
        rule: StopRule { seconds: args.seconds, ..StopRule::default() },
    };
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    spinner.enable_steady_tick(Duration::from_millis(100));
    let device = args.device.open(args.seed)?;
    let run = bench(&mut Session::new(&device), &options, &mut |what| spinner.set_message(what.to_owned()));
    spinner.finish_and_clear();
    let mut run = run?;
    if let Some(baseline) = &baseline {
        run.compare_with(baseline);
    }
    if let Some(path) = &args.report {
        save_text(path, args.model.as_deref(), &report::page(&run))?;
    }
    let mut out = Output::stdout();
    match (args.json, args.csv) {
        (true, _) => out.json(&run)?,
        (_, true) => out.text(&run.to_csv())?,
        _ => print(&mut out, &run, baseline.as_ref())?,
    }
    let wrong = run.left_out.iter().any(|left_out| left_out.wrong);
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn workload(args: &BenchArgs) -> Result<Workload> {
    let (config, dtype) = match &args.model {
        None => (published_config(&args.like)?, DtypeChoice::Auto.preferred(Dtype::Bf16)),
        Some(path) => {
            let gguf = open_gguf(Some(path), Access::Map)?;
            let config = Config::from_gguf(&gguf)?;
            let dtype = cuda::compute_dtype(&Weights::from_gguf(&gguf, &config)?);
            (config, DtypeChoice::Auto.preferred(dtype))
        }
    };
    let counts = |values: &[u32]| values.iter().map(|&value| value as usize).collect();
    Ok(Workload {
        config,
        dtype: args.dtype.unwrap_or(dtype),
        rows: counts(&args.rows),
        contexts: counts(&args.context),
    })
}

fn print(out: &mut Output, run: &Run, baseline: Option<&Run>) -> Result<()> {
    let ceilings = &run.ceilings;
    let rate = match ceilings.flops_per_s {
        Some(rate) => format!("{:.0} TFLOP/s in {}", rate / 1e12, ceilings.dtype),
        None => "no cuBLAS to measure arithmetic with".to_owned(),
    };
    out.line(&format!("{}; shapes of {}, seed {}", run.device, run.model, run.seed))?;
    out.line(&format!("ceilings: {:.2} TB/s, {rate}\n", ceilings.bytes_per_s / 1e12))?;
    out.text(&table(run).to_string())?;
    let mut told = Vec::new();
    for left_out in &run.left_out {
        let LeftOut { op, variant, dtype, shape, wrong, why } = left_out;
        // What is wrong is told of each shape, what is not eligible or installed once.
        if !wrong && told.contains(&(op, variant, why)) {
            continue;
        }
        told.push((op, variant, why));
        let what = if *wrong { "WRONG, not timed" } else { "not timed" };
        let why = why.split("; ").next().unwrap_or_default();
        out.line(&format!("\n{what}: {op}={variant} {dtype} {shape}: {why}"))?;
    }
    if let Some(baseline) = baseline {
        out.line(&format!("\nbaseline: {}, {}", baseline.device, baseline.date))?;
        if baseline.device != run.device {
            out.line("The baseline is of another device.")?;
        }
    }
    out.line(
        "\n* is taken by default. Times in µs; ± half of what lies between the 10th and the 90th percentile.",
    )
}

fn table(run: &Run) -> Table {
    let mut titles = vec![
        "operation",
        "variant",
        "dtype",
        "<shape",
        "cold",
        "±",
        "warm",
        "±",
        "GB/s",
        "TFLOP/s",
        "of ceiling",
        "<bound",
        "x fastest",
    ];
    let with_cublas = run.timings.iter().any(|timing| run.times_cublas(timing).is_some());
    if with_cublas {
        titles.push("x cuBLAS");
    }
    let compared = run.timings.iter().any(|timing| timing.baseline.is_some());
    if compared {
        titles.extend(["x baseline", "<verdict", "x warm", "<verdict"]);
    }
    let mut table = Table::new(&titles);
    for timing in &run.timings {
        let Timing { cold, warm, .. } = timing;
        let us = |seconds: f64| format!("{:.2}", seconds * 1e6);
        let mut cells = vec![
            timing.op.clone(),
            format!("{}{}", timing.variant, if timing.default { " *" } else { "" }),
            timing.dtype.clone(),
            timing.shape.clone(),
            us(cold.median),
            us((cold.p90 - cold.p10) / 2.0),
            us(warm.median),
            us((warm.p90 - warm.p10) / 2.0),
            format!("{:.0}", timing.gb_per_s),
            if timing.flops > 0.0 { format!("{:.2}", timing.tflop_per_s) } else { String::new() },
            format!("{:.1} %", timing.ceiling_percent),
            timing.bound.name().to_owned(),
            format!("{:.2}", run.times_fastest(timing)),
        ];
        if with_cublas {
            cells.push(run.times_cublas(timing).map_or(String::new(), |times| format!("{times:.2}")));
        }
        if let (true, Some(baseline)) = (compared, &timing.baseline) {
            for change in [&baseline.cold, &baseline.warm] {
                cells.extend([format!("{:.3}", change.ratio), change.verdict.name().to_owned()]);
            }
        }
        table.row(cells);
    }
    table
}
