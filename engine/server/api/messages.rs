//! The turns of a conversation, as requests have them and as chat templates expect them.

use super::fields;
use super::tools::GivenCall;
use crate::error::ApiError;
use crate::fields::described;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use utoipa::ToSchema;

described! {
    ChatMessage: fields::MESSAGE,
    ContentPart: fields::PART,
}

/// One turn of a conversation.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ChatMessage {
    role: Role,
    /// What was said. Only an assistant's turn may do without.
    content: Option<Content>,
    /// Who says it: the chat template may show the name.
    name: Option<String>,
    /// What the assistant said instead of an answer.
    refusal: Option<String>,
    /// Functions that the assistant asked for.
    tool_calls: Option<Vec<GivenCall>>,
    /// Which call a tool's turn answers.
    tool_call_id: Option<String>,
    /// What the assistant thought: the chat template may show it.
    reasoning_content: Option<String>,
    /// Another name of `reasoning_content`.
    reasoning: Option<String>,
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
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string or a list of text parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A piece of what was said. Images, sound and files are not supported.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ContentPart {
    #[serde(rename = "type")]
    kind: PartKind,
    /// Of the type `text`.
    text: Option<String>,
    /// Of the type `refusal`.
    refusal: Option<String>,
}

#[derive(Clone, Copy, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    Text,
    /// What the assistant said instead of an answer.
    Refusal,
}

impl<'de> Deserialize<'de> for PartKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "text" => Ok(Self::Text),
            "refusal" => Ok(Self::Refusal),
            other => Err(D::Error::custom(format!(
                "expected a part of the type \"text\", found {other:?}: this server takes no images, sound or files"
            ))),
        }
    }
}

impl ContentPart {
    /// What the part says.
    fn into_text(self) -> Result<String, &'static str> {
        match self.kind {
            PartKind::Text => self.text.ok_or("text"),
            PartKind::Refusal => self.refusal.ok_or("refusal"),
        }
    }
}

impl ChatMessage {
    /// The message as templates written for Hugging Face's transformers expect it.
    ///
    /// # Errors
    /// 400 where fields are missing, or do not go with the role.
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
        let mut message = Map::from_iter([("role".to_owned(), role.into())]);
        let calls = self.tool_calls.unwrap_or_default();
        let reasoning = self.reasoning_content.or(self.reasoning);
        let content = match self.content {
            Some(Content::Text(text)) => Some(text),
            Some(Content::Parts(parts)) => {
                let mut text = String::new();
                for (i, part) in parts.into_iter().enumerate() {
                    match part.into_text() {
                        Ok(part) => text += &part,
                        Err(field) => {
                            return refuse(
                                &format!("content[{i}].{field}"),
                                "expected a string, found nothing",
                            );
                        }
                    }
                }
                Some(text)
            }
            // A turn of calls or thoughts alone.
            None if self.role == Role::Assistant => None,
            None => return refuse("content", "expected a string or a list of text parts, found nothing"),
        };
        let content = match self.refusal {
            Some(refusal) => Some(content.unwrap_or_default() + &refusal),
            None => content,
        };
        message.insert("content".into(), content.into());
        if let Some(name) = self.name {
            message.insert("name".into(), name.into());
        }
        if let Some(reasoning) = reasoning {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        if !calls.is_empty() {
            if self.role != Role::Assistant {
                return refuse("tool_calls", "only the assistant calls tools");
            }
            let mut rendered = Vec::with_capacity(calls.len());
            for (i, call) in calls.into_iter().enumerate() {
                match call.for_template() {
                    Ok(call) => rendered.push(call),
                    Err(what) => return refuse(&format!("tool_calls[{i}].function.arguments"), &what),
                }
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
