//! What a request of the Responses API asks for.

use super::items::Input;
use super::output::ResponseObject;
use crate::api::fields;
use crate::api::logprobs;
use crate::api::models::unix_seconds;
use crate::api::response_format::NamedSchema;
use crate::api::samplers::sampled_request;
use crate::api::tools::{Choice, Function, FunctionKind, Names, Parameters, ToolMode, ToolUse};
use crate::error::ApiError;
use crate::fields::described;
use crate::number::TokenLimit;
use qernel_core::chat::Effort;
use qernel_core::sampler::SamplingParams;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;
use utoipa::ToSchema;

described! {
    Reasoning: fields::REASONING,
    TextOptions: fields::TEXT_OPTIONS,
    TextFormat: fields::TEXT_FORMAT,
    FlatTool: fields::FLAT_TOOL,
    FlatChoice: fields::FLAT_CHOICE,
}

sampled_request! {
    /// An input to be answered.
    pub struct ResponsesRequest: fields::RESPONSES, Plain {
        /// What is said to the model, behind the conversation of `previous_response_id`.
        pub input: Input,
        /// A system message before it all, which later answers do not inherit.
        pub instructions: Option<String>,
        /// The model's name, or that of one of its adapters. [default: the model's]
        pub model: Option<String>,
        /// Whether to answer with Server-Sent Events. [default: false]
        pub stream: Option<bool>,
        /// Most tokens of the answer, thoughts included. [default: until the model stops or the context is full]
        pub max_output_tokens: Option<TokenLimit>,
        /// The answer that this one follows.
        pub previous_response_id: Option<String>,
        /// Whether the server keeps the answer for later ones. [default: true]
        store: Option<bool>,
        /// Given back with the answer: at most 16 texts of at most 512 characters, with names of at most 64.
        metadata: Option<BTreeMap<String, String>>,
        /// How many likeliest tokens to show in the place of each.
        #[schema(maximum = 20)]
        #[serde(default, deserialize_with = "crate::number::whole")]
        top_logprobs: Option<usize>,
        /// What the answer has besides.
        include: Option<Vec<Include>>,
        /// Functions that the model may call: the chat template tells the model of them.
        tools: Option<Vec<FlatTool>>,
        /// Whether it calls them, and which. [default: auto]
        tool_choice: Option<FlatToolChoice>,
        /// Whether the answer may have more than one call. [default: true]
        parallel_tool_calls: Option<bool>,
        text: Option<TextOptions>,
        reasoning: Option<Reasoning>,
        /// Variables of the chat template. Not OpenAI's.
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// Who asks: a name for the server's log, of at most 256 bytes.
        #[schema(max_length = 256)]
        pub user: Option<String>,
    }
}

/// What an answer may have besides.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub enum Include {
    /// Log-probabilities of the tokens of messages.
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
    /// Thoughts stand in the answer as they are, so that this adds nothing.
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
}

/// How the model thinks.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Reasoning {
    /// How much, in the nearest terms that the chat template knows. [default: the template's]
    effort: Option<Effort>,
}

/// How the answer's text is to be.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TextOptions {
    format: Option<TextFormat>,
}

/// What the answer must be. [default: anything]
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TextFormat {
    #[serde(rename = "type")]
    kind: TextKind,
    /// Of the type `json_schema`: the schema, always followed strictly; without one, any object.
    schema: Option<Map<String, Value>>,
    /// Of the type `json_schema`: given back with the answer.
    name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextKind {
    /// Anything.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that satisfies a schema.
    JsonSchema,
}

/// A function that the model may call.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct FlatTool {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    name: String,
    description: Option<String>,
    /// JSON schema of its arguments, an object. [default: it takes none]
    #[schema(value_type = Option<Map<String, Value>>)]
    parameters: Option<Parameters>,
    /// Whether calls must follow the schema. [default: false]
    strict: Option<bool>,
}

/// Whether the model calls tools.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum FlatToolChoice {
    Mode(ToolMode),
    /// This function is called.
    Function(FlatChoice),
}

/// A function by its name.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct FlatChoice {
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    name: String,
}

impl<'de> Deserialize<'de> for FlatToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = FlatToolChoice;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("`auto`, `none`, `required`, or {\"type\": \"function\", \"name\": …}")
            }

            fn visit_str<E: Error>(self, mode: &str) -> Result<FlatToolChoice, E> {
                let fault = || E::invalid_value(serde::de::Unexpected::Str(mode), &self);
                ToolMode::named(mode).map(FlatToolChoice::Mode).ok_or_else(fault)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FlatToolChoice, A::Error> {
                FlatChoice::deserialize(MapAccessDeserializer::new(map)).map(FlatToolChoice::Function)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The names that the interface has for what is said of tools.
const NAMES: Names = Names { name: "name", schema: "parameters", choice: "tool_choice.name" };

impl ResponsesRequest {
    /// Refuses more metadata than OpenAI's interface takes: it is kept with the answer.
    ///
    /// # Errors
    /// 400, by name.
    pub fn check_metadata(&self) -> Result<(), ApiError> {
        let Some(metadata) = &self.metadata else { return Ok(()) };
        let refuse = |what: String| Err(ApiError::field("metadata", format!("metadata: {what}")));
        if metadata.len() > 16 {
            return refuse(format!("expected at most 16 texts, found {}", metadata.len()));
        }
        for (name, text) in metadata {
            for (what, text, most) in [("name", name, 64), ("text", text, 512)] {
                let found = text.chars().count();
                if found > most {
                    return refuse(format!(
                        "expected a {what} of at most {most} characters, found one of {found}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// How many likeliest tokens are to be shown, if any are.
    ///
    /// # Errors
    /// 400 where there are too many.
    pub fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        let is_included = self.include.iter().flatten().any(|&include| include == Include::Logprobs);
        let count = self.top_logprobs.filter(|&count| count > 0 || is_included);
        logprobs::check("top_logprobs", count.or(is_included.then_some(0)))
    }

    /// How much the model is to think.
    pub fn effort(&self) -> Option<Effort> {
        self.reasoning.as_ref().and_then(|reasoning| reasoning.effort)
    }

    /// The schema of an answer that must have one.
    ///
    /// # Errors
    /// 400 where the type and the schema do not go together.
    pub fn format(&mut self) -> Result<Option<NamedSchema>, ApiError> {
        let Some(format) = self.text.as_mut().and_then(|text| text.format.take()) else { return Ok(None) };
        let object = || Map::from_iter([("type".into(), "object".into())]);
        match (format.kind, format.schema) {
            (TextKind::JsonSchema, schema) => Ok(Some(("text.format.schema", schema.unwrap_or_else(object)))),
            (_, Some(_)) => {
                let param = "text.format.schema";
                let message =
                    format!("{param}: only the type `json_schema` has one; take that, or leave it out");
                Err(ApiError::field(param, message))
            }
            (TextKind::JsonObject, None) => Ok(Some(("text.format", object()))),
            (TextKind::Text, None) => Ok(None),
        }
    }

    /// The tools that the model is told of.
    ///
    /// # Errors
    /// 400 where tools and choice contradict each other.
    pub fn tools(&mut self) -> Result<Option<ToolUse>, ApiError> {
        let tools = self.tools.take().unwrap_or_default().into_iter().map(|tool| Function {
            name: tool.name,
            description: tool.description,
            parameters: tool.parameters,
            strict: tool.strict,
        });
        let choice = match self.tool_choice.take() {
            None => Choice::Auto,
            Some(FlatToolChoice::Mode(mode)) => mode.into(),
            Some(FlatToolChoice::Function(FlatChoice { name, .. })) => Choice::Named(name),
        };
        ToolUse::of(tools.collect(), choice, self.parallel_tool_calls, NAMES)
    }

    /// The answer before anything of it is there: what was asked for.
    pub fn echo(&self, id: String, model: String, sampling: &SamplingParams) -> ResponseObject {
        let tools = self.tools.iter().flatten().map(|tool| {
            let (name, description) = (&tool.name, &tool.description);
            let parameters = tool.parameters.as_ref().map(Parameters::text);
            json!({"type": "function", "name": name, "description": description, "parameters": parameters, "strict": tool.strict.unwrap_or(false)})
        });
        let tool_choice = match &self.tool_choice {
            None => json!("auto"),
            Some(FlatToolChoice::Mode(mode)) => json!(mode),
            Some(FlatToolChoice::Function(FlatChoice { name, .. })) => {
                json!({"type": "function", "name": name})
            }
        };
        let format = self.text.as_ref().and_then(|text| text.format.as_ref());
        let mut of_text = json!({"type": format.map_or(TextKind::Text, |format| format.kind)});
        if let Some(schema) = format.and_then(|format| format.schema.as_ref()) {
            of_text["schema"] = json!(schema);
        }
        if let Some(name) = format.and_then(|format| format.name.as_ref()) {
            of_text["name"] = json!(name);
        }
        ResponseObject {
            id,
            object: "response",
            created_at: unix_seconds(SystemTime::now()),
            status: "in_progress",
            background: false,
            error: None,
            incomplete_details: None,
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens.and_then(|limit| limit.0),
            metadata: self.metadata.clone().unwrap_or_default(),
            model,
            output: Vec::new(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            previous_response_id: self.previous_response_id.clone(),
            reasoning: json!({"effort": self.effort(), "summary": null}),
            store: self.store.unwrap_or(true),
            temperature: sampling.temperature,
            text: json!({"format": of_text}),
            tool_choice,
            tools: tools.collect(),
            top_p: sampling.top_p,
            truncation: "disabled",
            usage: None,
            user: self.user.clone(),
        }
    }
}
