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

/// What no grammar keeps is no reason to refuse a schema; docs/server.md says what is not kept.
#[test]
fn keywords_that_bind_no_answer_are_passed_over() {
    let server = start(config());
    let text = |format: &str| json!({"type": "string", "format": format, "maxLength": 8});
    let formats = [
        "path",
        "password",
        "byte",
        "binary",
        "regex",
        "iri",
        "uri-reference",
        "json-pointer",
        "no such thing",
    ];
    for format in formats {
        let properties = json!({"type": "object", "properties": {"a": text(format)}, "required": ["a"], "additionalProperties": false});
        let answer = ask(&server, schema(properties), json!({})).good();
        let value: Value = serde_json::from_str(&content(&answer, 0)).unwrap();
        assert!(value["a"].as_str().unwrap().chars().count() <= 8, "{format}: {value}");
    }
    for (known, length) in [("uuid", 36), ("date", 10)] {
        let answer = ask(&server, schema(json!({"type": "string", "format": known})), json!({})).good();
        let value: Value = serde_json::from_str(&content(&answer, 0)).unwrap();
        assert_eq!(value.as_str().unwrap().len(), length, "{known}: {value}");
    }
    let number = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 9});
    let answer = ask(&server, schema(number), json!({})).good();
    assert!((0..=9).contains(&content(&answer, 0).trim().parse::<i64>().unwrap()));

    let set = json!({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": true, "maxItems": 3});
    let answer = ask(&server, schema(set), json!({"n": 4})).good();
    for choice in 0..4 {
        let value: Value = serde_json::from_str(&content(&answer, choice)).unwrap();
        let items = value.as_array().unwrap();
        assert!(
            items.len() <= 3 && items.iter().all(|item| (1..=3).contains(&item.as_i64().unwrap())),
            "{value}"
        );
    }
}

#[test]
fn one_of_alternatives_that_overlap_is_any_of_them() {
    let server = start(config());
    let flag = |name: &str| {
        json!({"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name],
                                    "additionalProperties": {"type": "boolean"}, "maxProperties": 1})
    };
    let overlapping = json!({"oneOf": [
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
    ]});
    let answer = ask(&server, schema(overlapping), json!({"max_tokens": 60}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    for schemas in
        [json!({"oneOf": [flag("a"), flag("b")]}), json!({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]})]
    {
        let answer = ask(&server, schema(schemas.clone()), json!({"n": 4})).good();
        for choice in 0..4 {
            let value: Value = serde_json::from_str(&content(&answer, choice)).unwrap();
            let is_number = value.as_i64().is_some_and(|number| (1..=3).contains(&number));
            assert!(is_number || value["a"].is_boolean() || value["b"].is_boolean(), "{schemas}: {value}");
        }
    }
    // Those that exclude each other stay exclusive.
    let kinds = json!({"oneOf": [
        {"type": "object", "properties": {"kind": {"const": "x"}, "n": {"enum": [1]}}, "required": ["kind", "n"], "additionalProperties": false},
        {"type": "object", "properties": {"kind": {"const": "y"}, "n": {"enum": [2]}}, "required": ["kind", "n"], "additionalProperties": false},
    ]});
    let answer = ask(&server, schema(kinds), json!({"n": 4})).good();
    for choice in 0..4 {
        let value: Value = serde_json::from_str(&content(&answer, choice)).unwrap();
        assert_eq!(value["n"], if value["kind"] == "x" { 1 } else { 2 }, "{value}");
    }
}

/// White space outside of strings, run by run.
fn blanks(json: &str) -> Vec<String> {
    let (mut runs, mut run, mut in_string, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in json.chars() {
        if !in_string && c.is_whitespace() {
            run.push(c);
            continue;
        }
        if !run.is_empty() {
            runs.push(std::mem::take(&mut run));
        }
        (in_string, escaped) = match c {
            _ if escaped => (in_string, false),
            '\\' => (in_string, in_string),
            '"' => (!in_string, false),
            _ => (in_string, false),
        };
    }
    runs
}

/// A model that would rather write blanks gets on.
#[test]
fn white_space_is_that_of_compact_and_of_indented_json() {
    let server = start(config());
    let format = schema(json!({
        "type": "object", "required": ["a", "b"], "additionalProperties": false,
        "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}, "b": {"type": "integer", "minimum": 0, "maximum": 9}},
    }));
    let answer = ask(&server, format, json!({"n": 8, "temperature": 3})).good();
    let mut num_blanks = 0;
    for choice in 0..8 {
        let text = content(&answer, choice);
        assert_eq!(answer["choices"][choice]["finish_reason"], "stop", "{text}");
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        for run in blanks(&text) {
            num_blanks += 1;
            let indent = run.strip_prefix('\n');
            let is_indent =
                indent.is_some_and(|rest| rest.len() <= 20 && rest.chars().all(|c| c == ' ' || c == '\t'));
            assert!(run == " " || is_indent, "{run:?} in {text:?}");
        }
    }
    assert!(num_blanks > 0, "no answer tries");
}
