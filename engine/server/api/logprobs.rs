//! Log-probabilities in the forms that the endpoints have for them.

use crate::error::ApiError;
use qernel_core::sampler::Logprobs;
use qernel_core::tokenizer::{StreamDecoder, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Most tokens beside the drawn one.
const MAX_TOP: usize = 20;

/// The count, if it is not too large.
///
/// # Errors
/// 400, by the name of the field.
pub fn check(field: &str, count: Option<usize>) -> Result<Option<usize>, ApiError> {
    match count {
        Some(count) if count > MAX_TOP => {
            let message = format!("{field}: expected at most {MAX_TOP} tokens, found {count}");
            Err(ApiError::field(field, message))
        }
        count => Ok(count),
    }
}

/// A token and how likely the model thought it, before penalties, filters and temperature.
#[derive(Clone, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text; what is no whole character is shown as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been drawn.
#[derive(Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// Log-probabilities of a prompt as vLLM writes them: of each token by its id, with those of the likeliest ones in its place; null for the
/// first token.
#[derive(Clone, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Vec<Option<std::collections::HashMap<String, PromptLogprob>>>)]
pub struct PromptLogprobs(Vec<Option<BTreeMap<u32, PromptLogprob>>>);

/// A token in a place of the prompt.
#[derive(Clone, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// Natural logarithm of its probability.
    logprob: f32,
    /// Its place among all tokens: 1 is the likeliest.
    rank: usize,
    /// Its text; what is no whole character is shown as U+FFFD.
    decoded_token: String,
}

impl PromptLogprobs {
    /// Those of the tokens of a prompt, of each of which but the first something is known, with `count` likeliest ones in the place of each.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], found: &[Logprobs], count: usize) -> Self {
        let entry = |id, logprob, rank| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            let decoded_token = String::from_utf8_lossy(bytes).into_owned();
            (id, PromptLogprob { logprob: finite(logprob), rank, decoded_token })
        };
        let place = |(&token, found): (&u32, &Logprobs)| {
            let top = found.top.iter().take(count).zip(1..);
            let top = top.map(|(&(id, logprob), rank)| entry(id, logprob, rank));
            Some(top.chain([entry(token, found.sampled, found.rank)]).collect())
        };
        Self(std::iter::once(None).chain(prompt.iter().skip(1).zip(found).map(place)).collect())
    }

    /// The count of likeliest tokens that a request asks for, which a stream has no place for.
    ///
    /// # Errors
    /// 400 where there are too many, or in a stream.
    pub fn check(count: Option<usize>, stream: bool) -> Result<Option<usize>, ApiError> {
        const FIELD: &str = "prompt_logprobs";
        if count.is_some() && stream {
            let message = format!("{FIELD}: only whole answers have them; leave it or `stream` out");
            return Err(ApiError::field(FIELD, message));
        }
        check(FIELD, count)
    }
}

/// JSON has no infinity; OpenAI writes this.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

impl TokenLogprob {
    pub fn new(tokenizer: &Tokenizer, token: u32, logprobs: &Logprobs) -> Self {
        let name = |token| {
            let bytes = tokenizer.token_bytes(token).unwrap_or_default().to_vec();
            (String::from_utf8_lossy(&bytes).into_owned(), bytes)
        };
        let top = logprobs.top.iter().map(|&(id, logprob)| {
            let (token, bytes) = name(id);
            TopLogprob { token, logprob: finite(logprob), bytes }
        });
        let (text, bytes) = name(token);
        Self { token: text, logprob: finite(logprobs.sampled), bytes, top_logprobs: top.collect() }
    }
}

/// Log-probabilities of a chat's answer.
#[derive(Default, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// Log-probabilities of a completion: lists of one entry a token.
#[derive(Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// Token to log-probability; null for the first token of a prompt.
    #[schema(value_type = Vec<Option<std::collections::HashMap<String, f32>>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters of the text before the token.
    pub text_offset: Vec<usize>,
}

/// Writes [`CompletionLogprobs`], all at once or piece by piece.
pub struct CompletionWriter {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
    offset: usize,
}

impl CompletionWriter {
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let decoder = StreamDecoder::new(Arc::clone(tokenizer), true);
        Self { tokenizer: Arc::clone(tokenizer), decoder, offset: 0 }
    }

    /// Adds the next token.
    pub fn push(&mut self, token: u32, logprobs: &Logprobs, to: &mut CompletionLogprobs) {
        self.push_any(token, Some(logprobs), to);
    }

    /// Adds a token of which nothing is known where it is the first of all.
    pub fn push_any(&mut self, token: u32, logprobs: Option<&Logprobs>, to: &mut CompletionLogprobs) {
        let named = |logprobs| TokenLogprob::new(&self.tokenizer, token, logprobs);
        let nothing = Logprobs { sampled: 0.0, rank: 1, top: Vec::new() };
        let TokenLogprob { token: text, logprob, top_logprobs, .. } = named(logprobs.unwrap_or(&nothing));
        let top = top_logprobs.into_iter().map(|top| (top.token, top.logprob.into())).collect();
        to.tokens.push(text);
        to.token_logprobs.push(logprobs.map(|_| logprob));
        to.top_logprobs.push(logprobs.map(|_| top));
        to.text_offset.push(self.offset);
        self.offset += self.decoder.push(token).chars().count();
    }
}
