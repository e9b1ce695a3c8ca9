//! `qernel generate`: text from a prompt.

use super::conversation::TemplateArgs;
use super::grammar::{AnswerGrammar, GrammarArgs};
use super::interrupt::{EXIT_INTERRUPTED, Interrupt};
use super::options::{AtMost, BannedArgs, ModelArgs, SamplingArgs, drop_line_break, parse_ids};
use super::output::{Output, Stream, note};
use super::summary::Summary;
use super::tokenize::read_stdin;
use crate::chat::{Message, thinking};
use crate::engine::{FinishReason, Request, Thinking, ThinkingConstraint, TokenConstraint};
use crate::error::{Error, Result};
use crate::load::encode_plain;
use std::path::PathBuf;
use std::process::ExitCode;

/// Generate text from a prompt
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// The prompt; without it, --file or --ids, standard input is read
    #[arg(conflicts_with_all = ["file", "ids"])]
    prompt: Option<String>,
    /// Read the prompt from a file; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "ids")]
    file: Option<PathBuf>,
    /// The prompt as token ids, such as 9707,11,1879, taken as they are: no chat template
    #[arg(long, value_name = "IDS")]
    ids: Option<String>,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Most tokens to generate; -1 for no bound [default: until the model stops or the context is full]
    #[arg(
        short = 'n',
        long,
        visible_alias = "n-predict",
        value_name = "TOKENS",
        allow_negative_numbers = true
    )]
    max_tokens: Option<AtMost>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after an end-of-sequence token
    #[arg(long, conflicts_with_all = ["grammar", "grammar_file"])]
    ignore_eos: bool,
    /// Take the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// System message of the chat template
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "ids"])]
    system: Option<String>,
    /// Print one JSON object at the end instead of streaming text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    banned: BannedArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
}

/// Runs the command. An interrupted generation prints what was made so far and exits with 130.
pub fn run(args: GenerateArgs) -> Result<ExitCode> {
    let params = args.sampling.params();
    params.validate()?;
    let interrupt = Interrupt::install();
    // A prompt that cannot be read is an error before a model is loaded for it.
    let prompt = match &args.ids {
        Some(ids) => Prompt::Ids(parse_ids(ids)?),
        None => Prompt::Text(read_prompt(&args)?),
    };
    let model = args.model.open(1)?;
    let grammar = args.grammar.open(&model.tokenizer)?;
    let mut constraint = grammar.as_ref().map(AnswerGrammar::constraint);
    let prompt_ids = match prompt {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) if args.raw => encode_plain(&model.tokenizer, &text)?,
        Prompt::Text(text) => {
            let mut messages = Vec::new();
            if let Some(system) = &args.system {
                messages.push(Message::new("system", system));
            }
            messages.push(Message::new("user", text));
            let template = args.template.open(&model.tokenizer)?;
            let rendered = template.render_with::<_, ()>(&messages, &[], true, &args.template.variables())?;
            let is_open = thinking::is_open(&rendered);
            if let Some(grammar) = constraint.take_if(|_| is_open || template.thinks()) {
                // The answer begins behind the thoughts.
                let thoughts =
                    Thinking { is_open, budget: None, message: String::new(), functions: Vec::new() };
                let behind = ThinkingConstraint::new(&model.tokenizer, &thoughts, Some(grammar))?;
                constraint = Some(Box::new(behind) as Box<dyn TokenConstraint>);
            }
            model.tokenizer.encode(&rendered, true)?
        }
    };
    let stats = model.stats.clone();
    let mut engine = model.into_engine()?;
    let request = Request {
        sampling: params,
        max_tokens: args.max_tokens.and_then(AtMost::bound),
        stop: args.stop,
        ignore_eos: args.ignore_eos,
        banned_strings: args.banned.banned_strings,
        ..Request::new(prompt_ids.clone())
    };

    let mut stream = Stream::new(!args.json);
    let done = interrupt
        .catch(|cancel| engine.run_constrained(request, constraint, cancel, |event| stream.event(event)))?;
    stream.end()?;
    let summary = Summary::new(&stats, engine.runner_mut(), &done.usage, &done.timings);
    if args.json {
        Output::stdout().json(&serde_json::json!({
            "prompt_ids": prompt_ids,
            "ids": done.tokens,
            "text": done.text,
            "finish_reason": done.reason,
            "timings": summary,
        }))?;
    }
    note(&summary);
    Ok(match done.reason {
        FinishReason::Cancelled => ExitCode::from(EXIT_INTERRUPTED),
        reason => match reason.error() {
            Some(error) => return Err(error),
            None => ExitCode::SUCCESS,
        },
    })
}

enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

fn read_prompt(args: &GenerateArgs) -> Result<String> {
    let (name, bytes) = match (&args.prompt, &args.file) {
        (Some(prompt), _) => return Ok(prompt.clone()),
        (None, Some(path)) if path.as_os_str() != "-" => {
            (path.display().to_string(), std::fs::read(path).map_err(|e| Error::io(path, e))?)
        }
        _ => ("standard input".to_owned(), read_stdin()?),
    };
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::Request(format!("{name}: expected UTF-8 text; byte {at} is not part of any character"))
    })?;
    // It ends the file's last line and is not meant; a prompt that is taken as it is keeps it.
    if !args.raw {
        drop_line_break(&mut text);
    }
    Ok(text)
}
