//! `qernel rerank`: how well documents fit a query.

use super::embed::{ROWS, embed, texts_of};
use super::options::ModelArgs;
use super::output::{Output, one_line};
use crate::engine::pooling::Pooling;
use crate::error::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

/// Print how well documents fit a query, the best first: scores from 0 to 1, of a reranker such as Qwen3-Reranker
#[derive(Clone, Debug, clap::Args)]
pub struct RerankArgs {
    /// The query
    pub query: String,
    /// The documents
    #[arg(conflicts_with = "file")]
    pub documents: Vec<String>,
    /// A file whose lines are the documents; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print so many at most
    #[arg(long, value_name = "N")]
    pub top_n: Option<usize>,
    /// Print one JSON object, as /v1/rerank answers
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the documents, the options or the device; [`Error::Request`] where the model is no reranker.
pub fn run(args: RerankArgs) -> Result<()> {
    let documents = match &args.file {
        Some(path) => texts_of(path, true)?,
        None => args.documents,
    };
    if documents.is_empty() {
        return Err(Error::Request("expected documents to score, behind the query or in --file".to_owned()));
    }
    let model = args.model.open_for_rows(ROWS)?;
    let (tokenizer, pooler) = (model.tokenizer.clone(), model.pooler.clone());
    let mut engine = model.into_engine()?;
    let mut scores = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let tokens = tokenizer.encode(&pooler.pair(&args.query, document)?, true)?;
        let score = embed(&mut engine, &tokens, Pooling::Rank)?.concat().first().copied().unwrap_or_default();
        scores.push((index, score));
    }
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(args.top_n.unwrap_or(usize::MAX));
    let mut out = Output::stdout();
    if args.json {
        let results = scores.iter().map(|(index, score)| json!({"index": index, "relevance_score": score}));
        return out.json(&json!({"object": "list", "results": results.collect::<Vec<_>>()}));
    }
    scores
        .iter()
        .try_for_each(|(index, score)| out.line(&format!("{score:.4}  {}", one_line(&documents[*index]))))
}
