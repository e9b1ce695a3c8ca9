//! `/v1/chat/completions`: OpenAI's interface of conversations.

use super::logprobs::{self, ChatLogprobs, TokenLogprob};
use super::messages::ChatMessage;
use super::models::unix_seconds;
use super::openai::{OpenAiFinish, OpenAiUsage, log_user, openai_request, token_limit};
use super::response_format::ResponseFormat;
use super::tool_calls::{CallParser, Piece};
use super::tools::{Tool, ToolCall, ToolCallDelta, ToolChoice, ToolUse};
use super::{Stop, collect, fields};
use crate::body::JsonBody;
use crate::engine_thread::{ModelInfo, SequenceRequest};
use crate::error::{ApiError, ErrorResponse};
use crate::number::TokenLimit;
use crate::sse::{self, Encoder, EventStream, ServerSentEvent};
use crate::{App, random_id};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use qernel_core::chat::ChatTemplate;
use qernel_core::engine::{Event, FinishReason, Request, Usage};
use qernel_core::error::Error;
use qernel_core::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

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
        pub response_format: Option<ResponseFormat>,
        /// Functions that the model may call: the chat template tells the model of them.
        pub tools: Option<Vec<Tool>>,
        /// Whether it calls them, and which. [default: auto]
        pub tool_choice: Option<ToolChoice>,
        /// Whether an answer may have more than one call. [default: true]
        pub parallel_tool_calls: Option<bool>,
        /// Variables of the chat template, such as Qwen3's `enable_thinking`. Not OpenAI's.
        pub chat_template_kwargs: Option<Map<String, Value>>,
    }
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
    /// Null where the model said nothing but calls.
    #[schema(required)]
    content: Option<String>,
    /// Always null: the server does not judge.
    #[schema(required)]
    refusal: Option<String>,
    /// Only there if the model calls tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false, min_items = 1)]
    tool_calls: Vec<ToolCall>,
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
    /// Only there where it is asked for: of the whole answer in the last chunk, null before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OpenAiUsage>)]
    usage: Option<Option<OpenAiUsage>>,
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
    /// Each call comes whole, in one piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCallDelta; 1]>,
}

/// Variables that templates get from the server.
const RESERVED: [&str; 5] = ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];

/// The model's template.
///
/// # Errors
/// 400 where it has none that can be used.
pub fn template(model: &ModelInfo) -> Result<&ChatTemplate, ApiError> {
    model.template.as_ref().map_err(|error| {
        let message = format!("{error}; use /v1/completions, or /v1/generate with `raw`");
        ApiError::refused(StatusCode::BAD_REQUEST, Some("no_template"), message)
    })
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
    let info = app.model(request.model.as_deref())?;
    let (model, tokenizer) = (info.name.clone(), Arc::clone(&info.tokenizer));
    let (sampling, stream, n) = (request.sampling()?, request.stream()?, request.n.unwrap_or(1));
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
    let ignore_eos = request.ignore_eos.unwrap_or(false);
    let tools = ToolUse::new(request.tools, request.tool_choice, request.parallel_tool_calls)?;
    let format = request.response_format.map_or(Ok(None), ResponseFormat::schema)?;
    if format.is_some() && tools.as_ref().is_some_and(ToolUse::is_forced) {
        let message =
            "tool_choice: an answer that must be a call cannot be JSON too, as `response_format` asks";
        return Err(ApiError::field("tool_choice", message));
    }
    if ignore_eos && (format.is_some() || tools.as_ref().is_some_and(ToolUse::is_constrained)) {
        let message =
            "ignore_eos: an answer that must be JSON, or whose calls are constrained, ends where those do";
        return Err(ApiError::field("ignore_eos", message));
    }
    if request.messages.is_empty() {
        return Err(ApiError::field("messages", "messages: a conversation has at least one message"));
    }
    let messages = request.messages.into_iter().enumerate();
    let messages: Vec<Value> =
        messages.map(|(i, message)| message.for_template(i)).collect::<Result<_, _>>()?;
    let variables = request.chat_template_kwargs.unwrap_or_default();
    if let Some(name) = RESERVED.into_iter().find(|name| variables.contains_key(*name)) {
        let param = format!("chat_template_kwargs.{name}");
        let message = format!("{param}: the server gives the template this variable; leave it out");
        return Err(ApiError::field(param, message));
    }

    let permit = app.reserve("n", n)?;
    let has_tools = tools.is_some();
    let calls = tools.as_ref().filter(|tools| tools.is_constrained() || format.is_some());
    let calls = calls.map(ToolUse::calls).transpose()?;
    let render = move |model: &ModelInfo| render(template(model)?, &messages, tools.as_ref(), &variables);
    let (mut permit, prompt) = app.encode(permit, "messages", render).await?;
    let mut grammar = None;
    if calls.is_some() || format.is_some() {
        let of_thread = Arc::clone(&app);
        let compile = move || {
            let grammars = of_thread.engine.model()?.grammars()?;
            match (calls, format) {
                (Some(calls), format) => calls.grammar(grammars, format).map(Some),
                (None, Some((param, schema))) => grammars.schema(param, schema).map(Some),
                (None, None) => Ok(None),
            }
        };
        (permit, grammar) = app.work.grammar(permit, compile).await?;
    }
    let choice = |index| SequenceRequest {
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
        prompt_param: "messages",
    };
    let answer = app.submit(permit, (0..n as u32).map(choice).collect()).await?;
    log_user(request.user.as_deref());

    let (id, created) = (random_id("chatcmpl-"), unix_seconds(SystemTime::now()));
    let parser = |_| ChoiceParser { calls: has_tools.then(CallParser::default), num_calls: 0 };
    let parsers = (0..n).map(parser);
    if let Some(include_usage) = stream {
        let (parsers, usages) = (parsers.collect(), vec![Usage::default(); n]);
        let chunks = Chunks { id, created, model, include_usage, usages, parsers, tokenizer, ignore_eos };
        return Ok(sse::respond(answer, chunks));
    }
    let choices = collect(answer, n).await?;
    let usage = OpenAiUsage::of(&choices, n);
    let choices =
        choices.into_iter().zip(parsers).enumerate().map(|(index, (choice, mut parser))| ChatChoice {
            index,
            message: parser.message(choice.text),
            logprobs: logprobs.map(|_| {
                let found = choice.logprobs.iter();
                let found = found.filter(|(token, _)| ignore_eos || !tokenizer.is_end_of_generation(*token));
                let content =
                    found.map(|(token, found)| TokenLogprob::new(&tokenizer, *token, found)).collect();
                ChatLogprobs { content, refusal: None }
            }),
            finish_reason: parser.finish(choice.reason.unwrap_or(FinishReason::Stop)),
        });
    let choices = choices.collect();
    Ok(Json(ChatCompletion { id, object: "chat.completion", created, model, choices, usage }).into_response())
}

/// The prompt of a conversation.
///
/// # Errors
/// 400 where the template refuses the conversation, or leaves out the tools or what was called.
fn render(
    template: &ChatTemplate,
    messages: &[Value],
    tools: Option<&ToolUse>,
    variables: &Map<String, Value>,
) -> Result<String, ApiError> {
    let for_template = tools.map(ToolUse::for_template).unwrap_or_default();
    let render = |messages: &[Value], tools: &[_]| template.render_with(messages, tools, true, variables);
    let text = render(messages, &for_template).map_err(|error| match error {
        Error::Request(message) => ApiError::field("messages", message),
        error => error.into(),
    })?;
    let refuse = |param: String| {
        let message = format!(
            "{param}: the model's chat template leaves them out, so the model would not know of them; do so too, or take \
             a model that was made for tools"
        );
        Err(ApiError::field(param, message))
    };
    if tools.is_some() && render(messages, &[]).is_ok_and(|without| without == text) {
        return refuse("tools".into());
    }
    let has_calls = |message: &Value| message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
    if let Some(i) = messages.iter().position(has_calls) {
        let mut without = messages.to_vec();
        without[i]["tool_calls"] = Value::Null;
        if render(&without, &for_template).is_ok_and(|without| without == text) {
            return refuse(format!("messages[{i}].tool_calls"));
        }
    }
    Ok(text)
}

/// One answer's text on its way to content and calls.
struct ChoiceParser {
    /// Where the request has tools.
    calls: Option<CallParser>,
    /// Calls so far.
    num_calls: usize,
}

impl ChoiceParser {
    /// What the next piece of text makes certain, in order; with `end` all of it.
    fn deltas(&mut self, text: String, end: bool) -> Vec<Delta> {
        let pieces = match &mut self.calls {
            None if text.is_empty() => Vec::new(),
            None => vec![Piece::Text(text)],
            Some(calls) => {
                let mut pieces = calls.push(&text);
                if end {
                    pieces.extend(calls.finish());
                }
                pieces
            }
        };
        let deltas = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Blank(_) => None,
            Piece::Text(text) => Some(Delta { content: Some(text), ..Delta::default() }),
            Piece::Call(call) => {
                self.num_calls += 1;
                let call = ToolCallDelta::new(self.num_calls - 1, call);
                Some(Delta { tool_calls: Some([call]), ..Delta::default() })
            }
        });
        deltas.collect()
    }

    /// The whole answer.
    fn message(&mut self, text: String) -> AnswerMessage {
        let (mut content, mut tool_calls) = (String::new(), Vec::new());
        for delta in self.deltas(text, true) {
            content += &delta.content.unwrap_or_default();
            tool_calls.extend(delta.tool_calls.into_iter().flatten().map(ToolCall::from));
        }
        let content = (!content.is_empty() || tool_calls.is_empty()).then_some(content);
        AnswerMessage { role: "assistant", content, refusal: None, tool_calls }
    }

    /// Why the answer ended.
    fn finish(&self, reason: FinishReason) -> OpenAiFinish {
        match reason.into() {
            OpenAiFinish::Stop if self.num_calls > 0 => OpenAiFinish::ToolCalls,
            reason => reason,
        }
    }
}

struct Chunks {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    usages: Vec<Usage>,
    parsers: Vec<ChoiceParser>,
    tokenizer: Arc<Tokenizer>,
    ignore_eos: bool,
}

impl Chunks {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<OpenAiUsage>) -> ChatChunk {
        let (id, created, model) = (self.id.clone(), self.created, self.model.clone());
        let usage = self.include_usage.then_some(usage);
        ChatChunk { id, object: "chat.completion.chunk", created, model, choices, usage }
    }
}

impl Encoder for Chunks {
    fn start(&mut self, out: &mut EventStream) {
        for (index, parser) in self.parsers.iter().enumerate() {
            // An answer of nothing but calls has no content, not even an empty one.
            let content = parser.calls.is_none().then(String::new);
            let delta = Delta { role: Some("assistant"), content, tool_calls: None };
            out.data(
                &self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None),
            );
        }
    }

    fn event(&mut self, index: usize, event: Event, out: &mut EventStream) {
        let mut logprobs = None;
        let (mut deltas, mut finish_reason) = match event {
            Event::Token { token, text, logprobs: found, .. } => {
                // The token that ends an answer is no part of it.
                let found = found.filter(|_| self.ignore_eos || !self.tokenizer.is_end_of_generation(token));
                logprobs = found.map(|found| {
                    let content = vec![TokenLogprob::new(&self.tokenizer, token, &found)];
                    ChatLogprobs { content, refusal: None }
                });
                (self.parsers[index].deltas(text, false), None)
            }
            Event::Finished { text, reason, usage, .. } => {
                self.usages[index] = usage;
                let deltas = self.parsers[index].deltas(text, true);
                (deltas, Some(self.parsers[index].finish(reason)))
            }
        };
        if deltas.is_empty() && (logprobs.is_some() || finish_reason.is_some()) {
            deltas.push(Delta::default());
        }
        let count = deltas.len();
        for (i, delta) in deltas.into_iter().enumerate() {
            let finish_reason = finish_reason.take_if(|_| i + 1 == count);
            let choice = ChunkChoice { index, delta, logprobs: logprobs.take(), finish_reason };
            out.data(&self.chunk(vec![choice], None));
        }
    }

    fn end(&mut self, out: &mut EventStream) {
        if self.include_usage {
            out.data(&self.chunk(Vec::new(), Some(OpenAiUsage::sum(&self.usages, 1.max(self.usages.len())))));
        }
        out.done();
    }
}
