//! `/v1/responses`: OpenAI's newer interface of conversations.

mod items;
mod output;
mod request;
mod store;

pub use items::Turns;
pub use output::ResponseObject;
pub use store::Store;

use crate::api::conversation::{Conversation, Making};
use crate::api::openai::{check_user, log_user};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorResponse};
use crate::sse::{self, ServerSentEvent};
use crate::{App, random_id};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use output::Answering;
use request::ResponsesRequest;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;

/// Answers an input, alone or behind an earlier answer.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponsesRequest, responses(
    (status = 200, description = "The answer; with `stream`, OpenAI's events.", content(
        (ResponseObject = "application/json"),
        (ServerSentEvent = "text/event-stream"),
    )),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn create(
    State(app): State<Arc<App>>,
    JsonBody(mut request): JsonBody<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    check_user("user", request.user.as_deref())?;
    let drawing = request.drawing(&asked)?;
    let (model, tokenizer) = (asked.name, Arc::clone(&asked.info.tokenizer));
    let stream = request.stream.unwrap_or(false);
    let logprobs = request.logprobs()?;
    request.check_metadata()?;
    let mut response = request.echo(random_id("resp_"), model, &drawing.sampling);
    response.store &= app.config.max_stored_responses > 0;

    let earlier = request.previous_response_id.as_deref().map(|id| earlier(&app, id)).transpose()?;
    let mut turns = Turns(earlier.unwrap_or_default());
    turns.input(std::mem::take(&mut request.input))?;
    let turns = turns.0;
    let mut conversation = Conversation {
        gbnf: request.grammar.take(),
        param: "input",
        messages: instructed(request.instructions.take(), turns.clone()),
        tools: request.tools()?,
        format: request.format()?,
        variables: request.chat_template_kwargs.take().unwrap_or_default(),
        effort: request.effort(),
        thinking_budget: None,
    };
    conversation.check(drawing.ignore_eos)?;
    let making = Making {
        drawing,
        max_tokens: request.max_output_tokens.and_then(|limit| limit.0),
        stop: Vec::new(),
        logprobs,
        prompt_logprobs: None,
        n: 1,
    };
    let permit = app.reserve("n", 1)?;
    let mut asked = conversation.ask(&app, permit, making).await?;
    log_user(request.user.as_deref());
    let mut answering =
        Answering::new(Arc::clone(&app.app), response, asked.parsers.remove(0), tokenizer, turns);
    if stream {
        return Ok(sse::respond(asked.answer, answering));
    }
    while let Some((_, event)) = asked.answer.next().await? {
        answering.take(&event, None);
    }
    Ok(Json(answering.into_response()).into_response())
}

/// Turns behind instructions. Those of a system turn that comes first join them: templates know one such turn, at the beginning.
fn instructed(instructions: Option<String>, mut turns: Vec<Value>) -> Vec<Value> {
    let Some(instructions) = instructions else { return turns };
    match turns.first_mut().filter(|turn| turn["role"] == "system") {
        Some(first) => {
            let text = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{instructions}\n\n{text}").into();
        }
        None => turns.insert(0, serde_json::json!({"role": "system", "content": instructions})),
    }
    turns
}

/// The turns up to an answer that is kept.
fn earlier(app: &App, id: &str) -> Result<Vec<Value>, ApiError> {
    app.responses.get(id).map(|entry| entry.turns()).ok_or_else(|| {
        let message = format!(
            "previous_response_id: there is no answer {id:?}: the server keeps the newest {} of those that `store` asks for; \
             send the whole conversation as `input`",
            app.config.max_stored_responses
        );
        let mut error = ApiError::field("previous_response_id", message);
        error.body.code = Some("previous_response_not_found");
        error
    })
}

fn unknown(id: &str) -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, None, format!("there is no answer {id:?}, or not any more"))
}

/// An answer that is kept.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path)), responses(
    (status = 200, description = "The answer.", body = ResponseObject),
    (status = "4XX", description = "There is none of this id (404).", body = ErrorResponse),
))]
pub async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let entry = app.responses.get(&id).ok_or_else(|| unknown(&id))?;
    Ok(Json(entry.response()).into_response())
}

/// That an answer is not kept any more.
#[derive(Serialize, ToSchema)]
pub struct Deleted {
    id: String,
    /// `response`
    object: &'static str,
    deleted: bool,
}

/// Forgets an answer that is kept.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path)), responses(
    (status = 200, description = "It is forgotten.", body = Deleted),
    (status = "4XX", description = "There is none of this id (404).", body = ErrorResponse),
))]
pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Deleted>, ApiError> {
    match app.responses.remove(&id) {
        true => Ok(Json(Deleted { id, object: "response", deleted: true })),
        false => Err(unknown(&id)),
    }
}
