//! What can be asked.

use crate::chat::Message;

/// What a model continues: see [`Model::generate`](super::Model::generate).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, which the model's tokenizer takes apart.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<&[u32]> for Prompt {
    fn from(tokens: &[u32]) -> Self {
        Self::Tokens(tokens.into())
    }
}

/// The messages of a conversation, which ends with the one to answer: see [`Model::chat`](super::Model::chat).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation(pub(super) Vec<Message>);

/// One message of a user.
impl From<&str> for Conversation {
    fn from(text: &str) -> Self {
        Self(vec![Message::new("user", text)])
    }
}

/// One message of a user.
impl From<&String> for Conversation {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// One message of a user.
impl From<String> for Conversation {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self(messages)
    }
}

impl From<&Vec<Message>> for Conversation {
    fn from(messages: &Vec<Message>) -> Self {
        Self(messages.clone())
    }
}

impl From<&[Message]> for Conversation {
    fn from(messages: &[Message]) -> Self {
        Self(messages.to_vec())
    }
}
