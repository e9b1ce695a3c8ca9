//! Standard output whose reader may leave.

use crate::error::{Error, Result};
use crate::generate::Event;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;

/// Writes to standard output. A reader that has gone (`qernel … | head`) is [`Error::ClosedPipe`], with which the
/// program ends quietly; any other failure is an error.
pub struct Output {
    stdout: std::io::Stdout,
}

impl Output {
    /// The program's standard output.
    pub fn stdout() -> Self {
        Self { stdout: std::io::stdout() }
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
