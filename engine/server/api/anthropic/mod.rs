//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's interface of conversations.

mod answer;
mod blocks;
mod error;
mod request;

pub use answer::MessageObject;
pub use error::{AnthropicErrorResponse, respond};

use crate::api::conversation::{Conversation, Making};
use crate::api::openai::log_user;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::sse::{self, ServerSentEvent};
use crate::{App, random_id};
use answer::Answering;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use error::AnthropicError;
use qernel_core::chat::ENABLE_THINKING;
use request::MessagesRequest;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// A body, or why it is none that can be answered.
type Body = Result<JsonBody<MessagesRequest>, ApiError>;

/// Continues a conversation.
#[utoipa::path(post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesRequest, responses(
    (status = 200, description = "The answer; with `stream`, Anthropic's events.", content(
        (MessageObject = "application/json"),
        (ServerSentEvent = "text/event-stream"),
    )),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = AnthropicErrorResponse),
    (status = 500, description = "The device failed.", body = AnthropicErrorResponse),
    (status = 503, description = "The model is being loaded.", body = AnthropicErrorResponse),
    (status = 504, description = "It took too long.", body = AnthropicErrorResponse),
))]
pub async fn messages(State(app): State<Arc<App>>, body: Body) -> Result<Response, AnthropicError> {
    Ok(answer(app, body?.0).await?)
}

async fn answer(app: Arc<App>, mut request: MessagesRequest) -> Result<Response, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    let stream = request.stream.unwrap_or(false);
    let stop = request.stops()?;
    let making = Making {
        drawing: request.drawing(&asked)?,
        max_tokens: request.max_tokens.and_then(|limit| limit.0),
        stop: stop.clone(),
        logprobs: None,
        prompt_logprobs: None,
        n: 1,
    };
    let (model, tokenizer) = (asked.name, Arc::clone(&asked.info.tokenizer));
    let user = request.user()?;
    let conversation = conversation(request, making.drawing.ignore_eos)?;
    let permit = app.reserve("n", 1)?;
    let mut asked = conversation.ask(&app, permit, making).await?;
    log_user(user.as_deref());
    let id = random_id("msg_");
    let parser = asked.parsers.remove(0);
    let mut answering = Answering::new(id, model, parser, tokenizer, stop, &asked);
    if stream {
        return Ok(sse::respond(asked.answer, answering));
    }
    while let Some((_, event)) = asked.answer.next().await? {
        answering.take(&event, None);
    }
    Ok(Json(answering.into_message()).into_response())
}

fn conversation(mut request: MessagesRequest, ignore_eos: bool) -> Result<Conversation, ApiError> {
    let mut variables = request.chat_template_kwargs.take().unwrap_or_default();
    if request.enables_thinking() {
        variables.entry(ENABLE_THINKING).or_insert(true.into());
    }
    let mut conversation = Conversation {
        gbnf: request.grammar.take(),
        param: "messages",
        tools: request.tools()?,
        format: request.format()?,
        effort: request.effort(),
        thinking_budget: request.thinking_budget()?,
        variables,
        messages: blocks::turns(request.system.take(), request.messages)?,
    };
    conversation.check(ignore_eos)?;
    Ok(conversation)
}

/// Tokens of a prompt.
#[derive(Serialize, ToSchema)]
pub struct TokenCount {
    input_tokens: usize,
}

/// Counts the tokens of a conversation, as the model would get it.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = MessagesRequest, responses(
    (status = 200, description = "How many.", body = TokenCount),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = AnthropicErrorResponse),
    (status = 503, description = "The model is being loaded.", body = AnthropicErrorResponse),
    (status = 504, description = "It took too long.", body = AnthropicErrorResponse),
))]
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    body: Body,
) -> Result<Json<TokenCount>, AnthropicError> {
    let request = body?.0;
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    // What an answer would be refused for is refused here too.
    let drawing = request.drawing(&asked)?;
    request.user()?;
    let conversation = conversation(request, drawing.ignore_eos)?;
    let permit =
        app.work.reserve().inspect_err(|_| app.metrics.rejected(crate::metrics::Rejection::QueueFull))?;
    let (_permit, prompt) = conversation.encode(&app, permit).await?;
    Ok(Json(TokenCount { input_tokens: prompt.ids.len() }))
}
