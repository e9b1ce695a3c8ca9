//! Calls of tools: asked for, forced, refused.

use crate::client::*;
use qernel::chat::ChatTemplate;
use qernel::server::ServedModel;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// The haiku model with a template that tells of tools. It was not trained for them: what it calls, it is forced to.
fn start_with_tools() -> Running {
    let server = start_with(config(), |max_num_sequences, control| {
        let template = ChatTemplate::new(include_str!("../data/tools.jinja"), "", "");
        open(max_num_sequences, control).map(|model| ServedModel { template, ..model })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server
}

fn tool(name: &str, schema: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": schema}})
}

/// Short, for the model's context of 512 tokens.
fn sail() -> Value {
    tool(
        "sail",
        json!({"properties": {"to": {"$ref": "#/$defs/a"}}, "required": ["to"], "additionalProperties": false,
                        "$defs": {"a": {"enum": [7, "</tool_call>"]}}}),
    )
}

fn fish() -> Value {
    tool(
        "fish",
        json!({"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"],
                        "additionalProperties": false}),
    )
}

fn body(more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Write a haiku about the sea"}],
        "tools": [sail(), fish()], "seed": 7, "max_tokens": 150,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// Name and arguments of the calls of a message; they are as they were asked for, but for one that was cut off.
fn calls(message: &Value, is_cut: bool) -> Vec<(String, String)> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let whole = calls.len() - usize::from(is_cut && !calls.is_empty());
    let calls = calls.iter().enumerate().map(|(i, call)| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
        let text = |name: &str| call["function"][name].as_str().unwrap().to_owned();
        let (name, arguments) = (text("name"), text("arguments"));
        if i >= whole {
            return (name, arguments);
        }
        let given: Value = serde_json::from_str(&arguments).unwrap();
        match name.as_str() {
            "sail" => assert!(given == json!({"to": 7}) || given == json!({"to": "</tool_call>"}), "{given}"),
            "fish" => assert!(given["deep"].is_boolean() && given.as_object().unwrap().len() == 1),
            other => panic!("there is no tool {other}"),
        }
        (name, arguments)
    });
    calls.collect()
}

/// What the chunks of a stream add up to: messages with finish reasons and the tokens with log-probabilities.
fn add_up(events: Events, n: usize) -> Vec<(Value, Value, Vec<Value>)> {
    let empty = || (json!({"role": null, "content": null, "tool_calls": []}), Value::Null, Vec::new());
    let mut choices: Vec<_> = std::iter::repeat_with(empty).take(n).collect();
    for event in events.filter(|event| event.data != "[DONE]") {
        for choice in event.json()["choices"].as_array().unwrap() {
            let (message, reason, tokens) = &mut choices[choice["index"].as_u64().unwrap() as usize];
            assert!(reason.is_null(), "nothing comes after the end");
            let delta = &choice["delta"];
            if let Some(role) = delta.get("role") {
                message["role"] = role.clone();
            }
            if let Some(content) = delta.get("content") {
                assert!(delta.get("tool_calls").is_none());
                message["content"] = (message["content"].as_str().unwrap_or_default().to_owned()
                    + content.as_str().unwrap())
                .into();
            }
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let mut call = call.clone();
                let index = call.as_object_mut().unwrap().remove("index").unwrap();
                let so_far = message["tool_calls"].as_array_mut().unwrap();
                if call.get("id").is_some() {
                    assert_eq!((index, &call["function"]["arguments"]), (json!(so_far.len()), &json!("")));
                    so_far.push(call);
                } else {
                    assert_eq!(index, so_far.len() - 1, "arguments are those of the newest call");
                    assert_eq!(call.as_object().unwrap().len(), 1, "{call}");
                    let arguments = &mut so_far.last_mut().unwrap()["function"]["arguments"];
                    let more = call["function"]["arguments"].as_str().unwrap();
                    *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
                }
            }
            *reason = choice["finish_reason"].clone();
            tokens.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        }
    }
    choices
}

#[test]
fn forced_calls_follow_their_schemas_whole_and_streamed() {
    let server = start_with_tools();
    let logprobs = json!({"logprobs": true, "n": 4});
    for (choice, parallel, only) in [
        (json!("required"), true, None),
        (json!("required"), false, None),
        (named("sail"), true, Some("sail")),
        (named("fish"), false, Some("fish")),
    ] {
        let mut request = body(logprobs.clone());
        request["tool_choice"] = choice;
        request["parallel_tool_calls"] = parallel.into();
        request["temperature"] = json!(1.5);
        let whole = server.post(CHAT, &request).good();
        request["stream"] = true.into();
        let streamed = add_up(server.stream(CHAT, &request).events(), 4);
        let mut ids = Vec::new();
        for (choice, (message, reason, tokens)) in whole["choices"].as_array().unwrap().iter().zip(streamed) {
            let is_cut = choice["finish_reason"] == "length";
            let found = calls(&choice["message"], is_cut);
            if is_cut {
                assert!(parallel, "one call is short");
            } else {
                assert_eq!(choice["finish_reason"], "tool_calls");
                assert_eq!(choice["message"]["content"], Value::Null);
                assert!(!found.is_empty() && (parallel || found.len() == 1), "{choice}");
            }
            assert!(only.is_none_or(|only| found.iter().all(|(name, _)| name == only)), "{found:?}");
            assert_eq!((calls(&message, is_cut), &reason), (found, &choice["finish_reason"]));
            assert_eq!(
                (&message["role"], &message["content"]),
                (&json!("assistant"), &choice["message"]["content"])
            );
            // Log-probabilities are of everything that was said.
            assert_eq!(choice["logprobs"]["content"], json!(tokens));
            let said: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
            assert!(
                said.starts_with("<tool_call>\n{\"name\": \"") && said.contains("</tool_call>"),
                "{said}"
            );
            ids.extend(
                choice["message"]["tool_calls"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|call| call["id"].to_string()),
            );
        }
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "ids are of one call alone");
    }
    server.wait_until_idle();
}

#[test]
fn a_call_that_is_cut_off_has_what_came_of_its_arguments() {
    let server = start_with_tools();
    let ask = || server.post(CHAT, body(json!({}))).good()["choices"][0].clone();
    // Nobody knows yet that it is a call.
    server.control.say("<tool_call>\n{\"name\": \"sa");
    let choice = ask();
    assert!(choice["message"].get("tool_calls").is_none());
    assert_eq!(choice["message"]["content"], "<tool_call>\n{\"name\": \"sa");
    server.control.say("I go.\n<tool_call>\n{\"name\": \"sail\", \"arguments\": {\"to\": ");
    let choice = ask();
    assert_eq!(choice["message"]["content"], "I go.\n");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"to\": ");
    assert_eq!(choice["finish_reason"], "tool_calls");
}

#[test]
fn calls_and_their_results_go_back_to_the_model() {
    let server = start_with_tools();
    let mut request =
        body(json!({"tools": [fish()], "tool_choice": named("fish"), "parallel_tool_calls": false}));
    let answer = server.post(CHAT, &request).good()["choices"][0]["message"].clone();
    let id = &answer["tool_calls"][0]["id"];
    let result = json!({"role": "tool", "tool_call_id": id, "content": "three cod"});
    let turns = request["messages"].as_array_mut().unwrap();
    turns.extend([answer, result]);
    request["tool_choice"] = "auto".into();
    let next = server.post(CHAT, &request).good();
    assert!(["stop", "length"].contains(&next["choices"][0]["finish_reason"].as_str().unwrap()), "{next}");
}

/// A model that never calls says with constrained calls what it says without.
#[test]
fn text_is_as_it_would_be_without() {
    let server = start_with_tools();
    // The likeliest tokens are allowed ones; draws would be others where some are not.
    let greedy = |more: Value| {
        let mut body = body(more);
        body["temperature"] = json!(0);
        body
    };
    let content = |more: Value| {
        let choice = server.post(CHAT, greedy(more)).good()["choices"][0].clone();
        assert!(choice["message"].get("tool_calls").is_none());
        choice["message"]["content"].as_str().unwrap().to_owned()
    };
    let free = content(json!({}));
    assert!(!free.is_empty());
    assert_eq!(content(json!({"tool_choice": "auto", "parallel_tool_calls": true})), free);
    assert_eq!(content(json!({"parallel_tool_calls": false})), free);
    let mut strict = sail();
    strict["function"]["strict"] = true.into();
    assert_eq!(content(json!({"tools": [strict, fish()]})), free);
    let streamed = add_up(server.stream(CHAT, greedy(json!({"stream": true}))).events(), 1);
    assert_eq!(streamed[0].0["content"], free);
    // `none` is as if there were no tools.
    let mut without = body(json!({}));
    without.as_object_mut().unwrap().remove("tools");
    let without = server.post(CHAT, without).good();
    let none = server.post(CHAT, body(json!({"tool_choice": "none"}))).good();
    assert_eq!(none["choices"], without["choices"]);
}

/// With a schema for the answer, the model says JSON or calls.
#[test]
fn json_or_calls() {
    let server = start_with_tools();
    let schema = json!({"type": "object", "properties": {"at_sea": {"type": "boolean"}}, "required": ["at_sea"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let mut kinds = [0; 2];
    for seed in 0..4 {
        let request = json!({"response_format": format, "seed": seed, "n": 4, "temperature": 2, "parallel_tool_calls": false});
        let answer = server.post(CHAT, body(request)).good();
        for choice in answer["choices"].as_array().unwrap() {
            let called = !calls(&choice["message"], false).is_empty();
            kinds[usize::from(called)] += 1;
            assert_eq!(choice["finish_reason"], if called { "tool_calls" } else { "stop" });
            match choice["message"]["content"].as_str() {
                Some(text) => assert!(serde_json::from_str::<Value>(text).unwrap()["at_sea"].is_boolean()),
                None => assert!(called),
            }
        }
    }
    assert!(kinds.iter().all(|&count| count > 0), "{kinds:?}");
}

#[test]
fn contradictions_are_refused_by_name() {
    let server = start_with_tools();
    let mut strict = fish();
    strict["function"]["strict"] = true.into();
    let mut unknown = fish();
    unknown["function"]["returns"] = json!({});
    let parameters = |parameters: Value| {
        let function = json!({"name": "f", "parameters": parameters});
        json!([fish(), {"type": "function", "function": function}])
    };
    let json_object = json!({"type": "json_object"});
    for (more, param) in [
        (json!({"tools": null, "tool_choice": named("fish")}), "tool_choice"),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "always"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "fish", "x": 1}}}),
            "tool_choice.function.x",
        ),
        (json!({"tool_choice": named("walk")}), "tool_choice.function.name"),
        (json!({"tool_choice": "required", "response_format": json_object}), "tool_choice"),
        (json!({"tool_choice": named("fish"), "ignore_eos": true}), "ignore_eos"),
        (json!({"parallel_tool_calls": false, "ignore_eos": true}), "ignore_eos"),
        (json!({"tools": [strict], "ignore_eos": true}), "ignore_eos"),
        (json!({"tools": [fish(), sail(), fish()]}), "tools[2].function.name"),
        (json!({"tools": [unknown]}), "tools[0].function.returns"),
        (json!({"tools": [{"type": "code"}]}), "tools[0].type"),
        (
            json!({"tools": parameters(json!({"type": "string"})), "tool_choice": "required"}),
            "tools[1].function.parameters",
        ),
        (
            json!({"tools": parameters(json!({"type": "object", "x-guidance": {}})), "tool_choice": "required"}),
            "tools[1].function.parameters",
        ),
        (
            json!({"tools": parameters(json!({"properties": {"a": {"type": "nonsense"}}, "required": ["a"]})), "tool_choice": "required"}),
            "tools[1].function.parameters",
        ),
        (
            json!({"tool_choice": "auto", "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}}),
            "response_format.json_schema.schema",
        ),
    ] {
        let refused = server.post(CHAT, body(more.clone()));
        assert_eq!(refused.status, 400, "{more}: {}", refused.text());
        assert_eq!(refused.json()["error"]["param"], param, "{more}: {}", refused.text());
    }
    // What is understood is documented.
    let schemas = &server.get("/openapi.json").good()["components"]["schemas"];
    assert!(
        ["name", "description", "parameters", "strict"]
            .iter()
            .all(|name| !schemas["Function"]["properties"][name].is_null())
    );
    // A schema is only compiled where it is followed.
    let free = json!({"tools": parameters(json!({"type": "object", "properties": {"a": {"type": "nonsense"}}})), "max_tokens": 1});
    assert_eq!(server.post(CHAT, body(free)).status, 200);
    server.wait_until_idle();
}

/// The haiku model's own template says nothing of tools.
#[test]
fn a_template_without_tools_is_not_given_any() {
    let server = start(config());
    for choice in [json!(null), json!("auto"), json!("required"), named("fish")] {
        let refused = server.post(CHAT, body(json!({"tool_choice": choice})));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tools")), "{choice}");
    }
    assert_eq!(server.post(CHAT, body(json!({"tool_choice": "none"}))).status, 200);
    let call = json!({"id": "c", "type": "function", "function": {"name": "fish", "arguments": "{}"}});
    let turns = json!([{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]);
    let refused = server.post(CHAT, json!({"messages": turns})).json();
    assert_eq!(refused["error"]["param"], "messages[1].tool_calls");
}

/// The same in XML: what is forced follows the schemas, and values have their types.
#[test]
fn calls_in_xml() {
    let server = start_with_template(config(), include_str!("../data/dialects/xml.jinja"));
    let fleet = tool(
        "f",
        json!({"properties": {
            "a": {"type": "string", "maxLength": 5}, "b": {"enum": ["sloop", "brig"]},
            "c": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        }, "required": ["a", "b", "c"], "additionalProperties": false}),
    );
    for seed in 0..4 {
        let request = body(json!({
            "tools": [fleet], "tool_choice": "required", "parallel_tool_calls": false, "enable_thinking": false,
            "seed": seed, "temperature": 1.5, "max_tokens": 300,
        }));
        let choice = server.post(CHAT, &request).good()["choices"][0].clone();
        let call = &choice["message"]["tool_calls"][0]["function"];
        let given: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert_eq!((&choice["finish_reason"], &call["name"]), (&json!("tool_calls"), &json!("f")));
        assert!(given["a"].as_str().unwrap().chars().count() <= 5, "{given}");
        assert!(["sloop", "brig"].contains(&given["b"].as_str().unwrap()), "{given}");
        assert!(given["c"].as_array().unwrap().iter().all(Value::is_boolean), "{given}");
        let mut streamed = request.clone();
        streamed["stream"] = true.into();
        let (message, reason, _) = add_up(server.stream(CHAT, &streamed).events(), 1).remove(0);
        assert_eq!((&message["tool_calls"][0]["function"], &reason), (call, &json!("tool_calls")));
    }
    let said = "<tool_call>\n<function=sail>\n<parameter=to>\n7\n</parameter>\n</function>\n</tool_call>\n\
                <tool_call>\n<function=fish>\n<parameter=deep>\nTrue\n</parameter>\n</function>\n</tool_call>";
    server.control.say(&format!("Fish.</think>\n\n{said}"));
    let message = server.post(CHAT, body(json!({}))).good()["choices"][0]["message"].clone();
    let expected =
        [("sail".to_owned(), r#"{"to": 7}"#.to_owned()), ("fish".into(), r#"{"deep": true}"#.into())];
    assert_eq!(calls(&message, false), expected);
    assert_eq!((&message["content"], &message["reasoning_content"]), (&Value::Null, &json!("Fish.")));
    // Within thoughts that are never closed.
    server.control.say(&format!("I fish.\n{said}"));
    let message = server.post(CHAT, body(json!({}))).good()["choices"][0]["message"].clone();
    assert_eq!(calls(&message, false), expected);
    assert_eq!((&message["content"], &message["reasoning_content"]), (&Value::Null, &json!("I fish.")));
}
