//! `lab watch`: from saving a kernel to a verdict.

use super::table::Table;
use crate::cli::interrupt::{EXIT_INTERRUPTED, Interrupt};
use crate::cli::output::Output;
use crate::cuda;
use crate::error::{Error, Result};
use crate::lab::assembler::{assemble, tool};
use crate::lab::kernels::{entries, operation};
use crate::lab::ptx::Module;
use crate::lab::run::Run;
use crate::lab::source::Checkout;
use crate::lab::watch::{Changes, Rebuild};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// On every save: compile the kernels, check and time an operation, and print what changed since the round before
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With a GPU, only the kernels are compiled: build once after `lab new`, and after a change of engine/cuda \
                        (grids, eligibility). Without one, the whole program is built, and checks them under emulation."
)]
pub struct WatchArgs {
    /// The operation (`lab list` has the names)
    #[arg(value_parser = super::op_name)]
    op: String,
    /// Only this variant [default: all of the operation]
    #[arg(long)]
    variant: Option<String>,
    /// One round, without waiting for a change: fails if the kernels do not compile or are wrong
    #[arg(long)]
    once: bool,
    /// Compile, and show what ptxas says where it is installed, but neither check nor time
    #[arg(long)]
    compile_only: bool,
    /// The target to compile for [default: what this machine's GPU runs, else sm_80]
    #[arg(long, value_name = "ARCH", requires = "compile_only",
          value_parser = clap::builder::PossibleValuesParser::new(crate::ptx::TARGETS))]
    arch: Option<String>,
    /// Longest time for each timing of the benchmark
    #[arg(long, default_value_t = 0.1, value_name = "SECONDS")]
    seconds: f64,
    /// Further arguments of `lab bench`, such as --rows 1 --like qwen2.5-7b
    #[arg(last = true, value_name = "BENCH ARGUMENTS")]
    bench: Vec<String>,
}

pub(super) fn run(args: WatchArgs) -> Result<ExitCode> {
    let op = operation(&args.op)?;
    args.variant.as_deref().map(|name| op.variant(name)).transpose()?;
    let checkout = Checkout::find()?;
    let device = cuda::probe().ok().and_then(|devices| devices.into_iter().next());
    let asked = |target: &&&str| args.arch.as_deref() == Some(**target);
    let target = match (crate::ptx::TARGETS.iter().find(asked), &device) {
        (Some(target), _) => target,
        (None, Some(device)) => device.target()?,
        (None, None) => crate::ptx::TARGETS[0],
    };
    let interrupt = Interrupt::install();
    let mut rounds = Rounds {
        checkout: checkout.clone(),
        rebuild: Rebuild::new(&checkout, target, op.name)?,
        // Asked for now: a build may replace the file while this runs.
        program: std::env::current_exe().map_err(|error| Error::io("the program itself", error))?,
        has_device: device.is_some(),
        out: Output::stdout(),
        resources: BTreeMap::new(),
        baseline: None,
        target,
        args,
    };
    interrupt.catch(|ended| {
        let ended = || ended.load(Ordering::SeqCst);
        // Before the first round: what is saved during it starts another.
        let changes = if rounds.args.once { None } else { Some(Changes::of(&checkout)?) };
        let mut right = rounds.round()?;
        while let Some(changes) = &changes {
            rounds.out.line("\nwaiting for a change (Ctrl-C ends)")?;
            let Some(files) = changes.next(ended) else { return Ok(ExitCode::from(EXIT_INTERRUPTED)) };
            let files: Vec<_> = files.iter().map(|file| checkout.short(file).to_string()).collect();
            rounds.out.line(&format!("\n{}", files.join(", ")))?;
            right = rounds.round()?;
        }
        Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// What is kept from one round to the next.
struct Rounds {
    args: WatchArgs,
    checkout: Checkout,
    rebuild: Rebuild,
    program: PathBuf,
    has_device: bool,
    target: &'static str,
    out: Output,
    /// What ptxas said of each kernel in the round before.
    resources: BTreeMap<String, String>,
    /// The benchmark of the last round that had one.
    baseline: Option<tempfile::NamedTempFile>,
}

impl Rounds {
    /// Compiles, checks and times; whether all was well.
    fn round(&mut self) -> Result<bool> {
        let start = Instant::now();
        let ptx = match self.rebuild.run()? {
            Ok(ptx) => ptx,
            Err(said) => {
                self.out.line(&format!("the kernels do not compile:\n\n{}", said.trim_end()))?;
                return Ok(false);
            }
        };
        let compiled_s = start.elapsed().as_secs_f64();
        let op = operation(&self.args.op)?;
        let variant = self.args.variant.as_deref().map(|name| op.variant(name)).transpose()?;
        let is_watched = |kernel: &str| match variant {
            Some(variant) => variant.launches(kernel),
            None => op.variants.iter().any(|variant| variant.launches(kernel)),
        };
        let kernels: Vec<&str> = entries(&ptx).filter(|kernel| is_watched(kernel)).collect();
        if kernels.is_empty() {
            let what = variant.map_or(op.name.to_owned(), |variant| format!("{}={}", op.name, variant.name));
            self.out.line(&format!("the kernels compile, but none of them is one of {what} any more"))?;
            return Ok(false);
        }
        self.out.line(&format!("compiled in {compiled_s:.1} s"))?;
        self.show_resources(&ptx, &kernels)?;
        if self.args.compile_only {
            return Ok(true);
        }
        if !self.has_device {
            return self.emulate(start);
        }
        let reduced = self.rebuild.write_for_driver(&ptx)?;
        let began = Instant::now();
        let right = self.check(&[(cuda::PTX_FILE, reduced.as_os_str())])?;
        let checked_s = began.elapsed().as_secs_f64();
        if !right {
            return Ok(false);
        }
        let began = Instant::now();
        let right = self.bench(&[(cuda::PTX_FILE, reduced.as_os_str())])?;
        self.out.line(&format!(
            "{:.1} s from the change to here: compiling {compiled_s:.1}, checking {checked_s:.1}, timing {:.1}",
            start.elapsed().as_secs_f64(),
            began.elapsed().as_secs_f64()
        ))?;
        Ok(right)
    }

    /// Builds the program with the kernels for the host, and has it check them under emulation.
    fn emulate(&mut self, start: Instant) -> Result<bool> {
        self.out.line("no GPU here: building the program, whose emulation checks them")?;
        let target = self.checkout.path("target");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--release", "--bin", "qernel", "--target-dir"]).arg(&target);
        let output =
            cargo.current_dir(self.checkout.root()).output().map_err(|error| Error::io("cargo", error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            self.out.line(&format!("the program does not compile:\n\n{}", said.trim_end()))?;
            return Ok(false);
        }
        let built_s = start.elapsed().as_secs_f64();
        self.program = target.join("release/qernel");
        let right = self.check(&[])?;
        let whole_s = start.elapsed().as_secs_f64();
        self.out.line(&format!(
            "{whole_s:.1} s from the change to here: building {built_s:.1}, checking {:.1}; nothing is timed without a GPU",
            whole_s - built_s
        ))?;
        Ok(right)
    }

    /// Prints what the kernels take of a multiprocessor where that is not as it was, if ptxas is installed.
    fn show_resources(&mut self, ptx: &str, kernels: &[&str]) -> Result<()> {
        let Some(ptxas) = tool("ptxas") else { return Ok(()) };
        let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        let text = cuda_builder::without_line_info(&Module::parse(ptx).only(|name| kernels.contains(&name)));
        let now = match assemble(&ptxas, &text, self.target, &folder.path().join("kernels.cubin")) {
            Ok(now) => now,
            Err(error) => return self.out.line(&error.to_string()),
        };
        for (kernel, words) in &now {
            match self.resources.get(kernel) {
                Some(before) if before == words => {}
                Some(before) => self.out.line(&format!("{kernel}: {words}\n    before: {before}"))?,
                None => self.out.line(&format!("{kernel}: {words}"))?,
            }
        }
        self.resources = now;
        Ok(())
    }

    /// `lab check` in another process: a kernel that faults takes its process's device context with it.
    fn check(&mut self, environment: &[(&str, &OsStr)]) -> Result<bool> {
        let output = self.lab(environment, "check", [OsStr::new("--json")])?;
        let Some(output) = output else { return Ok(false) };
        let report: Value = parse(&output)?;
        let empty = Vec::new();
        let failures = report["failures"].as_array().unwrap_or(&empty);
        for failure in failures.iter().take(3) {
            let word = |field: &str| failure[field].as_str().unwrap_or_default().to_owned();
            self.out.line(&format!(
                "WRONG {}={} {} {}, seed {}",
                word("op"),
                word("variant"),
                word("dtype"),
                word("shape"),
                failure["seed"]
            ))?;
            for note in failure["notes"].as_array().unwrap_or(&empty) {
                self.out.line(&format!("    {}", note.as_str().unwrap_or_default()))?;
            }
        }
        let sum = |field: &str| -> u64 {
            let summaries = report["summaries"].as_array().unwrap_or(&empty);
            summaries.iter().filter_map(|summary| summary[field].as_u64()).sum()
        };
        let (passed, failed) = (sum("passed"), sum("failed"));
        self.out.line(&match failed {
            0 => format!("{passed} cases are right"),
            _ => format!("{failed} of {} cases are WRONG", passed + failed),
        })?;
        Ok(failures.is_empty())
    }

    /// `lab bench` in another process, beside the round before.
    fn bench(&mut self, environment: &[(&str, &OsStr)]) -> Result<bool> {
        let mut arguments: Vec<String> =
            vec!["--json".into(), "--seconds".into(), self.args.seconds.to_string()];
        if let Some(baseline) = &self.baseline {
            arguments.extend(["--baseline".into(), baseline.path().display().to_string()]);
        }
        arguments.extend(self.args.bench.iter().cloned());
        let Some(output) = self.lab(environment, "bench", &arguments)? else { return Ok(false) };
        let run: Run = parse(&output)?;
        self.out.text(&table(&run).to_string())?;
        for left_out in run.left_out.iter().filter(|left_out| left_out.wrong) {
            self.out.line(&format!(
                "WRONG, not timed: {} {}: {}",
                left_out.variant, left_out.shape, left_out.why
            ))?;
        }
        let file = tempfile::NamedTempFile::new().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        std::fs::write(file.path(), &output).map_err(|error| Error::io(file.path(), error))?;
        self.baseline = Some(file);
        Ok(run.left_out.iter().all(|left_out| !left_out.wrong))
    }

    /// Runs this program with the new kernels; what it printed, or `None` after showing why it failed.
    fn lab(
        &mut self,
        environment: &[(&str, &OsStr)],
        subcommand: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Option<String>> {
        let mut command = Command::new(&self.program);
        command.envs(environment.iter().copied()).args(["lab", subcommand, &self.args.op]);
        if let Some(variant) = &self.args.variant {
            command.args(["--variant", variant]);
        }
        command.args(arguments);
        let output = command.output().map_err(|error| Error::io(&self.program, error))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // 1 is a verdict, with a report; anything else is a failure without one.
        if output.status.success() || (output.status.code() == Some(1) && said.starts_with('{')) {
            return Ok(Some(said));
        }
        let why = String::from_utf8_lossy(&output.stderr);
        self.out.line(&format!("lab {subcommand} failed ({}): {}", output.status, why.trim()))?;
        Ok(None)
    }
}

fn parse<T: serde::de::DeserializeOwned>(output: &str) -> Result<T> {
    serde_json::from_str(output)
        .map_err(|error| Error::Request(format!("this program and the one that was started differ: {error}")))
}

/// The timings, each beside the round before.
fn table(run: &Run) -> Table {
    let mut table = Table::new(&[
        "variant",
        "dtype",
        "<shape",
        "cold µs",
        "warm µs",
        "of ceiling",
        "x before",
        "<verdict",
    ]);
    for timing in &run.timings {
        let change = timing.baseline.as_ref();
        table.row([
            timing.variant.clone(),
            timing.dtype.clone(),
            timing.shape.clone(),
            format!("{:.2}", timing.cold.median * 1e6),
            format!("{:.2}", timing.warm.median * 1e6),
            format!("{:.1} %", timing.ceiling_percent),
            change.map_or(String::new(), |change| format!("{:.3}", change.cold.ratio)),
            change.map_or(String::new(), |change| change.cold.verdict.name().to_owned()),
        ]);
    }
    table
}
