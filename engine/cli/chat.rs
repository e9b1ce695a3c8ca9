//! `qernel chat`: a conversation.

use super::conversation::{ReasoningArgs, Talk, TemplateArgs};
use super::grammar::{AnswerGrammar, GrammarArgs};
use super::interrupt::Interrupt;
use super::options::{AtMost, BannedArgs, EngineArgs, ModelArgs, SamplingArgs, drop_line_break};
use super::output::{Output, note};
use crate::chat::{ChatTemplate, thinking};
use crate::engine::{Completion, Engine, FinishReason, Request};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;

/// Talk with the model; its history stays in the KV cache
///
/// One line is one message. /clear forgets the conversation, /exit or the end of the input ends it. Ctrl-C ends the
/// answer that is being made, and the program while it waits for a message. What the model thinks is shown dimmed.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Most tokens of one answer; -1 for no bound [default: until the model stops or the context is full]
    #[arg(
        short = 'n',
        long,
        visible_alias = "n-predict",
        value_name = "TOKENS",
        allow_negative_numbers = true
    )]
    max_tokens: Option<AtMost>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    reasoning: ReasoningArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    banned: BannedArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
}

/// Runs the command until its input ends. A line that is no text or a message that cannot be answered is told and left out: the
/// conversation goes on without it.
///
/// # Errors
/// Whatever opening the model, reading, writing and the device say.
pub fn run(args: ChatArgs) -> Result<ExitCode> {
    let params = args.sampling.params();
    params.validate()?;
    let model = args.model.open(1)?;
    let tokenizer = Arc::clone(&model.tokenizer);
    let template = args.template.open(&tokenizer)?;
    let grammar = args.grammar.open(&tokenizer)?;
    let engine = model.into_engine_with(args.engine.config())?;
    let interrupt = Interrupt::install();
    let mut out = Output::stdout();
    let prompt = if std::io::stdin().is_terminal() { "> " } else { "" };

    let start: Vec<Value> =
        args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    let max_tokens = args.max_tokens.and_then(AtMost::bound);
    let banned_strings = args.banned.banned_strings;
    let request = Request { sampling: params, max_tokens, banned_strings, ..Request::new(Vec::new()) };
    let (template_args, reasoning) = (args.template, args.reasoning);
    let mut talker =
        Talker { engine, tokenizer, template, template_args, reasoning, grammar, request, interrupt };
    let mut messages = start.clone();
    let mut input = std::io::stdin().lock();
    loop {
        out.text(prompt)?;
        let line = match read_line(&mut input)? {
            Line::End => break,
            Line::NoText(position) => {
                note(format_args!("(left out: the line is not UTF-8 text from byte {position} on)"));
                continue;
            }
            Line::Text(line) => line,
        };
        match line.as_str() {
            "" => continue,
            "/exit" => break,
            "/clear" => {
                messages = start.clone();
                continue;
            }
            _ => messages.push(json!({"role": "user", "content": line})),
        }
        let (done, turn) = match talker.answer(&messages) {
            Ok(done) => done,
            // Of this message, not of the program: another one may fit, or be one that the template takes.
            Err(error @ (Error::Request(_) | Error::Template(_) | Error::Tokenizer(_))) => {
                note(format_args!("(left out: {error}; /clear starts anew)"));
                messages.pop();
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(error) = done.reason.error() {
            return Err(error);
        }
        tracing::info!(
            "{} of {} prompt tokens were in the KV cache",
            done.usage.cached_tokens,
            done.usage.prompt_tokens
        );
        if done.reason == FinishReason::Context {
            note(format_args!(
                "(the context of {} tokens is full; /clear starts anew)",
                talker.engine.max_model_len()
            ));
        }
        messages.push(turn);
    }
    Ok(ExitCode::SUCCESS)
}

/// What answers.
struct Talker {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    template_args: TemplateArgs,
    reasoning: ReasoningArgs,
    grammar: Option<AnswerGrammar>,
    /// Without its prompt.
    request: Request,
    interrupt: Interrupt,
}

impl Talker {
    /// Shows the answer to a conversation; with it comes the turn that it adds.
    fn answer(&mut self, messages: &[Value]) -> Result<(Completion, Value)> {
        let variables = self.template_args.variables();
        let effort = self.reasoning.effort(&variables);
        let text = self.template.render_with_effort::<_, Value>(messages, &[], &variables, effort)?;
        let is_open = thinking::is_open(&text);
        let thinks = is_open || self.template.thinks();
        let grammar = self.grammar.as_ref().map(AnswerGrammar::constraint);
        let constraint = match thinks {
            true => self.reasoning.constraint(&self.tokenizer, is_open, grammar)?,
            false => grammar,
        };
        let prompt = self.tokenizer.encode(&text, true)?;
        let request = Request { prompt, ..self.request.clone() };
        let mut talk = Talk::new(thinks, is_open);
        let engine = &mut self.engine;
        let done = self
            .interrupt
            .catch(|cancel| engine.run_constrained(request, constraint, cancel, |event| talk.event(event)))?;
        let (thought, said) = talk.end()?;
        let mut turn = json!({"role": "assistant", "content": said});
        if !thought.is_empty() {
            turn["reasoning_content"] = thought.into();
        }
        Ok((done, turn))
    }
}

/// What standard input has next.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Without its line break.
    Text(String),
    /// Not UTF-8, from this byte on.
    NoText(usize),
    End,
}

fn read_line(input: &mut impl BufRead) -> Result<Line> {
    let mut bytes = Vec::new();
    if input.read_until(b'\n', &mut bytes).map_err(|error| Error::io("standard input", error))? == 0 {
        return Ok(Line::End);
    }
    Ok(match String::from_utf8(bytes) {
        Ok(mut line) => {
            drop_line_break(&mut line);
            Line::Text(line)
        }
        Err(error) => Line::NoText(error.utf8_error().valid_up_to()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_texts_or_not_one_by_one() {
        let mut input = &b"one\r\n\n a\xFFb\n\xE4\xB8\xAD\r"[..];
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(next(), Line::Text("one".into()));
        assert_eq!(next(), Line::Text(String::new()));
        assert_eq!(next(), Line::NoText(2));
        assert_eq!(next(), Line::Text("\u{4E2D}\r".into()), "no line break ends it");
        assert_eq!(next(), Line::End);
    }
}
