//! Options of conversations: which chat template, how long a model thinks; and thoughts as a terminal shows them.

use super::options::AtMost;
use super::output::Output;
use crate::chat::thinking::{CLOSE, OPEN, Part, ThinkingParser};
use crate::chat::{ChatTemplate, ENABLE_THINKING, Effort};
use crate::engine::{Event, Thinking, ThinkingConstraint, TokenConstraint};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use clap::Args;
use serde_json::{Map, Value};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// Which chat template, and what it is told.
#[derive(Clone, Debug, Default, Args)]
pub struct TemplateArgs {
    /// Chat template in place of the model file's: chatml, the file's default or tool_use, or a Jinja template as text
    #[arg(long, value_name = "NAME", conflicts_with = "chat_template_file")]
    pub chat_template: Option<String>,
    /// File with a Jinja chat template in place of the model file's
    #[arg(long, value_name = "FILE")]
    pub chat_template_file: Option<PathBuf>,
    /// Variables of the chat template, as a JSON object, such as {"enable_thinking": false}
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

fn parse_object(text: &str) -> std::result::Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

impl TemplateArgs {
    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Template`] where there is none or it does not compile, [`Error::Io`] where its file cannot be read.
    pub fn open(&self, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        match (&self.chat_template, &self.chat_template_file) {
            (Some(name), _) => ChatTemplate::named(tokenizer, name),
            (None, Some(path)) => {
                let source = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
                ChatTemplate::from_source(tokenizer, &source)
            }
            (None, None) => ChatTemplate::from_tokenizer(tokenizer),
        }
    }

    /// Its variables.
    pub fn variables(&self) -> Map<String, Value> {
        self.chat_template_kwargs.clone().unwrap_or_default()
    }
}

/// How long a model thinks.
#[derive(Clone, Debug, Args)]
pub struct ReasoningArgs {
    /// Tokens after which the model's thoughts are closed; 0 thinks nothing, -1 leaves it to the model
    #[arg(long, value_name = "TOKENS", default_value = "-1", allow_negative_numbers = true)]
    pub reasoning_budget: AtMost,
    /// What the model is made to think before its thoughts are closed for it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reasoning_budget_message: String,
}

impl ReasoningArgs {
    /// What a template is told: nothing, or that there are no thoughts.
    pub fn effort(&self, variables: &Map<String, Value>) -> Option<Effort> {
        let says_nothing = !variables.contains_key(ENABLE_THINKING);
        (self.reasoning_budget.bound() == Some(0) && says_nothing).then_some(Effort::None)
    }

    /// What keeps the thoughts of an answer within their budget, if there is one.
    ///
    /// # Errors
    /// As [`ThinkingConstraint::new`].
    pub fn constraint(
        &self,
        tokenizer: &Arc<Tokenizer>,
        is_open: bool,
        grammar: Option<Box<dyn TokenConstraint>>,
    ) -> Result<Option<Box<dyn TokenConstraint>>> {
        let budget = self.reasoning_budget.bound();
        if budget.is_none() && grammar.is_none() {
            return Ok(None);
        }
        let message = self.reasoning_budget_message.clone();
        let thinking = Thinking { is_open, budget, message, functions: Vec::new() };
        Ok(Some(Box::new(ThinkingConstraint::new(tokenizer, &thinking, grammar)?)))
    }
}

/// Shows an answer while it is made: thoughts dimmed in a terminal, elsewhere between their tags.
pub struct Talk {
    out: Output,
    parser: ThinkingParser,
    is_terminal: bool,
    thinks: bool,
    thought: String,
    said: String,
    failure: Result<()>,
}

impl Talk {
    /// Of an answer that begins within thoughts, or before them; `reads_thoughts` says if it may have any.
    pub fn new(reads_thoughts: bool, is_open: bool) -> Self {
        Self {
            out: Output::stdout(),
            parser: if reads_thoughts { ThinkingParser::new(is_open) } else { ThinkingParser::without() },
            is_terminal: std::io::stdout().is_terminal(),
            thinks: false,
            thought: String::new(),
            said: String::new(),
            failure: Ok(()),
        }
    }

    /// Shows what an event adds. Breaks where it cannot be written: nobody needs the rest then.
    pub fn event(&mut self, event: &Event) -> ControlFlow<()> {
        let mut parts = self.parser.push(event.text());
        if matches!(event, Event::Finished { .. }) {
            parts.extend(self.parser.finish());
        }
        for part in parts {
            let shown = match part {
                Part::Thought(text) => {
                    self.thought += &text;
                    self.switch(true) + &text
                }
                Part::Said(text) => {
                    self.said += &text;
                    self.switch(false) + &text
                }
            };
            self.show(&shown);
        }
        if self.failure.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn show(&mut self, text: &str) {
        if self.failure.is_ok() && !text.is_empty() {
            self.failure = self.out.text(text);
        }
    }

    /// What stands between thoughts and what is said.
    fn switch(&mut self, thinks: bool) -> String {
        match (std::mem::replace(&mut self.thinks, thinks), thinks, self.is_terminal) {
            (false, true, true) => "\x1b[2m".into(),
            (true, false, true) => "\x1b[0m\n\n".into(),
            (false, true, false) => format!("{OPEN}\n"),
            (true, false, false) => format!("\n{CLOSE}\n\n"),
            _ => String::new(),
        }
    }

    /// Ends the line: what the model thought and said.
    ///
    /// # Errors
    /// What kept the text from being written.
    pub fn end(mut self) -> Result<(String, String)> {
        if self.thinks && self.is_terminal {
            self.show("\x1b[0m");
        }
        self.failure?;
        self.out.line("")?;
        Ok((self.thought, self.said))
    }
}
