//! Answers of `/v1/chat/completions`, whole and as chunks.

use super::logprobs::{ChatLogprobs, PromptLogprobs, TokenLogprob};
use super::models::unix_seconds;
use super::openai::{OpenAiFinish, OpenAiUsage};
use super::parts::{AnswerParser, Part};
use super::tools::{ToolCall, ToolCallDelta};
use crate::answer::Answer;
use crate::error::ApiError;
use crate::random_id;
use crate::sse::{Encoder, EventStream};
use qernel_core::engine::{Event, FinishReason, Usage};
use qernel_core::sampler::Logprobs;
use qernel_core::tokenizer::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use std::time::SystemTime;
use utoipa::ToSchema;

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
    /// Where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
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
    /// What it thought before, where its chat template knows of thoughts. Not OpenAI's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    reasoning_content: Option<String>,
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
    /// What it thinks. Not OpenAI's.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// A piece of a call: its name first, then its arguments as they come.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCallDelta; 1]>,
}

/// What answers are written with.
pub struct Writing {
    id: String,
    created: u64,
    model: String,
    parsers: Vec<AnswerParser>,
    usages: Vec<Usage>,
    tokenizer: Arc<Tokenizer>,
    has_tools: bool,
    ignore_eos: bool,
    has_logprobs: bool,
}

impl Writing {
    /// Of answers that these parsers take apart.
    pub fn new(
        model: String,
        parsers: Vec<AnswerParser>,
        tokenizer: Arc<Tokenizer>,
        has_tools: bool,
        ignore_eos: bool,
        has_logprobs: bool,
    ) -> Self {
        let (id, created) = (random_id("chatcmpl-"), unix_seconds(SystemTime::now()));
        let usages = vec![Usage::default(); parsers.len()];
        Self { id, created, model, parsers, usages, tokenizer, has_tools, ignore_eos, has_logprobs }
    }

    /// Chunks of the answers.
    pub fn chunks(self, include_usage: bool) -> impl Encoder {
        Chunks { writing: self, include_usage }
    }

    /// The whole answers, and the prompt's log-probabilities where it is given, with so many likeliest tokens.
    ///
    /// # Errors
    /// What kept them from being completed.
    pub async fn whole(
        mut self,
        mut answer: Answer,
        scored: Option<(Vec<u32>, usize)>,
    ) -> Result<ChatCompletion, ApiError> {
        let mut prompt_logprobs = None;
        let choice = |index| ChatChoice {
            index,
            message: AnswerMessage::default(),
            logprobs: self.has_logprobs.then(ChatLogprobs::default),
            finish_reason: OpenAiFinish::Stop,
        };
        let mut choices: Vec<ChatChoice> = (0..self.parsers.len()).map(choice).collect();
        while let Some((index, event)) = answer.next().await? {
            let choice = &mut choices[index];
            for part in self.parsers[index].event(&event) {
                choice.message.push(part);
            }
            match event {
                Event::Prompt { logprobs, .. } => {
                    let of_prompt = |(prompt, count): &(Vec<u32>, usize)| {
                        PromptLogprobs::new(&self.tokenizer, prompt, &logprobs, *count)
                    };
                    prompt_logprobs = scored.as_ref().map(of_prompt);
                }
                Event::Token { token, logprobs, .. } => {
                    if let (Some(all), Some(found)) = (&mut choice.logprobs, self.logprob(token, logprobs)) {
                        all.content.push(found);
                    }
                }
                Event::Finished { reason, usage, .. } => {
                    self.usages[index] = usage;
                    choice.finish_reason = self.finish(index, reason);
                    choice.message.end();
                }
            }
        }
        let usage = self.usage();
        Ok(ChatCompletion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            choices,
            usage,
            prompt_logprobs,
        })
    }

    /// How likely a token was; the one that ends an answer is no part of it.
    fn logprob(&self, token: u32, found: Option<Logprobs>) -> Option<TokenLogprob> {
        let found = found.filter(|_| self.ignore_eos || !self.tokenizer.is_end_of_generation(token))?;
        Some(TokenLogprob::new(&self.tokenizer, token, &found))
    }

    /// Why an answer ended.
    fn finish(&self, index: usize, reason: FinishReason) -> OpenAiFinish {
        match reason.into() {
            OpenAiFinish::Stop if self.parsers[index].num_calls() > 0 => OpenAiFinish::ToolCalls,
            reason => reason,
        }
    }

    fn usage(&self) -> OpenAiUsage {
        let thoughts = self.parsers.iter().map(AnswerParser::thought_tokens).sum();
        OpenAiUsage::sum(&self.usages, self.usages.len().max(1)).with_thoughts(thoughts)
    }
}

impl Default for AnswerMessage {
    fn default() -> Self {
        Self {
            role: "assistant",
            content: None,
            reasoning_content: None,
            refusal: None,
            tool_calls: Vec::new(),
        }
    }
}

impl AnswerMessage {
    fn push(&mut self, part: Part) {
        match part {
            Part::Thought(text) => self.reasoning_content.get_or_insert_default().push_str(&text),
            Part::Text(text) => self.content.get_or_insert_default().push_str(&text),
            Part::Call(name) => self.tool_calls.push(ToolCall::new(name)),
            Part::Arguments(text) => {
                if let Some(call) = self.tool_calls.last_mut() {
                    call.push(&text);
                }
            }
            Part::CallEnd => (),
        }
    }

    /// An answer without calls has content, if an empty one.
    fn end(&mut self) {
        if self.tool_calls.is_empty() {
            self.content.get_or_insert_default();
        }
    }
}

struct Chunks {
    writing: Writing,
    include_usage: bool,
}

impl Chunks {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<OpenAiUsage>) -> ChatChunk {
        let Writing { id, created, model, .. } = &self.writing;
        let usage = self.include_usage.then_some(usage);
        ChatChunk {
            id: id.clone(),
            object: "chat.completion.chunk",
            created: *created,
            model: model.clone(),
            choices,
            usage,
        }
    }

    /// What an event adds.
    fn deltas(&mut self, index: usize, event: &Event) -> Vec<Delta> {
        let parser = &mut self.writing.parsers[index];
        let mut calls = parser.num_calls();
        let parts = parser.event(event);
        let deltas = parts.into_iter().filter_map(|part| {
            let call = |call| Some(Delta { tool_calls: Some([call]), ..Delta::default() });
            match part {
                Part::Thought(text) => Some(Delta { reasoning_content: Some(text), ..Delta::default() }),
                Part::Text(text) => Some(Delta { content: Some(text), ..Delta::default() }),
                Part::Call(name) => {
                    calls += 1;
                    call(ToolCallDelta::begin(calls - 1, name))
                }
                Part::Arguments(text) => call(ToolCallDelta::arguments(calls.saturating_sub(1), text)),
                Part::CallEnd => None,
            }
        });
        deltas.collect()
    }
}

impl Encoder for Chunks {
    fn start(&mut self, out: &mut EventStream) {
        for index in 0..self.writing.parsers.len() {
            // An answer of nothing but calls has no content, not even an empty one.
            let content = (!self.writing.has_tools).then(String::new);
            let delta = Delta { role: Some("assistant"), content, ..Delta::default() };
            out.data(
                &self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None),
            );
        }
    }

    fn event(&mut self, index: usize, event: Event, out: &mut EventStream) {
        let mut deltas = self.deltas(index, &event);
        let (mut logprobs, mut finish_reason) = (None, None);
        match event {
            Event::Prompt { .. } => (),
            Event::Token { token, logprobs: found, .. } => {
                let found = self.writing.logprob(token, found);
                logprobs = found.map(|found| ChatLogprobs { content: vec![found], refusal: None });
            }
            Event::Finished { reason, usage, .. } => {
                self.writing.usages[index] = usage;
                finish_reason = Some(self.writing.finish(index, reason));
            }
        }
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
            out.data(&self.chunk(Vec::new(), Some(self.writing.usage())));
        }
        out.done();
    }
}
