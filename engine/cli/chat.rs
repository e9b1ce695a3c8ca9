//! `qernel chat`: a conversation.

use super::interrupt::Interrupt;
use super::options::{EngineArgs, ModelArgs, SamplingArgs};
use super::output::{Output, Stream};
use crate::chat::Message;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, Request};
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;

/// Talk with the model; its history stays in the KV cache
///
/// One line is one message. /clear forgets the conversation, /exit or the end of the input ends it. Ctrl-C ends the
/// answer that is being made, and the program while it waits for a message.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Most tokens of one answer [default: until the model stops or the context is full]
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "TOKENS")]
    max_tokens: Option<usize>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the command until its input ends.
pub fn run(args: ChatArgs) -> Result<ExitCode> {
    let params = args.sampling.params();
    params.validate()?;
    let model = args.model.open(1)?;
    let (tokenizer, template) = (Arc::clone(&model.tokenizer), model.template()?);
    let mut engine = model.into_engine_with(args.engine.config())?;
    let interrupt = Interrupt::install();
    let mut out = Output::stdout();
    let prompt = if std::io::stdin().is_terminal() { "> " } else { "" };

    let start: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut messages = start.clone();
    let mut input = std::io::stdin().lock();
    loop {
        out.text(prompt)?;
        let mut line = String::new();
        if input.read_line(&mut line).map_err(|e| Error::io("standard input", e))? == 0 {
            break;
        }
        let line = line.trim_end_matches(['\r', '\n']);
        match line {
            "" => continue,
            "/exit" => break,
            "/clear" => {
                messages = start.clone();
                continue;
            }
            _ => {}
        }
        messages.push(Message::new("user", line));
        let prompt = tokenizer.encode(&template.render(&messages, &[], true)?, true)?;
        let request =
            Request { sampling: params.clone(), max_tokens: args.max_tokens, ..Request::new(prompt) };
        let mut stream = Stream::new(true);
        let done =
            interrupt.catch(|cancel| engine.run_to_end(request, cancel, |event| stream.event(event)))?;
        stream.end()?;
        if let Some(error) = done.reason.error() {
            return Err(error);
        }
        tracing::info!(
            "{} of {} prompt tokens were in the KV cache",
            done.usage.cached_tokens,
            done.usage.prompt_tokens
        );
        if done.reason == FinishReason::Context {
            eprintln!("(the context of {} tokens is full; /clear starts anew)", engine.max_model_len());
        }
        messages.push(Message::new("assistant", done.text));
    }
    Ok(ExitCode::SUCCESS)
}
