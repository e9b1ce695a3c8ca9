//! `/v1/completions`: OpenAI's older interface, text to text without a template.

use super::logprobs::{self, CompletionLogprobs, CompletionWriter, PromptLogprobs};
use super::models::unix_seconds;
use super::openai::{OpenAiFinish, OpenAiUsage, check_user, log_user, openai_request, token_limit};
use super::prompt::{Encoded, Prompt};
use super::{Choice, Stop, collect, fields};
use crate::body::JsonBody;
use crate::engine_handle::SequenceRequest;
use crate::error::{ApiError, ErrorResponse};
use crate::sse::{self, Encoder, EventStream, ServerSentEvent};
use crate::{App, random_id};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qernel_core::engine::{Event, Request, Usage};
use qernel_core::sampler::Logprobs;
use qernel_core::tokenizer::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

openai_request! {
    /// What is to be completed.
    pub struct CompletionRequest: fields::COMPLETION {
        pub prompt: Prompt,
        /// What comes behind the answer: the model fills in the middle, where it knows how. [default: nothing]
        pub suffix: Option<String>,
        /// Whether the answer begins with the prompt, with its log-probabilities if there are any. [default: false]
        pub echo: Option<bool>,
        /// Makes so many answers to each prompt, and shows the `n` whose tokens are the likeliest on the mean. [default: n]
        #[schema(minimum = 1)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        pub best_of: Option<usize>,
        /// Log-probabilities of the tokens, and of so many likeliest ones in the place of each.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        pub logprobs: Option<usize>,
        /// Log-probabilities of the prompt's tokens, and of so many likeliest ones in the place of each. vLLM's; not in a stream.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        pub prompt_logprobs: Option<usize>,
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
    /// Where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
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
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    let logprobs = logprobs::check("logprobs", request.logprobs)?;
    check_user("user", request.user.as_deref())?;
    let (drawing, stream, n) = (request.drawing(&asked)?, request.stream()?, request.n.unwrap_or(1));
    let (model, tokenizer) = (asked.name, &asked.info.tokenizer);
    let stop = Stop::texts(request.stop)?;
    let limits = [("max_tokens", request.max_tokens), ("n_predict", request.n_predict)];
    let max_tokens = token_limit(limits, Some(DEFAULT_MAX_TOKENS))?;
    let suffix = request.suffix.filter(|suffix| !suffix.is_empty());
    let echo = request.echo.unwrap_or(false);
    let best_of = best_of(request.best_of, n, stream.is_some())?;
    let prompt_logprobs = PromptLogprobs::check(request.prompt_logprobs, stream.is_some())?;
    if suffix.is_some() && echo && logprobs.is_some() {
        let message = "echo: of a prompt with a `suffix` there are no log-probabilities; leave `logprobs` or `suffix` out";
        return Err(ApiError::field("echo", message));
    }
    let count = request.prompt.count();
    if count == 0 {
        return Err(ApiError::field("prompt", "prompt: the list is empty"));
    }
    let param = if best_of > n { "best_of" } else { "n" };
    let permit = app.reserve(param, best_of.saturating_mul(count))?;
    let (permit, grammar) = app.gbnf(permit, request.grammar, drawing.ignore_eos).await?;
    let (permit, prompts) = request.prompt.encode(&app, permit, suffix).await?;
    let echo = Echo::new(echo, tokenizer, prompts)?;
    // What both fields ask for is found at once.
    let scored = prompt_logprobs.max(logprobs.filter(|_| echo.is_wanted));
    let is_stream = stream.is_some();
    let choices = echo.prompts.iter().flat_map(|prompt| {
        let stop = &stop;
        let drawing = &drawing;
        let grammar = &grammar;
        (0..best_of as u32).map(move |index| SequenceRequest {
            request: Request {
                max_tokens,
                stop: stop.clone(),
                index,
                // What the best are chosen by.
                logprobs: logprobs.or((best_of > n).then_some(0)),
                // Of all answers to a prompt one is enough, but that in a stream each begins by itself.
                prompt_logprobs: scored.filter(|_| index == 0 || is_stream),
                ..drawing.request(prompt.ids.clone())
            },
            grammar: grammar.clone(),
            thinking: None,
            prompt_param: "prompt",
        })
    });
    let choices: Vec<SequenceRequest> = choices.collect();
    let total = choices.len();
    let answer = app.submit(permit, choices).await?;
    log_user(request.user.as_deref());
    let (id, created) = (random_id("cmpl-"), unix_seconds(SystemTime::now()));
    let writer = || logprobs.map(|_| CompletionWriter::new(tokenizer));
    if let Some(include_usage) = stream {
        let usages = vec![Usage::default(); total];
        let writers = (0..total).map(|_| writer()).collect();
        let chunks = Chunks { id, created, model, n, include_usage, usages, writers, echo };
        return Ok(sse::respond(answer, chunks));
    }
    let mut choices = collect(answer, total).await?;
    let usage = Some(Some(OpenAiUsage::of(&choices, best_of)));
    let of_prompts: Vec<Vec<Logprobs>> = (choices.iter_mut().step_by(best_of))
        .map(|choice| std::mem::take(&mut choice.prompt_logprobs))
        .collect();
    let choices = best(choices, best_of, n).into_iter().enumerate().map(|(index, choice)| {
        let (prompt, found) = (&echo.prompts[index / n], &of_prompts[index / n]);
        let logprobs = writer().map(|mut writer| {
            let mut written = CompletionLogprobs::default();
            echo.write(index / n, found, &mut writer, &mut written);
            choice.logprobs.iter().for_each(|(token, found)| writer.push(*token, found, &mut written));
            written
        });
        let text = echo.texts[index / n].clone() + &choice.text;
        let prompt_logprobs =
            prompt_logprobs.map(|count| PromptLogprobs::new(tokenizer, &prompt.ids, found, count));
        let finish_reason = choice.reason.map(OpenAiFinish::from);
        CompletionChoice { index, text, logprobs, finish_reason, prompt_logprobs }
    });
    let choices = choices.collect();
    Ok(Json(Completion { id, object: "text_completion", created, model, choices, usage }).into_response())
}

/// How many answers are made for the `n` that are shown.
///
/// # Errors
/// 400 where they are fewer, or more than are shown in a stream.
fn best_of(best_of: Option<usize>, n: usize, stream: bool) -> Result<usize, ApiError> {
    let refuse = |what: String| Err(ApiError::field("best_of", format!("best_of: {what}")));
    match best_of {
        Some(count) if count < n => refuse(format!("expected at least n, which is {n}, found {count}")),
        Some(count) if count > n && stream => refuse(format!(
            "expected n, which is {n}, in a stream, found {count}: which answers are the best shows at their ends"
        )),
        count => Ok(count.unwrap_or(n)),
    }
}

/// Of each `best_of` answers the `n` whose tokens are the likeliest on the mean, the best first.
fn best(mut choices: Vec<Choice>, best_of: usize, n: usize) -> Vec<Choice> {
    if best_of == n {
        return choices;
    }
    let mean = |choice: &Choice| {
        let sum: f64 = choice.logprobs.iter().map(|(_, found)| f64::from(found.sampled)).sum();
        sum / choice.logprobs.len().max(1) as f64
    };
    for of_prompt in choices.chunks_mut(best_of) {
        of_prompt.sort_by(|one, other| mean(other).total_cmp(&mean(one)));
    }
    choices.into_iter().enumerate().filter(|(i, _)| i % best_of < n).map(|(_, choice)| choice).collect()
}

/// What answers begin with, where that is wanted: their prompts, and how likely the model thought those.
struct Echo {
    is_wanted: bool,
    prompts: Vec<Encoded>,
    /// Of each prompt, nothing where that is not wanted.
    texts: Vec<String>,
}

impl Echo {
    /// # Errors
    /// 400 where a prompt is to be shown that has tokens without a text.
    fn new(is_wanted: bool, tokenizer: &Tokenizer, prompts: Vec<Encoded>) -> Result<Self, ApiError> {
        let text = |prompt: &Encoded| match &prompt.text {
            _ if !is_wanted => Ok(String::new()),
            Some(text) => Ok(text.clone()),
            None => {
                let fault = |error| ApiError::field("prompt", format!("prompt: {error}"));
                tokenizer.decode(&prompt.ids, false).map_err(fault)
            }
        };
        let texts = prompts.iter().map(text).collect::<Result<_, _>>()?;
        Ok(Self { is_wanted, prompts, texts })
    }

    /// Writes what is known of the tokens of a prompt but the first, where that is wanted.
    fn write(
        &self,
        prompt: usize,
        found: &[Logprobs],
        writer: &mut CompletionWriter,
        to: &mut CompletionLogprobs,
    ) {
        let Encoded { ids, added, .. } = &self.prompts[prompt];
        if self.is_wanted {
            let found = std::iter::once(None).chain(found.iter().map(Some));
            // What the vocabulary puts first is no part of the text.
            let tokens = ids.iter().zip(found).skip(*added);
            tokens.for_each(|(&token, found)| writer.push_any(token, found, to));
        }
    }
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
    echo: Echo,
}

impl CompletionChoice {
    /// A piece of an answer.
    fn piece(
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<OpenAiFinish>,
    ) -> Self {
        Self { index, text, logprobs, finish_reason, prompt_logprobs: None }
    }
}

impl Chunks {
    /// Shows the prompt of an answer, where that is wanted.
    fn echo(&mut self, index: usize, found: Option<&[Logprobs]>, out: &mut EventStream) {
        let text = self.echo.texts[index / self.n].clone();
        if text.is_empty() {
            return;
        }
        let logprobs = self.writers[index].as_mut().zip(found).map(|(writer, found)| {
            let mut written = CompletionLogprobs::default();
            self.echo.write(index / self.n, found, writer, &mut written);
            written
        });
        out.data(&self.chunk(vec![CompletionChoice::piece(index, text, logprobs, None)], None));
    }

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<OpenAiUsage>) -> Completion {
        let (id, created, model) = (self.id.clone(), self.created, self.model.clone());
        let usage = self.include_usage.then_some(usage);
        Completion { id, object: "text_completion", created, model, choices, usage }
    }
}

impl Encoder for Chunks {
    fn start(&mut self, out: &mut EventStream) {
        // Where the prompt's tokens are scored, it is shown once they are.
        for index in 0..self.usages.len() {
            if self.writers[index].is_none() {
                self.echo(index, None, out);
            }
        }
    }

    fn event(&mut self, index: usize, event: Event, out: &mut EventStream) {
        let mut logprobs = None;
        let (text, finish_reason) = match event {
            Event::Prompt { logprobs, .. } => return self.echo(index, Some(&logprobs), out),
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
        out.data(&self.chunk(vec![CompletionChoice::piece(index, text, logprobs, finish_reason)], None));
    }

    fn end(&mut self, out: &mut EventStream) {
        if self.include_usage {
            out.data(&self.chunk(Vec::new(), Some(OpenAiUsage::sum(&self.usages, self.n))));
        }
        out.done();
    }
}
