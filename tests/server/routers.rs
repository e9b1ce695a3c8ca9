//! What routers in front of several servers ask for, and what they make of requests on the way. docs/scale-out.md runs them.

use crate::client::*;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

/// SGLang's router knows the model and the load of a server.
#[test]
fn a_router_learns_the_model_and_the_load() {
    let mut small = config();
    small.max_num_sequences = 1;
    let server = start(small);
    let info = server.get("/server_info").good();
    assert_eq!((&info["served_model_name"], &info["max_running_requests"]), (&json!("haiku"), &json!(1)));
    assert_eq!(info["context_length"], 512);
    let idle = json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]);
    assert_eq!(server.get("/get_load").good(), idle);
    server.control.pause.store(20, Ordering::Relaxed);
    let endless = json!({"prompt": "the sea", "ignore_eos": true, "stream": true});
    let ask = || server.stream("/v1/generate", endless.clone()).events();
    let (mut first, second) = (ask(), ask());
    first.next().unwrap();
    server.wait_until("one that runs and one that waits", |server| {
        let load = &server.get("/get_load").good()[0];
        (&load["num_reqs"], &load["num_waiting_reqs"]) == (&json!(2), &json!(1))
            && load["num_tokens"].as_u64() > Some(0)
    });
    drop((first, second));
    server.control.pause.store(0, Ordering::Relaxed);
    server.wait_until("nothing to do", |server| server.get("/get_load").good() == idle);
}

/// Requests as `sglang-router` 0.3.2 passes them on: it adds its engine's fields. What they ask for beside their defaults is refused.
#[test]
fn requests_are_answered_behind_a_router() {
    let server = start(config());
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "model": "haiku", "logprobs": false, "max_completion_tokens": 2,
        "stream": false, "no_stop_trim": false, "ignore_eos": false, "continue_final_message": false, "skip_special_tokens": true,
        "separate_reasoning": true, "stream_reasoning": true, "return_hidden_states": false, "repetition_penalty": 1.0});
    let completion = json!({"model": "haiku", "prompt": "The sea", "max_tokens": 2, "stream": false, "echo": false, "no_stop_trim": false,
        "ignore_eos": false, "skip_special_tokens": true, "return_hidden_states": false, "repetition_penalty": 1});
    let responses = json!({"input": "The sea", "max_output_tokens": 2, "model": "haiku", "store": true, "stream": null, "temperature": 1.0,
        "top_p": 1.0, "priority": 0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0});
    for (path, body) in [
        ("/v1/chat/completions", &chat),
        ("/v1/completions", &completion),
        ("/v1/responses", &responses),
        ("/v1/embeddings", &json!({"model": "haiku", "input": "The sea"})),
    ] {
        let answer = server.post(path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let refusals: [(&str, &Value, &str, Value); 7] = [
        ("/v1/chat/completions", &chat, "separate_reasoning", json!(false)),
        ("/v1/chat/completions", &chat, "continue_final_message", json!(true)),
        ("/v1/completions", &completion, "skip_special_tokens", json!(false)),
        ("/v1/completions", &completion, "repetition_penalty", json!(1.1)),
        ("/v1/chat/completions", &chat, "repetition_penalty", json!(0.9)),
        ("/v1/responses", &responses, "priority", json!(1)),
        ("/v1/responses", &responses, "repetition_penalty", json!(1.1)),
    ];
    for (path, body, field, value) in refusals {
        let mut body = body.clone();
        body[field] = value;
        let refused = server.post(path, &body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(field)), "{path}");
    }
}
