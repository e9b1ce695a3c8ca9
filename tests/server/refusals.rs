//! What is wrong is refused with the right status, by name, in OpenAI's form.

use crate::client::*;
use qernel::server::Server;
use serde_json::{Value, json};

const GENERATE: &str = "/v1/generate";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[test]
fn wrong_fields_are_refused_by_name() {
    let server = start(config());
    let user = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (GENERATE, json!({}), "prompt"),
        (GENERATE, json!({"prompt": "x", "ids": [1]}), "prompt"),
        (GENERATE, json!({"ids": [1], "system": "x"}), "system"),
        (GENERATE, json!({"prompt": "x", "tempature": 1}), "tempature"),
        (GENERATE, json!({"prompt": "x", "temperature": "hot"}), "temperature"),
        (GENERATE, json!({"prompt": "x", "logprobs": 21}), "logprobs"),
        (GENERATE, json!({"prompt": "x", "stop": ["a", ""]}), "stop"),
        (GENERATE, json!({"prompt": "x", "stop": vec!["a"; 17]}), "stop"),
        (GENERATE, json!({"prompt": "x", "stop": "a".repeat(2000)}), "stop"),
        (GENERATE, json!({"ids": [1, -1]}), "ids[1]"),
        (CHAT, json!({"messages": []}), "messages"),
        (CHAT, json!({"messages": user, "web_search_options": {}}), "web_search_options"),
        (CHAT, json!({"messages": user, "n": 17}), "n"),
        (CHAT, json!({"messages": user, "temperature": -1}), "temperature"),
        (COMPLETIONS, json!({"prompt": "x", "temperature": -0.1}), "temperature"),
        (CHAT, json!({"messages": user, "user": "u".repeat(257)}), "user"),
        (CHAT, json!({"messages": user, "n": 0}), "n"),
        (
            CHAT,
            json!({"messages": user, "stream_options": {"include_usage": true}}),
            "stream_options.include_usage",
        ),
        (CHAT, json!({"messages": user, "stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (CHAT, json!({"messages": user, "top_logprobs": 2}), "top_logprobs"),
        (CHAT, json!({"messages": user, "logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (CHAT, json!({"messages": user, "max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
        (CHAT, json!({"messages": user, "tool_choice": "required"}), "tool_choice"),
        (CHAT, json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (CHAT, json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]}),
            "messages[0].tool_calls",
        ),
        (CHAT, json!({"messages": [{"role": "user", "content": 7}]}), "messages[0].content"),
        (CHAT, json!({"messages": user, "tool_choice": "maybe"}), "tool_choice"),
        (CHAT, json!({"messages": user, "tool_choice": {"type": "custom"}}), "tool_choice.type"),
        (CHAT, json!({"messages": user, "chat_template_kwargs": {"tools": 1}}), "chat_template_kwargs.tools"),
        (
            CHAT,
            json!({"messages": user, "response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
        (COMPLETIONS, json!({"prompt": [1, "x"]}), "prompt[1]"),
        (COMPLETIONS, json!({"prompt": [[1, 2.5]]}), "prompt[0][1]"),
        (COMPLETIONS, json!({"prompt": []}), "prompt"),
        (COMPLETIONS, json!({"prompt": {"a": 1}}), "prompt"),
        (COMPLETIONS, json!({"prompt": "x", "echo": "yes"}), "echo"),
        (COMPLETIONS, json!({"prompt": "x", "n": 3, "best_of": 2}), "best_of"),
        (COMPLETIONS, json!({"prompt": "x", "suffix": "y"}), "suffix"),
        (COMPLETIONS, json!({"prompt": vec!["x"; 9], "n": 2}), "n"),
        ("/tokenize", json!({"text": "x", "more": 1}), "more"),
        ("/detokenize", json!({"ids": "x"}), "ids"),
    ];
    for (path, body, param) in cases {
        let refused = server.post(path, &body);
        let text = refused.text();
        assert_eq!(refused.status, 400, "{path} {body}: {text}");
        let error = &refused.json()["error"];
        assert_eq!(error["param"], param, "{path} {body}: {text}");
        assert_eq!(error["type"], "invalid_request_error");
        let bare = param.rsplit('.').next().unwrap();
        assert!(error["message"].as_str().unwrap().contains(bare), "{text}");
        assert!(refused.header("x-request-id").is_some());
    }
    // Null is as good as absent.
    let nulls =
        json!({"messages": user, "logit_bias": null, "seed": null, "stop": null, "n": null, "max_tokens": 2});
    assert_eq!(server.post(CHAT, nulls).status, 200);
    server.wait_until_idle();
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let server = start(config());
    let of = |path: &str, field: &str, value: Value| {
        let mut body = match path {
            CHAT => json!({"messages": [{"role": "user", "content": "x"}]}),
            _ => json!({"prompt": "x"}),
        };
        body[field] = value;
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400, "{path} {body}: {}", refused.text());
        let error = refused.json()["error"].clone();
        assert_eq!(error["param"], field, "{path} {body}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(field) && message.contains("expected"), "{path} {body}: {message}");
    };
    for path in [GENERATE, CHAT, COMPLETIONS] {
        for (field, values) in [
            ("temperature", vec![json!(1e39), json!("hot")]),
            ("top_p", vec![json!(1.5), json!(-0.1)]),
            ("min_p", vec![json!(-0.1), json!(2)]),
            ("repeat_penalty", vec![json!(0), json!(-1), json!(1e39)]),
            ("presence_penalty", vec![json!(1e39)]),
            ("frequency_penalty", vec![json!(-1e39)]),
            ("top_k", vec![json!(4.5), json!(1e10), json!(-3e9)]),
            ("seed", vec![json!(0.5), json!(1e20), json!(-1e19), json!("1")]),
            ("max_tokens", vec![json!(0), json!(-2), json!(1.5), json!([])]),
            ("n_predict", vec![json!(0), json!(-2)]),
        ] {
            values.into_iter().for_each(|value| of(path, field, value));
        }
    }
    of(GENERATE, "repeat_last_n", json!(-2));
    of(CHAT, "max_completion_tokens", json!(0));
    of(CHAT, "n", json!(-1));
    of(COMPLETIONS, "logprobs", json!(-1));
    server.wait_until_idle();
}

#[test]
fn prompts_that_cannot_be_are_refused_by_name() {
    let server = start(config());
    let chat = |text: String| json!({"messages": [{"role": "user", "content": text}]});
    // Beyond the context in tokens, and in bytes.
    let (long, longer) = ("the sea ".repeat(600), "the sea ".repeat(100_000));
    for (path, body, param, code, says) in [
        (GENERATE, json!({"ids": []}), "ids", None, "empty"),
        (GENERATE, json!({"ids": [5_000_000]}), "ids", None, "tokens 0 to"),
        (COMPLETIONS, json!({"prompt": [5_000_000]}), "prompt", None, "tokens 0 to"),
        (COMPLETIONS, json!({"prompt": ""}), "prompt", None, "empty"),
        (GENERATE, json!({"ids": vec![1; 600]}), "ids", Some("context_length_exceeded"), "600 tokens"),
        (GENERATE, json!({"prompt": long}), "prompt", Some("context_length_exceeded"), "512 tokens"),
        (COMPLETIONS, json!({"prompt": long}), "prompt", Some("context_length_exceeded"), "512 tokens"),
        (CHAT, chat(long.clone()), "messages", Some("context_length_exceeded"), "512 tokens"),
        (CHAT, chat(longer.clone()), "messages", Some("context_length_exceeded"), "512 tokens"),
        (
            COMPLETIONS,
            json!({"prompt": ["x", longer]}),
            "prompt",
            Some("context_length_exceeded"),
            "512 tokens",
        ),
    ] {
        let refused = server.post(path, &body);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (400, &json!(param)), "{path}: {error}");
        assert_eq!(error["code"], json!(code), "{path}: {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{path}: {error}");
    }
    server.wait_until_idle();
}

#[test]
fn parts_that_are_no_text_are_refused_by_what_they_are() {
    let server = start(config());
    for (part, param, says) in [
        (json!({"type": "image_url", "image_url": {"url": "x"}}), "type", "image_url"),
        (json!({"type": "input_text", "text": "x"}), "type", "input_text"),
        (json!({"image_url": {"url": "x"}, "type": "image_url"}), "image_url", "expected null"),
        (json!({"type": "text"}), "text", "expected a string"),
        (json!({"type": "text", "text": "x", "more": 1}), "more", "more"),
    ] {
        let parts = json!([{"type": "text", "text": "Hi"}, part]);
        let refused = server.post(CHAT, json!({"messages": [{"role": "user", "content": parts}]}));
        let error = &refused.json()["error"];
        let expected = json!(format!("messages[0].content[1].{param}"));
        assert_eq!((refused.status, &error["param"]), (400, &expected), "{part}: {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{part}: {error}");
    }
}

#[test]
fn bodies_that_are_no_json() {
    let server = start(config());
    let post = |body: &[u8], media_type: &str| {
        let mut connection = server.connect();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.write(&[head.as_bytes(), body].concat());
        connection.response()
    };
    let json = "application/json; charset=utf-8";
    for bad in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{\"messages\": \xFF}",
        b"{\"messages\": \"\xC3\x28\"}",
        b"{\"messages\": []} {}",
        b"{\"seed\": 1, \"seed\": 2}",
        b"{\"seed\": 1e999}",
        b"{\"user\": \"\\ud800\"}",
    ] {
        let refused = post(bad, json);
        assert_eq!(refused.status, 400, "{}: {}", String::from_utf8_lossy(bad), refused.text());
        assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
    }
    let deep = [b"{\"tools\": ".to_vec(), b"[".repeat(100_000)].concat();
    assert_eq!(post(&deep, json).status, 400);
    // What a form of another site could send.
    for media_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
        assert_eq!(post(b"{\"messages\": []}", media_type).status, 415, "{media_type:?}");
    }
}

#[test]
fn paths_and_methods() {
    let server = start(config());
    let error = |response: Response| response.json()["error"]["type"].clone();
    let nowhere = server.get("/v1/nothing");
    assert_eq!(nowhere.status, 404);
    assert_eq!(error(nowhere), "invalid_request_error");
    let wrong = server.get(CHAT);
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    assert_eq!(error(wrong), "invalid_request_error");
    assert_eq!(server.get("/page/nothing").status, 404);
    for (path, says) in [
        ("/responses", "has to end with /v1"),
        ("/messages", "/v1/messages"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "has to end with /v1"),
    ] {
        let nowhere = server.post(path, json!({"model": "haiku", "input": "x"}));
        let message = nowhere.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(nowhere.status == 404 && message.contains(says), "{path}: {message}");
    }
    for (path, status, param) in
        [("/v1/models/%FF", 400, "model"), ("/v1/models/someone/model", 404, "model")]
    {
        let refused = server.get(path);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (status, &json!(param)), "{path}");
    }
}

#[test]
fn the_key_opens_everything_and_health_is_open() {
    let mut with_key = config();
    with_key.api_key = Some("sesame".into());
    let server = start(with_key);
    let status =
        |path: &str, headers: &[(&str, &str)]| server.send("GET", path, headers, "").response().status;
    let paths = ["/", "/page/chat.js", "/v1/models", "/metrics", "/openapi.json", "/v1/nothing"];
    for path in paths {
        assert_eq!(status(path, &[]), 401, "{path}");
        assert_eq!(status(path, &[("authorization", "Bearer sesam")]), 401, "{path}");
        assert_ne!(status(path, &[("authorization", "Bearer sesame")]), 401, "{path}");
    }
    // As a browser asks for it: user `u`, password `sesame`.
    assert_eq!(status("/", &[("authorization", "Basic dTpzZXNhbWU=")]), 200);
    assert_eq!(status("/health", &[]), 200);
    let refused = server.post(CHAT, json!({}));
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    assert!(refused.header("www-authenticate").unwrap().starts_with("Basic"));
}

#[test]
fn a_key_that_nobody_could_show_is_refused() {
    for key in ["", " sesame", "s\u{e9}same", "ses\name"] {
        let mut bad = config();
        bad.api_key = Some(key.into());
        let error = Server::bind(bad).err().expect(key);
        assert!(error.to_string().contains("API key"), "{error}");
    }
}

#[test]
fn other_sites_are_let_in_by_name_only() {
    let preflight = |server: &Running, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
        ];
        let response = server.send("OPTIONS", CHAT, &headers, "").response();
        let allowed = response.header("access-control-allow-headers").unwrap_or_default();
        assert_eq!(
            allowed.contains("x-stainless-lang"),
            response.header("access-control-allow-methods").is_some()
        );
        response.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(preflight(&start(config()), "https://example.org"), None);
    let mut open = config();
    open.cors = vec!["https://example.org".into()];
    open.api_key = Some("sesame".into());
    let server = start(open);
    assert_eq!(preflight(&server, "https://example.org").as_deref(), Some("https://example.org"));
    assert_eq!(preflight(&server, "https://example.com"), None);
    let headers = [("origin", "https://example.org"), ("authorization", "Bearer sesame")];
    let answer = server.send("GET", "/v1/models", &headers, "").response();
    assert!(answer.header("access-control-expose-headers").unwrap().contains("retry-after"));
}

#[test]
fn request_ids_are_kept_or_made() {
    let server = start(config());
    let id = |given: &str| {
        let response = server.send("GET", "/health", &[("x-request-id", given)], "").response();
        response.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("mine-42"), "mine-42");
    assert!(id(&"x".repeat(129)).starts_with("req-"));
    assert_ne!(id("two words"), id("two words"));
}

/// The document describes what is served, and refuses what the server refuses.
#[test]
fn the_openapi_document() {
    let server = start(config());
    let document = server.get("/openapi.json").good();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = document["paths"].as_object().unwrap();
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            // There is no answer that is kept yet.
            if path.ends_with("{id}") {
                assert_eq!(server.send(&method.to_uppercase(), path, &[], "").response().status, 404);
                continue;
            }
            let path = path.replace("{model}", "haiku").replace("{file}", "chat.js");
            let response = match method.as_str() {
                "get" => server.get(&path),
                "post" => server.post(&path, "{}"),
                other => panic!("{other} {path}"),
            };
            let expected = if method == "get" { 200 } else { 400 };
            assert_eq!(response.status, expected, "{method} {path}");
            assert!(operation["summary"].is_string() || operation["description"].is_string(), "{path}");
            let Some(body) =
                operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str()
            else {
                assert_eq!(method, "get");
                continue;
            };
            let schema = document.pointer(body.trim_start_matches('#')).unwrap();
            assert_eq!(schema["additionalProperties"], Value::Bool(false), "{body}");
        }
    }
    assert_eq!(paths.len(), 27);
}
