//! `/v1/chat/completions`: OpenAI's interface of conversations.

use super::chat_answer::{ChatCompletion, Writing};
use super::conversation::{Asked, Conversation, Making};
use super::logprobs::{self, PromptLogprobs};
use super::messages::ChatMessage;
use super::openai::{check_user, log_user, openai_request, token_limit};
use super::response_format::ResponseFormat;
use super::tools::{Tool, ToolChoice, ToolUse};
use super::{Stop, fields};
use crate::App;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorResponse};
use crate::number::{ThinkingLimit, TokenLimit};
use crate::sse::{self, ServerSentEvent};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qernel_core::chat::{ENABLE_THINKING, Effort};
use serde_json::{Map, Value};
use std::sync::Arc;

openai_request! {
    /// A conversation to be continued.
    pub struct ChatRequest: fields::CHAT {
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// The newer name of `max_tokens`. [default: until the model stops or the context is full]
        pub max_completion_tokens: Option<TokenLimit>,
        /// Whether to answer with the log-probabilities of the tokens. [default: false]
        pub logprobs: Option<bool>,
        /// How many likeliest tokens to show in the place of each.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        pub top_logprobs: Option<usize>,
        /// Log-probabilities of the prompt's tokens, and of so many likeliest ones in the place of each. vLLM's; not in a stream.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        pub prompt_logprobs: Option<usize>,
        pub response_format: Option<ResponseFormat>,
        /// Functions that the model may call: the chat template tells the model of them.
        pub tools: Option<Vec<Tool>>,
        /// Whether it calls them, and which. [default: auto]
        pub tool_choice: Option<ToolChoice>,
        /// Whether an answer may have more than one call. [default: true]
        pub parallel_tool_calls: Option<bool>,
        /// Variables of the chat template, such as Qwen3's `enable_thinking`. Not OpenAI's.
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// How much the model is to think, in the nearest terms that its chat template knows. [default: the template's]
        pub reasoning_effort: Option<Effort>,
        /// Whether the model is to think, if its chat template leaves that open. Not OpenAI's. [default: the template's]
        pub enable_thinking: Option<bool>,
        /// Tokens after which thoughts are closed; 0 thinks nothing, -1 leaves it to the model. llama.cpp's. [default: the server's]
        pub thinking_budget_tokens: Option<ThinkingLimit>,
        /// Another name of `thinking_budget_tokens`.
        pub thinking_budget: Option<ThinkingLimit>,
    }
}

/// Continues a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest, responses(
    (status = 200, description = "The answers; with `stream`, chunks (`ChatChunk`) as events.", content(
        (ChatCompletion = "application/json"),
        (ServerSentEvent = "text/event-stream"),
    )),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    check_user("user", request.user.as_deref())?;
    let (drawing, stream, n) = (request.drawing(&asked)?, request.stream()?, request.n.unwrap_or(1));
    let (model, tokenizer) = (asked.name, Arc::clone(&asked.info.tokenizer));
    let limits = [
        ("max_completion_tokens", request.max_completion_tokens),
        ("max_tokens", request.max_tokens),
        ("n_predict", request.n_predict),
    ];
    let max_tokens = token_limit(limits, None)?;
    let stop = Stop::texts(request.stop)?;
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, count) => logprobs::check("top_logprobs", Some(count.unwrap_or(0)))?,
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            let message = "top_logprobs: set `logprobs` too, or leave it out";
            return Err(ApiError::field("top_logprobs", message));
        }
    };
    let prompt_logprobs = PromptLogprobs::check(request.prompt_logprobs, stream.is_some())?;
    let ignore_eos = drawing.ignore_eos;
    let messages = request.messages.into_iter().enumerate();
    let mut variables = request.chat_template_kwargs.unwrap_or_default();
    if let Some(enable) = request.enable_thinking {
        variables.entry(ENABLE_THINKING).or_insert(enable.into());
    }
    let mut conversation = Conversation {
        param: "messages",
        tools: ToolUse::new(request.tools, request.tool_choice, request.parallel_tool_calls)?,
        gbnf: request.grammar,
        format: request.response_format.map_or(Ok(None), ResponseFormat::schema)?,
        messages: messages.map(|(i, message)| message.for_template(i)).collect::<Result<_, _>>()?,
        variables,
        effort: request.reasoning_effort,
        thinking_budget: thinking_budget(request.thinking_budget_tokens, request.thinking_budget)?,
    };
    conversation.check(ignore_eos)?;

    let permit = app.reserve("n", n)?;
    let has_tools = conversation.tools.is_some();
    let making = Making { drawing, max_tokens, stop, logprobs, prompt_logprobs, n };
    let Asked { answer, parsers, prompt, .. } = conversation.ask(&app, permit, making).await?;
    log_user(request.user.as_deref());

    let writing = Writing::new(model, parsers, tokenizer, has_tools, ignore_eos, logprobs.is_some());
    if let Some(include_usage) = stream {
        return Ok(sse::respond(answer, writing.chunks(include_usage)));
    }
    let whole = writing.whole(answer, prompt_logprobs.map(|count| (prompt, count))).await?;
    Ok(Json(whole).into_response())
}

/// The bound of thoughts that a request's fields name, `Some(None)` for none.
///
/// # Errors
/// 400 where they contradict each other.
fn thinking_budget(
    tokens: Option<ThinkingLimit>,
    budget: Option<ThinkingLimit>,
) -> Result<Option<Option<usize>>, ApiError> {
    let is_given = tokens.is_some() || budget.is_some();
    let limit = token_limit([("thinking_budget_tokens", tokens), ("thinking_budget", budget)], None)?;
    Ok(is_given.then_some(limit))
}
