//! Why a template does not compile or render.

use std::fmt;

/// Result of whatever may fail in a template.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is: whose it is to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The source is no Jinja.
    Syntax,
    /// An operation that Python would refuse too.
    Failed,
    /// The template itself refused its input with `raise_exception`.
    Refused,
    /// It is larger, deeper or slower than it may be.
    Limit,
}

/// Why a template does not compile or render, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    /// From 1; `None` where it is about the whole.
    pub line: Option<u32>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), line: None }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    pub(crate) fn syntax(line: u32, message: impl Into<String>) -> Self {
        Self { line: Some(line), ..Self::new(ErrorKind::Syntax, message) }
    }

    /// With the line, unless a line further in is known.
    pub(crate) fn at(self, line: u32) -> Self {
        Self { line: self.line.or(Some(line)), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) if self.kind != ErrorKind::Refused => write!(f, "line {line}: {}", self.message),
            _ => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}
