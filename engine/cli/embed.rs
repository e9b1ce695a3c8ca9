//! `qernel embed`: vectors of texts.

use super::options::{ModelArgs, drop_line_break};
use super::output::Output;
use super::perplexity::read_text;
use crate::engine::Engine;
use crate::engine::pooling::{Normalize, Pooling};
use crate::error::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Print the vectors of texts, a line each
#[derive(Clone, Debug, clap::Args)]
pub struct EmbedArgs {
    /// The texts; without them and --file, standard input is read
    #[arg(conflicts_with = "file")]
    pub texts: Vec<String>,
    /// A file that is a text; - is standard input; may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Take each line of the files as a text
    #[arg(long)]
    pub lines: bool,
    /// How the rows of a text become its vector: mean, cls, last or none (a vector for each token) [default: what the file says, or last]
    #[arg(long, value_name = "TYPE")]
    pub pooling: Option<Pooling>,
    /// What is made of a vector's length: -1 nothing, 0 the largest value becomes 32760, 1 taxicab, 2 Euclidean, larger p p-norm
    #[arg(long, value_name = "N", default_value = "2", allow_negative_numbers = true)]
    pub embd_normalize: Normalize,
    /// Print one JSON object, as OpenAI's /v1/embeddings answers
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Rows of a step whose vectors are wanted: their logits, which are not computed, would take some megabytes.
pub(super) const ROWS: usize = 64;

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the texts, the options or the device.
pub fn run(args: EmbedArgs) -> Result<()> {
    if args.pooling == Some(Pooling::Rank) {
        return Err(Error::Request(
            "scores are printed by `qernel rerank`; expected mean, cls, last or none".to_owned(),
        ));
    }
    let texts = args.texts()?;
    let model = args.model.open_for_rows(ROWS)?;
    let (tokenizer, pooler) = (model.tokenizer.clone(), model.pooler.clone());
    let of_file = pooler.pooling.filter(|&pooling| pooling != Pooling::Rank);
    let pooling = args.pooling.or(of_file).unwrap_or(Pooling::Last);
    let mut engine = model.into_engine()?;
    let mut out = Output::stdout();
    let (mut data, mut num_tokens) = (Vec::new(), 0);
    for (index, text) in texts.iter().enumerate() {
        let tokens = pooler.encode(&tokenizer, text)?;
        num_tokens += tokens.len();
        for mut vector in embed(&mut engine, &tokens, pooling)? {
            args.embd_normalize.apply(&mut vector);
            match args.json {
                true => data.push(json!({"object": "embedding", "index": index, "embedding": vector})),
                false => out.line(&vector.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))?,
            }
        }
    }
    if args.json {
        let usage = json!({"prompt_tokens": num_tokens, "total_tokens": num_tokens});
        out.json(&json!({"object": "list", "data": data, "usage": usage}))?;
    }
    Ok(())
}

/// What an engine without requests makes of a text.
///
/// # Errors
/// As [`Engine::embed`].
pub(super) fn embed(engine: &mut Engine, tokens: &[u32], pooling: Pooling) -> Result<Vec<Vec<f32>>> {
    engine
        .embed(tokens, pooling)?
        .ok_or_else(|| Error::Memory("the KV cache has no room for the text".to_owned()))
}

impl EmbedArgs {
    fn texts(&self) -> Result<Vec<String>> {
        if !self.texts.is_empty() {
            return Ok(self.texts.clone());
        }
        let standard_input = [PathBuf::from("-")];
        let files: &[PathBuf] = if self.file.is_empty() { &standard_input } else { &self.file };
        let mut texts = Vec::new();
        for path in files {
            texts.extend(texts_of(path, self.lines)?);
        }
        Ok(texts)
    }
}

/// The text of a file, or its lines.
pub(super) fn texts_of(path: &Path, lines: bool) -> Result<Vec<String>> {
    let mut text = read_text(path)?;
    if lines {
        return Ok(text.lines().map(str::to_owned).collect());
    }
    drop_line_break(&mut text);
    Ok(vec![text])
}
