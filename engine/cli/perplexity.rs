//! `qernel perplexity`: how well a model foretells a text, and how far it is from another.

use super::options::ModelArgs;
use super::output::Output;
use crate::config::Config;
use crate::disk;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::load::{open_runner, with_adapters};
use crate::model::Runner;
use crate::perplexity::{
    Base, BaseWriter, Chunks, Compared, Divergence, Figure, Figures, Mean, Percentiles, log_sum_exp,
};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Measure how well a model foretells a text, as llama-perplexity does: the second half of each context counts
#[derive(Clone, Debug, clap::Args)]
pub struct PerplexityArgs {
    /// The text [not with --kl-divergence, which has its own]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Contexts to measure [default: all of the text]
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Save the probabilities of all tokens there, or with --kl-divergence compare with those that are there
    #[arg(long, value_name = "FILE")]
    pub kl_divergence_base: Option<PathBuf>,
    /// Compare with the probabilities of another model, or of this one computed otherwise
    #[arg(long, conflicts_with = "file")]
    pub kl_divergence: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The context is 512 tokens where -c says nothing else
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Tokens of a context, as llama-perplexity's.
const CONTEXT: usize = 512;

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the files, the options or the device; [`Error::NotFinite`] if logits are NaN or infinite.
pub fn run(args: PerplexityArgs) -> Result<()> {
    let (text, base) = (&args.file, &args.kl_divergence_base);
    if (args.kl_divergence && base.is_none()) || (!args.kl_divergence && text.is_none()) {
        let expected =
            "--file FILE, the text (- is standard input), or --kl-divergence with --kl-divergence-base FILE";
        return Err(Error::Request(format!("perplexity: expected {expected}")));
    }
    let base =
        args.kl_divergence_base.as_deref().filter(|_| args.kl_divergence).map(Base::open).transpose()?;
    if let (Some(path), None) = (&args.kl_divergence_base, &base) {
        // Before the model is loaded for it.
        disk::refuse_model(path, args.model.file.model.as_deref())?;
    }
    let gguf = args.model.file.open()?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let config = Config::from_gguf(&gguf)?;
    let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
    let chunks = match &base {
        Some(base) => Chunks::of_base(base, bos),
        None => {
            let len = args.model.ctx_size.filter(|&len| len > 0);
            let len = len.unwrap_or(CONTEXT.min(config.max_position_embeddings));
            let text = read_text(args.file.as_deref().unwrap_or(Path::new("-")))?;
            let tokens = bos.into_iter().chain(tokenizer.encode(&text, false)?).collect();
            Chunks::new(tokens, len, bos, args.chunks)?
        }
    };
    if let Some(base) = base.as_ref().filter(|base| base.vocab_size() != config.vocab_size) {
        return Err(Error::Request(format!(
            "the probabilities are of a vocabulary of {} words, this model has {}: expected models with the same one",
            base.vocab_size(),
            config.vocab_size
        )));
    }
    let mut runner = open(&args.model, &gguf, &config, chunks.chunk_len())?;
    let mut report = Report { out: Output::stdout(), json: args.json };
    match (&base, &args.kl_divergence_base) {
        (Some(base), _) => {
            report.divergence(&compare(&chunks, base, &mut *runner, args.chunks, &mut report.progress())?)
        }
        (None, None) => {
            report.perplexity(&measure(&chunks, &mut *runner, &mut report.progress(), &mut |_| Ok(()))?)
        }
        (None, Some(path)) => {
            let mut nll = Mean::default();
            disk::save(path, args.model.file.model.as_deref(), |out| {
                let failed = |error| Error::io(path, error);
                let mut writer = BaseWriter::new(out, chunks.chunk_len(), config.vocab_size, chunks.tokens())
                    .map_err(failed)?;
                let save = &mut |logits: &[f32]| writer.rows(logits).map_err(failed);
                nll = measure(&chunks, &mut *runner, &mut report.progress(), save)?;
                Ok(())
            })?;
            report.perplexity(&nll)
        }
    }
}

/// A text file, or standard input for `-`.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = match path.to_str() {
        Some("-") => super::tokenize::read_stdin()?,
        _ => std::fs::read(path).map_err(|error| Error::io(path, error))?,
    };
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::Request(format!("{}: expected UTF-8, found something else at byte {at}", path.display()))
    })
}

/// Loads the model for contexts of `len` tokens.
fn open(args: &ModelArgs, gguf: &Gguf, config: &Config, len: usize) -> Result<Box<dyn Runner>> {
    let weights = with_adapters(Weights::from_gguf(gguf, config)?, config, &args.lora.lora)?;
    let mut options = args.options(1)?;
    options.max_model_len = Some(len);
    options.max_num_tokens = Some(options.max_num_tokens.unwrap_or(len).min(len));
    options.max_num_logits = ModelArgs::logit_rows(config.vocab_size, len);
    open_runner(&weights, config, &options, &mut |_, _| ())
}

/// Called with the number of each chunk that is done and what is found so far.
type Told<'a> = dyn FnMut(usize, &Mean) -> Result<()> + 'a;

/// Negative logarithms of the probabilities of all tokens that count. `save` gets the logits too.
fn measure(
    chunks: &Chunks,
    runner: &mut dyn Runner,
    told: &mut Told,
    save: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<Mean> {
    let vocab_size = runner.vocab_size();
    let mut sum = Mean::default();
    for i in 0..chunks.count() {
        chunks.run(i, runner, &mut |tokens, logits| {
            let rows = logits.par_chunks_exact(vocab_size).zip(tokens);
            let nll = |(logits, &token): (&[f32], &u32)| {
                let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
                log_sum_exp(logits) - f64::from(logit)
            };
            let nlls: Vec<f64> = rows.map(nll).collect();
            if nlls.iter().any(|nll| !nll.is_finite()) {
                return Err(Error::NotFinite(format!(
                    "in context {} the model's logits are NaN or infinite; --check-tensors looks through its weights",
                    i + 1
                )));
            }
            nlls.into_iter().for_each(|nll| sum.add(nll));
            save(logits)
        })?;
        told(i + 1, &sum)?;
    }
    Ok(sum)
}

/// The model's probabilities beside those of `base`, of at most `most` contexts.
fn compare(
    chunks: &Chunks,
    base: &Base,
    runner: &mut dyn Runner,
    most: Option<usize>,
    told: &mut Told,
) -> Result<Divergence> {
    let vocab_size = runner.vocab_size();
    let mut divergence = Divergence::default();
    for i in 0..chunks.count().min(most.unwrap_or(usize::MAX)) {
        let mut row = i * chunks.num_scored();
        chunks.run(i, runner, &mut |tokens, logits| {
            let rows = logits.par_chunks_exact(vocab_size).zip(tokens).enumerate();
            let compared: Result<Vec<Compared>> =
                rows.map(|(j, (logits, &token))| Compared::new(token, logits, base.row(row + j))).collect();
            compared?.into_iter().for_each(|token| divergence.add(token));
            row += tokens.len();
            Ok(())
        })?;
        told(i + 1, divergence.nll())?;
    }
    Ok(divergence)
}

/// What is printed.
struct Report {
    out: Output,
    json: bool,
}

impl Report {
    /// Prints the perplexity after each context, as it becomes known.
    fn progress(&self) -> impl FnMut(usize, &Mean) -> Result<()> + use<> {
        let is_shown = !self.json;
        let mut out = Output::stdout();
        move |i, nll| if is_shown { out.text(&format!("[{i}]{:.4},", nll.exp().value)) } else { Ok(()) }
    }

    fn perplexity(&mut self, nll: &Mean) -> Result<()> {
        let Figure { value, error } = nll.exp();
        if self.json {
            let object = serde_json::json!({ "ppl": value, "error": error, "num_tokens": nll.count() });
            return self.out.json(&object);
        }
        self.out.line(&format!("\nFinal estimate: PPL = {value:.4} +/- {error:.5}"))
    }

    fn divergence(&mut self, divergence: &Divergence) -> Result<()> {
        let figures = divergence.figures();
        let figures = figures.ok_or_else(|| Error::Request("too few tokens for figures".to_owned()))?;
        if self.json {
            return self.out.json(&figures);
        }
        self.out.line(&format!("\n\n{}", table(&figures)))
    }
}

/// Figures in the order and under the names of llama-perplexity.
fn table(figures: &Figures) -> String {
    let mut text = String::new();
    let mut line = |name: &str, Figure { value, error }: Figure, unit: &str| {
        text += &format!("{name:30}: {value:11.6} ± {error:.6}{unit}\n");
    };
    let percent = |Figure { value, error }| Figure { value: 100.0 * value, error: 100.0 * error };
    line("Mean PPL(Q)", figures.ppl, "");
    line("Mean PPL(base)", figures.ppl_base, "");
    line("Mean ln(PPL(Q)/PPL(base))", figures.ln_ratio, "");
    line("Mean PPL(Q)/PPL(base)", figures.ratio, "");
    line("Mean PPL(Q)-PPL(base)", figures.difference, "");
    line("Mean KLD", figures.mean_kld, "");
    line("Mean Δp", percent(figures.mean_delta_p), " %");
    line("RMS Δp", percent(figures.rms_delta_p), " %");
    line("Same top p", percent(figures.same_top), " %");
    text += &format!("{:30}: {:11.6} %\n", "Cor(ln(PPL(Q)), ln(PPL(base)))", 100.0 * figures.correlation);
    text += &format!("\n{:10} {:>12} {:>12}\n", "", "KLD", "Δp");
    for (name, kld, delta_p) in rows(&figures.kld, &figures.delta_p) {
        text += &format!("{name:10} {kld:12.6} {:10.3} %\n", 100.0 * delta_p);
    }
    text.truncate(text.trim_end().len());
    text
}

fn rows(kld: &Percentiles, delta_p: &Percentiles) -> Vec<(&'static str, f32, f32)> {
    let of = |of: fn(&Percentiles) -> f32| (of(kld), of(delta_p));
    let rows = [
        ("Maximum", of(|p| p.maximum)),
        ("99.9%", of(|p| p.p99_9)),
        ("99.0%", of(|p| p.p99)),
        ("95.0%", of(|p| p.p95)),
        ("90.0%", of(|p| p.p90)),
        ("75.0%", of(|p| p.p75)),
        ("Median", of(|p| p.median)),
        ("25.0%", of(|p| p.p25)),
        ("10.0%", of(|p| p.p10)),
        ("5.0%", of(|p| p.p5)),
        ("1.0%", of(|p| p.p1)),
        ("0.1%", of(|p| p.p0_1)),
        ("Minimum", of(|p| p.minimum)),
    ];
    rows.map(|(name, (kld, delta_p))| (name, kld, delta_p)).to_vec()
}
