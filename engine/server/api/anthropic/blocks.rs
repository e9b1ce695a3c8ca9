//! The messages of a request, as turns of a conversation.

use crate::api::fields;
use crate::api::responses::Turns;
use crate::error::ApiError;
use crate::fields::described;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use utoipa::ToSchema;

described! {
    InputMessage: fields::INPUT_MESSAGE,
    InputBlock: fields::INPUT_BLOCK,
}

/// One turn of a conversation.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct InputMessage {
    role: MessageRole,
    content: BlockContent,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageRole {
    User,
    Assistant,
    System,
}

/// A text, or blocks.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum BlockContent {
    Text(String),
    Blocks(Vec<InputBlock>),
}

impl<'de> Deserialize<'de> for BlockContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = BlockContent;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string or a list of blocks")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<BlockContent, E> {
                Ok(BlockContent::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, blocks: A) -> Result<BlockContent, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(blocks)).map(BlockContent::Blocks)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A block of a turn. Images and documents are not supported.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct InputBlock {
    #[serde(rename = "type")]
    kind: BlockKind,
    /// Of the type `text`.
    text: Option<String>,
    /// Of the type `thinking`: what the assistant thought.
    thinking: Option<String>,
    /// Of the type `tool_use`: the id that its result has.
    id: Option<String>,
    /// Of the type `tool_use`: the tool.
    name: Option<String>,
    /// Of the type `tool_use`: the arguments.
    input: Option<Map<String, Value>>,
    /// Of the type `tool_result`: whose it is.
    tool_use_id: Option<String>,
    /// Of the type `tool_result`: what came of it, a text or blocks of text.
    #[schema(no_recursion, value_type = Option<BlockContent>)]
    content: Option<Box<BlockContent>>,
    /// Of the type `tool_result`: it failed, which the model is told.
    is_error: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    Text,
    Thinking,
    RedactedThinking,
    ToolUse,
    ToolResult,
}

impl<'de> Deserialize<'de> for BlockKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "text" => Self::Text,
            "thinking" => Self::Thinking,
            "redacted_thinking" => Self::RedactedThinking,
            "tool_use" => Self::ToolUse,
            "tool_result" => Self::ToolResult,
            other => {
                return Err(D::Error::custom(format!(
                    "expected a block of the type text, thinking, tool_use or tool_result, found {other:?}: this server takes no \
                     images or documents"
                )));
            }
        })
    }
}

fn missing(param: String) -> ApiError {
    ApiError::field(&*param, format!("{param}: expected a value, found nothing"))
}

/// The text of blocks that are nothing else, a line each.
fn text_of(content: BlockContent, path: &str) -> Result<String, ApiError> {
    let blocks = match content {
        BlockContent::Text(text) => return Ok(text),
        BlockContent::Blocks(blocks) => blocks,
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for (i, block) in blocks.into_iter().enumerate() {
        if block.kind != BlockKind::Text {
            let param = format!("{path}[{i}].type");
            return Err(ApiError::field(&*param, format!("{param}: expected \"text\" here")));
        }
        texts.push(block.text.ok_or_else(|| missing(format!("{path}[{i}].text")))?);
    }
    Ok(texts.join("\n"))
}

/// The turns of a request.
///
/// # Errors
/// 400 where blocks lack fields, stand where they cannot, or the assistant has the last word.
pub fn turns(system: Option<BlockContent>, messages: Vec<InputMessage>) -> Result<Vec<Value>, ApiError> {
    let mut turns = Turns::default();
    if let Some(system) = system {
        turns.say("system", text_of(system, "system")?);
    }
    if messages.last().is_some_and(|message| message.role == MessageRole::Assistant) {
        let message = "messages: the last turn is the assistant's, whose beginning this server cannot continue; end with the user's";
        return Err(ApiError::field("messages", message));
    }
    for (i, InputMessage { role, content }) in messages.into_iter().enumerate() {
        let path = format!("messages[{i}].content");
        match (role, content) {
            (MessageRole::System, content) => turns.say("system", text_of(content, &path)?),
            (MessageRole::User, BlockContent::Text(text)) => turns.say("user", text),
            (MessageRole::Assistant, BlockContent::Text(text)) => turns.answer(text),
            (MessageRole::User, BlockContent::Blocks(blocks)) => user(&mut turns, blocks, &path)?,
            (MessageRole::Assistant, BlockContent::Blocks(blocks)) => assistant(&mut turns, blocks, &path)?,
        }
    }
    Ok(turns.0)
}

/// A user's turn: results of tools, and what the user says.
fn user(turns: &mut Turns, blocks: Vec<InputBlock>, path: &str) -> Result<(), ApiError> {
    let mut said = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let path = |field: &str| format!("{path}[{i}].{field}");
        match block.kind {
            BlockKind::Text => said.push(block.text.ok_or_else(|| missing(path("text")))?),
            BlockKind::ToolResult => {
                if !said.is_empty() {
                    turns.say("user", std::mem::take(&mut said).join("\n"));
                }
                let id = block.tool_use_id.ok_or_else(|| missing(path("tool_use_id")))?;
                let text =
                    block.content.map_or(Ok(String::new()), |content| text_of(*content, &path("content")))?;
                let failed = block.is_error.unwrap_or(false);
                turns.result(&id, if failed { format!("Error: {text}") } else { text });
            }
            _ => {
                let param = path("type");
                return Err(ApiError::field(
                    &*param,
                    format!("{param}: only the assistant thinks and calls tools"),
                ));
            }
        }
    }
    if !said.is_empty() {
        turns.say("user", said.join("\n"));
    }
    Ok(())
}

/// An assistant's turn: thoughts, what it says, calls.
fn assistant(turns: &mut Turns, blocks: Vec<InputBlock>, path: &str) -> Result<(), ApiError> {
    let mut said = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let path = |field: &str| format!("{path}[{i}].{field}");
        if block.kind == BlockKind::Text {
            said.push(block.text.ok_or_else(|| missing(path("text")))?);
            continue;
        }
        if !said.is_empty() {
            turns.answer(std::mem::take(&mut said).join("\n"));
        }
        match block.kind {
            BlockKind::Text => (),
            BlockKind::Thinking => turns.think(block.thinking.ok_or_else(|| missing(path("thinking")))?),
            // Of another server: nobody here can read it.
            BlockKind::RedactedThinking => (),
            BlockKind::ToolUse => {
                let id = block.id.ok_or_else(|| missing(path("id")))?;
                let name = block.name.ok_or_else(|| missing(path("name")))?;
                let input = block.input.ok_or_else(|| missing(path("input")))?;
                turns.call_with(&id, &name, input.into());
            }
            BlockKind::ToolResult => {
                let param = path("type");
                return Err(ApiError::field(&*param, format!("{param}: results of tools are the user's")));
            }
        }
    }
    if !said.is_empty() {
        turns.answer(said.join("\n"));
    }
    Ok(())
}
