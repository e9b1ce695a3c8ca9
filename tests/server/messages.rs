//! Anthropic's Messages, as bytes on the wire.

use crate::client::*;
use qernel::server::ServerConfig;
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const THINKING: &str = include_str!("../data/dialects/xml.jinja");

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "seed": 1, "max_tokens": 200});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn sail() -> Value {
    json!({"name": "sail", "description": "Go", "input_schema": {
        "type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": false}})
}

/// What the model says in these tests: thoughts, a text, a call.
const ANSWER: &str = "So.\n</think>\n\nI go.\n<tool_call>\n<function=sail>\n<parameter=to>\nOslo\n</parameter>\n</function>\n</tool_call>";

#[test]
fn an_answer_has_blocks() {
    let server = start_with_template(config(), THINKING);
    server.control.say(ANSWER);
    let answer = server.post(MESSAGES, body(json!({"tools": [sail()]}))).good();
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["model"]),
        (&json!("message"), &json!("assistant"), &json!("haiku"))
    );
    let blocks = answer["content"].as_array().unwrap();
    assert_eq!((&blocks[0]["type"], &blocks[0]["thinking"]), (&json!("thinking"), &json!("So.")));
    assert_eq!(blocks[1], json!({"type": "text", "text": "I go.\n"}));
    assert_eq!(
        (&blocks[2]["type"], &blocks[2]["name"], &blocks[2]["input"]),
        (&json!("tool_use"), &json!("sail"), &json!({"to": "Oslo"}))
    );
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("tool_use"), &Value::Null));
    let count = server.post(COUNT, body(json!({"tools": [sail()]}))).good()["input_tokens"].as_u64().unwrap();
    let of = |name: &str| answer["usage"][name].as_u64().unwrap();
    assert_eq!(of("input_tokens") + of("cache_read_input_tokens"), count);
}

#[test]
fn why_it_ended() {
    let server = start_with_template(config(), THINKING);
    for (said, more, reason, sequence) in [
        ("x</think>one two", json!({}), "end_turn", Value::Null),
        ("x</think>one two", json!({"stop_sequences": ["three", "wo", "tw"]}), "stop_sequence", json!("tw")),
        ("x</think>one two", json!({"stop_sequences": ["three"]}), "end_turn", Value::Null),
        ("tw</think>one two", json!({"stop_sequences": ["tw"]}), "stop_sequence", json!("tw")),
        ("tw</think>one", json!({"stop_sequences": ["tw"]}), "end_turn", Value::Null),
        ("x</think>one two", json!({"max_tokens": 3}), "max_tokens", Value::Null),
        // A call that was cut off is none.
        (
            "x</think><tool_call>\n<function=sail>\n<parameter=to>\nO",
            json!({"tools": [sail()]}),
            "end_turn",
            Value::Null,
        ),
        ("x</think><tool_call>\n<function=sail>\n", json!({"tools": [sail()]}), "end_turn", Value::Null),
    ] {
        server.control.say(said);
        let answer = server.post(MESSAGES, body(more.clone())).good();
        assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!(reason), &sequence), "{more}");
        assert!(answer["content"].as_array().unwrap().iter().all(|block| block["type"] != "tool_use"));
    }
}

#[test]
fn a_stream_adds_up_to_the_answer() {
    let server = start_with_template(config(), THINKING);
    server.control.say(ANSWER);
    let whole = server.post(MESSAGES, body(json!({"tools": [sail()]}))).good();
    server.control.say(ANSWER);
    let events: Vec<_> =
        server.stream(MESSAGES, body(json!({"tools": [sail()], "stream": true}))).events().collect();
    let mut blocks: Vec<Value> = Vec::new();
    let mut json_of_input = String::new();
    for event in &events {
        let data = event.json();
        assert_eq!(data["type"], event.name.as_str());
        match event.name.as_str() {
            "content_block_start" => {
                assert_eq!(data["index"], blocks.len());
                blocks.push(data["content_block"].clone());
            }
            "content_block_delta" => {
                assert_eq!(data["index"], blocks.len() - 1);
                let (block, delta) = (blocks.last_mut().unwrap(), &data["delta"]);
                let mut add = |field: &str| {
                    let text = block[field].as_str().unwrap().to_owned() + delta[field].as_str().unwrap();
                    block[field] = text.into();
                };
                match delta["type"].as_str().unwrap() {
                    "thinking_delta" => add("thinking"),
                    "signature_delta" => add("signature"),
                    "text_delta" => add("text"),
                    _ => json_of_input += delta["partial_json"].as_str().unwrap(),
                }
            }
            _ => (),
        }
    }
    let call = blocks.last_mut().unwrap();
    call["input"] = serde_json::from_str(&json_of_input).unwrap();
    call["id"] = whole["content"][2]["id"].clone();
    assert_eq!(json!(blocks), whole["content"]);
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(
        (names[0], &names[names.len() - 2..]),
        ("message_start", &["message_delta", "message_stop"][..])
    );
    let end = events[events.len() - 2].json();
    assert_eq!(end["delta"]["stop_reason"], "tool_use");
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    assert!(events[0].json()["message"]["usage"]["input_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn turns_reach_the_template() {
    let server =
        start_with_template(config(), "{{ messages | tojson }}{% if tools %}{{ tools | tojson }}{% endif %}");
    // What an answer's request would be refused for, too.
    let refused = server.post(COUNT, body(json!({"logit_bias": {"999999": 1}})));
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("the model has only tokens 0 to"), "{}", refused.text());
    let count = |more: Value| server.post(COUNT, body(more)).good()["input_tokens"].clone();
    let text = |text: &str| server.post("/tokenize", json!({"text": text})).good()["count"].clone();
    let turns = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "so", "signature": "x"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I go."}, {"type": "text", "text": "Now."}, {"type": "tool_use", "id": "t1", "name": "sail", "input": {"to": "Oslo"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "fog"}], "is_error": true},
            {"type": "text", "text": "and?"}]},
    ]);
    let expected = concat!(
        r#"[{"role": "system", "content": "Be kind.\nBe brief."}, {"role": "user", "content": "a\nb"}, "#,
        r#"{"role": "assistant", "content": "I go.\nNow.", "reasoning_content": "so", "tool_calls": "#,
        r#"[{"id": "t1", "type": "function", "function": {"name": "sail", "arguments": {"to": "Oslo"}}}]}, "#,
        r#"{"role": "tool", "content": "Error: fog", "tool_call_id": "t1"}, {"role": "user", "content": "and?"}]"#,
    );
    let system = json!([{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}]);
    assert_eq!(count(json!({"system": system, "messages": turns})), text(expected));
    let tools = r#"[{"type": "function", "function": {"name": "sail", "description": "Go", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": false}}}]"#;
    let plain = r#"[{"role": "user", "content": "hi"}]"#;
    assert_eq!(count(json!({"tools": [sail()]})), text(&format!("{plain}{tools}")));
    assert_eq!(count(json!({"tools": [sail()], "tool_choice": {"type": "none"}})), text(plain));
    server.wait_until_idle();
}

#[test]
fn thinking_tools_and_forms() {
    let server = start_with_template(config(), THINKING);
    server.control.begin("abcdefghij");
    let bounded = json!({"thinking": {"type": "enabled", "budget_tokens": 3}});
    let thought =
        server.post(MESSAGES, body(bounded)).good()["content"][0]["thinking"].as_str().unwrap().to_owned();
    assert!(!thought.is_empty() && thought.len() < 10, "{thought}");
    server.control.say("k");
    let off = server.post(MESSAGES, body(json!({"thinking": {"type": "disabled"}}))).good();
    assert_eq!(off["content"], json!([{"type": "text", "text": "k"}]));
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"format": {"type": "json_schema", "schema": schema}, "effort": "low"});
    server.control.begin("x</think>");
    let answer = server.post(MESSAGES, body(json!({"output_config": format}))).good();
    assert!(
        serde_json::from_str::<Value>(answer["content"][1]["text"].as_str().unwrap()).unwrap()["a"]
            .is_boolean()
    );
    for choice in [
        json!({"type": "any", "disable_parallel_tool_use": true}),
        json!({"type": "tool", "name": "sail", "disable_parallel_tool_use": true}),
    ] {
        server.control.begin("x</think>\n\n<tool_call>\n<function=sail>\n<parameter=to>\nOslo\n</parameter>");
        let answer = server.post(MESSAGES, body(json!({"tools": [sail()], "tool_choice": choice}))).good();
        assert_eq!(
            (&answer["content"][1]["input"], &answer["stop_reason"]),
            (&json!({"to": "Oslo"}), &json!("tool_use"))
        );
    }
}

#[test]
fn errors_are_anthropics() {
    let server = start_with_template(ServerConfig { api_key: Some("secret".into()), ..config() }, THINKING);
    let send = |path: &str, body: Value| {
        let headers = [("content-type", "application/json"), ("x-api-key", "secret")];
        server.send("POST", path, &headers, &body.to_string()).response()
    };
    for (more, param) in [
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            "messages",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}),
            "messages[0].content[0].tool_use_id",
        ),
        (json!({"tools": [sail(), sail()]}), "tools[1].name"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"tools": [sail()], "tool_choice": {"type": "tool"}}), "tool_choice.name"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"foo": 1}), "foo"),
        (json!({"thinking": {"type": "disabled", "budget_tokens": 5}}), "thinking.budget_tokens"),
        (json!({"metadata": {"user_id": "x".repeat(300)}}), "metadata.user_id"),
    ] {
        let refused = send(MESSAGES, body(more.clone()));
        let error = refused.json();
        assert_eq!((refused.status, &error["type"]), (400, &json!("error")), "{more}: {error}");
        assert_eq!(
            (&error["error"]["type"], &error["error"]["param"]),
            (&json!("invalid_request_error"), &json!(param)),
            "{more}: {error}"
        );
    }
    let unknown = send(COUNT, body(json!({"model": "claude"})));
    assert_eq!((unknown.status, &unknown.json()["error"]["type"]), (404, &json!("not_found_error")));
    for (path, method, status) in [("/v1/messages", "GET", 405), ("/v1/messages/batches", "POST", 404)] {
        let refused = server.send(method, path, &[("x-api-key", "secret")], "").response();
        assert_eq!((refused.status, &refused.json()["type"]), (status, &json!("error")), "{path}");
    }
    let locked = server.send("POST", MESSAGES, &[], "{}").response();
    assert_eq!((locked.status, &locked.json()["type"]), (401, &json!("error")));
    let media = server.send("POST", MESSAGES, &[("x-api-key", "secret")], "{}").response();
    assert_eq!((media.status, &media.json()["type"]), (415, &json!("error")));
}
