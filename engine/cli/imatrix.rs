//! `qernel imatrix`: how large the inputs of a model's matrices are over a text, for `qernel quantize --imatrix`.

use super::options::{FileArgs, ModelArgs};
use super::output::{Output, note};
use super::perplexity::read_text;
use crate::config::Config;
use crate::disk;
use crate::error::{Error, Result};
use crate::importance::ImportanceMatrix;
use crate::load::{KvType, RunnerOptions, open_observed_runner};
use crate::perplexity::{Chunks, Mean, log_sum_exp};
use crate::tokenizer::Tokenizer;
use crate::weights::{HEAD, Matrix, Weights};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// Collect an importance matrix from a text, on the CPU: the sums of squares of what each matrix is multiplied with
#[derive(Clone, Debug, clap::Args)]
pub struct ImatrixArgs {
    #[command(flatten)]
    pub model: FileArgs,
    /// The text; some hundred contexts of what the model will be used for
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// The importance matrix to make, a GGUF file as llama-imatrix makes it
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    pub output: PathBuf,
    /// Tokens of a context [default: 512]
    #[arg(short = 'c', long, value_name = "TOKENS")]
    pub ctx_size: Option<usize>,
    /// Contexts to read [default: all of the text]
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Collect for the head too, where it is a matrix of its own
    #[arg(long)]
    pub process_output: bool,
    /// Replace an importance matrix that is there already
    #[arg(long)]
    pub force: bool,
}

/// Tokens of a context, as llama-imatrix's.
const CONTEXT: usize = 512;

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the files or the options; [`Error::NotFinite`] if inputs or logits are NaN or infinite; [`Error::Io`] if the matrix
/// cannot be saved.
pub fn run(args: ImatrixArgs) -> Result<()> {
    let gguf = args.model.open()?;
    disk::refuse_to_replace(&args.output, &gguf.watch(), args.force)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let config = Config::from_gguf(&gguf)?;
    let weights = Weights::from_gguf(&gguf, &config)?;
    let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
    let tokens = bos.into_iter().chain(tokenizer.encode(&read_text(&args.file)?, false)?).collect();
    let len = args.ctx_size.filter(|&len| len > 0);
    let len = len.unwrap_or(CONTEXT.min(config.max_position_embeddings));
    let chunks = Chunks::new(tokens, len, bos, args.chunks)?;

    let mut matrix = ImportanceMatrix::default();
    matrix.datasets.push(args.file.display().to_string());
    matrix.chunk_count = u32::try_from(chunks.count()).unwrap_or(u32::MAX);
    matrix.chunk_size = u32::try_from(len).unwrap_or(u32::MAX);
    let matrix = Rc::new(RefCell::new(matrix));
    let (collected, with_head) = (Rc::clone(&matrix), args.process_output);
    let observer = move |of: &Matrix, [index, matrices]: [usize; 2], rows: &[f32]| {
        if of.name.starts_with("blk.") || (with_head && of.name == HEAD) {
            collected.borrow_mut().add(&of.name, index, matrices, rows, of.cols);
        }
    };
    let options = RunnerOptions {
        kv_types: [KvType::Precise; 2],
        max_model_len: Some(len),
        max_num_tokens: Some(len),
        max_num_logits: ModelArgs::logit_rows(config.vocab_size, len),
        ..RunnerOptions::default()
    };
    let mut runner = open_observed_runner(&weights, &config, &options, Box::new(observer))?;
    let mut nll = Mean::default();
    let mut out = Output::stdout();
    for i in 0..chunks.count() {
        chunks.run_all(i, &mut *runner, &mut |tokens, logits| {
            for (&token, logits) in tokens.iter().zip(logits.chunks_exact(config.vocab_size)) {
                let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
                nll.add(log_sum_exp(logits) - f64::from(logit));
            }
            Ok(())
        })?;
        if let Some(name) = matrix.borrow().find_not_finite() {
            return Err(Error::NotFinite(format!(
                "in context {} inputs of {name} are NaN or infinite",
                i + 1
            )));
        }
        out.text(&format!("[{}]{:.4},", i + 1, nll.exp().value))?;
    }
    let matrix = matrix.borrow();
    tell_of_experts(&matrix);
    disk::save_model(&args.output, &gguf.watch(), args.force, |file| {
        matrix.write_to(file).map_err(|error| Error::io(&args.output, error))
    })?;
    out.line(&format!(
        "\n{} matrices over {} contexts of {len} tokens, PPL = {:.4} +/- {:.5}: {}",
        matrix.num_entries(),
        chunks.count(),
        nll.exp().value,
        nll.exp().error,
        args.output.display()
    ))
}

/// Experts that no token went to count the same in all their columns: that is worth a note.
fn tell_of_experts(matrix: &ImportanceMatrix) {
    let idle = matrix.num_idle();
    if idle > 0 {
        note(format!("{idle} matrices of experts had no token: a longer text would reach more of them"));
    }
}
