//! An answer's text on its way to thoughts, content and calls.

use super::tool_calls::{CallParser, Functions, Piece};
use qernel_core::chat::Dialect;
use qernel_core::chat::thinking::{self, ThinkingParser};
use qernel_core::engine::Event;
use std::sync::Arc;

/// A part of an answer, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model thinks.
    Thought(String),
    /// What it says.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// Its arguments go on.
    Arguments(String),
    /// It ends.
    CallEnd,
}

/// What is read from an answer.
#[derive(Clone, Debug)]
pub struct AnswerForm {
    /// Thoughts are told from the rest.
    pub reads_thoughts: bool,
    /// The prompt ends within thoughts.
    pub in_thoughts: bool,
    /// The functions that may be called; none: calls are content.
    pub functions: Option<Arc<Functions>>,
    /// How the model calls.
    pub dialect: Dialect,
    /// A grammar holds what is behind the thoughts: a call stands in a block there, and what looks like one before is a thought.
    pub is_constrained: bool,
}

impl AnswerForm {
    /// What takes thoughts from an answer.
    pub fn thoughts(&self) -> ThinkingParser {
        let functions = self.functions.iter().filter(|_| !self.is_constrained);
        let names = functions.flat_map(|functions| functions.keys().cloned()).collect();
        ThinkingParser::new(self.in_thoughts).ended_by_calls(names)
    }
}

/// Takes one answer apart while it comes.
pub struct AnswerParser {
    thoughts: Option<ThinkingParser>,
    calls: Option<CallParser>,
    /// Of thoughts that a call ended.
    stray: Stray,
    num_calls: usize,
    thought_tokens: usize,
}

impl AnswerParser {
    pub fn new(form: &AnswerForm) -> Self {
        let calls = form.functions.clone().map(|functions| CallParser::new(functions, form.dialect));
        Self {
            thoughts: form.reads_thoughts.then(|| form.thoughts()),
            calls: if form.is_constrained { calls.map(CallParser::in_blocks_alone) } else { calls },
            stray: Stray::None,
            num_calls: 0,
            thought_tokens: 0,
        }
    }

    /// What an event of the engine makes certain, in order.
    pub fn event(&mut self, event: &Event) -> Vec<Part> {
        let was_thinking = self.is_thinking();
        let is_end = matches!(event, Event::Finished { .. });
        let parts = self.push(event.text(), is_end);
        self.thought_tokens += usize::from(!is_end && (was_thinking || self.is_thinking()));
        parts
    }

    /// Whether what comes next belongs to thoughts, as far as is known.
    pub fn is_thinking(&self) -> bool {
        self.thoughts.as_ref().is_some_and(ThinkingParser::is_thinking)
    }

    /// What the next piece of text makes certain, in order; at the end all of it.
    pub fn push(&mut self, text: &str, is_end: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        let said = match &mut self.thoughts {
            None => vec![thinking::Part::Said(text.to_owned())],
            Some(thoughts) => {
                let mut said = thoughts.push(text);
                if is_end {
                    said.extend(thoughts.finish());
                }
                if matches!(self.stray, Stray::None) && thoughts.was_ended_by_call() {
                    self.stray = Stray::Perhaps(String::new());
                }
                said
            }
        };
        for part in said {
            match part {
                thinking::Part::Thought(text) => parts.push(Part::Thought(text)),
                thinking::Part::Said(text) => self.said(&text, &mut parts),
            }
        }
        if is_end {
            let pieces = self.calls.as_mut().map(CallParser::finish).unwrap_or_default();
            pieces.into_iter().for_each(|piece| self.piece(piece, &mut parts));
            if let Stray::Perhaps(text) = std::mem::replace(&mut self.stray, Stray::Passed)
                && !text.trim().is_empty()
            {
                parts.push(Part::Text(text));
            }
        }
        parts
    }

    fn said(&mut self, text: &str, parts: &mut Vec<Part>) {
        match &mut self.calls {
            None if text.is_empty() => (),
            None => parts.push(Part::Text(text.to_owned())),
            Some(calls) => {
                let pieces = calls.push(text);
                pieces.into_iter().for_each(|piece| self.piece(piece, parts));
            }
        }
    }

    fn piece(&mut self, piece: Piece, parts: &mut Vec<Part>) {
        parts.push(match piece {
            Piece::Blank(_) => return,
            Piece::Text(text) => match self.without_stray_tag(text) {
                Some(text) => Part::Text(text),
                None => return,
            },
            Piece::Call(name) => {
                self.num_calls += 1;
                Part::Call(name)
            }
            Piece::Arguments(text) => Part::Arguments(text),
            Piece::End => Part::CallEnd,
        });
    }

    /// Text behind a call that ended thoughts: their closing tag is left out.
    fn without_stray_tag(&mut self, text: String) -> Option<String> {
        let is_behind = matches!(self.stray, Stray::Tag);
        let begun = match &mut self.stray {
            Stray::None | Stray::Passed => return Some(text),
            Stray::Tag => text,
            Stray::Perhaps(begun) => std::mem::take(begun) + &text,
        };
        let trimmed = begun.trim_start();
        let rest = match trimmed.strip_prefix(thinking::CLOSE) {
            _ if is_behind => trimmed,
            Some(rest) => {
                self.stray = Stray::Tag;
                rest.trim_start()
            }
            None if thinking::CLOSE.starts_with(trimmed) => {
                self.stray = Stray::Perhaps(begun);
                return None;
            }
            None => begun.as_str(),
        };
        if rest.is_empty() {
            return None;
        }
        self.stray = Stray::Passed;
        Some(rest.to_owned())
    }

    /// Calls so far.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Tokens of thoughts so far, with those that end them.
    pub fn thought_tokens(&self) -> usize {
        self.thought_tokens
    }
}

/// The closing tag of thoughts that a call ended, which may come behind the call.
enum Stray {
    /// There are no such thoughts.
    None,
    /// It may come: this may be its beginning.
    Perhaps(String),
    /// It came, and white space behind it is none of the content.
    Tag,
    /// What is said has begun.
    Passed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn parse(in_thoughts: bool, answer: &str, size: usize) -> (String, String, Vec<String>) {
        let form = AnswerForm {
            reads_thoughts: true,
            in_thoughts,
            functions: Some(Arc::new(HashMap::from([("sail".into(), None)]))),
            dialect: Dialect::Json,
            is_constrained: false,
        };
        let mut parser = AnswerParser::new(&form);
        let (mut thought, mut text, mut calls) = (String::new(), String::new(), Vec::new());
        let chars: Vec<char> = answer.chars().collect();
        let mut parts: Vec<Part> = chars
            .chunks(size)
            .flat_map(|chunk| parser.push(&chunk.iter().collect::<String>(), false))
            .collect();
        parts.extend(parser.push("", true));
        for part in parts {
            match part {
                Part::Thought(more) => thought += &more,
                Part::Text(more) => text += &more,
                Part::Call(name) => calls.push(name),
                Part::Arguments(more) => *calls.last_mut().unwrap() += &more,
                Part::CallEnd => *calls.last_mut().unwrap() += ";",
            }
        }
        assert_eq!(parser.num_calls(), calls.len());
        (thought, text, calls)
    }

    #[test]
    fn thoughts_content_and_calls() {
        let call = "<tool_call>\n{\"name\": \"sail\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let sail = "sail{\"a\": 1};".to_owned();
        for (in_thoughts, answer, thought, text, num_calls) in [
            (true, format!("so\n</think>\n\nI go.\n{call}"), "so", "I go.\n", 1),
            (false, format!("<think>\nso\n</think>\n\n{call}\n{call}"), "so", "", 2),
            // Within thoughts that are closed afterwards, or never.
            (true, format!("so\n{call}\n</think>\n\nGone."), "so", "Gone.", 1),
            (true, format!("so\n{call}"), "so", "", 1),
            (true, format!("so\n{call}\n{call}\n</think>"), "so", "", 2),
            (true, format!("so\n{call}\nGone."), "so", "\nGone.", 1),
            (true, format!("so\n{call}\n</thin"), "so", "\n</thin", 1),
            (false, "no <think>".to_owned(), "", "no <think>", 0),
        ] {
            for size in [1, 3, 1000] {
                let expected = (thought.to_owned(), text.to_owned(), vec![sail.clone(); num_calls]);
                assert_eq!(parse(in_thoughts, &answer, size), expected, "{answer} by {size}");
            }
        }
    }
}
