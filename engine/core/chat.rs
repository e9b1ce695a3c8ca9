//! The model's chat template: messages -> the prompt that the model was trained on.
//!
//! Templates are Jinja written for Hugging Face transformers, which [`qernel_jinja`] runs within bounds. A file may have a second one for
//! conversations with tools. In which form a template wants the calls of an assistant's turn, and in which dialect it shows them, is
//! found out by trial (`form`).

mod effort;
mod form;
mod names;
pub mod thinking;

pub use effort::{EFFORT as REASONING_EFFORT, ENABLE as ENABLE_THINKING, Effort};
pub use form::Dialect;

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use form::Form;
use qernel_jinja::{ErrorKind, Limits, Template};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::sync::OnceLock;

/// ChatML, which Qwen2 was trained on; for files without a template.
const CHATML: &str = "\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// What `role` said.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The compiled templates of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    default: Compiled,
    /// For conversations with tools, where the file has one, or why it cannot be used.
    tool_use: Option<Result<Compiled, String>>,
    bos_token: String,
    eos_token: String,
    is_fallback: bool,
}

/// A template and the form of messages that it wants, once that was asked for.
#[derive(Debug)]
struct Compiled {
    template: Template,
    source: String,
    form: OnceLock<(Form, Dialect)>,
}

impl Compiled {
    fn new(name: &str, source: &str) -> Result<Self, String> {
        let template = Template::compile(source, Limits::default());
        let template = template.map_err(|error| format!("`{name}` does not compile: {error}"))?;
        Ok(Self { template, source: source.to_owned(), form: OnceLock::new() })
    }

    /// The form that it wants calls in, and the dialect that it shows them in.
    fn form(&self) -> (Form, Dialect) {
        *self.form.get_or_init(|| Form::of(&self.template, &self.source))
    }
}

/// GGUF's names of the two templates, which error messages show.
const DEFAULT: &str = "tokenizer.chat_template";
const TOOL_USE: &str = "tokenizer.chat_template.tool_use";

/// The texts of the tokens that begin and end a text; empty where there are none.
fn names_of(tokenizer: &Tokenizer) -> [String; 2] {
    [tokenizer.bos_token_id(), tokenizer.eos_token_id()].map(|id| {
        let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    })
}

impl ChatTemplate {
    /// Compiles the templates of the file, or ChatML where it has none but has ChatML's tokens; that is said in the log
    /// and by [`ChatTemplate::is_fallback`]. A name that the template prints and that should be a token, but is text in this vocabulary,
    /// is said in the log too.
    ///
    /// # Errors
    /// [`Error::Template`] where the template does not compile, or there is neither a template nor ChatML's tokens.
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Self> {
        let [bos_token, eos_token] = names_of(tokenizer);
        let Some(source) = tokenizer.chat_template() else {
            for token in ["<|im_start|>", "<|im_end|>"] {
                if tokenizer.added_token(token).is_none() {
                    return Err(Error::Template(format!(
                        "the file has none, and ChatML cannot stand in for it: there is no token {token}; use plain text (--raw)"
                    )));
                }
            }
            tracing::warn!("the file has no chat template; ChatML is used");
            return Ok(Self { is_fallback: true, ..Self::new(CHATML, &bos_token, &eos_token)? });
        };
        let mut template = Self::new(source, &bos_token, &eos_token)?;
        template.tool_use = tokenizer.tool_use_template().map(|source| {
            Compiled::new(TOOL_USE, source).inspect_err(|error| tracing::warn!("no chat with tools: {error}"))
        });
        let sources = [Some(source), tokenizer.tool_use_template()];
        for name in sources.into_iter().flatten().flat_map(names::of_tokens) {
            if let Some(count) = names::tokens_of_text(tokenizer, name)? {
                tracing::warn!(
                    "the chat template prints {name}, a normal token in this vocabulary, so that the model reads it as {count} tokens \
                     of text; convert the model again, or correct `tokenizer.ggml.token_type`"
                );
            }
        }
        Ok(template)
    }

    /// Compiles the template that is called `name` in place of the file's: `chatml`; `default` or `tool_use` of the file; else the
    /// name is the source of one, which has `{{` or `{%` in it.
    ///
    /// # Errors
    /// [`Error::Template`] where there is none of that name, or it does not compile.
    pub fn named(tokenizer: &Tokenizer, name: &str) -> Result<Self> {
        let source = match name {
            "chatml" => Some(CHATML),
            "default" => tokenizer.chat_template(),
            "tool_use" => tokenizer.tool_use_template(),
            source if source.contains("{{") || source.contains("{%") => Some(source),
            _ => None,
        };
        let Some(source) = source else {
            return Err(Error::Template(format!(
                "there is no chat template {name:?}; expected chatml, default or tool_use (where the file has it), or a template's text"
            )));
        };
        Self::from_source(tokenizer, source)
    }

    /// Compiles a template in place of the file's.
    ///
    /// # Errors
    /// [`Error::Template`] where it does not compile.
    pub fn from_source(tokenizer: &Tokenizer, source: &str) -> Result<Self> {
        let [bos_token, eos_token] = names_of(tokenizer);
        Self::new(source, &bos_token, &eos_token)
    }

    /// Compiles a template. `bos_token` and `eos_token` are the names that it may print.
    ///
    /// # Errors
    /// [`Error::Template`] where it does not compile.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let default = Compiled::new(DEFAULT, source).map_err(Error::Template)?;
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(Self { default, tool_use: None, bos_token, eos_token, is_fallback: false })
    }

    /// Compiles a template for conversations with tools beside the other one.
    ///
    /// # Errors
    /// [`Error::Template`] where it does not compile.
    pub fn with_tool_use(self, source: &str) -> Result<Self> {
        let tool_use = Compiled::new(TOOL_USE, source).map_err(Error::Template)?;
        Ok(Self { tool_use: Some(Ok(tool_use)), ..self })
    }

    /// The dialect that the model was trained to call tools in: how the template shows the calls of earlier turns.
    pub fn dialect(&self) -> Dialect {
        match &self.tool_use {
            Some(Ok(tool_use)) => tool_use.form().1,
            _ => self.default.form().1,
        }
    }

    /// Whether the template knows of thoughts, so that the model may be expected to think.
    pub fn thinks(&self) -> bool {
        self.mentions(thinking::OPEN) || self.mentions(thinking::CLOSE)
    }

    /// The Jinja text of the template for conversations without tools.
    pub fn source(&self) -> &str {
        &self.default.source
    }

    /// Whether a template's source has this text.
    fn mentions(&self, text: &str) -> bool {
        let tool_use = self.tool_use.iter().flatten();
        [&self.default].into_iter().chain(tool_use).any(|compiled| compiled.source.contains(text))
    }

    /// Whether the file had no template and ChatML stands in.
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// [`ChatTemplate::render_with`] without variables of the caller's.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render_with`].
    pub fn render<M: Serialize>(
        &self,
        messages: &[M],
        tools: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_with(messages, tools, add_generation_prompt, &Map::new())
    }

    /// Renders a conversation, to be encoded with special tokens parsed. As with every engine that renders text first,
    /// the name of a special token inside a message becomes that token.
    ///
    /// `messages` are [`Message`]s or anything that serialises to what transformers expects: arguments of calls are objects, and
    /// `content` may be null. A template that cannot take these is given text instead. `tools` are JSON schemas of functions.
    /// `add_generation_prompt` opens the assistant's turn. `variables` are there besides, such as Qwen3's `enable_thinking`; they
    /// replace none of the template's own.
    ///
    /// # Errors
    /// [`Error::Request`] where the template refuses the conversation, [`Error::Template`] where it fails or reaches a bound.
    pub fn render_with<M: Serialize, T: Serialize>(
        &self,
        messages: &[M],
        tools: &[T],
        add_generation_prompt: bool,
        variables: &Map<String, Value>,
    ) -> Result<String> {
        let (name, compiled) = match &self.tool_use {
            Some(Ok(compiled)) if !tools.is_empty() => (TOOL_USE, compiled),
            Some(Err(error)) if !tools.is_empty() => return Err(Error::Template(error.clone())),
            _ => (DEFAULT, &self.default),
        };
        let fault = |error| Error::Template(format!("`{name}`: the conversation is no JSON: {error}"));
        let messages = serde_json::to_value(messages).map_err(fault)?;
        let messages = match form::is_needed(&messages) {
            true => compiled.form().0.apply(messages),
            false => messages,
        };
        let (bos_token, eos_token) = (&self.bos_token, &self.eos_token);
        let all = Variables { variables, messages, tools, add_generation_prompt, bos_token, eos_token };
        let all = serde_json::to_string(&all).map_err(fault)?;
        compiled.template.render(&all).map_err(|error| match error.kind {
            ErrorKind::Refused => {
                Error::Request(format!("the model's chat template refuses this conversation: {error}"))
            }
            ErrorKind::Limit => Error::Template(format!(
                "`{name}` is larger, deeper or slower than it may be: {error}; shorten the conversation, or mend the template"
            )),
            _ => Error::Template(format!("`{name}` fails: {error}")),
        })
    }
}

/// The variables of a template.
struct Variables<'a, T> {
    /// The caller's.
    variables: &'a Map<String, Value>,
    messages: Value,
    tools: &'a [T],
    add_generation_prompt: bool,
    bos_token: &'a str,
    eos_token: &'a str,
}

impl<T: Serialize> Serialize for Variables<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        // Of two variables of one name the later one counts.
        for (name, value) in self.variables {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("messages", &self.messages)?;
        map.serialize_entry("tools", &(!self.tools.is_empty()).then_some(self.tools))?;
        map.serialize_entry("add_generation_prompt", &self.add_generation_prompt)?;
        map.serialize_entry("bos_token", self.bos_token)?;
        map.serialize_entry("eos_token", self.eos_token)?;
        map.end()
    }
}

#[cfg(test)]
mod tests;
