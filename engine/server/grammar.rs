//! Answers of a given form: schemas become grammars, grammars become sets of tokens that may come next.
//!
//! Schemas and calls are llguidance's, grammars that a request gives are followed by an automaton of their own ([`gbnf`]).

use super::annotations;
use super::error::ApiError;
use super::gbnf;
use super::schema::Budget;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use qernel_core::engine::TokenConstraint;
use qernel_core::error::{Error, Result};
use qernel_core::sampler::TokenMask;
use qernel_core::tokenizer::{TokenKind, Tokenizer};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Makes grammars over one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    environment: TokEnv,
}

/// A grammar, and how far an answer has come in it. A clone goes on by itself from there.
#[derive(Clone)]
pub struct Grammar {
    form: Form,
    /// The field of the request that asks for it.
    param: &'static str,
}

/// Who follows it.
#[derive(Clone)]
enum Form {
    Guidance(Box<Matcher>),
    Gbnf(Box<gbnf::Automaton>, TokEnv),
}

/// White space between tokens of JSON, as compact text has it and as indented text has: a blank, or a line break and what begins the
/// next line. A model that is bound to JSON may not spend its answer on blanks.
const WHITE_SPACE: &str = r"[ ]|\n[ \t]{0,20}";

impl Grammars {
    /// # Errors
    /// [`Error::Tokenizer`] where no token ends an answer, or the vocabulary is not fit.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let environment = environment(tokenizer)?;
        let mut factory = ParserFactory::new_simple(&environment).map_err(fault)?;
        factory.quiet();
        // What it takes to come to a grammar is bounded by its schema's weight (see `schema`); these bound the grammar, what its
        // lexer may grow to, and each token's mask: 0.1 s at worst, where nothing comes of it but an error.
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: 10_000,
            max_grammar_size: 100_000,
            step_lexer_fuel: 100_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, environment })
    }

    /// What satisfies a schema, which is the value of the request's field `param`.
    ///
    /// # Errors
    /// 400 where the schema is malformed, uses what is not supported, or is too large.
    pub fn schema(&self, param: &str, schema: Map<String, Value>) -> Result<Grammar, ApiError> {
        let schema = with_options(param, schema, &mut Budget::default())?;
        let grammar = self.compile("response_format", TopLevelGrammar::from_json_schema(schema));
        grammar.map_err(|error| ApiError::field(param, format!("{param}: {error}")))
    }

    /// A grammar in llguidance's dialect of Lark, for calls of `tools`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn lark(&self, source: String) -> Result<Grammar, String> {
        self.compile("tools", TopLevelGrammar::from_lark(source))
    }

    /// What a grammar of llama.cpp's form allows, which is the value of the request's field `grammar`.
    ///
    /// # Errors
    /// 400 where it is malformed, uses what is not supported, or is too large.
    pub fn gbnf(&self, source: &str) -> Result<Grammar, ApiError> {
        of_gbnf(&self.environment, source)
            .map_err(|error| ApiError::field("grammar", format!("grammar: {error}")))
    }

    fn compile(&self, param: &'static str, grammar: TopLevelGrammar) -> Result<Grammar, String> {
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        matcher.get_error().map_or(Ok(Grammar { form: Form::Guidance(Box::new(matcher)), param }), Err)
    }
}

impl Grammar {
    /// The field of the request that asks for it.
    pub fn param(&self) -> &'static str {
        self.param
    }
}

/// A schema with what llguidance is to know besides, wherever a grammar has it. Its cost is taken off the request's budget.
///
/// # Errors
/// 400 where it uses what is not supported, or is too large.
pub fn with_options(param: &str, schema: Map<String, Value>, budget: &mut Budget) -> Result<Value, ApiError> {
    let mut schema = Value::Object(schema);
    annotations::take_away(&mut schema);
    budget.take(&schema).map_err(|error| ApiError::field(param, format!("{param}: {error}")))?;
    // Alternatives of `oneOf` that exclude each other stay so; of others more than one may hold, as with `anyOf`.
    schema["x-guidance"] = json!({"whitespace_pattern": WHITE_SPACE, "coerce_one_of": true});
    Ok(schema)
}

/// # Errors
/// [`Error::Tokenizer`] where no token ends an answer.
fn environment(tokenizer: &Tokenizer) -> Result<TokEnv> {
    let ends = tokenizer.end_of_generation();
    let Some(&end) = ends.first() else {
        return Err(Error::Tokenizer("no token of the vocabulary ends an answer".into()));
    };
    let info = TokRxInfo {
        vocab_size: tokenizer.vocab_size() as u32,
        tok_eos: end,
        tok_bos: None,
        tok_pad: None,
        tok_unk: None,
        tok_end_of_turn: None,
    };
    let words: Vec<Vec<u8>> = (0..info.vocab_size).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

/// The tokens that may come first are found at once, for all answers: a clone begins with them. What stands in the way is told when an answer is made.
fn of_gbnf(environment: &TokEnv, source: &str) -> Result<Grammar, String> {
    let mut automaton = gbnf::automaton(source)?;
    let _ = automaton.allowed(environment.tok_trie());
    Ok(Grammar { form: Form::Gbnf(Box::new(automaton), Arc::clone(environment)), param: "grammar" })
}

/// The bytes of a token; special ones are marked, so that no text can be made of them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match tokenizer.kind(id) {
        Some(TokenKind::Normal | TokenKind::UserDefined) => bytes.to_vec(),
        _ if bytes.is_empty() => Vec::new(),
        _ => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
    }
}

/// What a grammar of llama.cpp's form allows, outside a server.
///
/// # Errors
/// [`Error::Request`] where the grammar cannot be used, with the line and what was expected; [`Error::Tokenizer`] where no token ends
/// an answer.
pub fn gbnf_grammar(tokenizer: &Tokenizer, source: &str) -> Result<Grammar> {
    of_gbnf(&environment(tokenizer)?, source).map_err(|error| Error::Request(format!("grammar: {error}")))
}

impl TokenConstraint for Grammar {
    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }

    fn allowed(&mut self) -> Result<TokenMask> {
        match &mut self.form {
            Form::Guidance(matcher) => {
                let mask = matcher.compute_mask_or_eos().map_err(fault)?;
                Ok(TokenMask::from_words(mask.into()))
            }
            Form::Gbnf(automaton, environment) => {
                let trie = environment.tok_trie();
                let mut words = automaton.allowed(trie).map_err(fault)?.to_vec();
                if automaton.accepts() {
                    trie.eos_tokens().iter().for_each(|&end| words[end as usize / 32] |= 1 << (end % 32));
                }
                if words.iter().all(|&word| word == 0) {
                    return Err(fault("no token of the vocabulary has what must come next"));
                }
                Ok(TokenMask::from_words(words))
            }
        }
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        match &mut self.form {
            Form::Guidance(matcher) => matcher.consume_token(token).map_err(fault),
            Form::Gbnf(automaton, environment) => {
                let trie = environment.tok_trie();
                let is_end = trie.eos_tokens().contains(&token);
                if is_end { Ok(()) } else { automaton.push(trie.token(token)).map_err(fault) }
            }
        }
    }
}

/// How errors of a grammar begin that show only when an answer is made.
pub const FAULT: &str = "the answer's grammar: ";

fn fault(error: impl std::fmt::Display) -> Error {
    Error::Request(format!("{FAULT}{error}"))
}
