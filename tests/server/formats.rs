//! `response_format`: answers that are JSON whatever the model would rather say.

use crate::client::*;
use serde_json::{Value, json};

fn ask(server: &Running, format: Value, more: Value) -> Response {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}],
        "response_format": format, "seed": 7, "max_tokens": 420,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post("/v1/chat/completions", body)
}

fn schema(schema: Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}})
}

fn content(answer: &Value, choice: usize) -> String {
    answer["choices"][choice]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn answers_follow_their_schema() {
    let server = start(config());
    let format = schema(json!({
        "type": "object",
        "properties": {
            "word": {"enum": ["forty-two", "forty-three"]},
            "lines": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 3},
            "at_sea": {"type": "boolean"},
            "boat": {"$ref": "#/$defs/boat"},
        },
        "required": ["word", "lines", "at_sea", "boat"],
        "additionalProperties": false,
        "$defs": {"boat": {"type": "object", "properties": {"oars": {"type": "integer", "minimum": 0, "maximum": 9}},
                           "required": ["oars"], "additionalProperties": false}},
    }));
    let answer = ask(&server, format.clone(), json!({"n": 4})).good();
    for choice in 0..4 {
        let text = content(&answer, choice);
        assert_eq!(answer["choices"][choice]["finish_reason"], "stop", "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(["forty-two", "forty-three"].contains(&value["word"].as_str().unwrap()));
        let lines = value["lines"].as_array().unwrap();
        assert!(
            (2..=3).contains(&lines.len())
                && lines.iter().all(|line| line.as_str().unwrap().chars().count() <= 12)
        );
        assert!(value["at_sea"].is_boolean() && (0..=9).contains(&value["boat"]["oars"].as_i64().unwrap()));
        assert_eq!(value.as_object().unwrap().len(), 4);
    }
    assert_ne!(content(&answer, 0), content(&answer, 1));
    // A constrained sequence is the same alone and beside others.
    assert_eq!(content(&ask(&server, format.clone(), json!({})).good(), 0), content(&answer, 0));
    // Greedy too, and streamed.
    let greedy = json!({"temperature": 0, "stream": true});
    let events = {
        let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "response_format": format});
        body.as_object_mut().unwrap().extend(greedy.as_object().unwrap().clone());
        server.stream("/v1/chat/completions", body).events()
    };
    let text: String = events
        .filter(|event| event.data != "[DONE]")
        .map(|event| event.json()["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
}

#[test]
fn an_object_and_plain_text() {
    let server = start(config());
    let answer = ask(&server, json!({"type": "json_object"}), json!({"n": 2})).good();
    for choice in answer["choices"].as_array().unwrap() {
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text.starts_with('{'), "{text}");
        // A model that knows no JSON may go on until it is cut off.
        if choice["finish_reason"] == "stop" {
            assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}");
        }
    }
    let plain = ask(&server, json!({"type": "text"}), json!({})).good();
    assert!(content(&plain, 0).contains("forty-two"));
}

#[test]
fn schemas_that_cannot_be_followed_are_refused() {
    let server = start(config());
    for bad in [
        json!({"type": "nonsense"}),
        json!({"type": "object", "properties": {"a": {"$ref": "https://example.org/schema"}}, "required": ["a"]}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"type": "string", "pattern": "("}),
        json!({"x-guidance": {}}),
    ] {
        let refused = ask(&server, schema(bad.clone()), json!({}));
        assert_eq!(refused.status, 400, "{bad}: {}", refused.text());
        assert_eq!(refused.json()["error"]["param"], "response_format.json_schema.schema", "{bad}");
    }
    let both = ask(&server, json!({"type": "json_object"}), json!({"ignore_eos": true}));
    assert_eq!(both.json()["error"]["param"], "ignore_eos");
    let unknown = ask(&server, json!({"type": "yaml"}), json!({}));
    assert_eq!(unknown.status, 400, "{}", unknown.text());
    server.wait_until_idle();
}
