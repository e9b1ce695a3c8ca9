//! The call `{"name": …, "arguments": {…}}`, whose arguments are handed out while they come.

use super::{CLOSE, Head, MAX_NAME, blank};

/// The head of a call, up to its arguments. `text` begins with what follows `<tool_call>` and white space.
pub fn head(text: &str) -> Head {
    let Some(rest) = words(text, &["{", "\"name\"", ":"]) else { return Head::Other };
    let Ok(rest) = rest else { return Head::More };
    let Some(inside) = rest.strip_prefix('"') else {
        return if rest.is_empty() { Head::More } else { Head::Other };
    };
    let mut escaped = false;
    let end = inside.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    if end.unwrap_or(inside.len()) > MAX_NAME {
        return Head::Other;
    }
    let Some(end) = end else { return Head::More };
    let Ok(name) = serde_json::from_str(&rest[..end + 2]) else { return Head::Other };
    match words(&rest[end + 2..], &[",", "\"arguments\"", ":"]) {
        None => Head::Other,
        Some(Err(())) => Head::More,
        Some(Ok("")) => Head::More,
        Some(Ok(rest)) if rest.starts_with('{') => Head::Call { name, len: text.len() - rest.len() },
        Some(Ok(_)) => Head::Other,
    }
}

/// What follows these words, before and between which white space may stand, and white space behind them; `Err` where more text is
/// needed, `None` where there is something else.
fn words<'a>(mut text: &'a str, words: &[&str]) -> Option<Result<&'a str, ()>> {
    for word in words {
        text = blank(text)?;
        text = match text.strip_prefix(word) {
            Some(rest) => rest,
            None if word.starts_with(text) => return Some(Err(())),
            None => return None,
        };
    }
    blank(text).map(Ok)
}

/// Where in the arguments, or behind them, the text is.
#[derive(Debug, Default)]
pub struct Arguments {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The arguments have ended.
    behind: bool,
}

impl Arguments {
    /// Reads on: how many bytes are done with, and whether the call ends there. What the arguments are goes to `out`: as it was written,
    /// but for control characters in strings, which JSON has escaped.
    pub fn read(&mut self, text: &str, out: &mut String) -> (usize, bool) {
        let mut start = 0;
        if !self.behind {
            for (at, byte) in text.bytes().enumerate() {
                if self.in_string && byte < b' ' {
                    out.push_str(&text[start..at]);
                    out.push_str(&escape(byte));
                    start = at + 1;
                    self.escaped = false;
                } else if self.takes(byte) {
                    out.push_str(&text[start..=at]);
                    self.behind = true;
                    let (len, ended) = tail(&text[at + 1..]);
                    return (at + 1 + len, ended);
                }
            }
            out.push_str(&text[start..]);
            return (text.len(), false);
        }
        tail(text)
    }

    /// Whether they are whole.
    pub fn have_ended(&self) -> bool {
        self.behind
    }

    /// Whether a byte ends the arguments.
    fn takes(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => (),
        }
        false
    }
}

/// A control character as JSON has it in strings.
fn escape(byte: u8) -> String {
    match byte {
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        b'\t' => "\\t".into(),
        other => format!("\\u{other:04x}"),
    }
}

/// What stands behind the arguments: the brace of the call and the end of the block. What else comes is no part of it.
fn tail(text: &str) -> (usize, bool) {
    let rest = text.trim_start_matches([' ', '\n', '\r', '\t', '}']);
    let passed = text.len() - rest.len();
    if rest.starts_with(CLOSE) {
        (passed + CLOSE.len(), true)
    } else if CLOSE.starts_with(rest) {
        (passed, false)
    } else {
        (passed, true)
    }
}
