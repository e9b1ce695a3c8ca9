//! `/v1/generate`, the tokenizer's endpoints, and the haiku test over HTTP.

#[path = "../../models/haiku/verse.rs"]
mod verse;

use crate::client::*;
use qernel::chat::Message;
use qernel::engine::Request;
use qernel::sampler::SamplingParams;
use serde_json::{Value, json};
use std::ops::ControlFlow;

const PROMPT: &str = "Write a haiku about the sea with the word forty-two";

/// What the engine answers without a server.
fn by_hand(params: SamplingParams) -> (Vec<u32>, String) {
    let model = open_model(1).unwrap();
    let text = model.template().unwrap().render(&[Message::new("user", PROMPT)], &[], true).unwrap();
    let prompt = model.tokenizer.encode(&text, true).unwrap();
    let request = Request { sampling: params, ..Request::new(prompt) };
    let mut engine = model.into_engine().unwrap();
    let done = engine.run_to_end(request, &false.into(), |_| ControlFlow::Continue(())).unwrap();
    (done.tokens, done.text)
}

#[test]
fn answers_are_the_engines_whole_and_streamed() {
    let server = start(config());
    let params = SamplingParams { temperature: 0.7, seed: 3, ..SamplingParams::default() };
    let (ids, text) = by_hand(params);
    let body = json!({"prompt": PROMPT, "temperature": 0.7, "seed": 3});
    let whole = server.post("/v1/generate", &body).good();
    assert_eq!((&whole["ids"], &whole["text"]), (&json!(ids), &json!(text)));
    assert_eq!((&whole["finish_reason"], &whole["seed"]), (&json!("stop"), &json!(3)));
    assert_eq!(whole["usage"]["completion_tokens"], json!(ids.len()));
    assert!(whole["timings"]["decode_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(whole.get("logprobs"), None);

    let streamed = json!({"prompt": PROMPT, "temperature": 0.7, "seed": 3, "stream": true, "logprobs": 2});
    let mut events: Vec<_> = server.stream("/v1/generate", streamed).events().collect();
    let end = events.pop().unwrap();
    assert_eq!((end.name.as_str(), &end.json()["finish_reason"]), ("end", &whole["finish_reason"]));
    assert_eq!(end.json()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let mut said = String::new();
    for (i, (event, id)) in events.iter().zip(&ids).enumerate() {
        assert_eq!(event.name, "token");
        let token = event.json();
        assert_eq!((&token["index"], &token["id"]), (&json!(i), &json!(id)));
        assert_eq!(token["logprobs"]["top_logprobs"].as_array().unwrap().len(), 2);
        said += token["text"].as_str().unwrap();
    }
    assert_eq!(events.len(), ids.len());
    assert_eq!(said + end.json()["text"].as_str().unwrap(), text);
}

#[test]
fn prompts_are_text_templates_or_ids() {
    let server = start(config());
    let answer = |body: Value| server.post("/v1/generate", body).good();
    let ids = server.post("/tokenize", json!({"text": "a sail, then"})).good()["ids"].clone();
    let greedy = |mut body: Value| {
        body["temperature"] = json!(0);
        body["max_tokens"] = json!(6);
        answer(body)["ids"].clone()
    };
    let raw = greedy(json!({"prompt": "a sail, then", "raw": true}));
    assert_eq!(raw, greedy(json!({"ids": ids})));
    assert_ne!(raw, greedy(json!({"prompt": "a sail, then"})));
    let with_system = greedy(json!({"prompt": "a sail, then", "system": "Be brief."}));
    assert_ne!(with_system, greedy(json!({"prompt": "a sail, then"})));
    let stopped = answer(json!({"prompt": PROMPT, "seed": 1, "stop": "\n"}));
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(!stopped["text"].as_str().unwrap().contains('\n'));
    let long = answer(json!({"prompt": PROMPT, "max_tokens": 40, "ignore_eos": true}));
    assert_eq!((&long["finish_reason"], long["ids"].as_array().unwrap().len()), (&json!("length"), 40));
    // The model's context ends what nothing else does.
    let endless = answer(json!({"prompt": PROMPT, "ignore_eos": true}));
    assert_eq!(endless["finish_reason"], "context");
}

#[test]
fn seeds_make_answers_and_answers_name_their_seeds() {
    let server = start(config());
    let first = server.post("/v1/generate", json!({"prompt": PROMPT})).good();
    let again = server.post("/v1/generate", json!({"prompt": PROMPT, "seed": first["seed"]})).good();
    assert_eq!(first["ids"], again["ids"]);
    let other = server.post("/v1/generate", json!({"prompt": PROMPT})).good();
    assert_ne!(first["seed"], other["seed"]);
}

#[test]
fn text_to_tokens_and_back() {
    let server = start(config());
    let text = "forty-two waves, <|im_end|> é漢🌊";
    let tokens = server.post("/tokenize", json!({"text": text})).good();
    assert_eq!(tokens["count"], tokens["ids"].as_array().unwrap().len());
    let ids = &tokens["ids"];
    assert_eq!(server.post("/detokenize", json!({"ids": ids})).good(), json!({"text": text}));
    let without = server.post("/detokenize", json!({"ids": ids, "skip_special": true})).good();
    assert_eq!(without, json!({"text": text.replace("<|im_end|>", "")}));
    let plain = server.post("/tokenize", json!({"text": text, "parse_special": false})).good();
    assert!(plain["count"].as_u64() > tokens["count"].as_u64());
    let outside = server.post("/detokenize", json!({"ids": [1, 999_999]}));
    assert_eq!((outside.status, outside.json()["error"]["param"].as_str()), (400, Some("ids")));
}

/// What lm-eval and others ask of vLLM's server.
#[test]
fn the_tokenizer_answers_as_vllms_does() {
    let server = start(config());
    let text = "forty-two waves, <|im_end|>";
    let ids = &server.post("/tokenize", json!({"text": text})).good()["ids"];
    for special in [json!(false), json!(true)] {
        // The haiku model's prompts do not begin with BOS.
        let body = json!({"model": "haiku", "prompt": text, "add_special_tokens": special});
        let found = server.post("/tokenize", body).good();
        assert_eq!((&found["tokens"], &found["max_model_len"]), (ids, &json!(512)));
    }
    assert_eq!(server.post("/detokenize", json!({"tokens": ids})).good()["prompt"], text);
    let info = server.get("/tokenizer_info").good();
    let names = ["bos_token", "eos_token", "pad_token"].map(|name| info[name].as_str().unwrap());
    assert_eq!(names, ["<|endoftext|>", "<|im_end|>", "<|endoftext|>"]);
    assert!(info["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    for (path, body, field) in [
        ("/tokenize", json!({}), "text"),
        ("/tokenize", json!({"text": text, "prompt": text}), "prompt"),
        ("/detokenize", json!({}), "ids"),
        ("/detokenize", json!({"ids": [1], "tokens": [1]}), "tokens"),
        ("/detokenize", json!({"tokens": [999_999]}), "tokens"),
    ] {
        let refused = server.post(path, body);
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some(field)));
    }
}

/// As `tests/it/haiku.rs` on the command line: the word is the minute of the hour, so it is not known beforehand.
#[test]
fn a_haiku_over_http_has_the_minute_in_it() {
    let server = start(config());
    let word = crate::minute::minute();
    let haiku = |seed: u64| {
        let content = format!("Write a haiku about the sea with the word {word}");
        let messages = json!([{"role": "user", "content": content}]);
        let body = json!({"messages": messages, "temperature": 0.7, "seed": seed});
        let answer = server.post("/v1/chat/completions", body).good();
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let mut unread = Vec::new();
    for seed in 1..=12 {
        let text = haiku(seed);
        assert_eq!(text.lines().count(), 3, "seed {seed}: {text}");
        assert!(verse::has_word(&text, &word), "seed {seed}: {word:?} does not stand in:\n{text}");
        if verse::is_held_out(&text) {
            unread.push(seed);
        }
    }
    assert!(!unread.is_empty(), "no seed gave a text that is certainly not in the corpus");
    assert_eq!(haiku(unread[0]), haiku(unread[0]));
}
