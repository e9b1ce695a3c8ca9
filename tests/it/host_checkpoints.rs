//! Copies of the states of hybrids that had to make room, in host memory: conversations go on from them with the same answers, on the CPU and on
//! an emulated device; there are no more than was asked for, the one used longest ago goes first, and each goes with its page.

use crate::program::{json, qernel};
use qernel::engine::{Engine, EngineConfig, Fingerprint, Request};
use qernel::error::Error;
use qernel::load::{DeviceChoice, KvCacheSize, LoadedModel, RunnerOptions};
use qernel::sampler::SamplingParams;
use qernel::testing::{Random, TinyModel};
use std::ops::ControlFlow;
use std::time::Instant;

fn model() -> TinyModel {
    TinyModel {
        architecture: "qwen35",
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 32,
        ..TinyModel::default()
    }
}

/// An engine with `checkpoints` places for copies, and room for so many copies, or a bit less than one more, in host memory.
fn engine(device: DeviceChoice, checkpoints: usize, host: usize) -> Engine {
    open(device, checkpoints, host * state_bytes() + state_bytes() / 2 * host.min(1), true).unwrap()
}

fn open(device: DeviceChoice, checkpoints: usize, bytes: usize, prefix_cache: bool) -> Result<Engine, Error> {
    let options = RunnerOptions {
        device,
        checkpoints,
        checkpoint_host_memory: bytes,
        max_model_len: Some(256),
        max_num_tokens: Some(64),
        kv_cache: KvCacheSize::Tokens(16 * 32),
        ..RunnerOptions::for_sequences(2)
    };
    let loaded = LoadedModel::load(&model().gguf(), Instant::now(), &options, &mut |_, _| ())?;
    loaded.into_engine_with(EngineConfig { prefix_cache, checkpoint_every: 64, ..EngineConfig::default() })
}

/// Bytes of a copy: a slot of one of two layers.
fn state_bytes() -> usize {
    let linear = model().linear;
    4 * linear.slot_values()
}

/// A conversation's beginning of so many tokens.
fn prompt(conversation: u64, len: usize) -> Vec<u32> {
    let mut random = Random::new(conversation, "conversations");
    (0..len).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32).collect()
}

/// A greedy answer, and how many tokens of the prompt were not computed.
fn answer(engine: &mut Engine, prompt: Vec<u32>) -> (Vec<u32>, usize) {
    let request = Request {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(5),
        ignore_eos: true,
        text: false,
        ..Request::new(prompt)
    };
    let done = engine.run_to_end(request, &false.into(), |_| ControlFlow::Continue(())).unwrap();
    (done.tokens, done.usage.cached_tokens)
}

/// Copies in host memory, and their bytes.
fn on_host(engine: &Engine) -> (usize, usize) {
    let host = engine.checkpoints().unwrap().host();
    (host.num_known(), host.num_bytes())
}

/// With one place every conversation takes the one of the conversation before: without host memory none comes back to anything.
#[test]
fn a_conversation_comes_back_to_what_had_to_make_room() {
    let mut engines = [engine(DeviceChoice::Cpu, 1, 0), engine(DeviceChoice::Cpu, 1, 2)];
    let mut whole = open(DeviceChoice::Cpu, 0, 0, true).unwrap();
    let mut ask = |conversation, len, expected: [usize; 2]| {
        let prompt = prompt(conversation, len);
        let (tokens, cached) = answer(&mut whole, prompt.clone());
        assert_eq!(cached, 0);
        for (engine, expected) in engines.iter_mut().zip(expected) {
            assert_eq!(
                answer(engine, prompt.clone()),
                (tokens.clone(), expected),
                "conversation {conversation}"
            );
        }
        on_host(&engines[1])
    };
    let bytes = state_bytes();
    assert_eq!(ask(1, 34, [0, 0]), (0, 0));
    assert_eq!(ask(2, 34, [0, 0]), (1, bytes));
    assert_eq!(ask(3, 34, [0, 0]), (2, 2 * bytes));
    // Both are there, and are used anew: the first one before the second.
    assert_eq!(ask(1, 40, [0, 32]), (2, 2 * bytes));
    assert_eq!(ask(2, 40, [0, 32]), (2, 2 * bytes));
    // The third makes room for the fourth, and the first for the third.
    assert_eq!(ask(4, 34, [0, 0]), (2, 2 * bytes));
    assert_eq!(ask(2, 41, [0, 32]), (2, 2 * bytes));
    assert_eq!(ask(3, 41, [0, 32]), (2, 2 * bytes));
    // It is computed again, its new copy makes the fourth's go to host memory, and that one the second's.
    assert_eq!(ask(1, 41, [0, 0]), (2, 2 * bytes));
    assert_eq!(ask(2, 42, [0, 0]), (2, 2 * bytes));
}

/// The state goes to the host and back.
#[test]
fn so_it_does_on_a_device() {
    let device = DeviceChoice::Emulated;
    let (mut with, mut whole) = (engine(device, 1, 2), open(device, 0, 0, true).unwrap());
    answer(&mut with, prompt(1, 34));
    answer(&mut with, prompt(2, 34));
    assert_eq!(on_host(&with), (1, state_bytes()));
    let again = prompt(1, 36);
    let (tokens, _) = answer(&mut whole, again.clone());
    assert_eq!(answer(&mut with, again), (tokens, 32));
}

/// A long prompt's copies are in host memory but for the last one; a prompt that leaves it early goes on from there, and what it makes is what
/// an engine makes that computes all of it.
#[test]
fn a_long_prompt_is_left_early() {
    let (mut with, mut whole) =
        (engine(DeviceChoice::Cpu, 1, 7), open(DeviceChoice::Cpu, 0, 0, true).unwrap());
    answer(&mut with, prompt(1, 230));
    assert_eq!(on_host(&with).0, 3, "behind 64, 128 and 192 tokens; 224 is in the place");
    for (len, cached) in [(200, 192), (100, 64), (150, 128)] {
        let prompt = [prompt(1, len), prompt(len as u64, 9)].concat();
        let (tokens, _) = answer(&mut whole, prompt.clone());
        assert_eq!(answer(&mut with, prompt), (tokens, cached), "{len} tokens");
    }
}

/// Sixteen pages hold four such conversations, whatever host memory has room for.
#[test]
fn a_copy_goes_with_its_page() {
    let mut with = engine(DeviceChoice::Cpu, 1, 20);
    for conversation in 0..9 {
        answer(&mut with, prompt(conversation, 100));
        // Behind 64 and 96 tokens of each that has its pages, one of all in the place.
        let copies = 2 * (conversation as usize + 1).min(4) - 1;
        assert!(on_host(&with).0 <= copies, "{conversation}: {:?}", on_host(&with));
    }
    assert!(on_host(&with).0 >= 4, "{:?}", on_host(&with));
    assert_eq!(answer(&mut with, prompt(7, 110)).1, 96);
    assert_eq!(answer(&mut with, prompt(1, 110)).1, 0);
}

/// What is kept over a restart is that in host memory too, and goes back there.
#[test]
fn copies_in_host_memory_are_kept_over_a_restart() {
    let mut before = engine(DeviceChoice::Cpu, 1, 4);
    (1..=3).for_each(|conversation| drop(answer(&mut before, prompt(conversation, 34))));
    let (of, mut file) = (Fingerprint::of(["model"]), Vec::new());
    assert_eq!(before.keep_prompts(&of, 1 << 30, &mut file).unwrap().states, 3);
    for (host, states) in [(4, 3), (1, 2), (0, 1)] {
        let mut after = engine(DeviceChoice::Cpu, 1, host);
        assert_eq!(after.take_prompts(&of, &mut &file[..]).unwrap().states, states);
        assert_eq!(on_host(&after).0, states - 1);
        // Those that were used last, which asking moves on.
        for conversation in (4 - states as u64)..=3 {
            let prompt = prompt(conversation, 40);
            assert_eq!(
                answer(&mut after, prompt.clone()),
                (answer(&mut before, prompt).0, 32),
                "{conversation}"
            );
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    for (checkpoints, bytes, expected) in [
        (0, 1 << 20, "it needs --checkpoints 1 or more"),
        (1, state_bytes() - 1, "a copy of a sequence's states takes"),
    ] {
        let error = open(DeviceChoice::Cpu, checkpoints, bytes, true).err().unwrap().to_string();
        assert!(error.contains("--checkpoint-host-memory") && error.contains(expected), "{error}");
    }
    assert!(
        open(DeviceChoice::Cpu, 1, usize::MAX, true)
            .err()
            .unwrap()
            .to_string()
            .contains("--checkpoint-host-memory")
    );
    assert!(open(DeviceChoice::Cpu, 1, 1 << 20, false).unwrap().checkpoints().is_none(), "nothing is shared");
}

#[test]
fn inspect_says_how_many_copies_there_is_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, model().to_bytes()).unwrap();
    let command = |size: &str| {
        let mut command = qernel();
        command.args(["inspect", "--json", "--checkpoint-host-memory", size, "-m"]).arg(&path);
        json(&mut command)["memory"].clone()
    };
    let of = command(&(3 * state_bytes() + 1).to_string());
    assert_eq!(of["state_bytes"], state_bytes());
    assert_eq!(of["host_checkpoints"], 3);
    assert!(command("0")["host_checkpoints"].is_null());
}
