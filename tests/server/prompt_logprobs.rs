//! `prompt_logprobs`: how likely the model thought each token of the prompt, in vLLM's form.

use crate::client::*;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// As the server has it.
fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn entries(list: &Value) -> Vec<serde_json::Map<String, Value>> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
    assert_eq!(list[0], Value::Null, "nothing is known of the first token");
    list[1..].iter().map(|entry| entry.as_object().unwrap().clone()).collect()
}

/// The same numbers that `echo` shows, whichever of both is asked for first, alone or together, and for more answers than one.
#[test]
fn they_are_those_of_an_echo() {
    let server = start(config());
    let prompts = ["a sail, then the sea", "forty-two lighthouses"];
    let ask = |fields: Value| {
        let mut body = json!({"prompt": prompts, "max_tokens": 2, "seed": 1});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post(COMPLETIONS, body).good()["choices"].clone()
    };
    let alone = ask(json!({"prompt_logprobs": 2}));
    let echoed = ask(json!({"echo": true, "logprobs": 3}));
    let both = ask(json!({"echo": true, "logprobs": 3, "prompt_logprobs": 2, "n": 2}));
    for (i, prompt) in prompts.iter().enumerate() {
        let ids = server.post("/tokenize", json!({"text": prompt})).good()["ids"].clone();
        let ids = ids.as_array().unwrap();
        let found = entries(&alone[i]["prompt_logprobs"]);
        assert_eq!(found.len(), ids.len() - 1);
        for both in [&both[2 * i], &both[2 * i + 1]] {
            assert_eq!(both["prompt_logprobs"], alone[i]["prompt_logprobs"]);
            assert_eq!(both["logprobs"]["token_logprobs"][1], echoed[i]["logprobs"]["token_logprobs"][1]);
        }
        assert_eq!(echoed[i].get("prompt_logprobs"), None);
        let echo = &echoed[i]["logprobs"];
        for ((place, entry), id) in found.iter().enumerate().map(|(i, entry)| (i + 1, entry)).zip(&ids[1..]) {
            let own = &entry[&id.to_string()];
            assert_eq!(own["logprob"], echo["token_logprobs"][place], "{place}");
            assert_eq!(own["decoded_token"], echo["tokens"][place]);
            let rank = own["rank"].as_u64().unwrap();
            assert_eq!(entry.len(), if rank <= 2 { 2 } else { 3 }, "{entry:?}");
            for (i, other) in entry.values().enumerate() {
                assert!(other["logprob"].as_f64().unwrap() <= 0.0, "{i}: {other}");
                let is_likelier = other["logprob"].as_f64() > own["logprob"].as_f64();
                assert_eq!(is_likelier, other["rank"].as_u64().unwrap() < rank, "{entry:?}");
                let of_echo = &echo["top_logprobs"][place][other["decoded_token"].as_str().unwrap()];
                let is_own = rank == other["rank"].as_u64().unwrap();
                assert!(is_own || number(of_echo) == number(&other["logprob"]), "{other} {of_echo}");
            }
        }
    }
    let own = entries(&ask(json!({"prompt_logprobs": 0}))[0]["prompt_logprobs"]);
    assert!(own.iter().all(|entry| entry.len() == 1), "{own:?}");
    server.wait_until_idle();
}

/// Of a conversation they stand beside the answers, and are of the prompt that the template makes.
#[test]
fn a_conversation_has_them_once() {
    let server = start(config());
    let body = json!({"messages": [{"role": "user", "content": "Write a haiku about the sea"}], "n": 2, "max_tokens": 3,
                      "prompt_logprobs": 1});
    let plain = json!({"messages": body["messages"], "n": 2, "max_tokens": 3});
    // What the prefix cache knows is computed all the same.
    assert_eq!(server.post(CHAT, plain).good().get("prompt_logprobs"), None);
    let answer = server.post(CHAT, &body).good();
    let found = entries(&answer["prompt_logprobs"]);
    assert_eq!(found.len() as u64 + 1, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(server.post(CHAT, &body).good()["prompt_logprobs"], answer["prompt_logprobs"]);
    server.wait_until_idle();
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let server = start(config());
    for fields in [
        json!({"prompt_logprobs": 21}),
        json!({"prompt_logprobs": -1}),
        json!({"prompt_logprobs": 1, "stream": true}),
    ] {
        for (path, mut body) in [
            (CHAT, json!({"messages": [{"role": "user", "content": "Hi"}]})),
            (COMPLETIONS, json!({"prompt": "Hi"})),
        ] {
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let refused = server.post(path, &body);
            assert_eq!(refused.status, 400, "{path}: {body}");
            assert_eq!(refused.json()["error"]["param"], "prompt_logprobs", "{}", refused.text());
        }
    }
}
