//! What OpenAI's two endpoints share: the sampling fields, usage, names.

use super::{Choice, fields};
use crate::error::ApiError;
use crate::fields::described;
use crate::number::Limit;
use qernel_core::engine::FinishReason;
use qernel_core::sampler::SamplingParams;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Declares a request with the fields that both endpoints take. (serde's `flatten` would lose which field a fault is in.)
macro_rules! openai_request {
    ($(#[$attribute:meta])* pub struct $name:ident: $table:path { $($specific:tt)* }) => {
        crate::api::samplers::sampled_request! {
            $(#[$attribute])*
            pub struct $name: $table {
                $($specific)*
                /// The model's name, or that of one of its adapters. [default: the model's]
                pub model: Option<String>,
                /// How many answers to each prompt. [default: 1]
                #[schema(minimum = 1)]
                #[serde(default, deserialize_with = "crate::number::whole")]
                pub n: Option<usize>,
                /// Texts that end the answer; they are no part of it.
                pub stop: Option<crate::api::Stop>,
                /// Whether to answer with Server-Sent Events. [default: false]
                pub stream: Option<bool>,
                pub stream_options: Option<crate::api::openai::StreamOptions>,
                /// Most tokens of an answer; -1 for as many as the context has room for.
                pub max_tokens: Option<crate::number::TokenLimit>,
                /// llama.cpp's name of `max_tokens`.
                pub n_predict: Option<crate::number::TokenLimit>,
                /// The same seed gives the same answer; -1 takes a random one. [default: random]
                #[schema(value_type = Option<i64>)]
                #[serde(default, deserialize_with = "crate::number::seed")]
                pub seed: Option<u64>,
                /// 0 always takes the likeliest token. [default: 1]
                #[schema(minimum = 0)]
                pub temperature: Option<f32>,
                /// Keeps the likeliest tokens whose probabilities add up to it. [default: 1]
                #[schema(minimum = 0, maximum = 1)]
                pub top_p: Option<f32>,
                /// Subtracted from the logit of every token that has occurred in the answer. [default: 0]
                #[schema(minimum = -1e6, maximum = 1e6)]
                pub presence_penalty: Option<f32>,
                /// Subtracted from a token's logit once for each time it has occurred in the answer. [default: 0]
                #[schema(minimum = -1e6, maximum = 1e6)]
                pub frequency_penalty: Option<f32>,
                /// Keeps the likeliest tokens; 0 or less keeps all. Not OpenAI's. [default: 0]
                #[serde(default, deserialize_with = "crate::number::whole")]
                pub top_k: Option<i32>,
                /// Keeps tokens with at least this share of the likeliest one's probability. Not OpenAI's. [default: 0]
                #[schema(minimum = 0, maximum = 1)]
                pub min_p: Option<f32>,
                /// Divides the logits of tokens that have occurred in the answer. Not OpenAI's. [default: 1]
                #[schema(minimum = 0.001, maximum = 1000)]
                pub repeat_penalty: Option<f32>,
                /// How many of the answer's last tokens the penalties look at; 0 none, -1 all. Not OpenAI's. [default: -1]
                #[schema(minimum = -1)]
                #[serde(default, deserialize_with = "crate::number::whole")]
                pub repeat_last_n: Option<i32>,
                /// Goes on after an end-of-sequence token. Not OpenAI's. [default: false]
                pub ignore_eos: Option<bool>,
                /// Who asks: a name for the server's log, of at most 256 bytes.
                #[schema(max_length = 256)]
                pub user: Option<String>,
            }
        }

        impl $name {
            /// The sampler's parameters, with OpenAI's defaults; penalties look at the answer alone.
            ///
            /// # Errors
            /// 400 where OpenAI's interface knows no such value.
            fn sampling(
                &self,
                tokenizer: &qernel_core::tokenizer::Tokenizer,
            ) -> Result<qernel_core::sampler::SamplingParams, crate::error::ApiError> {
                crate::api::openai::check(self.temperature, self.user.as_deref())?;
                let default = crate::api::openai::plain_sampling();
                let params = qernel_core::sampler::SamplingParams {
                    temperature: self.temperature.unwrap_or(default.temperature),
                    top_k: self.top_k.unwrap_or(default.top_k),
                    top_p: self.top_p.unwrap_or(default.top_p),
                    min_p: self.min_p.unwrap_or(default.min_p),
                    repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
                    presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
                    frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
                    repeat_last_n: self.repeat_last_n.unwrap_or(default.repeat_last_n),
                    seed: self.seed.unwrap_or_else(crate::random_u64),
                    chain: self.chain(tokenizer)?,
                };
                crate::api::openai::check_sampling(&params)?;
                Ok(params)
            }

            /// Whether a stream was asked for; `Some(true)` if it is to end with the usage.
            fn stream(&self) -> Result<Option<bool>, crate::error::ApiError> {
                crate::api::openai::stream(self.stream, self.stream_options.as_ref())
            }
        }
    };
}
pub(super) use openai_request;

/// Bytes of the longest name of who asks.
const MAX_USER_BYTES: usize = 256;

/// Refuses what OpenAI's interface does not know, though the sampler may.
///
/// # Errors
/// 400, by name.
pub fn check(temperature: Option<f32>, user: Option<&str>) -> Result<(), ApiError> {
    if let Some(temperature) = temperature.filter(|temperature| *temperature < 0.0) {
        let message = format!("temperature: expected 0 or more, found {temperature}");
        return Err(ApiError::field("temperature", message));
    }
    check_user("user", user)
}

/// Refuses a name of who asks that is too long.
///
/// # Errors
/// 400, by the name of the field.
pub fn check_user(param: &str, user: Option<&str>) -> Result<(), ApiError> {
    match user.map(str::len).filter(|len| *len > MAX_USER_BYTES) {
        Some(len) => {
            let message = format!("{param}: expected at most {MAX_USER_BYTES} bytes, found {len}");
            Err(ApiError::field(param, message))
        }
        None => Ok(()),
    }
}

/// Sampling from the model's own distribution, as OpenAI's interface has it by default; penalties look at the answer alone.
pub fn plain_sampling() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: -1,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
        chain: None,
    }
}

/// Refuses what has no meaning for the sampler.
///
/// # Errors
/// 400, by name.
pub fn check_sampling(params: &SamplingParams) -> Result<(), ApiError> {
    match params.fault() {
        Some((option, fault)) => Err(ApiError::field(option, format!("{option}: {fault}"))),
        None => Ok(()),
    }
}

/// The one limit that a request's fields give the length of its answers, by their names; `default` where they give none.
///
/// # Errors
/// 400 where they contradict each other.
pub fn token_limit<const MIN: i128, const N: usize>(
    given: [(&str, Option<Limit<MIN>>); N],
    default: Option<usize>,
) -> Result<Option<usize>, ApiError> {
    let mut first: Option<(&str, Limit<MIN>)> = None;
    for (name, limit) in given.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
        match first {
            Some((other, found)) if found != limit => {
                let message =
                    format!("{name}: {limit} contradicts {other}, which is {found}; leave one of them out");
                return Err(ApiError::field(name, message));
            }
            _ => first = first.or(Some((name, limit))),
        }
    }
    Ok(first.map_or(default, |(_, limit)| limit.0))
}

/// Says in the log who asked for an answer that has been accepted. As a field's value it is escaped there.
pub fn log_user(user: Option<&str>) {
    if let Some(user) = user {
        tracing::info!(user, "asked");
    }
}

described!(StreamOptions: fields::STREAM_OPTIONS);

/// How a stream is to be.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether the last chunk has the usage of the whole answer, and no choices. [default: false]
    include_usage: Option<bool>,
}

/// Whether a stream is asked for, and whether it ends with the usage.
///
/// # Errors
/// 400 where a usage at the end is asked for, and no stream.
pub fn stream(stream: Option<bool>, options: Option<&StreamOptions>) -> Result<Option<bool>, ApiError> {
    let include_usage = options.and_then(|options| options.include_usage).unwrap_or(false);
    match stream.unwrap_or(false) {
        true => Ok(Some(include_usage)),
        false if include_usage => {
            let param = "stream_options.include_usage";
            let message =
                format!("{param}: only a stream has it at its end; set `stream` too, or leave it out");
            Err(ApiError::field(param, message))
        }
        false => Ok(None),
    }
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct OpenAiUsage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
    pub completion_tokens_details: CompletionDetails,
}

/// Where the tokens of prompts came from.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Tokens that were in the KV cache already.
    pub cached_tokens: usize,
}

/// What the tokens of answers are.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct CompletionDetails {
    /// Tokens of thoughts.
    pub reasoning_tokens: usize,
}

impl OpenAiUsage {
    /// With so many tokens of thoughts among those of the answers.
    pub fn with_thoughts(self, reasoning_tokens: usize) -> Self {
        Self { completion_tokens_details: CompletionDetails { reasoning_tokens }, ..self }
    }

    /// The sum over choices; each prompt of `n` choices counts once.
    pub fn sum(usages: &[qernel_core::engine::Usage], n: usize) -> Self {
        let prompt_tokens = usages.iter().step_by(n).map(|usage| usage.prompt_tokens).sum();
        let cached_tokens = usages.iter().step_by(n).map(|usage| usage.cached_tokens).sum();
        let completion_tokens = usages.iter().map(|usage| usage.completion_tokens).sum();
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
            completion_tokens_details: CompletionDetails::default(),
        }
    }

    /// The usage of whole choices.
    pub fn of(choices: &[Choice], n: usize) -> Self {
        Self::sum(&choices.iter().map(|choice| choice.usage).collect::<Vec<_>>(), n)
    }
}

/// Why an answer ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OpenAiFinish {
    /// The model ended it, or a stop text.
    Stop,
    /// It was as long as it may be.
    Length,
    /// The model calls tools; in chats alone.
    ToolCalls,
}

impl From<FinishReason> for OpenAiFinish {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop
            | FinishReason::Cancelled
            | FinishReason::Constraint
            | FinishReason::Failed => Self::Stop,
            FinishReason::Length | FinishReason::Context => Self::Length,
        }
    }
}
