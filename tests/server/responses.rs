//! OpenAI's Responses, as bytes on the wire.

use crate::client::*;
use qernel::server::ServerConfig;
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";
const THINKING: &str = include_str!("../data/dialects/xml.jinja");

fn body(more: Value) -> Value {
    let mut body = json!({"input": "hi", "seed": 1, "max_output_tokens": 200});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn sail() -> Value {
    json!({"type": "function", "name": "sail", "parameters": {
        "type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": false}})
}

/// What the model says in these tests: thoughts, a text, a call.
const ANSWER: &str = "So.\n</think>\n\nI go.\n<tool_call>\n<function=sail>\n<parameter=to>\nOslo\n</parameter>\n</function>\n</tool_call>";

#[test]
fn an_answer_has_items() {
    let server = start_with_template(config(), THINKING);
    server.control.say(ANSWER);
    let answer = server.post(RESPONSES, body(json!({"tools": [sail()], "metadata": {"a": "b"}}))).good();
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&answer["metadata"], &answer["error"]), (&json!({"a": "b"}), &Value::Null));
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    let output = answer["output"].as_array().unwrap();
    let kinds: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "So."}]));
    assert_eq!(output[1]["content"][0]["text"], "I go.\n");
    assert_eq!((&output[2]["name"], &output[2]["arguments"]), (&json!("sail"), &json!(r#"{"to": "Oslo"}"#)));
    let usage = &answer["usage"];
    assert!(usage["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap()
    );
    server.control.begin("abc");
    let cut = server.post(RESPONSES, body(json!({"max_output_tokens": 2}))).good();
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[test]
fn a_stream_adds_up_to_the_answer() {
    let server = start_with_template(config(), THINKING);
    server.control.say(ANSWER);
    let events: Vec<_> =
        server.stream(RESPONSES, body(json!({"tools": [sail()], "stream": true}))).events().collect();
    let mut items: Vec<Value> = Vec::new();
    let mut texts: Vec<String> = Vec::new();
    for (i, event) in events.iter().enumerate() {
        let data = event.json();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(event.name), &json!(i)));
        let index = data["output_index"].as_u64().unwrap_or_default() as usize;
        match event.name.as_str() {
            "response.output_item.added" => {
                assert_eq!((index, &data["item"]["status"]), (items.len(), &json!("in_progress")));
                items.push(data["item"].clone());
                texts.push(String::new());
            }
            name if name.ends_with(".delta") => {
                assert_eq!(data["item_id"], items[index]["id"], "{name}");
                texts[index] += data["delta"].as_str().unwrap();
            }
            "response.reasoning_text.done" | "response.output_text.done" => {
                assert_eq!(data["text"], texts[index])
            }
            "response.function_call_arguments.done" => assert_eq!(data["arguments"], texts[index]),
            "response.output_item.done" => items[index] = data["item"].clone(),
            _ => (),
        }
    }
    assert_eq!(texts, ["So.", "I go.\n", r#"{"to": "Oslo"}"#]);
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    let last = events.last().unwrap();
    assert_eq!(
        (last.name.as_str(), &last.json()["response"]["output"]),
        ("response.completed", &json!(items))
    );
    let parts = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count();
    assert_eq!((parts("response.content_part.added"), parts("response.content_part.done")), (2, 2));
}

#[test]
fn a_conversation_goes_on_by_items_or_by_id() {
    let server = start_with_template(config(), THINKING);
    server.control.say(ANSWER);
    let tools = json!([sail()]);
    let first = server.post(RESPONSES, body(json!({"tools": tools, "instructions": "Be kind."}))).good();
    let call_id = &first["output"][2]["call_id"];
    let result = json!({"type": "function_call_output", "call_id": call_id, "output": "fog"});
    let tokens = |more: Value| {
        server.control.say("k");
        server.post(RESPONSES, body(more)).good()["usage"]["input_tokens"].clone()
    };
    let mut input = vec![json!({"type": "message", "role": "user", "content": "hi"})];
    input.extend(first["output"].as_array().unwrap().clone());
    input.push(result.clone());
    let by_items = tokens(json!({"tools": tools, "input": input}));
    let by_id = tokens(json!({"tools": tools, "input": [result], "previous_response_id": first["id"]}));
    // The instructions were of that answer alone.
    assert_eq!(by_items, by_id);
    assert_ne!(by_id, tokens(json!({"tools": tools, "input": [], "previous_response_id": first["id"]})));

    let path = format!("{RESPONSES}/{}", first["id"].as_str().unwrap());
    assert_eq!(server.get(&path).good(), first);
    assert_eq!(server.send("DELETE", &path, &[], "").response().good()["deleted"], true);
    assert_eq!(
        (server.get(&path).status, server.send("DELETE", &path, &[], "").response().status),
        (404, 404)
    );
    let gone = server.post(RESPONSES, body(json!({"previous_response_id": first["id"]})));
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (400, &json!("previous_response_not_found")));
    // What is not to be kept is not.
    let second = server.post(RESPONSES, body(json!({"store": false}))).good();
    assert_eq!(server.get(&format!("{RESPONSES}/{}", second["id"].as_str().unwrap())).status, 404);
}

#[test]
fn no_more_are_kept_than_there_is_room_for() {
    let server = start(ServerConfig { max_stored_responses: 2, ..config() });
    let ids: Vec<String> = (0..3)
        .map(|_| {
            server.post(RESPONSES, body(json!({"max_output_tokens": 1}))).good()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let statuses: Vec<u16> = ids.iter().map(|id| server.get(&format!("{RESPONSES}/{id}")).status).collect();
    assert_eq!(statuses, [404, 200, 200]);
}

#[test]
fn forms_tools_and_log_probabilities() {
    let server = start_with_template(config(), THINKING);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"format": {"type": "json_schema", "name": "a", "schema": schema}});
    server.control.begin("x</think>");
    let answer = server.post(RESPONSES, body(json!({"text": format, "top_logprobs": 2}))).good();
    assert_eq!(answer["text"]["format"]["name"], "a");
    let part = &answer["output"][1]["content"][0];
    assert!(
        serde_json::from_str::<Value>(part["text"].as_str().unwrap()).unwrap()["a"].is_boolean(),
        "{answer}"
    );
    assert_eq!(part["logprobs"][0]["top_logprobs"].as_array().unwrap().len(), 2);
    let forced = json!({"tools": [sail()], "tool_choice": {"type": "function", "name": "sail"}, "reasoning": {"effort": "none"},
        "parallel_tool_calls": false, "max_output_tokens": 300});
    server.control.begin("<tool_call>\n<function=sail>\n<parameter=to>\nOslo\n</parameter>");
    let answer = server.post(RESPONSES, body(forced)).good();
    assert_eq!(
        (&answer["output"][0]["type"], &answer["output"][0]["arguments"]),
        (&json!("function_call"), &json!("{\"to\": \"Oslo\"}"))
    );
}

#[test]
fn what_is_wrong_is_named() {
    let server = start_with_template(config(), THINKING);
    for (more, param) in [
        (json!({"input": 7}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (
            json!({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]}),
            "input[0].arguments",
        ),
        (json!({"input": [{"type": "function_call_output", "output": "x"}]}), "input[0].call_id"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "computer_call"}]}), "input[0].type"),
        (json!({"tools": [sail(), sail()]}), "tools[1].name"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [sail()], "tool_choice": {"type": "function", "name": "walk"}}), "tool_choice.name"),
        (json!({"text": {"format": {"type": "text", "schema": {}}}}), "text.format.schema"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"background": true}), "background"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"reasoning": {"effort": "some"}}), "reasoning.effort"),
        (json!({"include": ["file_search_call.results"]}), "include[0]"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
    ] {
        let refused = server.post(RESPONSES, body(more.clone()));
        assert_eq!(
            (refused.status, &refused.json()["error"]["param"]),
            (400, &json!(param)),
            "{more}: {}",
            refused.text()
        );
    }
    for (metadata, param) in [
        (json!({"a": 1}), "metadata.a"),
        (json!({"a": [0, 0]}), "metadata.a"),
        (json!({"a": "x".repeat(513)}), "metadata"),
        (json!({"x".repeat(65): "a"}), "metadata"),
        ((0..17).map(|i| (i.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>().into(), "metadata"),
    ] {
        let refused = server.post(RESPONSES, body(json!({"metadata": metadata})));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)), "{metadata}");
    }
    server.wait_until_idle();
}

/// A call that is cut off is incomplete, as it is shown and as it is kept: the model is not told that it called.
#[test]
fn a_call_that_is_cut_off_is_incomplete() {
    let server = start_with_template(config(), THINKING);
    let (before, _) = ANSWER.split_once("Oslo").unwrap();
    for (written, status) in [(before, "completed"), (ANSWER, "completed")] {
        server.control.say(written);
        let answer = server.post(RESPONSES, body(json!({"tools": [sail()]}))).good();
        let expected = if written == ANSWER { status } else { "incomplete" };
        assert_eq!((&answer["status"], &answer["output"][2]["status"]), (&json!(status), &json!(expected)));
    }
    server.control.begin(before);
    let cut = body(json!({"tools": [sail()], "max_output_tokens": tokens(&server, before)}));
    let answer = server.post(RESPONSES, cut.clone()).good();
    assert_eq!(
        (&answer["status"], &answer["output"][2]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    server.control.begin(before);
    let mut streamed = cut;
    streamed["stream"] = true.into();
    let events: Vec<_> = server.stream(RESPONSES, streamed).events().collect();
    let done = events.iter().rfind(|event| event.name == "response.output_item.done").unwrap().json();
    assert_eq!(
        (&done["item"]["type"], &done["item"]["status"]),
        (&json!("function_call"), &json!("incomplete"))
    );
    let input = json!([{"role": "user", "content": "hi"}, answer["output"][0], answer["output"][1], {"role": "user", "content": "so?"}]);
    let by_items = server
        .post(RESPONSES, body(json!({"input": input, "tools": [sail()], "max_output_tokens": 1})))
        .good();
    let by_id = json!({"input": "so?", "previous_response_id": answer["id"], "tools": [sail()], "max_output_tokens": 1});
    let by_id = server.post(RESPONSES, body(by_id)).good();
    assert_eq!(by_items["usage"]["input_tokens"], by_id["usage"]["input_tokens"]);
}

/// Tokens of a text.
fn tokens(server: &Running, text: &str) -> u64 {
    server.post("/tokenize", json!({"text": text})).good()["count"].as_u64().unwrap()
}

/// A template takes one system turn, at the beginning.
#[test]
fn instructions_join_a_system_turn() {
    let server = start_with_template(config(), "{{ messages | tojson }}");
    let count =
        |more: Value| server.post(RESPONSES, body(more)).good()["usage"]["input_tokens"].as_u64().unwrap();
    let input = json!([{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}]);
    let found = count(json!({"instructions": "Be brief.", "input": input, "max_output_tokens": 1}));
    let expected =
        r#"[{"role": "system", "content": "Be brief.\n\nBe kind."}, {"role": "user", "content": "hi"}]"#;
    assert_eq!(found, tokens(&server, expected));
}

/// Those of the tokens of messages, with the piece of the text that they became.
#[test]
fn log_probabilities_come_with_their_text() {
    let server = start_with_template(config(), THINKING);
    let include = json!({"include": ["message.output_text.logprobs"], "tools": [sail()], "stream": true});
    server.control.say("So.\n</think>\n\nI go to <tool_kit> now.");
    let events: Vec<_> = server.stream(RESPONSES, body(include)).events().collect();
    let spelled = |logprobs: &Value| -> String {
        logprobs.as_array().unwrap().iter().map(|token| token["token"].as_str().unwrap()).collect()
    };
    let (mut of_deltas, mut text) = (String::new(), String::new());
    for event in &events {
        let data = event.json();
        match event.name.as_str() {
            "response.output_text.delta" => {
                of_deltas += &spelled(&data["logprobs"]);
                text += data["delta"].as_str().unwrap();
                assert!(of_deltas.starts_with(&text), "{of_deltas:?} {text:?}");
            }
            "response.output_text.done" => assert_eq!(spelled(&data["logprobs"]), "I go to <tool_kit> now."),
            _ => (),
        }
    }
    assert_eq!((of_deltas.as_str(), text.as_str()), ("I go to <tool_kit> now.", "I go to <tool_kit> now."));
}
