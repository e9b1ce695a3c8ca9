//! `qernel bench`: how fast a model runs.

use super::options::{ModelArgs, SamplingArgs};
use super::output::{Output, note, one_line, save_text};
use super::summary::read_bandwidth;
use crate::bench::compare::{self, Stored};
use crate::bench::measure::{Bench, checkpoints_for};
use crate::bench::plan::{PromptAndAnswer, Test, tests};
use crate::bench::plot::plot;
use crate::bench::row::{Facts, Row};
use crate::bench::start_up::{self, PROMPT_TOKENS, StartUp};
use crate::bench::table::{Format, Printer, notes};
use crate::config::Config;
use crate::disk;
use crate::embedded;
use crate::engine::{Engine, EngineConfig, Request};
use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use crate::load::{DecodeBytes, KvCacheSize};
use crate::sampler::SamplingParams;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Measure how fast a model runs, by llama-bench's conventions
///
/// ppN: prefill of N random prompt tokens. tgN: N decode steps; bN: of that many sequences together, whose tokens all
/// count; @ dN: with N tokens of each sequence in the cache. Sampling and detokenisation are included, unlike in
/// llama-bench; writing text is not. Time to first token is that of a second process, from before it is created.
#[derive(Debug, clap::Args)]
#[command(mut_arg("batch_size", |arg| arg.short(None::<char>).long("ubatch-size")))]
#[command(mut_arg("temperature", |arg| arg.default_value("0")))]
#[command(mut_arg("seed", |arg| {
    arg.help("Seed of the prompts and of the random generator [default: 0]")
}))]
pub struct BenchArgs {
    /// Prompt tokens of the prefill tests; 0 leaves them out
    #[arg(short = 'p', long, default_value = "512", value_delimiter = ',', value_name = "N,…")]
    n_prompt: Vec<usize>,
    /// Decode steps of the decode tests; 0 leaves them out
    #[arg(short = 'n', long, default_value = "128", value_delimiter = ',', value_name = "N,…")]
    n_gen: Vec<usize>,
    /// A prompt of P tokens and N decode steps timed as one; may be given several times
    #[arg(long, value_name = "P,N")]
    pg: Vec<PromptAndAnswer>,
    /// Tokens of each sequence that are in the cache before the timed part
    #[arg(short = 'd', long, default_value = "0", value_delimiter = ',', value_name = "N,…")]
    n_depth: Vec<usize>,
    /// Sequences that decode together
    #[arg(short = 'b', long, default_value = "1", value_delimiter = ',', value_name = "N,…")]
    n_parallel: Vec<usize>,
    /// How often each test is timed
    #[arg(short = 'r', long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Leave out the untimed repetition before the timed ones
    #[arg(long)]
    no_warmup: bool,
    /// How many starts the time to first token is measured with, after one that is not counted; 0 leaves it out
    #[arg(long, default_value_t = 3, value_name = "N")]
    starts: u32,
    /// What is printed
    #[arg(short, long, default_value = "md", value_name = "FORMAT")]
    output: Format,
    /// Set a stored run beside: JSON or JSON lines of this command, of benches/peers or of llama-bench
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Also draw tokens/s of all tests
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print the timings of this process's start, which was at these nanoseconds of the system's clock
    #[arg(long, hide = true, value_name = "NANOSECONDS")]
    first_token: Option<u64>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the command: rows on standard output as tests end, all else on standard error.
///
/// # Errors
/// [`Error::Request`] if no test is left or none fits; whatever opening and running the model says.
pub fn run(args: BenchArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let sampling = SamplingParams {
        seed: args.sampling.seed.and_then(|seed| seed.0).unwrap_or(0),
        ..args.sampling.params()
    };
    sampling.validate()?;
    if let Some(started) = args.first_token {
        let timings = first_token(&args.model, &sampling, start, started)?;
        Output::stdout().json(&timings)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &args.plot {
        // Before the tests are run for it.
        disk::refuse_model(path, args.model.file.model.as_deref())?;
    }
    let stored = args.compare.as_deref().map(compare::read).transpose()?;
    let tests = tests(&args.n_prompt, &args.n_gen, &args.pg, &args.n_depth, &args.n_parallel)?;
    let mut facts = file_facts(&args.model, &sampling)?;
    facts.start_up = start_up::Summary::of(&starts(&args));

    let max_num_sequences = tests.iter().map(|test| test.n_parallel).max().unwrap_or(1);
    let mut model = args.model.clone();
    model.batch_size = model.batch_size.map(|rows| rows.max(max_num_sequences));
    if tests.iter().any(|test| test.n_depth > 0) {
        model.checkpoints = model.checkpoints.max(checkpoints_for(max_num_sequences));
    }
    let pages = tests.iter().map(Test::pages).max().unwrap_or(0);
    let model = model.open_with(max_num_sequences, KvCacheSize::Tokens(pages.saturating_mul(PAGE_SIZE)))?;
    facts.decode_bytes = model.stats.decode_bytes;
    // Copies of states are made where tests go on from.
    let config = EngineConfig { checkpoint_every: 0, ..EngineConfig::default() };
    let mut engine = model.into_engine_with(config)?;
    device_facts(&mut facts, &mut engine);
    let rows = Session { args: &args, facts: &facts, stored: stored.as_deref() }.run(
        &mut engine,
        sampling,
        &tests,
    )?;
    if let Some(path) = &args.plot {
        save_text(path, args.model.file.model.as_deref(), &plot(&facts, &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What all tests of a run share.
struct Session<'a> {
    args: &'a BenchArgs,
    facts: &'a Facts,
    stored: Option<&'a [Stored]>,
}

impl Session<'_> {
    fn run(&self, engine: &mut Engine, sampling: SamplingParams, tests: &[Test]) -> Result<Vec<Row>> {
        let mut bench = Bench::new(engine, sampling);
        let (mut fitting, mut obstacles) = (Vec::new(), Vec::new());
        for test in tests {
            match bench.obstacle(test) {
                None => fitting.push(test),
                Some(obstacle) => obstacles.push(format!("{test} does not fit: {obstacle}")),
            }
        }
        if fitting.is_empty() {
            return Err(Error::Request(format!("no test fits; {}", obstacles.join("; "))));
        }
        for obstacle in obstacles {
            note(format_args!("left out: {obstacle}"));
        }
        let width = fitting.iter().map(|test| test.to_string().chars().count()).max().unwrap_or(0);
        let mut printer = Printer::new(self.args.output, self.stored.is_some(), width);
        let mut out = Output::stdout();
        out.text(&printer.begin(self.facts))?;
        let mut rows = Vec::with_capacity(fitting.len());
        for (i, test) in fitting.iter().enumerate() {
            note(format_args!("{}/{}: {test}", i + 1, fitting.len()));
            let warm_up = usize::from(!self.args.no_warmup);
            let samples = bench.run(test, warm_up, self.args.repetitions as usize)?;
            let mut row = Row::new(self.facts, test, &samples);
            if row.acceptance.is_some() {
                bench.set_drafts(false);
                let plain = bench.run(test, warm_up, self.args.repetitions as usize)?;
                bench.set_drafts(true);
                row.speed_up =
                    Some(Row::new(self.facts, test, &plain).median_ns as f64 / row.median_ns as f64);
            }
            row.comparison = self.stored.and_then(|stored| compare::find(stored, &row));
            out.text(&printer.row(&row))?;
            rows.push(row);
        }
        out.text(&printer.end(self.facts))?;
        if self.args.output != Format::Md {
            note(notes(self.facts).trim_end());
        }
        if self.stored.is_some() && rows.iter().all(|row| row.comparison.is_none()) {
            note(format_args!(
                "the stored run has no row of these tests with a model of {} parameters",
                self.facts.model_n_params
            ));
        }
        self.print_engine_share(&rows);
        Ok(rows)
    }

    /// What a step takes besides the model: what could be saved outside of it.
    fn print_engine_share(&self, rows: &[Row]) {
        let decode = rows.iter().filter(|row| row.bytes_per_step.is_some());
        let shares: Vec<String> = decode
            .map(|row| {
                let percent = 100.0 * row.engine_us_per_step / row.step_us;
                format!("{} {:.1} µs ({percent:.2} %)", row.test, row.engine_us_per_step)
            })
            .collect();
        if !shares.is_empty() {
            note(format_args!("scheduling, detokenisation and events a step: {}", shares.join(", ")));
        }
        let gain = |row: &Row| {
            let percent = 100.0 * row.acceptance?;
            let (per_step, speed_up) = (row.tokens_per_step?, row.speed_up?);
            let test = &row.test;
            Some(format!(
                "{test} {percent:.1} % accepted, {per_step:.2} tokens a step, {speed_up:.2} times as fast as without"
            ))
        };
        let gains: Vec<String> = rows.iter().filter_map(gain).collect();
        if !gains.is_empty() {
            note(format_args!("drafts: {}", gains.join("; ")));
        }
    }
}

/// Opens the model and draws one token, as `generate` would.
fn first_token(model: &ModelArgs, sampling: &SamplingParams, main: Instant, started: u64) -> Result<StartUp> {
    let model = model.open(1)?;
    let times = model.stats.times;
    let mut engine = model.into_engine()?;
    let vocab_size = engine.runner().vocab_size();
    let prompt = (0..PROMPT_TOKENS).map(|i| (i * 7919 % vocab_size) as u32).collect();
    let request =
        Request { sampling: sampling.clone(), max_tokens: Some(1), ignore_eos: true, ..Request::new(prompt) };
    engine.submit(request)?;
    while engine.step()?.is_empty() {}
    Ok(start_up::of_this_process(started, main, &times))
}

/// The starts that were asked for. Where they fail, the tests go on and say why if it concerns them.
fn starts(args: &BenchArgs) -> Vec<StartUp> {
    let mut starts = Vec::new();
    if args.starts == 0 {
        return starts;
    }
    note(format_args!("time to first token: {} starts, and one before", args.starts));
    for i in 0..=args.starts {
        match start_up::measure() {
            // The first brings the file into the page cache.
            Ok(_) if i == 0 => {}
            Ok(start) => starts.push(start),
            Err(error) => {
                tracing::warn!("no time to first token: {error}");
                return Vec::new();
            }
        }
    }
    starts
}

/// What the file says. The device's part is filled in by [`device_facts`].
fn file_facts(model: &ModelArgs, sampling: &SamplingParams) -> Result<Facts> {
    let gguf = model.file.open()?;
    let config = Config::from_gguf(&gguf)?;
    let mut bytes_by_type = BTreeMap::new();
    let mut model_n_params = 0;
    for tensor in gguf.tensors() {
        model_n_params += tensor.num_values();
        *bytes_by_type.entry(tensor.ggml_type().to_string()).or_insert(0) += tensor.num_bytes().unwrap_or(0);
    }
    let most = bytes_by_type.iter().max_by_key(|(_, bytes)| **bytes);
    let ggml_type = most.map_or(String::new(), |(ggml_type, _)| format!(" {ggml_type}"));
    let name = |path: &Path| path.display().to_string();
    Ok(Facts {
        engine: "qernel",
        build_number: env!("CARGO_PKG_VERSION"),
        cpu_info: cpu_info(),
        gpu_info: String::new(),
        backends: "CPU",
        model_filename: model.file.model.as_deref().map_or(embedded::NAME.to_owned(), name),
        model_type: one_line(&format!("{} {}{ggml_type}", config.architecture, config.name)),
        model_size: bytes_by_type.values().sum(),
        model_n_params,
        n_batch: 0,
        n_ubatch: 0,
        n_threads: rayon::current_num_threads(),
        type_k: "",
        type_v: "",
        kernel: model.kernel.clone().unwrap_or_default(),
        sampling: describe(sampling),
        included: "sampling and detokenisation",
        read_bandwidth: None,
        decode_bytes: DecodeBytes::default(),
        kv_bytes_per_position: 0,
        start_up: None,
    })
}

/// Adds what the opened model says, and the bandwidth.
fn device_facts(facts: &mut Facts, engine: &mut Engine) {
    let device = engine.runner().device_name();
    if !device.starts_with("CPU") {
        facts.backends = if device.contains("emulated") { "emulated" } else { "CUDA" };
        facts.gpu_info = device;
    }
    let limits = *engine.runner().limits();
    (facts.n_batch, facts.n_ubatch) = (limits.max_num_tokens, limits.max_num_tokens);
    let layout = *engine.runner().kv_layout();
    (facts.type_k, facts.type_v) = (layout.formats.k.name(), layout.formats.v.name());
    facts.kv_bytes_per_position = layout.page_bytes() / PAGE_SIZE;
    // The ceiling is the most that was seen.
    for _ in 0..3 {
        let measured = read_bandwidth(engine.runner_mut());
        facts.read_bandwidth =
            measured.map(|rate| facts.read_bandwidth.map_or(rate, |best| f64::max(best, rate)));
    }
}

fn describe(sampling: &SamplingParams) -> String {
    let penalties = if sampling.has_penalties() { ", penalties" } else { "" };
    if sampling.is_greedy() {
        return format!("greedy{penalties}");
    }
    let SamplingParams { temperature, top_k, top_p, min_p, .. } = sampling;
    format!("temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}{penalties}")
}

/// The processor's name, where the system tells it.
fn cpu_info() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let isa = crate::cpu::simd::Isa::best().name();
    let name = name.map_or("CPU", |(_, name)| name.trim());
    format!("{name}, {isa}")
}
