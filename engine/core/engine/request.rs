//! What goes into the engine and what comes out of it.

use super::draft::Speculative;
use crate::batch::AdapterSet;
use crate::chat::thinking::ThinkingParser;
use crate::error::Error;
use crate::sampler::{Logprobs, SamplingParams};
use crate::scheduler::SequenceId;
use std::fmt;

/// One answer that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids of the prompt, at least one; a conversation's whole history.
    pub prompt: Vec<u32>,
    /// How its tokens are drawn.
    pub sampling: SamplingParams,
    /// Whether the sampler's penalties look at the prompt too, as llama.cpp's do, or at the answer alone, as OpenAI's.
    pub penalize_prompt: bool,
    /// Most tokens of the answer, at least 1; `None` goes on until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer, none of them empty. They are no part of it.
    pub stop: Vec<String>,
    /// Texts that the answer must not have, none of them empty; upper and lower case of ASCII's letters are the same. Where one is complete, the
    /// sequence goes back to the token in which it began and draws another one there.
    pub banned_strings: Vec<String>,
    /// Tells the thoughts of the answer, in which no text of `stop` is looked for; `None` looks everywhere.
    pub thoughts: Option<ThinkingParser>,
    /// Takes the model's end-of-generation tokens like any other.
    pub ignore_eos: bool,
    /// Which of several answers to one prompt this is (OpenAI's `n`); part of every random draw.
    pub index: u32,
    /// The number of likeliest tokens whose log-probabilities each token's event has besides its own; `None`: not even its
    /// own.
    pub logprobs: Option<usize>,
    /// The same of the prompt: its tokens are scored, and [`Event::Prompt`] says how likely they were. None of them comes from the prefix
    /// cache then.
    pub prompt_logprobs: Option<usize>,
    /// How far its tokens are drafted, where the engine drafts.
    pub speculative: Speculative,
    /// The adapters that it is answered with; `None`: all that were loaded, each with its own scale.
    pub adapters: Option<AdapterSet>,
    /// Whether events carry text. Without it, and without `stop`, nothing is decoded.
    pub text: bool,
}

impl Request {
    /// Text that continues `prompt` until the model ends it, with the default sampling.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            penalize_prompt: true,
            max_tokens: None,
            stop: Vec::new(),
            banned_strings: Vec::new(),
            thoughts: None,
            ignore_eos: false,
            index: 0,
            logprobs: None,
            prompt_logprobs: None,
            speculative: Speculative::default(),
            adapters: None,
            text: true,
        }
    }
}

/// What of a request the engine does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPart {
    /// [`Request::prompt`], for what is in it.
    Prompt,
    /// [`Request::prompt`], for its length: the context has no room for it.
    PromptLength,
    /// [`Request::sampling`], by the name of the option.
    Sampling(&'static str),
    /// [`Request::max_tokens`]
    MaxTokens,
    /// [`Request::adapters`]
    Adapters,
    /// [`Request::stop`], or [`Request::text`] where there is no vocabulary.
    Stop,
    /// [`Request::banned_strings`]
    BannedStrings,
}

/// Why the engine does not take a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub part: RequestPart,
    /// What was expected, what was found, what to do.
    pub message: String,
}

/// What happened to a sequence. The text of all its events, one after the other, is the text of the answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed; it comes before the first token, where [`Request::prompt_logprobs`] asks for it.
    Prompt {
        /// The sequence that it is about.
        id: SequenceId,
        /// [`Request::index`]
        index: u32,
        /// How likely the model thought each token of the prompt but the first.
        logprobs: Vec<Logprobs>,
    },
    /// A token was drawn.
    Token {
        /// The sequence that it is about.
        id: SequenceId,
        /// [`Request::index`]
        index: u32,
        /// Its id.
        token: u32,
        /// Text that is certain with this token: whole characters, without what may yet become a stop string. Often empty,
        /// and always for the token that ends the generation.
        text: String,
        /// Where [`Request::logprobs`] asks for them.
        logprobs: Option<Logprobs>,
    },
    /// The sequence has ended; no event of it follows.
    Finished {
        /// The sequence that it is about.
        id: SequenceId,
        /// [`Request::index`]
        index: u32,
        /// Text that was withheld until now.
        text: String,
        /// Why it ended.
        reason: FinishReason,
        /// Its tokens, counted.
        usage: Usage,
        /// What it cost.
        timings: Timings,
    },
}

impl Event {
    /// The sequence that it is about.
    pub fn id(&self) -> SequenceId {
        match self {
            Self::Prompt { id, .. } | Self::Token { id, .. } | Self::Finished { id, .. } => *id,
        }
    }

    /// The error that the answer ended with, if it did.
    pub fn error(&self) -> Option<Error> {
        match self {
            Self::Prompt { .. } | Self::Token { .. } => None,
            Self::Finished { reason, .. } => reason.error(),
        }
    }

    /// What it adds to the text of the answer.
    pub fn text(&self) -> &str {
        match self {
            Self::Prompt { .. } => "",
            Self::Token { text, .. } | Self::Finished { text, .. } => text,
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-generation token or a stop string.
    Stop,
    /// [`Request::max_tokens`]
    Length,
    /// The context is full.
    Context,
    /// [`Engine::cancel`](super::Engine::cancel)
    Cancelled,
    /// What its tokens are bound to could not be followed any further, or all that was tried in a place led to a text that is banned.
    Constraint,
    /// No token could be drawn: the model's logits were NaN or infinite.
    Failed,
}

impl FinishReason {
    /// The error that an answer ended with, `None` if it is as good as it can be.
    pub fn error(self) -> Option<Error> {
        (self == Self::Failed).then(|| {
            Error::NotFinite(
                "no token could be drawn: the model's logits are NaN or infinite. Its file may be damaged (--check-tensors looks \
                 through it), or the device computes wrongly"
                    .to_owned(),
            )
        })
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
            Self::Constraint => "constraint",
            Self::Failed => "failed",
        })
    }
}

/// Tokens of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Usage {
    /// Tokens of the prompt, those that were in the KV cache too.
    pub prompt_tokens: usize,
    /// Tokens drawn, with the one that ended the generation.
    pub completion_tokens: usize,
    /// Tokens of the prompt that were in the KV cache already, from sequences before, and not computed.
    pub cached_tokens: usize,
}

/// What a sequence cost. Seconds are the wall time of the steps that it took part in, so in a batch they count the work for
/// others too; time spent waiting is not in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct Timings {
    /// Prompt tokens computed, with those computed anew after the sequence had to give its pages up.
    pub prefill_tokens: usize,
    /// Of the steps that computed prompt tokens.
    pub prefill_seconds: f64,
    /// Tokens drawn by steps behind the prefill, one each where nothing is drafted. The first token of an answer comes from the prefill.
    pub decode_tokens: usize,
    /// Of the steps behind the prefill, with the time for drafting.
    pub decode_seconds: f64,
    /// The steps behind the prefill.
    #[serde(skip)]
    pub decode_steps: usize,
    /// Tokens that were drafted, and computed to see whether they stay.
    #[serde(skip_serializing_if = "is_zero")]
    pub draft_tokens: usize,
    /// Those of them that stayed; they are tokens of the answer.
    #[serde(skip_serializing_if = "is_zero")]
    pub accepted_draft_tokens: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Timings {
    /// `None` where nothing was computed.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        (self.prefill_seconds > 0.0).then(|| self.prefill_tokens as f64 / self.prefill_seconds)
    }

    /// The share of drafted tokens that stayed; `None` where nothing was drafted.
    pub fn acceptance(&self) -> Option<f64> {
        (self.draft_tokens > 0).then(|| self.accepted_draft_tokens as f64 / self.draft_tokens as f64)
    }

    /// Tokens that a step behind the prefill made on average: one without drafts. `None` where nothing was drafted.
    pub fn decode_tokens_per_step(&self) -> Option<f64> {
        (self.draft_tokens > 0).then(|| self.decode_tokens as f64 / self.decode_steps.max(1) as f64)
    }

    /// `None` where nothing was computed.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        (self.decode_seconds > 0.0).then(|| self.decode_tokens as f64 / self.decode_seconds)
    }
}

/// A whole answer: the events of one sequence, added up.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The sequence that it was.
    pub id: SequenceId,
    /// Tokens drawn, with the one that ended the generation.
    pub tokens: Vec<u32>,
    /// All of its text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Its tokens, counted.
    pub usage: Usage,
    /// What it cost.
    pub timings: Timings,
}
