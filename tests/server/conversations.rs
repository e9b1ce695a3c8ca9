//! A long conversation with a hybrid, whose states cannot be cut back: what each turn costs, and that nothing else changes.

use crate::client::*;
use qernel::engine::EngineConfig;
use qernel::kv_layout::PAGE_SIZE;
use qernel::load::{DeviceChoice, LoadedModel, RunnerOptions};
use qernel::server::ServedModel;
use qernel::testing::TinyModel;
use serde_json::{Value, json};
use std::time::Instant;

const TURNS: usize = 20;

/// A server of a small hybrid with room for the copies of a whole conversation.
fn start_hybrid(prefix_cache: bool) -> Running {
    start_hybrid_with(prefix_cache, 2 * TURNS + 4, 0)
}

/// The same with room for so many copies, and so many bytes of host memory for others.
fn start_hybrid_with(prefix_cache: bool, checkpoints: usize, checkpoint_host_memory: usize) -> Running {
    let server = start_with(config(), move |max_num_sequences, _| {
        let model = TinyModel {
            architecture: "qwen35",
            hidden_size: 64,
            intermediate_size: 96,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 32,
            ..TinyModel::default()
        };
        let options = RunnerOptions {
            device: DeviceChoice::Cpu,
            checkpoints,
            checkpoint_host_memory,
            ..RunnerOptions::for_sequences(max_num_sequences)
        };
        let model = LoadedModel::load(&model.gguf(), Instant::now(), &options, &mut |_, _| ())?;
        let template = model.template();
        let config = EngineConfig { prefix_cache, ..EngineConfig::default() };
        let engine = model.into_engine_with(config)?;
        Ok(ServedModel {
            engine,
            template,
            name: "hybrid".into(),
            watch: Default::default(),
            fingerprint: None,
        })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server
}

/// A greedy answer: its text, the tokens of the prompt, and those of them that were not computed.
fn ask(server: &Running, messages: &[Value]) -> (String, usize, usize) {
    let body = json!({"messages": messages, "temperature": 0, "max_tokens": 20});
    let answer = server.post("/v1/chat/completions", body).good();
    let count = |value: &Value| value.as_u64().unwrap() as usize;
    let usage = &answer["usage"];
    (
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
        count(&usage["prompt_tokens"]),
        count(&usage["prompt_tokens_details"]["cached_tokens"]),
    )
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Tokens of a prompt on full pages, before its last token: behind them there is a copy.
fn on_pages(prompt_tokens: usize) -> usize {
    (prompt_tokens - 1) / PAGE_SIZE * PAGE_SIZE
}

#[test]
fn twenty_turns_compute_what_is_new_of_them() {
    let (server, whole) = (start_hybrid(true), start_hybrid(false));
    let mut messages = Vec::new();
    let mut prompts = Vec::new();
    for turn in 0..TURNS {
        messages.push(user(&format!("What does the sea say on day {turn}?")));
        let (text, prompt_tokens, cached) = ask(&server, &messages);
        assert_eq!(ask(&whole, &messages), (text.clone(), prompt_tokens, 0), "turn {turn}");
        // All but the answer, the message and a page at most.
        let known = prompts.last().map_or(0, |&before| on_pages(before));
        assert!((known..=on_pages(prompt_tokens)).contains(&cached), "turn {turn}: {cached} of {known}");
        prompts.push(prompt_tokens);
        messages.push(json!({"role": "assistant", "content": text}));
    }
    // The same again costs its last page, and keeps nothing more.
    let kept = |server: &Running| {
        server.wait_until_idle();
        ["kv_pages", "kv_pages_cached", "state_checkpoints", "state_checkpoints_used"]
            .map(|name| server.metric(&format!("qernel_{name}")))
    };
    let before = kept(&server);
    assert_eq!((before[2], before[3] > TURNS as f64), (2.0 * TURNS as f64 + 4.0, true), "{before:?}");
    let last = &messages[..2 * TURNS - 1];
    for _ in 0..3 {
        let (text, prompt_tokens, cached) = ask(&server, last);
        assert_eq!(
            (Value::from(text), cached),
            (messages[2 * TURNS - 1]["content"].clone(), on_pages(prompt_tokens))
        );
    }
    assert_eq!(kept(&server), before);
    assert_eq!(kept(&whole)[1..], [0.0; 3]);

    // Another third message costs from there on, and the turn behind it what is new again.
    let mut edited = messages[..4].to_vec();
    edited.push(user("And what does the mountain say?"));
    let (text, third, cached) = ask(&server, &edited);
    assert_eq!(ask(&whole, &edited), (text.clone(), third, 0));
    assert!((on_pages(prompts[1])..=on_pages(prompts[2])).contains(&cached), "{cached} of {prompts:?}");
    edited.extend([json!({"role": "assistant", "content": text}), user("Nothing?")]);
    let (text, fourth, cached) = ask(&server, &edited);
    assert_eq!(ask(&whole, &edited), (text, fourth, 0));
    assert!((on_pages(third)..=on_pages(fourth)).contains(&cached), "{cached} of {third}");
}

/// With one place for copies, two conversations in turn go on where they were, from host memory; `/metrics` counts that.
#[test]
fn conversations_in_turn_go_on_from_host_memory() {
    let server = start_hybrid_with(true, 1, 1 << 20);
    let begin = |name: &str| vec![user(&format!("{name} asks what the sea says on a day with no wind."))];
    let mut cached = Vec::new();
    let mut conversations = ["Ada", "Bo"].map(begin);
    for _ in 0..3 {
        for messages in &mut conversations {
            let (text, prompt_tokens, of_prompt) = ask(&server, messages);
            cached.push((of_prompt, prompt_tokens));
            messages.extend([json!({"role": "assistant", "content": text}), user("And then?")]);
        }
    }
    // Two turns on it is the same conversation's.
    let before = cached.iter().map(|&(_, prompt_tokens)| on_pages(prompt_tokens));
    let all = cached[2..].iter().zip(before).all(|(&(cached, _), before)| cached >= before && before > 0);
    assert!(all, "{cached:?}");
    server.wait_until_idle();
    let metric = |name: &str| server.metric(&format!("qernel_state_checkpoints_{name}"));
    assert_eq!(metric("used"), 1.0);
    let (copies, bytes) = (metric("host"), metric("host_bytes"));
    assert!(copies >= 1.0 && bytes > 0.0 && bytes <= f64::from(1 << 20), "{copies} of {bytes} bytes");
}
