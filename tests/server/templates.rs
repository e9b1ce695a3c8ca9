//! Chat templates that cannot be used, or fail on what clients send.

use crate::client::*;
use qernel::chat::ChatTemplate;
use qernel::server::ServedModel;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// The haiku model with another template, and perhaps one for tools.
fn start_with_templates(source: &'static str, tool_use: Option<&'static str>) -> Running {
    let server = start_with(config(), move |max_num_sequences, control| {
        let template = ChatTemplate::new(source, "", "").and_then(|template| match tool_use {
            Some(source) => template.with_tool_use(source),
            None => Ok(template),
        });
        open(max_num_sequences, control).map(|model| ServedModel { template, ..model })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server
}

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
}

#[test]
fn a_template_that_does_not_compile_is_named_in_the_refusal_and_in_health() {
    let server = start_with_templates("a\n{% nope %}", None);
    let said = "`tokenizer.chat_template` does not compile: line 2: there is no statement `nope`";
    for (path, body) in [(CHAT, hello()), ("/v1/generate", json!({"prompt": "hi"}))] {
        let refused = server.post(path, body);
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("no_template")));
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains(said), "{message}");
    }
    let health = server.get("/health").json();
    assert_eq!(health["status"], "ready");
    assert!(health["template"].as_str().unwrap().contains(said), "{health}");
    assert_eq!(server.post("/v1/completions", json!({"prompt": "the sea", "max_tokens": 1})).status, 200);
    assert_eq!(start(config()).get("/health").json().get("template"), None);
}

#[test]
fn what_a_template_fails_on_is_refused_and_counted() {
    let server = start_with_templates(
        "{{ messages[0].content }}{% if messages[0].content == 'much' %}{{ 'a' * 10 ** 9 }}{% endif %}\
         {% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}",
        None,
    );
    let with = |content: &str| json!({"messages": [{"role": "user", "content": content}], "max_tokens": 1});
    assert_eq!(server.post(CHAT, with("hi")).status, 200);
    for _ in 0..8 {
        let refused = server.post(CHAT, with("much"));
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["code"]), (400, &json!("template_failed")), "{error}");
        assert!(error["message"].as_str().unwrap().contains("line 1: its values take more than"), "{error}");
    }
    assert!(server.post(CHAT, with("no")).json()["error"]["message"].as_str().unwrap().ends_with("never"));
    assert_eq!(server.metric("qernel_template_failures_total"), 8.0);
    assert_eq!(server.post(CHAT, with("hi")).status, 200);
}

#[test]
fn the_template_for_tools_is_taken_where_there_are_some() {
    let server = start_with_templates("plain", Some("{{ tools[0].function.name }} of {{ tools | length }}"));
    let tools = json!([{"type": "function", "function": {"name": "sail"}}]);
    let mut body = hello();
    let tokens = |body: &Value| server.post(CHAT, body).good()["usage"]["prompt_tokens"].clone();
    let count = |text: &str| server.post("/tokenize", json!({"text": text})).good()["count"].clone();
    assert_eq!(tokens(&body), count("plain"));
    body["tools"] = tools;
    assert_eq!(tokens(&body), count("sail of 1"));
}

#[test]
fn numbers_of_a_schema_are_written_as_python_writes_them() {
    let server = start_with_templates("{{ tools | tojson }}", None);
    let parameters = r#"{"type": "object", "properties": {"lr": {"minimum": 1e-7, "default": 0.00001, "maximum": 18446744073709551616}}}"#;
    let body = format!(
        r#"{{"messages": [{{"role": "user", "content": "go"}}], "max_tokens": 1,
            "tools": [{{"type": "function", "function": {{"name": "train", "parameters": {parameters}}}}}]}}"#
    );
    let tokens = server.post(CHAT, body).good()["usage"]["prompt_tokens"].clone();
    let written = r#"{"minimum": 1e-07, "default": 1e-05, "maximum": 18446744073709551616}"#;
    let text = format!(
        r#"[{{"type": "function", "function": {{"name": "train", "parameters": {{"type": "object", "properties": {{"lr": {written}}}}}}}}}]"#
    );
    assert_eq!(tokens, server.post("/tokenize", json!({"text": text})).good()["count"]);
}
