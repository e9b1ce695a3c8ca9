//! Every field of the API, as the OpenAPI document has it: what asks for nothing is as good as absent, whole numbers may be written
//! `4.0`, and -1 is what llama.cpp takes it for.

use crate::client::*;
use crate::infill::open_with_fim;
use qernel::chat::ChatTemplate;
use qernel::server::ServedModel;
use serde_json::{Value, json};

const GENERATE: &str = "/v1/generate";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// A template that shows what it gets.
const TEMPLATE: &str = "{{ messages | tojson }}{% if tools %}{{ tools | tojson }}{% endif %}{% if mood %}<{{ mood }}>{% endif %}";

fn start_with_template() -> Running {
    let server = start_with(config(), |max_num_sequences, control| {
        let template = ChatTemplate::new(TEMPLATE, "", "");
        open_with_fim(max_num_sequences, control).map(|model| ServedModel { template, ..model })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server
}

/// A request of every endpoint that takes one, with every object that a field can stand in.
fn bases() -> Vec<(&'static str, Value)> {
    let chat = json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Yes?", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}},
        "stream_options": {}, "seed": 1, "max_tokens": 2, "logprobs": true, "top_logprobs": 1,
    });
    let responses = json!({
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "tool_choice": {"type": "function", "name": "f"}, "text": {"format": {"type": "text"}}, "reasoning": {},
        "seed": 1, "max_output_tokens": 2,
    });
    let messages = json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "so", "signature": "x"}, {"type": "tool_use", "id": "c1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "2"}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "thinking": {"type": "adaptive"}, "output_config": {"format": {"type": "json_schema", "schema": {"enum": ["a", "b"]}}},
        "metadata": {}, "seed": 1, "max_tokens": 2,
    });
    vec![
        (CHAT, chat),
        (RESPONSES, responses),
        (MESSAGES, messages),
        (COMPLETIONS, json!({"prompt": "the sea", "stream_options": {}, "seed": 1, "max_tokens": 2})),
        (GENERATE, json!({"prompt": "the sea", "seed": 1, "max_tokens": 2})),
        (
            "/infill",
            json!({"input_prefix": "the", "input_suffix": "sea", "input_extra": [{"text": "x"}], "seed": 1, "n_predict": 2}),
        ),
        ("/v1/embeddings", json!({"input": "the sea"})),
        ("/tokenize", json!({"text": "the sea"})),
        ("/detokenize", json!({"ids": [1, 2]})),
    ]
}

/// Where the objects of the document stand in the requests.
const OBJECTS: [(&str, &str, &str); 33] = [
    ("ResponsesRequest", RESPONSES, ""),
    ("InputItem", RESPONSES, "/input/0"),
    ("InputItem", RESPONSES, "/input/2"),
    ("InputPart", RESPONSES, "/input/0/content/0"),
    ("Reasoning", RESPONSES, "/reasoning"),
    ("TextOptions", RESPONSES, "/text"),
    ("TextFormat", RESPONSES, "/text/format"),
    ("FlatTool", RESPONSES, "/tools/0"),
    ("FlatChoice", RESPONSES, "/tool_choice"),
    ("MessagesRequest", MESSAGES, ""),
    ("InputMessage", MESSAGES, "/messages/0"),
    ("InputBlock", MESSAGES, "/messages/0/content/0"),
    ("MessagesTool", MESSAGES, "/tools/0"),
    ("MessagesToolChoice", MESSAGES, "/tool_choice"),
    ("ThinkingOptions", MESSAGES, "/thinking"),
    ("OutputConfig", MESSAGES, "/output_config"),
    ("ChatRequest", CHAT, ""),
    ("ChatMessage", CHAT, "/messages/1"),
    ("ContentPart", CHAT, "/messages/0/content/0"),
    ("GivenCall", CHAT, "/messages/1/tool_calls/0"),
    ("GivenFunction", CHAT, "/messages/1/tool_calls/0/function"),
    ("Tool", CHAT, "/tools/0"),
    ("Function", CHAT, "/tools/0/function"),
    ("StreamOptions", CHAT, "/stream_options"),
    ("ResponseFormat", CHAT, "/response_format"),
    ("JsonSchema", CHAT, "/response_format/json_schema"),
    ("CompletionRequest", COMPLETIONS, ""),
    ("GenerateRequest", GENERATE, ""),
    ("InfillRequest", "/infill", ""),
    ("ExtraFile", "/infill", "/input_extra/0"),
    ("EmbeddingRequest", "/v1/embeddings", ""),
    ("TokenizeRequest", "/tokenize", ""),
    ("DetokenizeRequest", "/detokenize", ""),
];

/// Objects of which nothing can be left out, and those whose answers need another model or adapters.
const UNTRIED: [&str; 7] =
    ["NamedTool", "FunctionName", "OutputFormat", "Metadata", "RerankRequest", "LoraScale", "ModelName"];

/// What stays of an answer when it is asked for again.
fn lasting(mut answer: Value) -> Value {
    forget(&mut answer, &["id", "call_id", "created", "created_at", "usage", "timings"]);
    answer
}

fn forget(value: &mut Value, fields: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|field, _| !fields.contains(&field.as_str()));
            object.values_mut().for_each(|value| forget(value, fields));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| forget(value, fields)),
        _ => (),
    }
}

fn with(base: &Value, pointer: &str, field: &str, value: &Value) -> Value {
    let mut body = base.clone();
    let object = body.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} of {base}"));
    object[field] = value.clone();
    body
}

/// The name of a field as errors have it.
fn param(pointer: &str, field: &str) -> String {
    let mut name = String::new();
    for step in pointer.split('/').skip(1).chain([field]) {
        match step.parse::<usize>() {
            Ok(index) => name += &format!("[{index}]"),
            Err(_) if name.is_empty() => name += step,
            Err(_) => name += &format!(".{step}"),
        }
    }
    name
}

#[test]
fn what_asks_for_nothing_is_as_good_as_absent() {
    let server = start_with_template();
    let document = server.get("/openapi.json").good();
    let bases = bases();
    let base_of = |path: &str| &bases.iter().find(|(other, _)| *other == path).unwrap().1;
    for object in document["components"]["schemas"].as_object().unwrap().iter() {
        let is_of_requests = object.1["additionalProperties"] == false;
        let is_tried =
            OBJECTS.iter().any(|(name, ..)| name == object.0) || UNTRIED.contains(&object.0.as_str());
        assert!(!is_of_requests || is_tried, "{}", object.0);
    }
    for (object, path, pointer) in OBJECTS {
        let base = base_of(path);
        let expected = lasting(server.post(path, base).good());
        let schema = &document["components"]["schemas"][object];
        let is_required =
            |field: &str| schema["required"].as_array().is_some_and(|list| list.contains(&json!(field)));
        for (field, property) in schema["properties"].as_object().unwrap() {
            let is_given = base.pointer(pointer).unwrap().get(field).is_some();
            let nothing: Vec<Value> = match property["description"].as_str().unwrap_or_default() {
                // Whatever it is, it changes nothing.
                text if text.starts_with("Taken") => {
                    vec![
                        json!(null),
                        json!({}),
                        json!([]),
                        json!("x"),
                        json!(7),
                        json!(true),
                        json!({"a": [{}]}),
                    ]
                }
                text if text.starts_with("Not supported") => {
                    let neutral = property["enum"].as_array().unwrap();
                    assert_eq!(neutral[0], Value::Null, "{object}.{field}");
                    neutral.clone()
                }
                _ if is_required(field) || is_given => continue,
                _ => vec![json!(null)],
            };
            for value in nothing {
                let body = with(base, pointer, field, &value);
                let answer = server.post(path, &body);
                assert_eq!(answer.status, 200, "{object}.{field}: {value}: {}", answer.text());
                assert_eq!(lasting(answer.good()), expected, "{object}.{field}: {value}");
            }
            if property["enum"].is_array()
                && property["description"].as_str().is_some_and(|text| text.starts_with("Not"))
            {
                for value in [json!({"x": 1}), json!(["x"]), json!(17)] {
                    let refused = server.post(path, with(base, pointer, field, &value));
                    let error = &refused.json()["error"];
                    assert_eq!(
                        (refused.status, &error["param"]),
                        (400, &json!(param(pointer, field))),
                        "{error}"
                    );
                    let message = error["message"].as_str().unwrap();
                    assert!(
                        message.contains("expected null") && message.contains("leave it out"),
                        "{message}"
                    );
                }
            }
        }
    }
    // Of the fields that are used: lists and maps that are empty, and documented defaults.
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "max_tokens": 3});
    let expected = lasting(server.post(CHAT, &chat).good());
    let defaults = [
        ("tools", vec![json!([])]),
        ("tool_choice", vec![json!("auto"), json!("none")]),
        ("parallel_tool_calls", vec![json!(true), json!(false)]),
        ("stop", vec![json!([])]),
        ("stream_options", vec![json!({}), json!({"include_usage": false})]),
        ("response_format", vec![json!({}), json!({"type": "text"})]),
        ("chat_template_kwargs", vec![json!({})]),
        ("n", vec![json!(1)]),
        ("temperature", vec![json!(1)]),
        ("top_p", vec![json!(1)]),
        ("top_k", vec![json!(0), json!(-1)]),
        ("presence_penalty", vec![json!(0)]),
        ("frequency_penalty", vec![json!(0)]),
        ("stream", vec![json!(false)]),
        ("logprobs", vec![json!(false)]),
        ("top_logprobs", vec![json!(0)]),
        ("user", vec![json!("ann")]),
    ];
    for (field, values) in defaults {
        for value in values {
            let answer = server.post(CHAT, with(&chat, "", field, &value)).good();
            assert_eq!(lasting(answer), expected, "{field}: {value}");
        }
    }
    for field in ["tool_calls", "name", "refusal", "tool_call_id", "reasoning", "reasoning_content"] {
        let value = if field == "tool_calls" { json!([]) } else { json!(null) };
        let answer = server.post(CHAT, with(&chat, "/messages/0", field, &value)).good();
        assert_eq!(lasting(answer), expected, "{field}: {value}");
    }
}

/// The requests that clients were seen to send.
#[test]
fn what_clients_send_is_answered() {
    let server = start_with_template();
    for body in [
        json!({"messages": [{"role": "user", "content": "Hi", "name": "ann"}]}),
        json!({"messages": [{"role": "user", "content": "2+3?"},
                            {"role": "assistant", "content": "5", "reasoning_content": "two and three"},
                            {"role": "assistant", "content": null, "reasoning": "so far"},
                            {"role": "user", "content": "sure?"}]}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {}, "store": false, "metadata": {}}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "low", "verbosity": "low",
               "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "x", "modalities": ["text"],
               "store": true, "metadata": {"a": "b"}}),
        json!({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}]}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "top_k": 40.0, "seed": 1.0, "n": 1.0}),
        json!({"messages": [{"role": "assistant", "content": null, "refusal": "No.", "annotations": [], "audio": null,
                             "function_call": null, "tool_calls": null, "parsed": {"a": 1}}]}),
    ] {
        let mut body = body;
        body["max_tokens"] = json!(4.0);
        let answer = server.post(CHAT, &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    }
}

#[test]
fn messages_reach_the_template() {
    let server = start_with_template();
    let prompt = |body: Value| server.post(CHAT, body).good()["usage"]["prompt_tokens"].clone();
    let count = |text: &str| server.post("/tokenize", json!({"text": text})).good()["count"].clone();
    let of = |message: Value| prompt(json!({"messages": [message], "max_tokens": 1}));
    for (message, expected) in [
        (
            json!({"role": "user", "content": "Hi", "name": "ann"}),
            r#"{"role": "user", "content": "Hi", "name": "ann"}"#,
        ),
        (
            json!({"role": "assistant", "content": "5", "reasoning_content": "2 and 3"}),
            r#"{"role": "assistant", "content": "5", "reasoning_content": "2 and 3"}"#,
        ),
        (
            json!({"role": "assistant", "content": "5", "reasoning": "2 and 3"}),
            r#"{"role": "assistant", "content": "5", "reasoning_content": "2 and 3"}"#,
        ),
        (
            json!({"role": "assistant", "refusal": "I will not"}),
            r#"{"role": "assistant", "content": "I will not"}"#,
        ),
        (
            json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not"}]}),
            r#"{"role": "assistant", "content": "I will not"}"#,
        ),
    ] {
        assert_eq!(of(message.clone()), count(&format!("[{expected}]")), "{message}");
    }
    // A function that takes nothing is called with nothing.
    for arguments in [json!("{}"), json!(""), json!(" \n"), json!(null)] {
        let call =
            json!({"id": "c", "type": "function", "function": {"name": "now", "arguments": arguments}});
        let found = of(json!({"role": "assistant", "content": "", "tool_calls": [call]}));
        let expected = concat!(
            r#"[{"role": "assistant", "content": "", "tool_calls": "#,
            r#"[{"id": "c", "type": "function", "function": {"name": "now", "arguments": {}}}]}]"#
        );
        assert_eq!(found, count(expected), "{arguments}");
    }
    let body = |more: Value| json!({"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": more, "max_tokens": 1});
    let plain = r#"[{"role": "user", "content": "Hi"}]"#;
    assert_eq!(prompt(body(json!({"enable_thinking": false}))), count(plain));
    assert_eq!(prompt(body(json!({"mood": "glad"}))), count(&format!("{plain}<glad>")));
}

#[test]
fn whole_numbers_may_be_written_with_a_point() {
    let server = start(config());
    let chat = json!({"messages": [{"role": "user", "content": "the sea"}], "logprobs": true});
    let completion = json!({"prompt": "the sea"});
    for (path, base, field, whole, pointed) in [
        (CHAT, &chat, "n", json!(2), json!(2.0)),
        (CHAT, &chat, "max_completion_tokens", json!(4), json!(4.0)),
        (CHAT, &chat, "top_logprobs", json!(2), json!(2.0)),
        (COMPLETIONS, &completion, "logprobs", json!(2), json!(2.0)),
        (COMPLETIONS, &completion, "prompt", json!([5, 7]), json!([5.0, 7.0])),
        (COMPLETIONS, &completion, "prompt", json!([[5, 7], [9]]), json!([[5.0, 7], [9.0]])),
        (GENERATE, &completion, "repeat_last_n", json!(8), json!(8.0)),
        (GENERATE, &completion, "logprobs", json!(1), json!(1.0)),
        ("/detokenize", &json!({}), "ids", json!([5, 7]), json!([5.0, 7.0])),
    ] {
        check_numbers(&server, path, base, field, [whole, pointed]);
    }
    for (path, base) in [(CHAT, &chat), (COMPLETIONS, &completion), (GENERATE, &completion)] {
        for (field, whole, pointed) in [
            ("max_tokens", json!(4), json!(4.0)),
            ("n_predict", json!(4), json!(4e0)),
            ("seed", json!(-7), json!(-7.0)),
            ("top_k", json!(40), json!(4e1)),
        ] {
            check_numbers(&server, path, base, field, [whole, pointed]);
        }
    }
}

fn check_numbers(server: &Running, path: &str, base: &Value, field: &str, [whole, pointed]: [Value; 2]) {
    assert_ne!(whole, pointed, "one of them is written as a float");
    let answers = [whole, pointed].map(|value| {
        let mut body = base.clone();
        if path != "/detokenize" {
            body["seed"] = json!(3);
            body["max_tokens"] = json!(6);
        }
        if ["n_predict", "max_completion_tokens"].contains(&field) {
            body.as_object_mut().unwrap().remove("max_tokens");
        }
        body[field] = value;
        lasting(server.post(path, body).good())
    });
    assert_eq!(answers[0], answers[1], "{path}: {field}");
}

#[test]
fn minus_one_is_no_bound_and_a_random_seed() {
    let server = start(config());
    let tokens = &|path: &str, field: &str, value: i64| {
        let mut body = json!({"prompt": "the sea", "messages": [{"role": "user", "content": "the sea"}], "ignore_eos": true});
        body.as_object_mut().unwrap().remove(if path == CHAT { "prompt" } else { "messages" });
        body[field] = json!(value);
        server.post(path, body).good()["usage"]["completion_tokens"].as_u64().unwrap()
    };
    for (path, fields) in [
        (CHAT, &["max_tokens", "max_completion_tokens", "n_predict"][..]),
        (COMPLETIONS, &["max_tokens", "n_predict"]),
        (GENERATE, &["max_tokens", "n_predict"]),
    ] {
        // At once: each goes to the end of the context.
        std::thread::scope(|scope| {
            for field in fields {
                scope.spawn(move || {
                    assert_eq!(tokens(path, field, 7), 7, "{path}: {field}");
                    let unbounded = tokens(path, field, -1);
                    assert!(unbounded > 400, "{path}: {field}: {unbounded} tokens, and the context has 512");
                });
            }
        });
    }
    for (one, other) in [("max_tokens", "n_predict"), ("max_completion_tokens", "max_tokens")] {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body[one] = json!(-1);
        body[other] = json!(5);
        let refused = server.post(CHAT, &body);
        assert_eq!(
            (refused.status, &refused.json()["error"]["param"]),
            (400, &json!(other)),
            "{}",
            refused.text()
        );
        body[other] = json!(-1.0);
        assert_eq!(server.post(CHAT, body).status, 200);
    }

    let seed = |seed: Value| {
        let body = json!({"prompt": "the sea", "seed": seed, "max_tokens": 1});
        server.post(GENERATE, body).good()["seed"].as_u64().unwrap()
    };
    assert_ne!(seed(json!(-1)), seed(json!(-1)));
    assert_ne!(seed(json!(-1)), u64::MAX);
    assert_eq!((seed(json!(5)), seed(json!(u64::MAX)), seed(json!(-2))), (5, u64::MAX, u64::MAX - 1));
    let text = |seed: i64| {
        let body = json!({"prompt": "the sea", "seed": seed, "max_tokens": 40, "temperature": 2});
        server.post(COMPLETIONS, body).good()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_ne!(text(-1), text(-1));
    assert_eq!(text(-2), text(-2));
}
