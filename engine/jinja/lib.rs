//! Jinja as Hugging Face transformers runs it for chat templates, within bounds.
//!
//! A template comes with a model file, which may come from anywhere, and renders what a client sends. So the language is Python's (its
//! methods, slices, numbers and texts, as `jinja2`'s immutable sandbox has them, with transformers' settings, functions and `generation`
//! tag), while every value is counted before it is made, every step looks at the clock, and nesting is counted before it recurses:
//! [`Limits`] holds for any template and any input, on any thread with 2 MiB of stack.
//!
//! ```text
//! source -> lexer -> parser -> ast -> interpreter (operators, attributes, methods, filters, tests, functions)
//! JSON   -> json  -> values, which the heap counts --^
//! ```

mod arguments;
mod ast;
mod attributes;
mod binary;
mod compare;
mod display;
mod error;
mod expressions;
mod filters;
mod float;
mod format;
mod functions;
#[cfg(test)]
mod golden;
mod heap;
#[cfg(test)]
mod hostile;
mod interpreter;
mod iterate;
mod json;
mod lexer;
mod lexer_tokens;
mod methods;
mod parser;
mod printf;
mod scope;
mod sequences;
mod statements;
mod strings;
mod template;
mod tests;
mod value;

pub use error::{Error, ErrorKind, Result};
pub use heap::Limits;
pub use template::{Template, dumps};
