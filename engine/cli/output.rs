//! Standard output, whose reader may leave, and notes on standard error, which may be closed or full.

use crate::disk;
use crate::engine::Event;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Standard output was closed before the program began (`>&-`). The standard library then opens `/dev/null` in its place, so this has to
/// be found out before `main`.
pub static STDOUT_IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// As [`printable`], with line breaks escaped too.
pub fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\n")
}

/// Saves a text, as [`disk::save`] does.
pub fn save_text(path: &Path, model: Option<&Path>, text: &str) -> Result<()> {
    disk::save(path, model, |out| out.write_all(text.as_bytes()).map_err(|error| Error::io(path, error)))
}

/// Writes a line to standard error. Where that cannot be, nobody misses it: no command fails of a note.
pub fn note(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr().lock(), "{}", printable(&text));
}

/// The line that tells an error.
pub fn message(error: &Error) -> String {
    format!("qernel: {}\n", printable(&error.to_string()))
}

/// Text that came out of a file, fit for a terminal: control characters but line breaks and tabs, which could move the cursor or set the
/// window's title, and those that change the direction of writing are escaped as in Rust's strings.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| match c {
        '\n' | '\t' => true,
        '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => false,
        c => !c.is_control(),
    };
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) { escaped.push(c) } else { escaped.extend(c.escape_default()) }
    }
    Cow::Owned(escaped)
}

/// Writes to standard output. A reader that has gone (`qernel … | head`) is [`Error::ClosedPipe`], with which the
/// program ends quietly; any other failure is an error.
pub struct Output {
    stdout: io::Stdout,
}

impl Output {
    /// The program's standard output.
    pub fn stdout() -> Self {
        Self { stdout: io::stdout() }
    }

    /// Writes and flushes, so that streamed text shows at once.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Writes a line and flushes.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Writes a value as one line of JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string(value).expect("values with string keys always serialise");
        self.line(&text)
    }

    /// Writes bytes as they are and flushes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if STDOUT_IS_CLOSED.load(Ordering::Relaxed) {
            return Err(Error::io("standard output", io::Error::other("it is closed")));
        }
        let mut lock = self.stdout.lock();
        lock.write_all(bytes).and_then(|()| lock.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Error::ClosedPipe,
            _ => Error::io("standard output", error),
        })
    }
}

/// Shows an answer while it is made.
pub struct Stream {
    out: Output,
    /// Whether text is shown at all.
    visible: bool,
    failure: Result<()>,
}

impl Stream {
    /// A stream to standard output, or one that shows nothing.
    pub fn new(visible: bool) -> Self {
        Self { out: Output::stdout(), visible, failure: Ok(()) }
    }

    /// Shows the text of an event. Breaks where it cannot be written: nobody needs the rest then.
    pub fn event(&mut self, event: &Event) -> ControlFlow<()> {
        if self.visible && !event.text().is_empty() {
            self.failure = self.out.text(event.text());
        }
        if self.failure.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Ends the line.
    ///
    /// # Errors
    /// What kept the text from being written.
    pub fn end(mut self) -> Result<()> {
        self.failure?;
        if self.visible { self.out.line("") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        for plain in ["", "a\tb\n", "é中\u{1F980}"] {
            assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain), "{plain:?}");
        }
        assert_eq!(printable("a\u{1B}]0;title\u{7}b"), "a\\u{1b}]0;title\\u{7}b");
        assert_eq!(printable("\r\u{9B}2J\u{7F}\u{202E}x"), "\\r\\u{9b}2J\\u{7f}\\u{202e}x");
    }
}
