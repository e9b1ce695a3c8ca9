//! The endpoints, one file each, and what they share.

pub mod anthropic;
pub mod chat;
pub mod chat_answer;
pub mod completions;
pub mod conversation;
pub mod embeddings;
pub mod fields;
pub mod fim;
pub mod generate;
pub mod health;
pub mod infill;
pub mod logprobs;
pub mod lora;
pub mod messages;
pub mod models;
pub mod openai;
pub mod page;
pub mod parts;
pub mod prompt;
pub mod props;
pub mod rerank;
pub mod response_format;
pub mod responses;
pub mod samplers;
pub mod sglang;
pub mod tokens;
pub mod tool_calls;
pub mod tool_grammar;
pub mod tools;

use super::App;
use super::answer::Answer;
use super::engine_handle::SequenceRequest;
use super::error::{ApiError, TEMPLATE_FAILED};
use super::grammar::Grammar;
use super::models::Serving;
use super::served_model::ModelInfo;
use super::work::RequestPermit;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use conversation::Prompt;
use qernel_core::chat::thinking;
use qernel_core::engine::{Event, FinishReason, Timings, Usage};
use qernel_core::sampler::Logprobs;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Every path of the server.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(page::index))
        .route("/page/{file}", get(page::file))
        .route("/v1/generate", post(generate::generate))
        .route("/v1/completions", post(completions::completions))
        .route("/infill", post(infill::infill))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/models/load", post(models::load))
        .route("/models/unload", post(models::unload))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::tokenizer_info))
        .route("/props", get(props::props))
        .route("/lora-adapters", get(lora::list))
        .route("/slots", get(props::slots))
        .route("/server_info", get(sglang::server_info))
        .route("/get_load", get(sglang::get_load))
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(super::openapi::openapi))
}

/// 404, with what would do where that is known.
pub async fn nowhere(uri: Uri) -> Response {
    let path = uri.path();
    let message = match path.strip_prefix("/v1").unwrap_or(path) {
        known @ ("/chat/completions" | "/completions" | "/embeddings" | "/rerank" | "/models"
        | "/responses" | "/messages") => {
            format!(
                "there is nothing at this path, but at /v1{known}: the client's base URL has to end with /v1"
            )
        }
        _ => "there is nothing at this path; see /openapi.json".into(),
    };
    anthropic::respond(ApiError::refused(StatusCode::NOT_FOUND, None, message), path)
}

/// 405, in the form of the path's interface.
pub async fn no_such_method(uri: Uri) -> Response {
    let message = "this path takes another method; see /openapi.json";
    anthropic::respond(ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, None, message), uri.path())
}

/// Texts that end an answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Stop {
    One(String),
    Many(Vec<String>),
}

/// Most texts that end an answer, and their longest.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

impl Stop {
    /// The texts.
    ///
    /// # Errors
    /// 400 where they are too many, too long or empty.
    pub fn texts(stop: Option<Self>) -> Result<Vec<String>, ApiError> {
        Self::texts_of("stop", stop)
    }

    /// The texts of the field `param`.
    ///
    /// # Errors
    /// As [`Stop::texts`].
    pub fn texts_of(param: &str, stop: Option<Self>) -> Result<Vec<String>, ApiError> {
        let texts = match stop {
            None => return Ok(Vec::new()),
            Some(Self::One(text)) => vec![text],
            Some(Self::Many(texts)) => texts,
        };
        let refuse = |what: String| Err(ApiError::field(param, format!("{param}: {what}")));
        if texts.len() > MAX_STOPS {
            return refuse(format!("expected at most {MAX_STOPS} texts, found {}", texts.len()));
        }
        match texts.iter().map(String::len).find(|len| !(1..=MAX_STOP_BYTES).contains(len)) {
            Some(len) => refuse(format!("expected texts of 1 to {MAX_STOP_BYTES} bytes, found one of {len}")),
            None => Ok(texts),
        }
    }
}

impl Serving {
    /// Makes a prompt's text and tokenises it, where that may take its time.
    ///
    /// # Errors
    /// Those of `text`; 400 where it is longer than any that the context can hold. `param` is the field that it is made of.
    async fn encode(
        self: &Arc<Self>,
        permit: RequestPermit,
        param: &'static str,
        text: impl FnOnce(&ModelInfo) -> Result<String, ApiError> + Send + 'static,
    ) -> Result<(RequestPermit, Prompt), ApiError> {
        let app = Arc::clone(self);
        let encode = move || {
            let model = app.engine.model()?;
            let text = text(model).inspect_err(|error| {
                if error.body.code == Some(TEMPLATE_FAILED) {
                    app.metrics.template_failed();
                }
            })?;
            if text.len() > model.max_prompt_bytes {
                let (bytes, tokens) = (text.len(), model.max_model_len);
                let message = format!(
                    "the prompt has {bytes} bytes, but this model's maximum context length is {tokens} tokens, which \
                     never have so many; shorten the prompt or enlarge the context"
                );
                return Err(ApiError::context_length(param, message));
            }
            let in_thoughts = thinking::is_open(&text);
            Ok(Prompt { ids: model.tokenizer.encode(&text, true)?, in_thoughts })
        };
        self.work.prompt(permit, encode).await
    }

    /// Compiles a request's field `grammar`, if it has one.
    ///
    /// # Errors
    /// 400 where it cannot be used, or the answer is to go on behind its end.
    async fn gbnf(
        self: &Arc<Self>,
        permit: RequestPermit,
        source: Option<String>,
        ignore_eos: bool,
    ) -> Result<(RequestPermit, Option<Grammar>), ApiError> {
        let Some(source) = source.filter(|source| !source.is_empty()) else { return Ok((permit, None)) };
        if ignore_eos {
            let message = "ignore_eos: an answer that follows a grammar ends where that does";
            return Err(ApiError::field("ignore_eos", message));
        }
        let app = Arc::clone(self);
        let compile = move || app.engine.model()?.grammars()?.gbnf(&source).map(Some);
        self.work.grammar(permit, compile).await
    }

    /// A permit for the answers to one request.
    fn reserve(&self, param: &str, choices: usize) -> Result<RequestPermit, ApiError> {
        let max = self.config.max_choices.min(self.engine.max_unfinished());
        if !(1..=max).contains(&choices) {
            let message = format!("{param}: expected 1 to {max} answers to a request, found {choices}");
            return Err(ApiError::field(param, message));
        }
        self.permit(choices)
    }

    async fn submit(&self, permit: RequestPermit, choices: Vec<SequenceRequest>) -> Result<Answer, ApiError> {
        self.engine.submit(permit, choices, &self.config).await
    }

    /// The model that a request names, or the only one there is.
    fn model(&self, name: Option<&str>) -> Result<&ModelInfo, ApiError> {
        let model = self.engine.model()?;
        match name {
            Some(name) if self.own_name(name) != model.name => Err(models::unknown(name, model)),
            _ => Ok(model),
        }
    }
}

/// A whole answer of one sequence.
#[derive(Default)]
pub struct Choice {
    pub tokens: Vec<u32>,
    pub text: String,
    /// Of the tokens, where they were asked for.
    pub logprobs: Vec<(u32, Logprobs)>,
    /// Of the prompt's tokens but the first, where they were asked for.
    pub prompt_logprobs: Vec<Logprobs>,
    pub reason: Option<FinishReason>,
    pub usage: Usage,
    pub timings: Timings,
}

/// Waits for all of an answer.
async fn collect(mut answer: Answer, count: usize) -> Result<Vec<Choice>, ApiError> {
    let mut choices: Vec<Choice> = std::iter::repeat_with(Choice::default).take(count).collect();
    while let Some((index, event)) = answer.next().await? {
        let choice = &mut choices[index];
        choice.text += event.text();
        match event {
            Event::Prompt { logprobs, .. } => choice.prompt_logprobs = logprobs,
            Event::Token { token, logprobs, .. } => {
                choice.tokens.push(token);
                choice.logprobs.extend(logprobs.map(|logprobs| (token, logprobs)));
            }
            Event::Finished { reason, usage, timings, .. } => {
                choice.reason = Some(reason);
                choice.usage = usage;
                choice.timings = timings;
            }
        }
    }
    Ok(choices)
}
