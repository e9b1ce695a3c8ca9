//! The turns of a conversation, as requests have them and as chat templates expect them.

use super::tools::{CalledFunction, FunctionKind};
use crate::body::Unsupported;
use crate::error::ApiError;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// One turn of a conversation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // Fields that are not supported are only there to be refused.
pub struct ChatMessage {
    role: Role,
    /// What was said. Only an assistant's turn with tool calls may do without.
    content: Option<Content>,
    /// Functions that the assistant asked for.
    tool_calls: Option<Vec<GivenCall>>,
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

/// A call that the assistant asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenCall {
    id: Option<String>,
    #[serde(rename = "type")]
    #[allow(dead_code)] // There is one.
    kind: FunctionKind,
    function: CalledFunction,
}

impl ChatMessage {
    /// The message as templates written for Hugging Face's transformers expect it.
    pub fn for_template(self, index: usize) -> Result<Value, ApiError> {
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
