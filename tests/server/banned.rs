//! `banned_strings`: texts that an answer goes around.

use crate::client::*;
use crate::infill::open_with_fim;
use serde_json::{Value, json};

const GENERATE: &str = "/v1/generate";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const PROMPT: &str = "Write a haiku about the sea with the word forty-two";

fn generate(fields: &Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "seed": 1, "max_tokens": 24, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// A few words of a text.
fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().filter(|word| word.len() > 3).collect()
}

/// Where a text is banned the answer is the same up to the token in which it began, and then another one: also a text of several tokens, in
/// other letters, and where what is drawn instead is banned too.
#[test]
fn the_answer_goes_another_way_where_one_begins() {
    let server = start(config());
    for seed in 1..5 {
        let answer = |banned: &[String]| {
            let answer =
                server.post(GENERATE, generate(&json!({"seed": seed, "banned_strings": banned}))).good();
            let text = answer["text"].as_str().unwrap().to_owned();
            let lower = text.to_ascii_lowercase();
            let found = banned.iter().find(|banned| lower.contains(&banned.to_ascii_lowercase()));
            assert_eq!(found, None, "{text:?}");
            assert_eq!(answer["ids"].as_array().unwrap().len(), 24);
            assert_eq!(answer["usage"]["completion_tokens"], 24);
            (text, answer["ids"].as_array().unwrap().clone())
        };
        let plain = answer(&[]);
        assert_eq!(answer(&["no such text".into()]), plain, "what does not come changes nothing");
        // Two words: several tokens, with a blank between them.
        let pieces = words(&plain.0);
        let start = plain.0.find(pieces[2]).unwrap();
        let end = plain.0.find(pieces[3]).unwrap() + pieces[3].len();
        let text = plain.0[start..end].to_ascii_uppercase();
        let mut banned = vec![text];
        for _ in 0..4 {
            let other = answer(&banned);
            assert_eq!(answer(&banned), other, "the same seed gives the same answer");
            let common = plain.1.iter().zip(&other.1).take_while(|(one, other)| one == other).count();
            assert!(common < 24, "{plain:?}");
            let before = server.post("/detokenize", json!({"ids": plain.1[..common]})).good()["text"].clone();
            assert!(before.as_str().unwrap().len() <= start, "{before} of {plain:?}");
            // What came in its place is banned too.
            let rest = &other.0[other.0.len().min(start)..];
            let Some(word) = words(rest).first().map(|word| (*word).to_owned()) else { break };
            banned.push(word);
        }
    }
    server.wait_until_idle();
}

/// Nothing of a banned text is streamed, and the pieces are the whole; several answers to one prompt, and to several, are each as they are alone.
#[test]
fn streams_are_the_whole_answers() {
    let server = start(config());
    let plain = server.post(GENERATE, generate(&json!({}))).good();
    let text = plain["text"].as_str().unwrap();
    let banned = json!([words(text)[1], &text[text.len() - 6..], "e s", "q"]);
    let body = generate(&json!({"banned_strings": banned, "logprobs": 1}));
    let whole = server.post(GENERATE, &body).good();
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    let (mut text, mut ids, mut logprobs) = (String::new(), Vec::new(), Vec::new());
    for event in server.stream(GENERATE, &streaming).events() {
        let data = event.json();
        text += data["text"].as_str().unwrap();
        ids.extend(data.get("id").cloned());
        logprobs.extend(data.get("logprobs").cloned());
        if data.get("id").is_some() {
            assert_eq!(data["index"], ids.len() - 1);
        }
    }
    assert_eq!(
        (json!(text), json!(ids), json!(logprobs)),
        (whole["text"].clone(), whole["ids"].clone(), whole["logprobs"].clone())
    );

    let turns = json!([{"role": "user", "content": PROMPT}]);
    let chat = |n: usize, stream: bool| json!({"messages": turns, "seed": 1, "max_tokens": 30, "n": n, "stream": stream, "banned_strings": ["the", "sea", "\n"]});
    let whole = server.post(CHAT, chat(3, false)).good();
    let mut streamed = vec![String::new(); 3];
    for event in server.stream(CHAT, chat(3, true)).events().filter(|event| event.data != "[DONE]") {
        let choice = event.json()["choices"][0].clone();
        let piece = choice["delta"]["content"].as_str().unwrap_or_default();
        streamed[choice["index"].as_u64().unwrap() as usize] += piece;
    }
    for (i, streamed) in streamed.iter().enumerate() {
        assert_eq!(whole["choices"][i]["message"]["content"], streamed.as_str());
        let lower = streamed.to_ascii_lowercase();
        assert!(["the", "sea", "\n"].iter().all(|banned| !lower.contains(banned)), "{streamed:?}");
    }
    let alone = server.post(CHAT, chat(1, false)).good();
    assert_eq!(alone["choices"][0]["message"]["content"], whole["choices"][0]["message"]["content"]);
    server.wait_until_idle();
}

/// At every interface; beside a grammar, whose other ways are taken, and stop texts, which end an answer before a banned one is complete.
#[test]
fn all_interfaces_take_them() {
    let server = start_with(config(), open_with_fim);
    server.wait_until("ready", |server| server.get("/health").status == 200);
    let turns = json!([{"role": "user", "content": PROMPT}]);
    for (path, place, body) in [
        (CHAT, "/choices/0/message/content", json!({"messages": turns, "max_tokens": 20})),
        (COMPLETIONS, "/choices/0/text", json!({"prompt": PROMPT, "max_tokens": 20})),
        ("/v1/responses", "/output/0/content/0/text", json!({"input": PROMPT, "max_output_tokens": 20})),
        ("/v1/messages", "/content/0/text", json!({"messages": turns, "max_tokens": 20})),
        (GENERATE, "/text", json!({"prompt": PROMPT, "max_tokens": 20})),
        ("/infill", "/content", json!({"input_prefix": PROMPT, "input_suffix": "", "n_predict": 20})),
    ] {
        let text = |banned: &[&str]| {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend([
                ("seed".to_owned(), json!(3)),
                ("ignore_eos".to_owned(), json!(true)),
                ("banned_strings".to_owned(), json!(banned)),
            ]);
            let answer = server.post(path, body).good();
            answer
                .pointer(place)
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("{path}: {answer}"))
                .to_owned()
        };
        let plain = text(&[]);
        let banned = words(&plain)[0];
        let other = text(&[banned]).to_ascii_lowercase();
        assert!(!other.contains(&banned.to_ascii_lowercase()), "{path}: {other:?}");
    }
    // Of the answers that a grammar has, the one that is left.
    let of_grammar = json!({"grammar": "root ::= \"red sails\" | \"red boats\" | \"blue\"", "banned_strings": ["RED", "blu"]});
    let of_two = json!({"grammar": "root ::= \"red sails\" | \"red boats\" | \"blue\"", "banned_strings": ["SAIL", "blu"]});
    for (fields, expected) in [(&of_two, "red boats"), (&of_grammar, "")] {
        let mut body = generate(fields);
        body["ignore_eos"] = json!(false);
        let answer = server.post(GENERATE, &body);
        match expected {
            // None is left.
            "" => assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("grammar"))),
            text => assert_eq!(answer.good()["text"], text),
        }
    }
    // What ends the answer comes first, and is no part of it.
    let grammar = json!({"grammar": "root ::= \"one two three four\"", "stop": "two", "banned_strings": ["two three"], "ignore_eos": false});
    assert_eq!(server.post(GENERATE, generate(&grammar)).good()["text"], "one ");
    server.wait_until_idle();
}

#[test]
fn what_is_too_much_is_refused_by_name() {
    let server = start(config());
    for (banned, says) in [
        (json!([""]), "1 to 256 bytes, found one of 0"),
        (json!(["a".repeat(257)]), "1 to 256 bytes, found one of 257"),
        (json!(vec!["ab"; 257]), "at most 256 banned strings, found 257"),
        (json!("ab"), "expected a sequence"),
        (json!([7]), "expected a string"),
    ] {
        let refused = server.post(GENERATE, generate(&json!({"banned_strings": banned})));
        let error = &refused.json()["error"];
        let message = error["message"].as_str().unwrap();
        let is_by_name = error["param"].as_str().unwrap().starts_with("banned_strings");
        assert!(refused.status == 400 && is_by_name && message.contains(says), "{says}: {error}");
    }
    server.wait_until_idle();
}
