//! What a request of Anthropic's Messages asks for.

use super::blocks::{BlockContent, InputMessage};
use crate::api::response_format::NamedSchema;
use crate::api::samplers::sampled_request;
use crate::api::tools::{Choice, Function, Names, Parameters, ToolUse};
use crate::api::{Stop, fields, openai};
use crate::error::ApiError;
use crate::fields::described;
use crate::number::{ThinkingLimit, TokenLimit};
use qernel_core::chat::Effort;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

described! {
    MessagesTool: fields::MESSAGES_TOOL,
    MessagesToolChoice: fields::MESSAGES_TOOL_CHOICE,
    ThinkingOptions: fields::THINKING,
    OutputConfig: fields::OUTPUT_CONFIG,
    OutputFormat: fields::OUTPUT_FORMAT,
    Metadata: fields::METADATA,
}

sampled_request! {
    /// A conversation to be continued, or counted.
    pub struct MessagesRequest: fields::MESSAGES, Plain {
        #[schema(min_items = 1)]
        pub messages: Vec<InputMessage>,
        /// What the model is told first.
        pub system: Option<BlockContent>,
        /// The model's name, or that of one of its adapters. [default: the model's]
        pub model: Option<String>,
        /// Most tokens of the answer, thoughts included. [default: until the model stops or the context is full]
        pub max_tokens: Option<TokenLimit>,
        /// Texts that end the answer; they are no part of it.
        stop_sequences: Option<Vec<String>>,
        /// Whether to answer with Server-Sent Events. [default: false]
        pub stream: Option<bool>,
        /// Tools that the model may call: the chat template tells the model of them.
        tools: Option<Vec<MessagesTool>>,
        tool_choice: Option<MessagesToolChoice>,
        thinking: Option<ThinkingOptions>,
        output_config: Option<OutputConfig>,
        metadata: Option<Metadata>,
        /// Variables of the chat template. Not Anthropic's.
        pub chat_template_kwargs: Option<Map<String, Value>>,
    }
}

/// A tool that the model may call.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MessagesTool {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: Option<ToolKind>,
    name: String,
    description: Option<String>,
    /// JSON schema of its arguments, an object.
    #[schema(value_type = Map<String, Value>)]
    input_schema: Parameters,
    /// Whether calls must follow the schema. [default: false]
    strict: Option<bool>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    Custom,
}

/// Whether the model calls tools. [default: auto]
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MessagesToolChoice {
    #[serde(rename = "type")]
    kind: ChoiceKind,
    /// Of the type `tool`.
    name: Option<String>,
    /// Whether the answer ends with its first call. [default: false]
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChoiceKind {
    /// The model decides.
    Auto,
    /// It calls one or more, and says nothing else.
    Any,
    /// It calls the tool `name`.
    Tool,
    /// It is not told of the tools.
    None,
}

/// Whether the model thinks. [default: as its chat template has it]
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ThinkingOptions {
    #[serde(rename = "type")]
    kind: ThinkingKind,
    /// Of the type `enabled`: tokens after which its thoughts are closed.
    budget_tokens: Option<ThinkingLimit>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingKind {
    Enabled,
    Disabled,
    /// As its chat template has it.
    Adaptive,
}

/// How the answer is to be.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct OutputConfig {
    /// How much the model is to think, in the nearest terms that the chat template knows.
    effort: Option<Effort>,
    format: Option<OutputFormat>,
}

/// A schema that the answer must satisfy.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct OutputFormat {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FormatKind,
    schema: Map<String, Value>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OutputFormatKind)]
pub enum FormatKind {
    JsonSchema,
}

/// Who asks.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Metadata {
    /// A name for the server's log, of at most 256 bytes.
    #[schema(max_length = 256)]
    user_id: Option<String>,
}

/// The names that the interface has for what is said of tools.
const NAMES: Names = Names { name: "name", schema: "input_schema", choice: "tool_choice.name" };

impl MessagesRequest {
    /// Who asks.
    ///
    /// # Errors
    /// 400 where the name is too long.
    pub fn user(&self) -> Result<Option<String>, ApiError> {
        let user = self.metadata.as_ref().and_then(|metadata| metadata.user_id.clone());
        openai::check_user("metadata.user_id", user.as_deref())?;
        Ok(user)
    }

    /// Texts that end the answer.
    ///
    /// # Errors
    /// 400 where they are too many, too long or empty.
    pub fn stops(&mut self) -> Result<Vec<String>, ApiError> {
        Stop::texts_of("stop_sequences", self.stop_sequences.take().map(Stop::Many))
    }

    /// Whether the model is to think; how much is left to its template, or to an effort.
    pub fn enables_thinking(&self) -> bool {
        self.thinking.as_ref().is_some_and(|thinking| thinking.kind == ThinkingKind::Enabled)
    }

    /// How much the model is to think.
    pub fn effort(&self) -> Option<Effort> {
        let effort = self.output_config.as_ref().and_then(|config| config.effort);
        match self.thinking.as_ref().map(|thinking| thinking.kind) {
            Some(ThinkingKind::Disabled) => Some(Effort::None),
            Some(ThinkingKind::Enabled | ThinkingKind::Adaptive) | None => effort,
        }
    }

    /// How many tokens it may think, if that is said.
    ///
    /// # Errors
    /// 400 where it is not to think at all.
    pub fn thinking_budget(&self) -> Result<Option<Option<usize>>, ApiError> {
        let Some(thinking) = &self.thinking else { return Ok(None) };
        if thinking.kind == ThinkingKind::Disabled && thinking.budget_tokens.is_some() {
            let param = "thinking.budget_tokens";
            let message =
                format!("{param}: thoughts that are disabled have none; leave it out, or enable them");
            return Err(ApiError::field(param, message));
        }
        Ok(thinking.budget_tokens.map(|limit| limit.0))
    }

    /// The schema of an answer that must have one.
    ///
    /// # Errors
    /// None yet.
    pub fn format(&mut self) -> Result<Option<NamedSchema>, ApiError> {
        let format = self.output_config.as_mut().and_then(|config| config.format.take());
        Ok(format.map(|format| ("output_config.format.schema", format.schema)))
    }

    /// The tools that the model is told of.
    ///
    /// # Errors
    /// 400 where tools and choice contradict each other.
    pub fn tools(&mut self) -> Result<Option<ToolUse>, ApiError> {
        let tools = self.tools.take().unwrap_or_default().into_iter().map(|tool| Function {
            name: tool.name,
            description: tool.description,
            parameters: Some(tool.input_schema),
            strict: tool.strict,
        });
        let parallel = self
            .tool_choice
            .as_ref()
            .and_then(|choice| choice.disable_parallel_tool_use)
            .map(|disable| !disable);
        let choice = match self.tool_choice.take() {
            None => Choice::Auto,
            Some(MessagesToolChoice { kind: ChoiceKind::Tool, name, .. }) => {
                let param = "tool_choice.name";
                let fault =
                    || ApiError::field(param, format!("{param}: expected the name of a tool, found nothing"));
                Choice::Named(name.ok_or_else(fault)?)
            }
            Some(choice) => match choice.kind {
                ChoiceKind::Any => Choice::Required,
                ChoiceKind::None => Choice::None,
                ChoiceKind::Auto | ChoiceKind::Tool => Choice::Auto,
            },
        };
        ToolUse::of(tools.collect(), choice, parallel, NAMES)
    }
}
