//! The flags of grammars.

use crate::engine::TokenConstraint;
use crate::error::{Error, Result};
use crate::server::{Grammar, gbnf_grammar};
use crate::tokenizer::Tokenizer;
use clap::Args;
use std::path::PathBuf;

/// What an answer must be.
#[derive(Clone, Debug, Args)]
pub struct GrammarArgs {
    /// What the answer must be, in llama.cpp's form of grammars (GBNF)
    #[arg(long, value_name = "GBNF", conflicts_with = "grammar_file")]
    grammar: Option<String>,
    /// Read the grammar from a file
    #[arg(long, value_name = "FILE")]
    grammar_file: Option<PathBuf>,
}

/// A grammar of which each answer makes a constraint of its own.
pub struct AnswerGrammar(Grammar);

impl GrammarArgs {
    /// The grammar, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`] where its file cannot be read; [`Error::Request`] where it cannot be used.
    pub fn open(&self, tokenizer: &Tokenizer) -> Result<Option<AnswerGrammar>> {
        let source = match (&self.grammar, &self.grammar_file) {
            (Some(source), _) => source.clone(),
            (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?,
            (None, None) => return Ok(None),
        };
        gbnf_grammar(tokenizer, &source).map(|grammar| Some(AnswerGrammar(grammar)))
    }
}

impl AnswerGrammar {
    /// What one answer may be.
    pub fn constraint(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.0.clone())
    }
}
