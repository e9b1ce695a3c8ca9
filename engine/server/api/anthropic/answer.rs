//! Answers in Anthropic's form: their blocks, whole and as events of a stream.

use super::error::AnthropicErrorResponse;
use crate::api::conversation::Asked;
use crate::api::parts::{AnswerParser, Part};
use crate::error::ApiError;
use crate::random_id;
use crate::sse::{Encoder, EventStream};
use qernel_core::chat::thinking::{self, ThinkingParser};
use qernel_core::engine::{Event, FinishReason, Usage};
use qernel_core::tokenizer::{StreamDecoder, Tokenizer};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

/// The assistant's turn.
#[derive(Clone, Serialize, ToSchema)]
pub struct MessageObject {
    id: String,
    /// `message`
    #[serde(rename = "type")]
    kind: &'static str,
    /// `assistant`
    role: &'static str,
    model: String,
    /// Blocks of the types `thinking`, `text` and `tool_use`.
    content: Vec<Value>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    #[schema(required)]
    stop_reason: Option<&'static str>,
    /// The text that ended it, if one did.
    #[schema(required)]
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// Tokens that an answer took.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct MessageUsage {
    /// Of the prompt, but for those that were in the KV cache.
    input_tokens: usize,
    /// Always 0: what is kept costs nothing.
    cache_creation_input_tokens: usize,
    /// Tokens of the prompt that were in the KV cache already.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

/// A block of an answer.
enum Block {
    Thinking(String),
    Text(String),
    ToolUse { id: String, name: String, arguments: String },
}

impl Block {
    /// As JSON; a call that was cut off has no input that could be read.
    fn json(&self) -> Option<Value> {
        Some(match self {
            Self::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": SIGNATURE}),
            Self::Text(text) => json!({"type": "text", "text": text}),
            Self::ToolUse { id, name, arguments } => {
                let input: serde_json::Map<String, Value> = serde_json::from_str(arguments).ok()?;
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        })
    }

    /// What a stream has of it first.
    fn begun(&self) -> Value {
        match self {
            Self::Thinking(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Self::Text(_) => json!({"type": "text", "text": ""}),
            Self::ToolUse { id, name, .. } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": {}})
            }
        }
    }
}

/// Clients send a signature back with thoughts. Nothing here depends on it.
const SIGNATURE: &str = "qernel";

/// An answer while it is made.
pub struct Answering {
    message: MessageObject,
    parser: AnswerParser,
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    /// What takes thoughts, in which no stop text is found, from the answer.
    thoughts: Option<ThinkingParser>,
    tokens: Vec<u32>,
    blocks: Vec<Block>,
    /// The last block may go on.
    is_open: bool,
}

/// Where events go; whole answers need none.
type Out<'a> = Option<&'a mut EventStream>;

impl Answering {
    pub fn new(
        id: String,
        model: String,
        parser: AnswerParser,
        tokenizer: Arc<Tokenizer>,
        stop: Vec<String>,
        asked: &Asked,
    ) -> Self {
        let thoughts = asked.thoughts.clone();
        let usage = MessageUsage { input_tokens: asked.prompt.len(), ..MessageUsage::default() };
        let message = MessageObject {
            id,
            kind: "message",
            role: "assistant",
            model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage,
        };
        let (tokens, blocks) = (Vec::new(), Vec::new());
        Self { message, parser, tokenizer, stop, thoughts, tokens, blocks, is_open: false }
    }

    /// The answer, once it is whole.
    pub fn into_message(self) -> MessageObject {
        self.message
    }

    /// Takes an event of the engine.
    pub fn take(&mut self, event: &Event, mut out: Out) {
        for part in self.parser.event(event) {
            self.part(part, &mut out);
        }
        match event {
            Event::Prompt { .. } => (),
            Event::Token { token, .. } => self.tokens.extend((!self.stop.is_empty()).then_some(*token)),
            Event::Finished { reason, usage, .. } => self.finish(*reason, usage, &mut out),
        }
    }

    fn part(&mut self, part: Part, out: &mut Out) {
        match part {
            Part::Thought(text) => {
                if !(self.is_open && matches!(self.blocks.last(), Some(Block::Thinking(_)))) {
                    self.open(Block::Thinking(String::new()), out);
                }
                self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
                self.push(&text);
            }
            Part::Text(text) => {
                if !(self.is_open && matches!(self.blocks.last(), Some(Block::Text(_)))) {
                    self.open(Block::Text(String::new()), out);
                }
                self.delta(json!({"type": "text_delta", "text": text}), out);
                self.push(&text);
            }
            Part::Call(name) => {
                self.open(Block::ToolUse { id: random_id("toolu_"), name, arguments: String::new() }, out);
            }
            Part::Arguments(text) => {
                self.delta(json!({"type": "input_json_delta", "partial_json": text}), out);
                self.push(&text);
            }
            Part::CallEnd => self.close(out),
        }
    }

    fn push(&mut self, more: &str) {
        match self.blocks.last_mut() {
            Some(Block::Thinking(text) | Block::Text(text) | Block::ToolUse { arguments: text, .. }) => {
                text.push_str(more)
            }
            None => (),
        }
    }

    fn index(&self) -> usize {
        self.blocks.len().saturating_sub(1)
    }

    fn delta(&self, delta: Value, out: &mut Out) {
        if let Some(out) = out {
            let index = self.index();
            out.named(
                "content_block_delta",
                &json!({"type": "content_block_delta", "index": index, "delta": delta}),
            );
        }
    }

    fn open(&mut self, block: Block, out: &mut Out) {
        self.close(out);
        self.blocks.push(block);
        self.is_open = true;
        if let Some(out) = out {
            let (index, block) = (self.blocks.len() - 1, self.blocks[self.blocks.len() - 1].begun());
            let event = json!({"type": "content_block_start", "index": index, "content_block": block});
            out.named("content_block_start", &event);
        }
    }

    /// Ends the last block.
    fn close(&mut self, out: &mut Out) {
        let Some(block) = self.blocks.last().filter(|_| self.is_open) else { return };
        self.message.content.extend(block.json());
        if matches!(block, Block::Thinking(_)) {
            self.delta(json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        if let Some(out) = out {
            out.named("content_block_stop", &json!({"type": "content_block_stop", "index": self.index()}));
        }
        self.is_open = false;
    }

    fn finish(&mut self, reason: FinishReason, usage: &Usage, out: &mut Out) {
        self.close(out);
        let stop = if reason == FinishReason::Stop { self.stopped_by() } else { None };
        self.message.stop_reason = Some(match reason {
            FinishReason::Length | FinishReason::Context => "max_tokens",
            _ if stop.is_some() => "stop_sequence",
            _ if self.message.content.iter().any(|block| block["type"] == "tool_use") => "tool_use",
            _ => "end_turn",
        });
        self.message.stop_sequence = stop;
        self.message.usage = MessageUsage {
            input_tokens: usage.prompt_tokens - usage.cached_tokens,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
        };
    }

    /// The text that ended the answer, if one did: the one that is complete first.
    fn stopped_by(&self) -> Option<String> {
        self.tokens.last().filter(|&&token| !self.tokenizer.is_end_of_generation(token))?;
        let mut decoder = StreamDecoder::new(Arc::clone(&self.tokenizer), true);
        let mut text: String = self.tokens.iter().map(|&token| decoder.push(token)).collect();
        text += &decoder.finish();
        if let Some(mut thoughts) = self.thoughts.clone() {
            let parts = [thoughts.push(&text), thoughts.finish()].concat();
            let said = |part| if let thinking::Part::Said(text) = part { text } else { String::new() };
            text = parts.into_iter().map(said).collect();
        }
        let end = |stop: &&String| text.find(stop.as_str()).map(|start| (start + stop.len(), start));
        self.stop.iter().filter(|stop| end(stop).is_some()).min_by_key(end).cloned()
    }
}

impl Encoder for Answering {
    fn start(&mut self, out: &mut EventStream) {
        out.named("message_start", &json!({"type": "message_start", "message": self.message}));
    }

    fn event(&mut self, _: usize, event: Event, out: &mut EventStream) {
        self.take(&event, Some(out));
    }

    fn end(&mut self, out: &mut EventStream) {
        let MessageObject { stop_reason, stop_sequence, usage, .. } = &self.message;
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        out.named("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage}));
        out.named("message_stop", &json!({"type": "message_stop"}));
    }

    fn error(&mut self, error: ApiError, out: &mut EventStream) {
        out.named("error", &AnthropicErrorResponse::new(error));
    }
}
