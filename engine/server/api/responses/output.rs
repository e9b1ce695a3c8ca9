//! Answers of the Responses API: their items, whole and as events of a stream.

use super::Store;
use crate::api::logprobs::TokenLogprob;
use crate::api::parts::{AnswerParser, Part};
use crate::error::ApiError;
use crate::sse::{Encoder, EventStream};
use crate::{App, random_id};
use qernel_core::engine::{Event, FinishReason, Usage};
use qernel_core::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// An answer, with what was asked for.
#[derive(Clone, Serialize, ToSchema)]
pub struct ResponseObject {
    pub id: String,
    /// `response`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    /// `in_progress`, `completed` or `incomplete`.
    pub status: &'static str,
    /// Always false.
    pub background: bool,
    /// Always null: what fails is answered with an error.
    #[schema(required)]
    pub error: Option<Value>,
    /// Why it is incomplete.
    #[schema(required)]
    pub incomplete_details: Option<IncompleteDetails>,
    #[schema(required)]
    pub instructions: Option<String>,
    #[schema(required)]
    pub max_output_tokens: Option<usize>,
    pub metadata: BTreeMap<String, String>,
    pub model: String,
    /// Items of the types `reasoning`, `message` and `function_call`.
    pub output: Vec<Value>,
    pub parallel_tool_calls: bool,
    #[schema(required)]
    pub previous_response_id: Option<String>,
    pub reasoning: Value,
    pub store: bool,
    pub temperature: f32,
    pub text: Value,
    pub tool_choice: Value,
    pub tools: Vec<Value>,
    pub top_p: f32,
    /// `disabled`
    pub truncation: &'static str,
    #[schema(required)]
    pub usage: Option<ResponseUsage>,
    #[schema(required)]
    pub user: Option<String>,
}

/// Why an answer is incomplete.
#[derive(Clone, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`
    reason: &'static str,
}

/// Tokens that an answer took.
#[derive(Clone, Serialize, ToSchema)]
pub struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

/// Where the tokens of the prompt came from.
#[derive(Clone, Serialize, ToSchema)]
pub struct InputDetails {
    /// Tokens that were in the KV cache already.
    cached_tokens: usize,
}

/// What the tokens of the answer are.
#[derive(Clone, Serialize, ToSchema)]
pub struct OutputDetails {
    /// Tokens of thoughts.
    reasoning_tokens: usize,
}

/// An item of an answer.
enum Item {
    Thought {
        id: String,
        text: String,
    },
    Message {
        id: String,
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// `has_ended`: it was not cut off.
    Call {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
        has_ended: bool,
    },
}

impl Item {
    fn thought() -> Self {
        Self::Thought { id: random_id("rs_"), text: String::new() }
    }

    fn message() -> Self {
        Self::Message { id: random_id("msg_"), text: String::new(), logprobs: Vec::new() }
    }

    fn call(name: String) -> Self {
        let (id, call_id) = (random_id("fc_"), random_id("call_"));
        Self::Call { id, call_id, name, arguments: String::new(), has_ended: false }
    }

    fn id(&self) -> &str {
        match self {
            Self::Thought { id, .. } | Self::Message { id, .. } | Self::Call { id, .. } => id,
        }
    }

    /// What it has in `content`, if it has that.
    fn content(&self) -> Option<Value> {
        match self {
            Self::Thought { text, .. } => Some(json!({"type": "reasoning_text", "text": text})),
            Self::Message { text, logprobs, .. } => {
                Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}))
            }
            Self::Call { .. } => None,
        }
    }

    /// As JSON; one that has just begun has no content.
    fn json(&self, status: &str, has_begun: bool) -> Value {
        let content: Vec<Value> = self.content().filter(|_| !has_begun).into_iter().collect();
        match self {
            Self::Thought { id, .. } => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Self::Message { id, .. } => {
                json!({"id": id, "type": "message", "role": "assistant", "content": content, "status": status})
            }
            Self::Call { id, call_id, name, arguments, .. } => json!({
                "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status,
            }),
        }
    }
}

/// An answer while it is made.
pub struct Answering {
    app: Arc<App>,
    response: ResponseObject,
    parser: AnswerParser,
    tokenizer: Arc<Tokenizer>,
    items: Vec<Item>,
    /// The last item may go on.
    is_open: bool,
    /// Of tokens whose text has not come yet.
    logprobs: Vec<TokenLogprob>,
    /// It thought, and has said nothing since.
    is_behind_thoughts: bool,
    /// The turns before it.
    turns: Vec<Value>,
    /// Events so far.
    sequence_number: usize,
}

/// Where events go; whole answers need none.
type Out<'a> = Option<&'a mut EventStream>;

impl Answering {
    pub fn new(
        app: Arc<App>,
        response: ResponseObject,
        parser: AnswerParser,
        tokenizer: Arc<Tokenizer>,
        turns: Vec<Value>,
    ) -> Self {
        Self {
            app,
            response,
            parser,
            tokenizer,
            items: Vec::new(),
            is_open: false,
            logprobs: Vec::new(),
            is_behind_thoughts: false,
            turns,
            sequence_number: 0,
        }
    }

    /// Takes an event of the engine.
    pub fn take(&mut self, event: &Event, mut out: Out) {
        self.logprobs(event);
        for part in self.parser.event(event) {
            self.part(part, &mut out);
        }
        if self.parser.is_thinking() {
            self.logprobs.clear();
        }
        if let Event::Finished { reason, usage, .. } = event {
            self.finish(*reason, usage, &mut out);
        }
    }

    /// Takes the log-probabilities of a token that may be one of a message: none of thoughts, or of white space behind them.
    fn logprobs(&mut self, event: &Event) {
        self.is_behind_thoughts |= self.parser.is_thinking();
        let Event::Token { token, logprobs: Some(found), .. } = event else { return };
        let is_blank = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_whitespace);
        let is_between = self.is_behind_thoughts && self.tokenizer.token_bytes(*token).is_some_and(is_blank);
        if !(self.tokenizer.is_end_of_generation(*token) || self.parser.is_thinking() || is_between) {
            self.logprobs.push(TokenLogprob::new(&self.tokenizer, *token, found));
        }
    }

    /// The answer, once it is whole.
    pub fn into_response(self) -> ResponseObject {
        self.response
    }

    fn part(&mut self, part: Part, out: &mut Out) {
        match part {
            Part::Thought(text) => self.text(text, out, Item::thought, "response.reasoning_text.delta"),
            Part::Text(text) => self.text(text, out, Item::message, "response.output_text.delta"),
            Part::Call(name) => {
                self.logprobs.clear();
                self.open(Item::call(name), out);
            }
            Part::Arguments(text) => {
                self.logprobs.clear();
                if let Some(Item::Call { arguments, .. }) = self.items.last_mut() {
                    arguments.push_str(&text);
                    self.emit(out, "response.function_call_arguments.delta", json!({"delta": text}));
                }
            }
            Part::CallEnd => {
                if let Some(Item::Call { has_ended, .. }) = self.items.last_mut() {
                    *has_ended = true;
                }
                self.logprobs.clear();
                self.close("completed", out);
            }
        }
    }

    /// Adds to the text of the last item if it is one of these, or begins one.
    fn text(&mut self, more: String, out: &mut Out, begin: fn() -> Item, event: &str) {
        let new = begin();
        let is_same = |item: &Item| std::mem::discriminant(item) == std::mem::discriminant(&new);
        if !(self.is_open && self.items.last().is_some_and(is_same)) {
            self.open(new, out);
        }
        if let Some(Item::Thought { text, .. } | Item::Message { text, .. }) = self.items.last_mut() {
            text.push_str(&more);
        }
        let mut fields = json!({"content_index": 0, "delta": more});
        if let Some(Item::Message { logprobs, .. }) = self.items.last_mut() {
            self.is_behind_thoughts = false;
            fields["logprobs"] = json!(self.logprobs);
            logprobs.append(&mut self.logprobs);
        }
        self.emit(out, event, fields);
    }

    fn open(&mut self, item: Item, out: &mut Out) {
        self.close("completed", out);
        let (begun, part) = (item.json("in_progress", true), item.content());
        self.items.push(item);
        self.is_open = true;
        self.emit(out, "response.output_item.added", json!({"item": begun}));
        if let Some(part) = part {
            self.emit(out, "response.content_part.added", json!({"content_index": 0, "part": part}));
        }
    }

    /// Ends the last item. A call that did not end is incomplete, whatever ended the answer.
    fn close(&mut self, status: &str, out: &mut Out) {
        let Some(item) = self.items.last().filter(|_| self.is_open) else { return };
        let status = if let Item::Call { has_ended: false, .. } = item { "incomplete" } else { status };
        let (whole, part) = (item.json(status, false), item.content());
        let (event, mut fields) = match item {
            Item::Thought { text, .. } => ("response.reasoning_text.done", json!({"text": text})),
            Item::Message { text, logprobs, .. } => {
                ("response.output_text.done", json!({"text": text, "logprobs": logprobs}))
            }
            Item::Call { name, arguments, .. } => {
                ("response.function_call_arguments.done", json!({"name": name, "arguments": arguments}))
            }
        };
        if part.is_some() {
            fields["content_index"] = 0.into();
        }
        self.emit(out, event, fields);
        if let Some(part) = part {
            self.emit(out, "response.content_part.done", json!({"content_index": 0, "part": part}));
        }
        self.emit(out, "response.output_item.done", json!({"item": whole}));
        self.response.output.push(whole);
        self.is_open = false;
    }

    fn finish(&mut self, reason: FinishReason, usage: &Usage, out: &mut Out) {
        let is_cut = matches!(reason, FinishReason::Length | FinishReason::Context);
        if self.items.is_empty() {
            self.open(Item::message(), out);
        }
        if let Some(Item::Message { logprobs, .. }) = self.items.last_mut().filter(|_| self.is_open) {
            // Of a text that ended the answer.
            logprobs.append(&mut self.logprobs);
        }
        self.close(if is_cut { "incomplete" } else { "completed" }, out);
        self.response.status = if is_cut { "incomplete" } else { "completed" };
        self.response.incomplete_details =
            is_cut.then_some(IncompleteDetails { reason: "max_output_tokens" });
        self.response.usage = Some(ResponseUsage {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: self.parser.thought_tokens() },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        });
        if self.response.store {
            self.keep();
        }
    }

    /// Keeps the conversation for requests that go on with it.
    fn keep(&mut self) {
        let mut turns = super::items::Turns(std::mem::take(&mut self.turns));
        for item in &self.items {
            match item {
                Item::Thought { text, .. } => turns.think(text.clone()),
                Item::Message { text, .. } => turns.answer(text.clone()),
                // A call that was cut off never was one.
                Item::Call { has_ended: false, .. } => (),
                Item::Call { call_id, name, arguments, .. } => drop(turns.call(call_id, name, arguments)),
            }
        }
        let store: &Store = &self.app.responses;
        store.put(&self.response.id, &turns.0, &self.response);
    }

    /// Sends an event of the last item.
    fn emit(&mut self, out: &mut Out, kind: &str, fields: Value) {
        let Some(out) = out else { return };
        let mut event = json!({"type": kind, "sequence_number": self.sequence_number});
        let index = self.items.len().saturating_sub(1);
        if let Some(event) = event.as_object_mut() {
            if !fields["response"].is_object() {
                event.insert("output_index".into(), index.into());
                if fields["item"].is_null() {
                    event.insert("item_id".into(), self.items.get(index).map(Item::id).into());
                }
            }
            event.extend(fields.as_object().cloned().unwrap_or_default());
        }
        self.sequence_number += 1;
        out.named(kind, &event);
    }
}

impl Encoder for Answering {
    fn start(&mut self, out: &mut EventStream) {
        for kind in ["response.created", "response.in_progress"] {
            let fields = json!({"response": self.response});
            self.emit(&mut Some(out), kind, fields);
        }
    }

    fn event(&mut self, _: usize, event: Event, out: &mut EventStream) {
        self.take(&event, Some(out));
    }

    fn end(&mut self, out: &mut EventStream) {
        let kind =
            if self.response.status == "completed" { "response.completed" } else { "response.incomplete" };
        let fields = json!({"response": self.response});
        self.emit(&mut Some(out), kind, fields);
    }

    fn error(&mut self, error: ApiError, out: &mut EventStream) {
        let body = error.body;
        let event = json!({
            "type": "error", "sequence_number": self.sequence_number, "code": body.code, "message": body.message,
            "param": body.param, "error": body,
        });
        out.named("error", &event);
    }
}
