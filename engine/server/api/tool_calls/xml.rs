//! The call `<function=…><parameter=…>…</parameter></function>`, whose arguments are handed out as JSON while they come: texts
//! piece by piece, other values when they are whole.

use super::types::{self, Types};
use super::{CLOSE, Head, MAX_BLANK, MAX_NAME, blank};
use serde_json::{Map, Value};

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// The head of a call. `text` begins with what follows `<tool_call>` and white space.
pub fn head(text: &str) -> Head {
    match named(text, FUNCTION) {
        Named::Yes { name, len } => Head::Call { name, len },
        Named::More => Head::More,
        Named::No => Head::Other,
    }
}

/// Whether a text begins with a call of one of these functions, without a block around it.
pub fn bare_head<'a>(text: &str, mut names: impl Iterator<Item = &'a String>) -> Head {
    match named(text, FUNCTION) {
        Named::Yes { name, len } if names.any(|known| *known == name) => Head::Call { name, len },
        Named::More => {
            // White space around the name is none of it.
            let begun = text.get(FUNCTION.len()..).unwrap_or_default().trim_start();
            let may_become = |name: &String| name.starts_with(begun) || name == begun.trim_end();
            if names.any(may_become) { Head::More } else { Head::Other }
        }
        _ => Head::Other,
    }
}

enum Named {
    Yes { name: String, len: usize },
    No,
    More,
}

/// A tag with a name, such as `<parameter=city>`.
fn named(text: &str, tag: &str) -> Named {
    let Some(rest) = text.strip_prefix(tag) else {
        return if tag.starts_with(text) { Named::More } else { Named::No };
    };
    match rest.find(['>', '<', '\n']) {
        Some(end) if rest[end..].starts_with('>') && (1..=MAX_NAME).contains(&end) => {
            Named::Yes { name: rest[..end].trim().to_owned(), len: tag.len() + end + 1 }
        }
        None if rest.len() <= MAX_NAME => Named::More,
        _ => Named::No,
    }
}

/// A call whose head has been read.
#[derive(Debug)]
pub struct Body {
    /// The schema of the function's arguments.
    schema: Option<Map<String, Value>>,
    place: Place,
    /// Whether a parameter was handed out.
    begun: bool,
}

#[derive(Debug)]
enum Place {
    /// Between parameters.
    Between,
    /// In the value of one.
    Value(Parameter),
    /// Behind the function.
    Behind,
}

/// A parameter whose value is being read.
#[derive(Debug)]
struct Parameter {
    types: Types,
    /// Nothing of the value was read; a line break at its beginning is none of it.
    at_start: bool,
    /// Of what is no text: all of it so far.
    value: String,
}

impl Body {
    /// Of a function with this schema of its arguments.
    pub fn new(schema: Option<Map<String, Value>>) -> Self {
        Self { schema, place: Place::Between, begun: false }
    }

    /// Reads on: how many bytes are done with, and whether the call ends there. JSON goes to `out`.
    pub fn read(&mut self, text: &str, out: &mut String) -> (usize, bool) {
        let mut start = 0;
        loop {
            let rest = &text[start..];
            let (len, goes_on) = match &mut self.place {
                Place::Between => self.between(rest, out),
                Place::Value(parameter) => {
                    let (len, closed) = parameter.read(rest, out);
                    if closed {
                        self.place = Place::Between;
                    }
                    (len, closed)
                }
                Place::Behind => {
                    let (len, ended) = behind(rest);
                    return (start + len, ended);
                }
            };
            start += len;
            if !goes_on {
                return (start, false);
            }
        }
    }

    /// Ends the text: whether the call has ended. The JSON of one that was cut off stays open, whatever of it is whole: parameters may
    /// be missing.
    pub fn finish(&mut self, held: &str, out: &mut String) -> bool {
        if let Place::Value(parameter) = &mut self.place {
            match held.trim_end().strip_suffix(PARAMETER_END) {
                Some(value) => parameter.close(value, out),
                None => parameter.push(held, out),
            }
        }
        matches!(self.place, Place::Behind)
    }

    fn end(&mut self, out: &mut String) {
        out.push_str(if self.begun { "}" } else { "{}" });
        self.place = Place::Behind;
    }

    fn between(&mut self, text: &str, out: &mut String) -> (usize, bool) {
        let rest = text.trim_start();
        let passed = text.len() - rest.len();
        if let Named::Yes { name, len } = named(rest, PARAMETER) {
            out.push_str(if self.begun { ", " } else { "{" });
            out.push_str(&Value::from(name.as_str()).to_string());
            out.push_str(": ");
            self.begun = true;
            let types = types::of_property(self.schema.as_ref(), &name);
            if types.is_text() {
                out.push('"');
            }
            self.place = Place::Value(Parameter { types, at_start: true, value: String::new() });
            return (passed + len, true);
        }
        if rest.starts_with(FUNCTION_END) {
            self.end(out);
            return (passed + FUNCTION_END.len(), true);
        }
        // A block that ends without its function's end.
        if rest.starts_with(CLOSE) {
            self.end(out);
            return (passed, true);
        }
        let may_become = [FUNCTION_END, CLOSE].iter().any(|tag| tag.starts_with(rest));
        if may_become || matches!(named(rest, PARAMETER), Named::More) {
            return (passed, false);
        }
        // What belongs to no parameter says nothing.
        let next = rest.match_indices('<').map(|(at, _)| at).find(|&at| at > 0).unwrap_or(rest.len());
        (passed + next, next < rest.len())
    }
}

/// The end of the block, which a call without one lacks.
fn behind(text: &str) -> (usize, bool) {
    let Some(rest) = blank(text) else { return (0, true) };
    let passed = text.len() - rest.len();
    if rest.starts_with(CLOSE) {
        (passed + CLOSE.len(), true)
    } else if CLOSE.starts_with(rest) {
        (0, false)
    } else {
        (0, true)
    }
}

/// Whether the text behind `</parameter>` shows that it ended a value.
fn ends_value(behind: &str) -> Option<bool> {
    let rest = behind.trim_start();
    let next = [PARAMETER, FUNCTION_END, CLOSE];
    if next.iter().any(|tag| rest.starts_with(tag)) || behind.len() - rest.len() > MAX_BLANK {
        Some(true)
    } else if next.iter().any(|tag| tag.starts_with(rest)) {
        None
    } else {
        Some(false)
    }
}

impl Parameter {
    /// Reads on in the value: how many bytes are done with, and whether it ends there.
    fn read(&mut self, text: &str, out: &mut String) -> (usize, bool) {
        let mut certain = text.len();
        for (at, _) in text.match_indices('<') {
            let rest = &text[at..];
            if let Some(behind) = rest.strip_prefix(PARAMETER_END) {
                match ends_value(behind) {
                    Some(true) => {
                        self.close(&text[..at], out);
                        return (at + PARAMETER_END.len(), true);
                    }
                    Some(false) => continue,
                    None => certain = at,
                }
                break;
            }
            if PARAMETER_END.starts_with(rest) {
                certain = at;
                break;
            }
        }
        // The line break before the tag is none of the value.
        let value = &text[..certain];
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = value.strip_suffix('\r').unwrap_or(value);
        // At the start a line break alone may be both.
        if self.at_start && value.is_empty() {
            return (0, false);
        }
        self.push(value, out);
        (value.len(), false)
    }

    fn push(&mut self, text: &str, out: &mut String) {
        let text = if std::mem::take(&mut self.at_start) { without_line_break(text) } else { text };
        if self.types.is_text() {
            let quoted = Value::from(text).to_string();
            out.push_str(&quoted[1..quoted.len() - 1]);
        } else {
            self.value.push_str(text);
        }
    }

    fn close(&mut self, rest: &str, out: &mut String) {
        let rest = if std::mem::take(&mut self.at_start) { without_line_break(rest) } else { rest };
        let rest = rest.strip_suffix('\n').unwrap_or(rest);
        let rest = rest.strip_suffix('\r').unwrap_or(rest);
        self.push(rest, out);
        if self.types.is_text() {
            out.push('"');
        } else {
            out.push_str(&self.types.value(&self.value));
        }
    }
}

/// A text without the line break that it begins with.
fn without_line_break(text: &str) -> &str {
    let text = text.strip_prefix('\r').filter(|rest| rest.starts_with('\n')).unwrap_or(text);
    text.strip_prefix('\n').unwrap_or(text)
}
