//! Qwen3-Reranker, whose folder is that of a model that continues texts: how near a document is to a query is whether it would say `yes`
//! or `no` next. As GGUF has it, these two rows of the head are a classifier, and the prompt is a template of the file.

use super::config::{Metadata, Model};
use super::files::Files;
use crate::error::{Error, Result};
use crate::gguf::Assembled;
use crate::gguf::write::Value;
use crate::weights::{CLASSIFIER, EMBEDDING, HEAD};
use std::sync::Arc;

/// The labels, each a token.
const LABELS: [&str; 2] = ["yes", "no"];
/// llama.cpp's number of scores.
const RANK: u32 = 4;
/// The prompt that the models were trained on, with the instruction of their publisher.
const TEMPLATE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct \
    provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, \
    retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n\
    <|im_start|>assistant\n<think>\n\n</think>\n\n";

/// Adds classifier and template where the folder is a reranker's: nothing but its name says so.
pub(super) fn add(
    files: &Files,
    model: &Model,
    metadata: &mut Metadata,
    tensors: &mut Vec<Assembled>,
) -> Result<()> {
    let name = files.name().unwrap_or_default().to_ascii_lowercase();
    let architecture = model.architecture.name;
    if architecture != "qwen3" || !name.contains("reranker") {
        return Ok(());
    }
    let ids = LABELS.map(|label| token(metadata, label));
    let named = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    let (Some(head), [Some(yes), Some(no)]) = (named(HEAD).or(named(EMBEDDING)), ids) else {
        tracing::warn!(
            "the folder is named a reranker's, but has no tokens `yes` and `no`: it makes no scores"
        );
        return Ok(());
    };
    let &[rows, cols] = &head.shape[..] else { return Ok(()) };
    // Fits: the file holds so many rows.
    let num_rows = rows as usize;
    if yes.max(no) >= num_rows {
        let text = format!("{}: {rows} rows, but the tokens `yes` and `no` are {yes} and {no}", head.name);
        return Err(Error::Folder(text));
    }
    let make = Arc::clone(&head.make);
    let rows = move || {
        let data = make()?;
        let row_bytes = data.len() / num_rows;
        let row = |id: usize| &data[id * row_bytes..][..row_bytes];
        Ok([row(yes), row(no)].concat().into())
    };
    let (ggml_type, shape) = (head.ggml_type, vec![LABELS.len() as u64, cols]);
    tensors.push(Assembled { name: CLASSIFIER[0].to_owned(), shape, ggml_type, make: Arc::new(rows) });
    let labels = Value::from(&LABELS.map(str::to_owned)[..]);
    metadata.retain(|(key, _)| *key != format!("{architecture}.pooling_type"));
    metadata.push((format!("{architecture}.pooling_type"), RANK.into()));
    metadata.push((format!("{architecture}.classifier.output_labels"), labels));
    metadata.push(("tokenizer.chat_template.rerank".to_owned(), TEMPLATE.into()));
    Ok(())
}

/// The id of a token of the vocabulary.
fn token(metadata: &Metadata, text: &str) -> Option<usize> {
    let tokens = metadata.iter().find(|(key, _)| key == "tokenizer.ggml.tokens")?;
    let Value::Array(_, tokens) = &tokens.1 else { return None };
    tokens.iter().position(|token| matches!(token, Value::String(bytes) if bytes == text.as_bytes()))
}
