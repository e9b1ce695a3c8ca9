//! Finds calls of tools in what a model writes, whole or piece by piece.
//!
//! The forms are those that Qwen's chat templates ask for. That of Qwen2.5, Qwen3 and Hermes models:
//!
//! ```text
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Oslo"}}
//! </tool_call>
//! ```
//!
//! and that of Qwen3-Coder, Qwen3.5 and later ones, whose values are JSON or, where the schema says so, text as it is:
//!
//! ```text
//! <tool_call>
//! <function=weather>
//! <parameter=city>
//! Oslo
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! Both are read whatever the template asks for. Blanks may be others. A call is one as soon as its head is there: what of it is cut
//! off then is missing in its arguments. Whatever else begins with `<tool_call>` is text like any other.

mod json;
mod types;
mod whole;
mod xml;

use qernel_core::chat::Dialect;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;

pub use types::{of_property, resolved, target};
use whole::{Block, Reading};

/// What begins a block.
pub const OPEN: &str = "<tool_call>";
/// What ends it.
pub const CLOSE: &str = "</tool_call>";

/// Bytes of a function's or parameter's name that are waited for.
const MAX_NAME: usize = 256;
/// Bytes of white space that are waited for.
const MAX_BLANK: usize = 64;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Content.
    Text(String),
    /// White space with nothing but calls, and the ends of the answer, around it: no content.
    Blank(String),
    /// A call of this function begins.
    Call(String),
    /// Its arguments go on: together they are a JSON object, unless the answer is cut off or the model wrote none.
    Arguments(String),
    /// It ends; one that was cut off never does.
    End,
}

/// The functions that there are, with the schemas of their arguments.
pub type Functions = HashMap<String, Option<Map<String, Value>>>;

/// Takes an answer apart. Where the pieces that it comes in are cut makes no difference to what they become together.
///
/// Only what may still become a call is held back, and white space that may turn out to be none of the content. The time
/// that this takes is linear in the answer's length.
#[derive(Debug)]
pub struct CallParser {
    functions: Arc<Functions>,
    /// Whether a call may stand without a block around it, as models that write XML do it now and then.
    allows_bare: bool,
    /// What no piece has been made of.
    held: String,
    state: State,
    /// White space since the last call, or the beginning, if there was nothing else.
    blank: String,
    /// Whether there was something else.
    in_text: bool,
    /// Whether there was a call.
    called: bool,
}

#[derive(Debug)]
enum State {
    Text,
    /// What is held begins with [`OPEN`], or with a call without it.
    Head,
    /// It begins with [`OPEN`], and has been read so far.
    Whole(Block),
    /// In a call.
    Json(json::Arguments),
    Xml(xml::Body),
}

/// The head of a call.
enum Head {
    /// It is so long.
    Call { name: String, len: usize },
    /// More text is needed.
    More,
    /// It is none.
    Other,
}

/// A text without the white space before it; `None` if that is too much.
fn blank(text: &str) -> Option<&str> {
    let rest = text.trim_start();
    (text.len() - rest.len() <= MAX_BLANK).then_some(rest)
}

impl CallParser {
    /// Of answers by a model that knows these functions and writes this dialect.
    pub fn new(functions: Arc<Functions>, dialect: Dialect) -> Self {
        Self {
            functions,
            allows_bare: dialect == Dialect::Xml,
            held: String::new(),
            state: State::Text,
            blank: String::new(),
            in_text: false,
            called: false,
        }
    }

    /// Where a grammar holds what stands in blocks: all else is text.
    pub fn in_blocks_alone(self) -> Self {
        Self { allows_bare: false, ..self }
    }

    /// Takes the next piece of the answer: what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut held = std::mem::take(&mut self.held);
        held.push_str(text);
        let mut start = 0;
        while let Some(len) = self.advance(&held[start..], &mut pieces) {
            start += len;
        }
        start += self.rest(&held[start..], &mut pieces);
        held.drain(..start);
        self.held = held;
        pieces
    }

    /// Goes on to the next state: how many bytes are done with. `None` where more text is needed.
    fn advance(&mut self, rest: &str, pieces: &mut Vec<Piece>) -> Option<usize> {
        match &mut self.state {
            State::Text => {
                let at = self.opening(rest).ok()?;
                self.text(&rest[..at], pieces);
                self.state = State::Head;
                Some(at)
            }
            State::Head => self.head(rest, pieces),
            State::Whole(block) => {
                let call = match block.read(rest.as_bytes()) {
                    Reading::More => return None,
                    Reading::Malformed => None,
                    Reading::Closed(len) => whole::parse(&rest[..len]).map(|call| (len, call)),
                };
                Some(match call {
                    Some((len, (name, arguments))) => {
                        self.call(name, pieces);
                        append(pieces, Piece::Arguments(arguments));
                        self.end(pieces);
                        len
                    }
                    None => self.not_a_call(pieces),
                })
            }
            State::Json(_) | State::Xml(_) => {
                let mut out = String::new();
                let (len, ended) = match &mut self.state {
                    State::Json(arguments) => arguments.read(rest, &mut out),
                    State::Xml(body) => body.read(rest, &mut out),
                    _ => return None,
                };
                append(pieces, Piece::Arguments(out));
                if ended {
                    self.end(pieces);
                }
                (ended || len > 0).then_some(len)
            }
        }
    }

    /// Text that is certain where no call is: how many bytes of it.
    fn rest(&mut self, rest: &str, pieces: &mut Vec<Piece>) -> usize {
        match (&self.state, self.opening(rest)) {
            (State::Text, Err(certain)) => {
                self.text(&rest[..certain], pieces);
                certain
            }
            _ => 0,
        }
    }

    /// Where a call begins; else how much of the text is certain not to be the beginning of one.
    fn opening(&self, text: &str) -> Result<usize, usize> {
        for (at, _) in text.match_indices('<') {
            let rest = &text[at..];
            let bare =
                if self.allows_bare { xml::bare_head(rest, self.functions.keys()) } else { Head::Other };
            if rest.starts_with(OPEN) || matches!(bare, Head::Call { .. }) {
                return Ok(at);
            }
            if OPEN.starts_with(rest) || matches!(bare, Head::More) {
                return Err(at);
            }
        }
        Err(text.len())
    }

    /// The head of a call.
    fn head(&mut self, held: &str, pieces: &mut Vec<Piece>) -> Option<usize> {
        let inside = held.strip_prefix(OPEN).unwrap_or(held);
        let Some(rest) = blank(inside) else { return Some(self.not_a_call(pieces)) };
        let before = held.len() - rest.len();
        let (head, is_json) = match rest.bytes().next() {
            None => return None,
            Some(b'{') => (json::head(rest), true),
            Some(_) => (xml::head(rest), false),
        };
        match head {
            Head::More => None,
            Head::Call { name, len } => {
                self.state = if is_json {
                    State::Json(json::Arguments::default())
                } else {
                    State::Xml(xml::Body::new(self.functions.get(&name).cloned().flatten()))
                };
                self.call(name, pieces);
                Some(before + len)
            }
            Head::Other if is_json => {
                self.state = State::Whole(Block::default());
                Some(0)
            }
            Head::Other => Some(self.not_a_call(pieces)),
        }
    }

    /// What begins like a block is none. What follows may be a call all the same.
    fn not_a_call(&mut self, pieces: &mut Vec<Piece>) -> usize {
        self.text(OPEN, pieces);
        self.state = State::Text;
        OPEN.len()
    }

    /// Ends the answer: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        // A block that is never closed is text, but a call may stand in it.
        while matches!(self.state, State::Head | State::Whole(_)) {
            self.state = State::Text;
            let begun = if self.held.starts_with(OPEN) { OPEN.len() } else { self.held.len() };
            let rest = self.held.split_off(begun);
            let begun = std::mem::take(&mut self.held);
            self.text(&begun, &mut pieces);
            for piece in self.push(&rest) {
                append(&mut pieces, piece);
            }
        }
        let rest = std::mem::take(&mut self.held);
        let mut out = String::new();
        let has_ended = match &mut self.state {
            State::Xml(body) => body.finish(&rest, &mut out),
            State::Json(arguments) => arguments.have_ended(),
            _ => {
                self.text(&rest, &mut pieces);
                false
            }
        };
        append(&mut pieces, Piece::Arguments(out));
        if has_ended {
            self.end(&mut pieces);
        }
        self.end_blank(self.called, &mut pieces);
        pieces
    }

    fn text(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        let rest = if self.in_text { text } else { text.trim_start() };
        if !self.in_text {
            self.blank.push_str(&text[..text.len() - rest.len()]);
        }
        if !rest.is_empty() {
            self.end_blank(false, pieces);
            self.in_text = true;
            append(pieces, Piece::Text(rest.to_owned()));
        }
    }

    fn call(&mut self, name: String, pieces: &mut Vec<Piece>) {
        self.end_blank(true, pieces);
        (self.in_text, self.called) = (false, true);
        pieces.push(Piece::Call(name));
    }

    fn end(&mut self, pieces: &mut Vec<Piece>) {
        self.state = State::Text;
        pieces.push(Piece::End);
    }

    fn end_blank(&mut self, beside_call: bool, pieces: &mut Vec<Piece>) {
        let blank = std::mem::take(&mut self.blank);
        if !blank.is_empty() {
            append(pieces, if beside_call { Piece::Blank(blank) } else { Piece::Text(blank) });
        }
    }
}

/// Adds a piece; text after text is one, and so are arguments.
fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), piece) {
        (_, Piece::Arguments(text)) if text.is_empty() => (),
        (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
        (Some(Piece::Arguments(before)), Piece::Arguments(text)) => before.push_str(&text),
        (_, piece) => pieces.push(piece),
    }
}

#[cfg(test)]
mod tests;
