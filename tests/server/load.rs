//! Many clients at once, a third of which leave midway: no error, no leaked page, and every answer is what it is alone.
//!
//! `QERNEL_LOAD_SECONDS=60 QERNEL_LOAD_STREAMS=200` makes it long.

use crate::client::*;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// One of the requests that the clients send in turn.
fn request(i: usize) -> Value {
    let words = ["one", "seven", "twelve", "thirty-three", "forty-two", "fifty-nine"];
    let topics = ["the sea", "a lighthouse", "winter", "a cat"];
    let content =
        format!("Write a haiku about {} with the word {}", topics[i % topics.len()], words[i % words.len()]);
    let temperature = [0.0, 0.7, 1.0][i % 3];
    let stop = if i.is_multiple_of(5) { json!("\n") } else { Value::Null };
    let mut body = json!({
        "messages": [{"role": "user", "content": content}], "seed": i, "stream": true,
        "temperature": temperature, "stop": stop,
    });
    if i % 4 == 1 {
        // Some answers are long.
        body["ignore_eos"] = json!(true);
        body["max_tokens"] = json!(100);
    }
    body
}

/// The answer's text.
fn answer(events: Events) -> String {
    let mut text = String::new();
    let mut done = false;
    for event in events {
        assert_eq!(event.name, "", "{}", event.data);
        if event.data == "[DONE]" {
            done = true;
        } else {
            text += event.json()["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        }
    }
    assert!(done, "the stream ended early");
    text
}

#[test]
fn many_streams_of_which_a_third_leaves() {
    let streams = from_environment("QERNEL_LOAD_STREAMS", 60) as usize;
    let time = Duration::from_secs(from_environment("QERNEL_LOAD_SECONDS", 4));
    let mut config = config();
    (config.max_num_sequences, config.max_queue) = (128, streams);
    let server = start(config);
    const KINDS: usize = 24;
    let alone: Vec<String> =
        (0..KINDS).map(|i| answer(server.stream("/v1/chat/completions", request(i)).events())).collect();

    let (compared, left, next) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..streams {
            let (server, alone, compared, left, next) = (&server, &alone, &compared, &left, &next);
            scope.spawn(move || {
                while start.elapsed() < time {
                    let i = next.fetch_add(1, Ordering::Relaxed) % KINDS;
                    let mut events = server.stream("/v1/chat/completions", request(i)).events();
                    if client % 3 == 0 {
                        // Some leave before the first token, some in the middle.
                        events.by_ref().take(client % 7).for_each(drop);
                        left.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(answer(events), alone[i], "request {i}");
                        compared.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    server.wait_until_idle();
    let (compared, left) = (compared.into_inner(), left.into_inner());
    println!(
        "{compared} answers compared, {left} left, {:.0} tokens/s",
        server.metric("qernel_completion_tokens_total") / start.elapsed().as_secs_f64()
    );
    assert!(compared > streams / 2 && left > 0);
    assert_eq!(server.metric("qernel_requests_failed_total"), 0.0);
    assert_eq!(server.metric("qernel_requests_rejected_total{reason=\"queue_full\"}"), 0.0);
    assert!(server.metric("qernel_requests_cancelled_total") > 0.0);
    server.wait_until("no connection but this one", |server| server.metric("qernel_connections") == 1.0);
}
