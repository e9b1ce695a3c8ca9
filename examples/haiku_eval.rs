//! Asks the haiku model for the held-out prompts of `models/haiku/heldout_prompts.jsonl` with several seeds and counts
//! what its answers keep.
//!
//! ```text
//! cargo run --release --example haiku_eval -- --seeds 4
//! ```
//!
//! Sampling is from the whole distribution: no top-k, no top-p, no min-p. Whether an answer stands in the training
//! corpus is certain for the three texts in four that the corpus's rule keeps out (`verse.rs`); with `--corpus DIR`, the
//! output of `corpus.py`, it is looked up for all.

#[path = "../models/haiku/verse.rs"]
mod verse;

use clap::Parser;
use qernel::chat::Message;
use qernel::engine::{Engine, Event, Request};
use qernel::error::{Error, Result};
use qernel::load::{DeviceChoice, LoadedModel, RunnerOptions};
use qernel::sampler::SamplingParams;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use verse::{Syllables, has_word, is_held_out};

/// Sequences that run at once.
const MAX_NUM_SEQUENCES: usize = 64;
/// Longer answers end here; a haiku has about 25 tokens.
const MAX_TOKENS: usize = 72;

/// Count what the haiku model's answers to held-out prompts keep.
#[derive(Parser)]
struct Args {
    /// GGUF file of the model [default: the small haiku model that the program carries]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Where to compute: auto (a GPU if there is one), cuda, cuda:N or cpu
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Answers to each prompt, with seeds 0, 1, …
    #[arg(long, default_value_t = 4)]
    seeds: u64,
    /// Take only the first prompts
    #[arg(long, default_value_t = usize::MAX)]
    limit: usize,
    /// Temperature
    #[arg(long, default_value_t = 0.7)]
    temp: f32,
    /// Folder of the training corpus, to look every answer up
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of `heldout_prompts.jsonl`.
#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    word: String,
    /// Whether the word, and not only its pair with the topic, is in no prompt of the corpus.
    word_held_out: bool,
}

/// A line of a shard of the corpus.
#[derive(Deserialize)]
struct Example {
    answer: String,
}

/// Answers that keep each of the promises.
#[derive(Default, Serialize)]
struct Counts {
    outputs: usize,
    word: usize,
    three_lines: usize,
    haiku: usize,
    /// No other answer of the same seed is the same.
    distinct: usize,
    /// Known not to stand in the corpus.
    new: usize,
    distinct_and_new: usize,
}

impl Counts {
    fn print(&self, what: &str) {
        println!("{what}: {} outputs", self.outputs);
        let rows = [
            ("the word stands in the text", self.word),
            ("three lines", self.three_lines),
            ("5-7-5 by the syllable table", self.haiku),
            ("different from each other", self.distinct),
            ("known not to stand in the corpus", self.new),
            ("both", self.distinct_and_new),
        ];
        for (name, count) in rows {
            println!("  {name:<34} {count:>5}  {:6.2}%", 100.0 * count as f64 / self.outputs.max(1) as f64);
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let prompts: Vec<Prompt> = include_str!("../models/haiku/heldout_prompts.jsonl")
        .lines()
        .take(args.limit)
        .map(|line| serde_json::from_str(line).expect("the file of this repository"))
        .collect();
    let texts = answers(args, &prompts)?;
    let syllables = Syllables::new();
    let in_corpus = args.corpus.as_deref().map(|folder| find_in_corpus(folder, &texts)).transpose()?;

    let (mut all, mut unseen_word) = (Counts::default(), Counts::default());
    for of_seed in texts.chunks(prompts.len()) {
        let mut times: HashMap<&str, usize> = HashMap::new();
        of_seed.iter().for_each(|text| *times.entry(text).or_default() += 1);
        for (prompt, text) in prompts.iter().zip(of_seed) {
            let lines: Vec<&str> = text.split('\n').collect();
            let distinct = times[text.as_str()] == 1;
            let new = match &in_corpus {
                Some(found) => !found.contains_key(text.as_str()),
                None => is_held_out(text),
            };
            let kept = [
                has_word(text, &prompt.word),
                lines.len() == 3 && lines.iter().all(|line| !line.is_empty()),
                syllables.is_haiku(text),
                distinct,
                new,
                distinct && new,
            ];
            for counts in
                [Some(&mut all), prompt.word_held_out.then_some(&mut unseen_word)].into_iter().flatten()
            {
                counts.outputs += 1;
                let fields = [
                    &mut counts.word,
                    &mut counts.three_lines,
                    &mut counts.haiku,
                    &mut counts.distinct,
                    &mut counts.new,
                    &mut counts.distinct_and_new,
                ];
                fields.into_iter().zip(kept).for_each(|(field, kept)| *field += usize::from(kept));
            }
            let [word, three_lines, haiku, ..] = kept;
            if !(args.json || word && three_lines && haiku) {
                println!("{}\n    {}", prompt.prompt, text.replace('\n', "\n    "));
            }
        }
    }
    if args.json {
        let result = serde_json::json!({
            "temperature": args.temp, "seeds": args.seeds, "corpus_read": args.corpus.is_some(),
            "all": all, "word_held_out": unseen_word, "answers": texts,
        });
        println!("{result:#}");
        return Ok(());
    }
    all.print("all prompts");
    unseen_word.print("prompts whose word was held out too");
    if args.corpus.is_none() {
        println!(
            "without --corpus only answers that the corpus's rule keeps out count as new: three in four"
        );
    }
    Ok(())
}

/// The answers: all prompts with seed 0, then with seed 1, …
fn answers(args: &Args, prompts: &[Prompt]) -> Result<Vec<String>> {
    let model = LoadedModel::open(
        args.model.as_deref(),
        &RunnerOptions { device: args.device, ..RunnerOptions::for_sequences(MAX_NUM_SEQUENCES) },
        &mut |_, _| (),
    )?;
    let template = model.template()?;
    let mut requests = Vec::new();
    for seed in 0..args.seeds {
        for prompt in prompts {
            let message = Message::new("user", &prompt.prompt);
            let ids = model.tokenizer.encode(&template.render(&[message], &[], true)?, true)?;
            let sampling = SamplingParams {
                temperature: args.temp,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                seed,
                ..SamplingParams::default()
            };
            requests.push(Request { sampling, max_tokens: Some(MAX_TOKENS), ..Request::new(ids) });
        }
    }
    complete(model, requests)
}

/// The texts of all requests, in their order, computed side by side.
fn complete(model: LoadedModel, requests: Vec<Request>) -> Result<Vec<String>> {
    let mut engine: Engine = model.into_engine()?;
    let mut texts = vec![String::new(); requests.len()];
    let mut places = HashMap::new();
    for (place, request) in requests.into_iter().enumerate() {
        places.insert(engine.submit(request)?, place);
    }
    while engine.has_work() {
        for event in engine.step()? {
            texts[places[&event.id()]] += event.text();
            if let Event::Finished { id, .. } = event {
                places.remove(&id);
            }
        }
    }
    Ok(texts)
}

/// Those of `texts` that stand in the corpus, with how often.
fn find_in_corpus(folder: &Path, texts: &[String]) -> Result<HashMap<String, usize>> {
    let mut times: HashMap<String, usize> = texts.iter().map(|text| (text.clone(), 0)).collect();
    let shards = std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let mut num_examples = 0usize;
    for shard in shards {
        let path = shard.map_err(|error| Error::io(folder, error))?.path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|error| Error::io(&path, error))?;
            let example: Example = serde_json::from_str(&line).map_err(|error| {
                Error::Request(format!(
                    "{}: expected lines as corpus.py writes them: {error}",
                    path.display()
                ))
            })?;
            times.entry(example.answer).and_modify(|times| *times += 1);
            num_examples += 1;
        }
    }
    if num_examples == 0 {
        return Err(Error::Request(format!(
            "{}: expected shard-*.jsonl of corpus.py, found none",
            folder.display()
        )));
    }
    eprintln!("looked up in {num_examples} examples");
    times.retain(|_, times| *times > 0);
    Ok(times)
}
