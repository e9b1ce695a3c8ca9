//! The items that a request of the Responses API has in its `input`, as turns of a conversation.

use crate::api::fields;
use crate::error::ApiError;
use crate::fields::described;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::fmt;
use utoipa::ToSchema;

described! {
    InputItem: fields::INPUT_ITEM,
    InputPart: fields::INPUT_PART,
}

/// What is said to the model: a user's message, or items of a conversation.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Input {
    Text(String),
    Items(Vec<InputItem>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Items(Vec::new())
    }
}

/// A text, or parts of one.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum InputContent {
    Text(String),
    Parts(Vec<InputPart>),
}

macro_rules! text_or_list {
    ($($type:ident, $list:ident, $expected:literal);+ $(;)?) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;

                impl<'de> Visitor<'de> for Either {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                        formatter.write_str($expected)
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                        Ok($type::Text(text.to_owned()))
                    }

                    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<$type, A::Error> {
                        Vec::deserialize(SeqAccessDeserializer::new(list)).map($type::$list)
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    )+};
}
text_or_list! {
    Input, Items, "a string or a list of items";
    InputContent, Parts, "a string or a list of text parts";
}

/// An item of a conversation: a message, a call, what came of one, or what the model thought.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct InputItem {
    /// [default: message]
    #[serde(rename = "type")]
    kind: Option<ItemKind>,
    /// Of a message: whose it is.
    role: Option<ItemRole>,
    /// Of a message: what was said; of `reasoning`: what was thought.
    content: Option<InputContent>,
    /// Of `reasoning`: what was thought, where there is no `content`.
    summary: Option<Vec<InputPart>>,
    /// Of a call and of what came of it: the same in both.
    call_id: Option<String>,
    /// Of a call: the function.
    name: Option<String>,
    /// Of a call: JSON as text.
    arguments: Option<String>,
    /// Of `function_call_output`: what came of it.
    output: Option<InputContent>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    Message,
    FunctionCall,
    FunctionCallOutput,
    Reasoning,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ItemRole {
    /// The same as `system`.
    Developer,
    System,
    User,
    Assistant,
}

/// A piece of a text. Images, sound and files are not supported.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct InputPart {
    #[serde(rename = "type")]
    #[allow(dead_code)] // All are texts.
    kind: InputPartKind,
    text: Option<String>,
    /// Of the type `refusal`.
    refusal: Option<String>,
}

#[derive(Clone, Copy, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputPartKind {
    InputText,
    OutputText,
    Text,
    SummaryText,
    ReasoningText,
    Refusal,
}

impl<'de> Deserialize<'de> for InputPartKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "input_text" => Self::InputText,
            "output_text" => Self::OutputText,
            "text" => Self::Text,
            "summary_text" => Self::SummaryText,
            "reasoning_text" => Self::ReasoningText,
            "refusal" => Self::Refusal,
            other => {
                return Err(D::Error::custom(format!(
                    "expected a part of the type \"input_text\" or \"output_text\", found {other:?}: this server takes no images, sound or files"
                )));
            }
        })
    }
}

fn text_of(parts: Vec<InputPart>, path: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let Some(said) = part.text.or(part.refusal) else {
            let param = format!("{path}[{i}].text");
            return Err(ApiError::field(&*param, format!("{param}: expected a string, found nothing")));
        };
        text += &said;
    }
    Ok(text)
}

impl InputContent {
    fn into_text(self, path: &str) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Parts(parts) => text_of(parts, path),
        }
    }
}

/// Turns as templates expect them: what the assistant thinks, says and calls in one go is one turn.
#[derive(Default)]
pub struct Turns(pub Vec<Value>);

impl Turns {
    /// Adds a turn of `system` or `user`.
    pub fn say(&mut self, role: &str, text: String) {
        self.0.push(json!({"role": role, "content": text}));
    }

    /// The assistant's turn that has room for more: none of `fields` is in it.
    fn assistant(&mut self, fields: &[&str]) -> &mut Map<String, Value> {
        let is_open = self.0.last().is_some_and(|turn| {
            turn["role"] == "assistant" && fields.iter().all(|field| turn[field].is_null())
        });
        if !is_open {
            self.0.push(json!({"role": "assistant", "content": null}));
        }
        self.0.last_mut().and_then(Value::as_object_mut).expect("it was just made")
    }

    /// What the assistant thinks.
    pub fn think(&mut self, text: String) {
        self.assistant(&["content", "tool_calls", "reasoning_content"])
            .insert("reasoning_content".into(), text.into());
    }

    /// What it says.
    pub fn answer(&mut self, text: String) {
        self.assistant(&["content", "tool_calls"]).insert("content".into(), text.into());
    }

    /// What it calls, with the arguments as JSON in text.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub fn call(&mut self, id: &str, name: &str, arguments: &str) -> Result<(), String> {
        let text = arguments.trim();
        let arguments: Value = if text.is_empty() {
            json!({})
        } else {
            serde_json::from_str(text).map_err(|error| format!("expected JSON as text: {error}"))?
        };
        self.call_with(id, name, arguments);
        Ok(())
    }

    /// What it calls, with the arguments as a value.
    pub fn call_with(&mut self, id: &str, name: &str, arguments: Value) {
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let calls = self.assistant(&[]).entry("tool_calls").or_insert_with(|| Value::Array(Vec::new()));
        calls.as_array_mut().expect("a list was put there").push(call);
    }

    /// What came of a call.
    pub fn result(&mut self, id: &str, text: String) {
        self.0.push(json!({"role": "tool", "content": text, "tool_call_id": id}));
    }

    /// Adds the input of a request.
    ///
    /// # Errors
    /// 400 where fields are missing.
    pub fn input(&mut self, input: Input) -> Result<(), ApiError> {
        match input {
            Input::Text(text) => self.say("user", text),
            Input::Items(items) => {
                for (i, item) in items.into_iter().enumerate() {
                    self.item(i, item)?;
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, i: usize, item: InputItem) -> Result<(), ApiError> {
        let path = |field: &str| format!("input[{i}].{field}");
        let missing = |field: &str| {
            let param = path(field);
            ApiError::field(&*param, format!("{param}: expected a value, found nothing"))
        };
        match item.kind.unwrap_or(ItemKind::Message) {
            ItemKind::Message => {
                let role = item.role.ok_or_else(|| missing("role"))?;
                let content = item.content.ok_or_else(|| missing("content"))?.into_text(&path("content"))?;
                match role {
                    ItemRole::Developer | ItemRole::System => self.say("system", content),
                    ItemRole::User => self.say("user", content),
                    ItemRole::Assistant => self.answer(content),
                }
            }
            ItemKind::FunctionCall => {
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                let name = item.name.ok_or_else(|| missing("name"))?;
                let arguments = item.arguments.unwrap_or_default();
                self.call(&id, &name, &arguments).map_err(|what| {
                    let param = path("arguments");
                    ApiError::field(&*param, format!("{param}: {what}"))
                })?;
            }
            ItemKind::FunctionCallOutput => {
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                let output = item.output.ok_or_else(|| missing("output"))?.into_text(&path("output"))?;
                self.result(&id, output);
            }
            ItemKind::Reasoning => {
                let mut thought =
                    item.content.map_or(Ok(String::new()), |content| content.into_text(&path("content")))?;
                if thought.is_empty() {
                    thought = text_of(item.summary.unwrap_or_default(), &path("summary"))?;
                }
                if !thought.is_empty() {
                    self.think(thought);
                }
            }
        }
        Ok(())
    }
}
