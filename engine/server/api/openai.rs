//! What OpenAI's two endpoints share: fields, usage, names.

use super::{Choice, fields};
use crate::error::ApiError;
use crate::fields::described;
use crate::number::Limit;
use qernel_core::engine::FinishReason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Declares a request with the fields that both endpoints take. (serde's `flatten` would lose which field a fault is in.)
macro_rules! openai_request {
    ($(#[$attribute:meta])* pub struct $name:ident: $table:path { $($specific:tt)* }) => {
        crate::api::samplers::sampled_request! {
            $(#[$attribute])*
            pub struct $name: $table, Plain {
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
                /// Who asks: a name for the server's log, of at most 256 bytes.
                #[schema(max_length = 256)]
                pub user: Option<String>,
            }
        }

        impl $name {
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
