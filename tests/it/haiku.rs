//! The haiku test, end to end through the real binary with the model that it carries, and what else is seen best with that
//! model: on the CPU, without a file.

#[path = "../common/minute.rs"]
mod minute;
#[path = "../../models/haiku/verse.rs"]
mod verse;

use assert_cmd::Command;
use qernel::chat::{ChatTemplate, Message};
use qernel::config::Config;
use qernel::embedded;
use qernel::engine::{Engine, EngineConfig, Event, Request};
use qernel::kv_layout::PAGE_SIZE;
use qernel::load::{DeviceChoice, RunnerOptions, open_runner};
use qernel::tokenizer::Tokenizer;
use qernel::weights::Weights;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Seeds that the haiku test tries.
const SEEDS: u64 = 12;

fn qernel(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command.env_remove("QERNEL_MODEL").env("QERNEL_CONFIG", "/dev/null").env_remove("RUST_LOG").args(args);
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

fn haiku(word: &str, seed: u64) -> String {
    let prompt = format!("Write a haiku about the sea with the word {word}");
    let text =
        qernel(&["generate", "--device", "cpu", "--temp", "0.7", "--seed", &seed.to_string(), &prompt]);
    text.trim_end().to_owned()
}

/// The word is not known before the test runs, so no text that somebody wrote down can pass; and by the rule that kept
/// answers out of the corpus (`corpus.py`, `answer_held_out`) no text that the model has read.
#[test]
fn a_haiku_has_the_minute_in_it_and_is_no_text_of_the_corpus() {
    let word = minute::minute();
    // One text in four could stand in the corpus, so the first two seeds will not always do.
    let mut unread = Vec::new();
    for seed in 1..=SEEDS {
        let text = haiku(&word, seed);
        println!("{word}, seed {seed}:\n{text}");
        assert_eq!(text.lines().count(), 3, "seed {seed}: {text}");
        assert!(verse::has_word(&text, &word), "seed {seed}: {word:?} does not stand in:\n{text}");
        if verse::is_held_out(&text) {
            unread.push((seed, text));
        }
        if unread.len() == 2 {
            break;
        }
    }
    let [(seed, first), (_, second)] = &unread[..] else {
        panic!("{word:?}: {} of {SEEDS} seeds gave a text that is certainly not in the corpus", unread.len())
    };
    assert_ne!(first, second);
    assert_eq!(&haiku(&word, *seed), first);
}

/// The rule itself, with what it says of texts of the corpus and of others.
#[test]
fn the_rule_that_keeps_answers_out_of_the_corpus_tells_texts_apart() {
    // The third example that the generator writes.
    let read = "still the curve flickers\nfifty-seven, says the field\nunder abstract sums";
    let unread = "no line of the corpus\nis as this one, for its hash\nbegins with a one";
    assert!(!verse::is_held_out(read));
    assert!(verse::is_held_out(unread));
}

/// Inference happens: the logits are those of the weights in the file.
#[test]
fn one_changed_weight_changes_the_logits() {
    let gguf = embedded::haiku().unwrap();
    let ids = qernel(&["tokenize", "Write a haiku about the sea"]);
    let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();

    // The first value in the row of the last token, which the forward pass reads.
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    let vocab_size = embedding.shape()[0] as usize;
    let embedding = embedding.data().unwrap();
    let row_bytes = embedding.len() / vocab_size;
    let row = *ids.last().unwrap() as usize * row_bytes;
    let mut bytes = embedded::haiku_bytes().to_vec();
    let offset = embedding.as_ptr() as usize - embedded::haiku_bytes().as_ptr() as usize + row;
    let value = &mut bytes[offset..offset + 2];
    assert_ne!(value, half::f16::ONE.to_le_bytes());
    value.copy_from_slice(&half::f16::ONE.to_le_bytes());

    let folder = tempfile::TempDir::new().unwrap();
    let [same, changed] = ["same.gguf", "changed.gguf"].map(|name| folder.path().join(name));
    std::fs::write(&same, embedded::haiku_bytes()).unwrap();
    std::fs::write(&changed, bytes).unwrap();
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let logits = |model: &[&str]| qernel(&[&["logits", "--device", "cpu", "--ids", &ids], model].concat());
    let carried = logits(&[]);
    assert_eq!(logits(&["--model", same.to_str().unwrap()]), carried);
    assert_ne!(logits(&["--model", changed.to_str().unwrap()]), carried);
}

#[test]
fn the_embedded_model_is_what_every_command_takes_without_a_file() {
    assert!(qernel(&["inspect"]).contains(embedded::NAME));
    let text = "forty-two waves, <|im_end|>";
    let ids = qernel(&["tokenize", text]);
    let ids: Vec<&str> = ids.split_whitespace().collect();
    assert_eq!(qernel(&[&["detokenize"], &ids[..]].concat()), text);
}

/// Two requests that have more than two pages in common, one after the other and then both at once: the same texts with the
/// prefix cache and without, and with it only what is new is computed.
#[test]
fn the_prefix_cache_saves_work_and_changes_no_text() {
    let gguf = embedded::haiku().unwrap();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    let options = RunnerOptions {
        device: DeviceChoice::Cpu,
        max_num_sequences: 2,
        max_num_logits: 2,
        ..RunnerOptions::default()
    };
    let engine = |prefix_cache| {
        let runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
        let config = EngineConfig { prefix_cache, ..EngineConfig::default() };
        Engine::new(runner, Some(Arc::clone(&tokenizer)), config).unwrap()
    };
    let template = ChatTemplate::from_tokenizer(&tokenizer).unwrap();
    let begin = "Write a haiku about the sea. ".repeat(12);
    let requests = ["forty-two", "nine"].map(|word| {
        let text = format!("{begin}Write a haiku about the sea with the word {word}");
        let text = template.render(&[Message::new("user", &text)], &[], true).unwrap();
        Request { max_tokens: Some(40), ..Request::new(tokenizer.encode(&text, true).unwrap()) }
    });
    let pairs = requests[0].prompt.iter().zip(&requests[1].prompt);
    let common = pairs.take_while(|(a, b)| a == b).count();
    assert!(common > 2 * PAGE_SIZE, "{common} tokens in common");

    let serve = |engine: &mut Engine, request: &Request| {
        let never = AtomicBool::new(false);
        engine.run_to_end(request.clone(), &never, |_| ControlFlow::Continue(())).unwrap()
    };
    let mut without = engine(false);
    let expected = requests.each_ref().map(|request| serve(&mut without, request));
    let mut with = engine(true);
    let found = requests.each_ref().map(|request| serve(&mut with, request));
    for (found, expected) in found.iter().zip(&expected) {
        assert!(!expected.text.is_empty());
        assert_eq!((&found.tokens, &found.text), (&expected.tokens, &expected.text));
        assert_eq!(expected.usage.cached_tokens, 0);
    }
    assert_eq!(found[0].usage.cached_tokens, 0);
    assert_eq!(found[1].usage.cached_tokens, common / PAGE_SIZE * PAGE_SIZE);
    assert_eq!(found[1].timings.prefill_tokens + found[1].usage.cached_tokens, requests[1].prompt.len());

    let ids = requests.each_ref().map(|request| with.submit(request.clone()).unwrap());
    let mut texts = ids.map(|_| String::new());
    while with.has_work() {
        for event in with.step().unwrap() {
            texts[usize::from(event.id() == ids[1])] += event.text();
            if let Event::Finished { usage, .. } = event {
                assert!(usage.cached_tokens >= common / PAGE_SIZE * PAGE_SIZE);
            }
        }
    }
    assert_eq!(texts.each_ref(), expected.each_ref().map(|expected| &expected.text));
    assert_eq!((with.pool().num_used(), without.pool().num_used()), (0, 0));
}
