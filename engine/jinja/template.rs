//! A compiled template.

use crate::arguments::Arguments;
use crate::ast::Body;
use crate::error::{Error, Result};
use crate::heap::{Heap, Limits};
use crate::interpreter::Interpreter;
use crate::json;
use crate::lexer::lex;
use crate::parser::Parser;
use crate::statements;

/// A template, compiled, with its bounds.
pub struct Template {
    body: Body,
    limits: Limits,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles a source.
    ///
    /// # Errors
    /// [`ErrorKind::Syntax`](crate::ErrorKind::Syntax) where it is no Jinja, [`ErrorKind::Limit`](crate::ErrorKind::Limit) where it
    /// is too long or nested too deep.
    pub fn compile(source: &str, limits: Limits) -> Result<Self> {
        if source.len() > limits.source {
            let message =
                format!("it has {} bytes, more than the {} that one may have", source.len(), limits.source);
            return Err(Error::limit(message));
        }
        let mut parser = Parser::new(lex(source)?, limits.depth);
        Ok(Self { body: statements::parse(&mut parser)?, limits })
    }

    /// Renders the template with the variables that `variables` holds, a JSON object. Numbers keep all their digits up to 38.
    ///
    /// # Errors
    /// Of each kind but syntax: see [`ErrorKind`](crate::ErrorKind).
    pub fn render(&self, variables: &str) -> Result<String> {
        let heap = Heap::new(&self.limits, variables.len());
        let variables = json::parse(variables, &heap)?;
        Interpreter::new(&heap)?.run(&self.body, &variables)
    }
}

/// JSON as Python's `json.dumps` writes it, and the filter `tojson`.
///
/// # Errors
/// Where it is no JSON, or nested too deep.
pub fn dumps(value: &str) -> Result<String> {
    let heap = Heap::new(&Limits::default(), value.len());
    let written = json::tojson(&json::parse(value, &heap)?, Arguments::default(), &heap)?;
    Ok(written.as_str().unwrap_or_default().to_owned())
}
