//! `/v1/generate`: the engine's own interface, with the names and defaults of the command line.

use super::logprobs::{self, TokenLogprob};
use super::prompt::plain;
use super::samplers::sampled_request;
use super::{Choice, Stop, collect, fields, openai};
use crate::App;
use crate::body::JsonBody;
use crate::engine_handle::SequenceRequest;
use crate::error::{ApiError, ErrorResponse};
use crate::models::Serving;
use crate::number::{self, TokenLimit};
use crate::served_model::ModelInfo;
use crate::sse::{self, Encoder, EventStream, ServerSentEvent};
use crate::work::RequestPermit;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qernel_core::chat::Message;
use qernel_core::engine::{Event, FinishReason, Request, Timings, Usage};
use qernel_core::tokenizer::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

sampled_request! {
    /// What is to be generated. Sampling fields have llama.cpp's names, meaning, order and defaults.
    pub struct GenerateRequest: fields::GENERATE, Llama {
        /// Which model answers. [default: the only one, or the one that was loaded last]
        model: Option<String>,
        /// The prompt as text. Either this or `ids`.
        prompt: Option<String>,
        /// The prompt as token ids, taken as they are.
        #[serde(default, deserialize_with = "number::whole_list_if_any")]
        ids: Option<Vec<u32>>,
        /// Takes `prompt` as it is instead of as the user's message in the model's chat template. [default: false]
        raw: Option<bool>,
        /// System message of the chat template.
        system: Option<String>,
        /// Most tokens to generate; -1 for as many as the context has room for. [default: until the model stops or the context is full]
        max_tokens: Option<TokenLimit>,
        /// llama.cpp's name of `max_tokens`.
        n_predict: Option<TokenLimit>,
        /// Texts that end the answer; they are no part of it.
        stop: Option<Stop>,
        /// Whether to answer with Server-Sent Events: `token` for every token, `end` after the last. [default: false]
        stream: Option<bool>,
        /// Log-probabilities of the tokens, and of so many likeliest ones in the place of each.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "number::whole")]
        logprobs: Option<usize>,
    }
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub struct GenerateResponse {
    text: String,
    /// The tokens of the answer, with the one that ended it.
    ids: Vec<u32>,
    /// Of `ids`, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprob>>,
    finish_reason: FinishReason,
    /// The seed that gives this answer again.
    seed: u64,
    usage: Usage,
    timings: Timings,
}

/// Data of the event `token`.
#[derive(Serialize, ToSchema)]
pub struct TokenEvent {
    /// Which token of the answer it is, from 0.
    index: usize,
    id: u32,
    /// Text that is certain with this token: whole characters, often none.
    text: String,
    /// Where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<TokenLogprob>,
}

/// Data of the event `end`.
#[derive(Serialize, ToSchema)]
pub struct EndEvent {
    /// Text that was withheld until now.
    text: String,
    finish_reason: FinishReason,
    /// The seed that gives this answer again.
    seed: u64,
    usage: Usage,
    timings: Timings,
}

impl GenerateRequest {
    /// The ids of the prompt.
    async fn prompt(
        &mut self,
        app: &Arc<Serving>,
        permit: RequestPermit,
    ) -> Result<(RequestPermit, Vec<u32>), ApiError> {
        let raw = self.raw.unwrap_or(false);
        if self.system.is_some() && (raw || self.ids.is_some()) {
            return Err(ApiError::field("system", "system: a prompt without template has no system message"));
        }
        match (self.prompt.take(), self.ids.take()) {
            (None, Some(ids)) => Ok((permit, ids)),
            (Some(prompt), None) if raw => plain(app, permit, prompt).await,
            (Some(prompt), None) => {
                let system = self.system.take().map(|text| Message::new("system", text));
                let messages: Vec<_> = system.into_iter().chain([Message::new("user", prompt)]).collect();
                let render = move |model: &ModelInfo| {
                    Ok(super::conversation::template(model)?.render(&messages, &[], true)?)
                };
                let (permit, prompt) = app.encode(permit, "prompt", render).await?;
                Ok((permit, prompt.ids))
            }
            _ => Err(ApiError::field(
                "prompt",
                "prompt: expected either `prompt` or `ids`, found both or neither",
            )),
        }
    }
}

/// Text from a prompt.
#[utoipa::path(post, path = "/v1/generate", tag = "qernel", request_body = GenerateRequest, responses(
    (status = 200, description = "The answer; with `stream`, as events.", content(
        (GenerateResponse = "application/json"),
        (ServerSentEvent = "text/event-stream"),
    )),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn generate(
    State(app): State<Arc<App>>,
    JsonBody(mut request): JsonBody<GenerateRequest>,
) -> Result<Response, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    let drawing = request.drawing(&asked)?;
    let limits = [("max_tokens", request.max_tokens), ("n_predict", request.n_predict)];
    let max_tokens = openai::token_limit(limits, None)?;
    let prompt_param = if request.ids.is_some() { "ids" } else { "prompt" };
    let seed = drawing.sampling.seed;
    let logprobs = logprobs::check("logprobs", request.logprobs)?;
    let stop = Stop::texts(request.stop.take())?;
    let permit = app.reserve("n", 1)?;
    let (permit, grammar) = app.gbnf(permit, request.grammar.take(), drawing.ignore_eos).await?;
    let (permit, prompt) = request.prompt(&app, permit).await?;
    let answer = app
        .submit(
            permit,
            vec![SequenceRequest {
                request: Request { max_tokens, stop, logprobs, ..drawing.request(prompt) },
                grammar,
                thinking: None,
                prompt_param,
            }],
        )
        .await?;
    let tokenizer = Arc::clone(&asked.info.tokenizer);
    if request.stream.unwrap_or(false) {
        return Ok(sse::respond(answer, TokenEvents { index: 0, seed, tokenizer }));
    }
    let Choice { tokens, text, logprobs: found, reason, usage, timings, .. } =
        collect(answer, 1).await?.remove(0);
    let found = found.iter().map(|(token, logprobs)| TokenLogprob::new(&tokenizer, *token, logprobs));
    let response = GenerateResponse {
        text,
        ids: tokens,
        logprobs: logprobs.map(|_| found.collect()),
        finish_reason: reason.unwrap_or(FinishReason::Cancelled),
        seed,
        usage,
        timings,
    };
    Ok(Json(response).into_response())
}

struct TokenEvents {
    index: usize,
    seed: u64,
    tokenizer: Arc<Tokenizer>,
}

impl Encoder for TokenEvents {
    fn start(&mut self, _: &mut EventStream) {}

    fn event(&mut self, _: usize, event: Event, out: &mut EventStream) {
        match event {
            Event::Prompt { .. } => (),
            Event::Token { token, text, logprobs, .. } => {
                let logprobs = logprobs.map(|logprobs| TokenLogprob::new(&self.tokenizer, token, &logprobs));
                out.named("token", &TokenEvent { index: self.index, id: token, text, logprobs });
                self.index += 1;
            }
            Event::Finished { text, reason, usage, timings, .. } => {
                let seed = self.seed;
                out.named("end", &EndEvent { text, finish_reason: reason, seed, usage, timings });
            }
        }
    }

    fn end(&mut self, _: &mut EventStream) {}
}
