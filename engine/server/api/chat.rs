//! `/v1/chat/completions`: OpenAI's interface of conversations.

use super::logprobs::{self, ChatLogprobs, TokenLogprob};
use super::models::unix_seconds;
use super::openai::{OpenAiFinish, OpenAiUsage, openai_request};
use super::{Stop, collect};
use crate::chat::ChatTemplate;
use crate::generate::{Event, Request, Usage};
use crate::server::body::{JsonBody, Unsupported};
use crate::server::engine_thread::{ModelInfo, Wanted};
use crate::server::error::{ApiError, ErrorResponse};
use crate::server::grammar::Grammar;
use crate::server::sse::{self, Encoder, EventStream};
use crate::server::{App, random_id};
use crate::tokenizer::Tokenizer;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

openai_request! {
    /// A conversation to be continued.
    pub struct ChatRequest {
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// Most tokens of an answer. [default: until the model stops or the context is full]
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<usize>,
        /// The older name of `max_completion_tokens`.
        #[schema(minimum = 1)]
        pub max_tokens: Option<usize>,
        /// Whether to answer with the log-probabilities of the tokens. [default: false]
        pub logprobs: Option<bool>,
        /// How many likeliest tokens to show in the place of each.
        #[schema(maximum = 20)]
        pub top_logprobs: Option<usize>,
        pub response_format: Option<ResponseFormat>,
        /// Functions that the model may ask for: the chat template tells the model of them.
        pub tools: Option<Vec<Tool>>,
        /// `auto`, or `none` to leave the tools out. [default: auto]
        pub tool_choice: Option<ToolChoice>,
        /// Not supported.
        pub logit_bias: Option<Unsupported>,
    }
}

/// What the answer must be.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Anything.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// JSON that satisfies a schema.
    JsonSchema { json_schema: JsonSchema },
}

/// A schema, always followed strictly.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchema {
    /// A name for people.
    #[allow(dead_code)]
    name: String,
    /// A description for people.
    #[allow(dead_code)]
    description: Option<String>,
    /// The schema; without one, any object.
    schema: Option<Map<String, Value>>,
    /// The answer always follows the schema.
    #[allow(dead_code)]
    strict: Option<bool>,
}

impl ResponseFormat {
    /// The grammar of the answer, if it must have one.
    fn grammar(self, model: &ModelInfo) -> Result<Option<Grammar>, ApiError> {
        match self {
            Self::Text {} => Ok(None),
            Self::JsonObject {} => model.grammars()?.object().map(Some),
            Self::JsonSchema { json_schema } => match json_schema.schema {
                Some(schema) => model.grammars()?.schema(schema).map(Some),
                None => model.grammars()?.object().map(Some),
            },
        }
    }
}

/// One turn of a conversation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // Fields that are not supported are only there to be refused.
pub struct ChatMessage {
    role: Role,
    /// What was said. Only an assistant's turn with tool calls may do without.
    content: Option<Content>,
    /// Functions that the assistant asked for.
    tool_calls: Option<Vec<ToolCall>>,
    /// Which call a tool's turn answers.
    tool_call_id: Option<String>,
    /// Not supported.
    name: Option<Unsupported>,
    /// Not supported.
    refusal: Option<Unsupported>,
    /// Not supported.
    annotations: Option<Unsupported>,
    /// Not supported.
    audio: Option<Unsupported>,
    /// Not supported.
    function_call: Option<Unsupported>,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The same as `system`.
    Developer,
    System,
    User,
    Assistant,
    Tool,
}

/// What was said, in one piece or several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of text parts")]
pub enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

/// A piece of what was said. Images and sound are not supported.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: TextKind,
    text: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TextKind {
    Text,
}

/// A function that the model may ask for.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    #[serde(rename = "type")]
    kind: FunctionKind,
    function: Function,
}

#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionKind {
    Function,
}

/// What a function is for and what it takes.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// JSON schema of its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Map<String, Value>>,
}

/// A call that the assistant asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    id: Option<String>,
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    function: CalledFunction,
}

/// A function and its arguments.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CalledFunction {
    name: String,
    /// JSON, as text.
    arguments: String,
}

/// Whether the model may call tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoice {
    Auto,
    None,
}

/// A continued conversation.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletion {
    id: String,
    /// `chat.completion`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: OpenAiUsage,
}

/// One answer.
#[derive(Serialize, ToSchema)]
pub struct ChatChoice {
    index: usize,
    message: AnswerMessage,
    /// Null unless asked for.
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: OpenAiFinish,
}

/// The assistant's turn.
#[derive(Serialize, ToSchema)]
pub struct AnswerMessage {
    /// `assistant`
    role: &'static str,
    content: String,
    /// Always null: the server does not judge.
    #[schema(required)]
    refusal: Option<String>,
}

/// A piece of an answer, as an event's data.
#[derive(Serialize, ToSchema)]
pub struct ChatChunk {
    id: String,
    /// `chat.completion.chunk`
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<ChunkChoice>,
    /// Of the whole answer: only in the last chunk, and only where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<OpenAiUsage>,
}

/// A piece of one answer.
#[derive(Serialize, ToSchema)]
pub struct ChunkChoice {
    index: usize,
    delta: Delta,
    /// Null unless asked for.
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    #[schema(required)]
    finish_reason: Option<OpenAiFinish>,
}

/// What a piece adds.
#[derive(Default, Serialize, ToSchema)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// The model's template.
///
/// # Errors
/// 400 where it has none.
pub fn template(model: &ModelInfo) -> Result<&ChatTemplate, ApiError> {
    let message = "the model file has no chat template; use /v1/completions, or /v1/generate with `raw`";
    model
        .template
        .as_ref()
        .ok_or_else(|| ApiError::refused(StatusCode::BAD_REQUEST, Some("no_template"), message))
}

/// Continues a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest, responses(
    (status = 200, description = "The answers; with `stream`, chunks (`ChatChunk`) as events.", content(
        (ChatCompletion = "application/json"),
        (String = "text/event-stream"),
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
    let info = app.model(request.model.as_deref())?;
    let (model, tokenizer) = (info.name.clone(), Arc::clone(&info.tokenizer));
    let (sampling, stream, n) = (request.sampling(), request.stream()?, request.n.unwrap_or(1));
    let max_tokens = match (request.max_completion_tokens, request.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            let message = format!("max_tokens: {old} contradicts max_completion_tokens, which is {new}");
            return Err(ApiError::field("max_tokens", message));
        }
        (new, old) => new.or(old),
    };
    let stop = Stop::texts(request.stop)?;
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, count) => logprobs::check("top_logprobs", Some(count.unwrap_or(0)))?,
        (false, None) => None,
        (false, Some(_)) => {
            let message = "top_logprobs: set `logprobs` too, or leave it out";
            return Err(ApiError::field("top_logprobs", message));
        }
    };
    let ignore_eos = request.ignore_eos.unwrap_or(false);
    let format = request.response_format.unwrap_or(ResponseFormat::Text {});
    if ignore_eos && !matches!(format, ResponseFormat::Text {}) {
        let message = "ignore_eos: an answer that must be JSON ends where the JSON does";
        return Err(ApiError::field("ignore_eos", message));
    }
    if request.messages.is_empty() {
        return Err(ApiError::field("messages", "messages: a conversation has at least one message"));
    }
    let messages = request.messages.into_iter().enumerate();
    let messages: Vec<Value> =
        messages.map(|(i, message)| message.for_template(i)).collect::<Result<_, _>>()?;
    let tools = match request.tool_choice {
        Some(ToolChoice::None) => Vec::new(),
        _ => request.tools.unwrap_or_default(),
    };

    let room = app.reserve("n", n)?;
    let blocking = Arc::clone(&app);
    let prompt = app.blocking(move || {
        let model = blocking.engine.model()?;
        let tools: Vec<Value> = tools.iter().map(|tool| json!(tool)).collect();
        let text = template(model)?.render(&messages, &tools, true)?;
        Ok((model.tokenizer.encode(&text, true)?, format.grammar(model)?))
    });
    let (prompt, grammar) = prompt.await?;
    let choice = |index| Wanted {
        request: Request {
            sampling: sampling.clone(),
            penalize_prompt: false,
            max_tokens,
            stop: stop.clone(),
            ignore_eos,
            index,
            logprobs,
            ..Request::new(prompt.clone())
        },
        grammar: grammar.clone(),
    };
    let answer = app.submit(room, (0..n as u32).map(choice).collect()).await?;

    let (id, created) = (random_id("chatcmpl-"), unix_seconds(SystemTime::now()));
    if let Some(include_usage) = stream {
        let usages = vec![Usage::default(); n];
        let chunks = Chunks { id, created, model, include_usage, usages, tokenizer, ignore_eos };
        return Ok(sse::respond(answer, chunks));
    }
    let choices = collect(answer, n).await?;
    let usage = OpenAiUsage::of(&choices, n);
    let choices = choices.into_iter().enumerate().map(|(index, choice)| ChatChoice {
        index,
        message: AnswerMessage { role: "assistant", content: choice.text, refusal: None },
        logprobs: logprobs.map(|_| {
            let found = choice.logprobs.iter();
            let found = found.filter(|(token, _)| ignore_eos || !tokenizer.is_end_of_generation(*token));
            let content = found.map(|(token, found)| TokenLogprob::new(&tokenizer, *token, found)).collect();
            ChatLogprobs { content, refusal: None }
        }),
        finish_reason: choice.reason.map_or(OpenAiFinish::Stop, OpenAiFinish::from),
    });
    let choices = choices.collect();
    Ok(Json(ChatCompletion { id, object: "chat.completion", created, model, choices, usage }).into_response())
}

impl ChatMessage {
    /// The message as templates written for Hugging Face's transformers expect it.
    fn for_template(self, index: usize) -> Result<Value, ApiError> {
        let refuse = |field: &str, what: &str| {
            let param = format!("messages[{index}].{field}");
            let message = format!("{param}: {what}");
            Err(ApiError::field(param, message))
        };
        let role = match self.role {
            Role::Developer | Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|part| part.text).collect(),
            None if self.role == Role::Assistant && self.tool_calls.is_some() => String::new(),
            None => return refuse("content", "expected a string or a list of text parts, found nothing"),
        };
        let mut message = Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())]);
        if let Some(calls) = self.tool_calls {
            if self.role != Role::Assistant {
                return refuse("tool_calls", "only the assistant calls tools");
            }
            let mut rendered = Vec::with_capacity(calls.len());
            for (i, call) in calls.into_iter().enumerate() {
                let Ok(arguments) = serde_json::from_str::<Value>(&call.function.arguments) else {
                    return refuse(&format!("tool_calls[{i}].function.arguments"), "expected JSON as text");
                };
                let function = json!({"name": call.function.name, "arguments": arguments});
                rendered.push(json!({"id": call.id, "type": "function", "function": function}));
            }
            message.insert("tool_calls".into(), rendered.into());
        }
        if let Some(id) = self.tool_call_id {
            if self.role != Role::Tool {
                return refuse("tool_call_id", "only a tool's message answers a call");
            }
            message.insert("tool_call_id".into(), id.into());
        }
        Ok(message.into())
    }
}

struct Chunks {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    usages: Vec<Usage>,
    tokenizer: Arc<Tokenizer>,
    ignore_eos: bool,
}

impl Chunks {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<OpenAiUsage>) -> ChatChunk {
        let (id, created, model) = (self.id.clone(), self.created, self.model.clone());
        ChatChunk { id, object: "chat.completion.chunk", created, model, choices, usage }
    }
}

impl Encoder for Chunks {
    fn start(&mut self, out: &mut EventStream) {
        for index in 0..self.usages.len() {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            out.data(
                &self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None),
            );
        }
    }

    fn event(&mut self, index: usize, event: Event, out: &mut EventStream) {
        let mut logprobs = None;
        let (text, finish_reason) = match event {
            Event::Token { token, text, logprobs: found, .. } => {
                // The token that ends an answer is no part of it.
                let found = found.filter(|_| self.ignore_eos || !self.tokenizer.is_end_of_generation(token));
                if text.is_empty() && found.is_none() {
                    return;
                }
                let content = found.iter().map(|found| TokenLogprob::new(&self.tokenizer, token, found));
                logprobs =
                    found.is_some().then(|| ChatLogprobs { content: content.collect(), refusal: None });
                (text, None)
            }
            Event::Finished { text, reason, usage, .. } => {
                self.usages[index] = usage;
                (text, Some(reason.into()))
            }
        };
        let delta = Delta { role: None, content: (!text.is_empty()).then_some(text) };
        out.data(&self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason }], None));
    }

    fn end(&mut self, out: &mut EventStream) {
        if self.include_usage {
            out.data(&self.chunk(Vec::new(), Some(OpenAiUsage::sum(&self.usages, 1.max(self.usages.len())))));
        }
        out.done();
    }
}
