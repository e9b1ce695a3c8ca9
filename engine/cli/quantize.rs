//! `qernel quantize`: a model file whose matrices have other formats.

use super::interrupt::{EXIT_INTERRUPTED, Interrupt};
use super::output::{Output, note, one_line};
use crate::disk::{self, Access};
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::Gguf;
use crate::importance::ImportanceMatrix;
use crate::load::open_gguf;
use crate::quantize::{self, Difference, Mixture, Override, Progress, Recipe, Step};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Make a file whose matrices take fewer bits
#[derive(Clone, Debug, clap::Args)]
pub struct QuantizeArgs {
    /// The model, of floats or quantised: a file, of several the first, or a folder from Hugging Face's hub
    pub input: PathBuf,
    /// The file to make [--dry-run needs none]
    pub output: PathBuf,
    /// What to make of it, by llama-quantize's names: Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, IQ4_XS, Q3_K_M, Q2_K, MXFP4_MOE, F16, …
    #[arg(value_name = "TYPE")]
    pub mixture: Option<Mixture>,
    /// An importance matrix, of `qernel imatrix` or llama-imatrix: errors count for more where the model's inputs are large
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Give the matrices whose name a regular expression is found in this format, such as ffn_down=q6_k; the first that fits counts
    #[arg(long, value_name = "PATTERN=FORMAT")]
    pub tensor_type: Vec<Override>,
    /// Format of the head
    #[arg(long, value_name = "FORMAT", value_parser = quantize::format_named)]
    pub output_tensor_type: Option<MatrixFormat>,
    /// Format of the embedding
    #[arg(long, value_name = "FORMAT", value_parser = quantize::format_named)]
    pub token_embedding_type: Option<MatrixFormat>,
    /// Leave the head as it is
    #[arg(long)]
    pub leave_output_tensor: bool,
    /// Give all matrices the same format
    #[arg(long)]
    pub pure: bool,
    /// Print what would become of each tensor, and make nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace a model that has the new one's name
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the files or the options; [`Error::Io`] if the new file cannot be written.
pub fn run(args: QuantizeArgs) -> Result<ExitCode> {
    let recipe = args.recipe()?;
    let importance = args.imatrix.as_deref().map(ImportanceMatrix::open).transpose()?;
    let gguf = open_gguf(Some(&args.input), Access::Map)?;
    let steps = quantize::plan(&gguf, &recipe, importance.as_ref())?;
    if let Some(importance) = &importance {
        tell_what_is_missing(importance, &steps)?;
    }
    quantize::expect_encoders(&steps)?;
    if args.dry_run {
        let mut table = Table::new(&steps);
        for step in &steps {
            table.line(step, None)?;
        }
        table.end(None, None)?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.imatrix.as_ref().map(|path| path.display().to_string());
    let importance = importance.as_ref().zip(file.as_deref());
    let interrupt = Interrupt::install();
    let (result, is_interrupted) = interrupt.catch(|flag| {
        let result = write(&args, &gguf, &steps, recipe.mixture, importance, flag);
        (result, flag.load(Ordering::SeqCst))
    });
    match result {
        Err(_) if is_interrupted => Ok(ExitCode::from(EXIT_INTERRUPTED)),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

impl QuantizeArgs {
    /// A file of `mixture`, made without any of the options.
    pub fn new(input: PathBuf, output: PathBuf, mixture: Mixture) -> Self {
        Self {
            input,
            output,
            mixture: Some(mixture),
            imatrix: None,
            tensor_type: Vec::new(),
            output_tensor_type: None,
            token_embedding_type: None,
            leave_output_tensor: false,
            pure: false,
            dry_run: false,
            force: false,
        }
    }

    fn recipe(&self) -> Result<Recipe> {
        let mixture = match self.mixture {
            Some(mixture) => mixture,
            // Without a file to make, the type stands in its place.
            None if self.dry_run => self.output.to_string_lossy().parse()?,
            None => {
                return Err(Error::Request(
                    "expected IN OUT TYPE, found two of them; with --dry-run IN TYPE will do".to_owned(),
                ));
            }
        };
        Ok(Recipe {
            pure: self.pure,
            overrides: self.tensor_type.clone(),
            output: self.output_tensor_type,
            embedding: self.token_embedding_type,
            leave_output: self.leave_output_tensor,
            ..Recipe::new(mixture)
        })
    }
}

/// Without importances for most of its matrices a file is not what was asked for: that is worth a note.
fn tell_what_is_missing(importance: &ImportanceMatrix, steps: &[Step]) -> Result<()> {
    let is_missing = |step: &&Step| {
        let shape = step.tensor.shape();
        let cols = shape.last().map_or(0, |&cols| cols as usize);
        let matrices = shape.iter().rev().skip(2).product::<u64>() as usize;
        step.formats.is_some() && matches!(importance.of(step.tensor.name(), cols, matrices), Ok(None))
    };
    let missing: Vec<_> = steps.iter().filter(is_missing).map(|step| one_line(step.tensor.name())).collect();
    if let Some((first, others)) = missing.split_first() {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        note(format!(
            "the importance matrix has nothing for {first}{more}: all their columns count the same"
        ));
    }
    Ok(())
}

/// Makes the file.
fn write(
    args: &QuantizeArgs,
    gguf: &Gguf,
    steps: &[Step],
    mixture: Mixture,
    importance: Option<(&ImportanceMatrix, &str)>,
    interrupted: &AtomicBool,
) -> Result<()> {
    let start = Instant::now();
    let path: &Path = &args.output;
    if steps.iter().any(|step| step.formats.is_some_and(|[from, _]| from.float().is_none())) {
        note(
            "some matrices are quantised already: from a file of floats the result would be nearer to the model",
        );
    }
    let bar = progress_bar(steps);
    let mut table = Table::new(steps);
    let mut sum = Difference::default();
    disk::save_model(path, &gguf.watch(), args.force, |out| {
        quantize::write(gguf, steps, mixture, importance, (path, out), &mut |progress| {
            if interrupted.load(Ordering::SeqCst) {
                return Err(Error::Request("interrupted".to_owned()));
            }
            match progress {
                Progress::Bytes(count) => bar.inc(count),
                Progress::Tensor(step, difference) => {
                    sum = difference.map_or(sum, |difference| sum.plus(difference));
                    bar.suspend(|| table.line(step, difference))?;
                }
            }
            Ok(())
        })
    })?;
    bar.finish_and_clear();
    table.end(Some(sum), Some(start))
}

fn progress_bar(steps: &[Step]) -> ProgressBar {
    let style = ProgressStyle::with_template("writing {bar:40} {bytes}/{total_bytes}, {eta} left")
        .expect("the template is well-formed");
    let total = steps.iter().map(|step| step.num_bytes).sum();
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    bar.with_style(style)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What becomes of each tensor, for people: name, shape, both types, both sizes and the error.
struct Table<'a> {
    out: Output,
    steps: &'a [Step<'a>],
    width: usize,
}

impl<'a> Table<'a> {
    fn new(steps: &'a [Step<'a>]) -> Self {
        let width = steps.iter().map(|step| one_line(step.tensor.name()).len()).max().unwrap_or(0);
        Self { out: Output::stdout(), steps, width: width.min(60) }
    }

    fn line(&mut self, step: &Step, difference: Option<Difference>) -> Result<()> {
        let tensor = &step.tensor;
        let (name, shape) = (one_line(tensor.name()), format!("{:?}", tensor.shape()));
        let (from, before) = (tensor.ggml_type(), tensor.num_bytes().unwrap_or(0));
        let mut line = format!("{name:width$}  {shape:20} {from:>8}", width = self.width);
        match step.formats {
            None => line += &format!("              {:10.2} MiB", mib(before)),
            Some([_, to]) => {
                let to = to.ggml_type();
                line += &format!(" -> {to:8} {:10.2} -> {:.2} MiB", mib(before), mib(step.num_bytes));
            }
        }
        if let Some(difference) = difference {
            line += &format!(", error {:.4}", difference.relative());
        }
        if let Some(meant) = step.instead_of {
            line += &format!(" (rows are no whole blocks of {})", meant.ggml_type());
        }
        self.out.line(&line)
    }

    fn end(&mut self, error: Option<Difference>, start: Option<Instant>) -> Result<()> {
        let values: u64 = self.steps.iter().map(|step| step.tensor.num_values()).sum();
        let before: u64 = self.steps.iter().filter_map(|step| step.tensor.num_bytes()).sum();
        let after: u64 = self.steps.iter().map(|step| step.num_bytes).sum();
        let bits = |bytes: u64| 8.0 * bytes as f64 / values.max(1) as f64;
        let mut line = format!(
            "{:.2} MiB, {:.2} bits a weight -> {:.2} MiB, {:.2} bits a weight",
            mib(before),
            bits(before),
            mib(after),
            bits(after)
        );
        if let Some(error) = error {
            line += &format!("; error {:.4}", error.relative());
        }
        if let Some(start) = start {
            line += &format!("; {:.1} s", start.elapsed().as_secs_f64());
        }
        self.out.line(&line)
    }
}
