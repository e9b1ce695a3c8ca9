//! `/v1/completions`: OpenAI's older interface, text to text without a template.

use super::logprobs::{self, CompletionLogprobs, CompletionWriter};
use super::models::unix_seconds;
use super::openai::{OpenAiFinish, OpenAiUsage, log_user, openai_request, token_limit};
use super::prompt::Prompt;
use super::{Stop, collect, fields};
use crate::body::JsonBody;
use crate::engine_thread::SequenceRequest;
use crate::error::{ApiError, ErrorResponse};
use crate::sse::{self, Encoder, EventStream, ServerSentEvent};
use crate::work::RequestPermit;
use crate::{App, random_id};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qernel_core::engine::{Event, Request, Usage};
use serde::Serialize;
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

openai_request! {
    /// What is to be completed.
    pub struct CompletionRequest: fields::COMPLETION {
        pub prompt: Prompt,
        /// Log-probabilities of the tokens, and of so many likeliest ones in the place of each.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        pub logprobs: Option<usize>,
    }
}

/// Tokens of an answer whose length nobody named, as in OpenAI's interface.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Completed prompts, or a chunk of them.
#[derive(Serialize, ToSchema)]
pub struct Completion {
    id: String,
    /// `text_completion`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    /// Of the whole answer. In a stream only there where it is asked for: in the last chunk, null before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OpenAiUsage>)]
    usage: Option<Option<OpenAiUsage>>,
}

/// One answer, or a piece of it.
#[derive(Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The prompt's number times `n`, and which of its answers it is.
    index: usize,
    text: String,
    /// Null unless asked for.
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    #[schema(required)]
    finish_reason: Option<OpenAiFinish>,
}

/// Completes prompts.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest, responses(
    (status = 200, description = "The answers; with `stream`, chunks of them as events.", content(
        (Completion = "application/json"),
        (ServerSentEvent = "text/event-stream"),
    )),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn completions(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let info = app.model(request.model.as_deref())?;
    let (model, tokenizer) = (info.name.clone(), &info.tokenizer);
    let logprobs = logprobs::check("logprobs", request.logprobs)?;
    let (sampling, stream, n) = (request.sampling(tokenizer)?, request.stream()?, request.n.unwrap_or(1));
    let stop = Stop::texts(request.stop)?;
    let limits = [("max_tokens", request.max_tokens), ("n_predict", request.n_predict)];
    let max_tokens = token_limit(limits, Some(DEFAULT_MAX_TOKENS))?;
    let count = request.prompt.count();
    if count == 0 {
        return Err(ApiError::field("prompt", "prompt: the list is empty"));
    }
    let mut permit = app.reserve("n", n.saturating_mul(count))?;
    let prompts = match request.prompt {
        Prompt::Ids(ids) => vec![ids],
        Prompt::IdLists(lists) => lists,
        Prompt::Text(text) => {
            let prompt;
            (permit, prompt) = plain(&app, permit, text).await?;
            vec![prompt]
        }
        Prompt::Texts(texts) => {
            let mut prompts = Vec::with_capacity(count);
            for text in texts {
                let prompt;
                (permit, prompt) = plain(&app, permit, text).await?;
                prompts.push(prompt);
            }
            prompts
        }
    };
    let choices = prompts.iter().flat_map(|prompt| {
        let stop = &stop;
        let sampling = &sampling;
        (0..n as u32).map(move |index| SequenceRequest {
            request: Request {
                sampling: sampling.clone(),
                penalize_prompt: false,
                max_tokens,
                stop: stop.clone(),
                ignore_eos: request.ignore_eos.unwrap_or(false),
                index,
                logprobs,
                ..Request::new(prompt.clone())
            },
            grammar: None,
            thinking: None,
            prompt_param: "prompt",
        })
    });
    let choices: Vec<SequenceRequest> = choices.collect();
    let total = choices.len();
    let answer = app.submit(permit, choices).await?;
    log_user(request.user.as_deref());
    let (id, created) = (random_id("cmpl-"), unix_seconds(SystemTime::now()));
    if let Some(include_usage) = stream {
        let usages = vec![Usage::default(); total];
        let writers = (0..total).map(|_| logprobs.map(|_| CompletionWriter::new(tokenizer))).collect();
        return Ok(sse::respond(answer, Chunks { id, created, model, n, include_usage, usages, writers }));
    }
    let choices = collect(answer, total).await?;
    let usage = Some(Some(OpenAiUsage::of(&choices, n)));
    let choices = choices.into_iter().enumerate().map(|(index, choice)| CompletionChoice {
        index,
        text: choice.text,
        logprobs: logprobs.map(|_| {
            let (mut writer, mut written) = (CompletionWriter::new(tokenizer), Default::default());
            choice.logprobs.iter().for_each(|(token, found)| writer.push(*token, found, &mut written));
            written
        }),
        finish_reason: choice.reason.map(OpenAiFinish::from),
    });
    let choices = choices.collect();
    Ok(Json(Completion { id, object: "text_completion", created, model, choices, usage }).into_response())
}

/// The ids of a prompt that no template made.
pub async fn plain(
    app: &Arc<App>,
    permit: RequestPermit,
    text: String,
) -> Result<(RequestPermit, Vec<u32>), ApiError> {
    let tokenizer = &app.engine.model()?.tokenizer;
    let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
    let (permit, prompt) = app.encode(permit, "prompt", |_| Ok(text)).await?;
    Ok((permit, bos.into_iter().chain(prompt.ids).collect()))
}

struct Chunks {
    id: String,
    created: u64,
    model: String,
    n: usize,
    include_usage: bool,
    usages: Vec<Usage>,
    /// Of log-probabilities, one for each choice.
    writers: Vec<Option<CompletionWriter>>,
}

impl Chunks {
    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<OpenAiUsage>) -> Completion {
        let (id, created, model) = (self.id.clone(), self.created, self.model.clone());
        let usage = self.include_usage.then_some(usage);
        Completion { id, object: "text_completion", created, model, choices, usage }
    }
}

impl Encoder for Chunks {
    fn start(&mut self, _: &mut EventStream) {}

    fn event(&mut self, index: usize, event: Event, out: &mut EventStream) {
        let mut logprobs = None;
        let (text, finish_reason) = match event {
            Event::Token { token, text, logprobs: found, .. } => {
                if let (Some(writer), Some(found)) = (&mut self.writers[index], found) {
                    writer.push(token, &found, logprobs.get_or_insert_default());
                }
                if text.is_empty() && logprobs.is_none() {
                    return;
                }
                (text, None)
            }
            Event::Finished { text, reason, usage, .. } => {
                self.usages[index] = usage;
                (text, Some(reason.into()))
            }
        };
        out.data(&self.chunk(vec![CompletionChoice { index, text, logprobs, finish_reason }], None));
    }

    fn end(&mut self, out: &mut EventStream) {
        if self.include_usage {
            out.data(&self.chunk(Vec::new(), Some(OpenAiUsage::sum(&self.usages, self.n))));
        }
        out.done();
    }
}
