//! OpenAI's endpoints, as bytes on the wire.

use crate::client::*;
use qernel::chat::ChatTemplate;
use qernel::server::ServedModel;
use serde_json::{Value, json};

fn chat(body: Value) -> Value {
    let messages =
        json!([{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}]);
    let mut whole = json!({"messages": messages, "temperature": 0.7, "seed": 1});
    whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    whole
}

/// A usage without what the cache had of it: the second of two equal requests finds more there.
fn counts(usage: &Value) -> [&Value; 3] {
    ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| &usage[name])
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[test]
fn a_chat_whole_and_streamed() {
    let server = start(config());
    let whole = server.post(CHAT, chat(json!({"n": 3, "logprobs": true, "top_logprobs": 3}))).good();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("haiku")));
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let text = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
    assert_ne!(text(&choices[0]), text(&choices[1]));
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(i), &json!("stop")));
        assert_eq!(choice["message"]["role"], "assistant");
        let content = choice["logprobs"]["content"].as_array().unwrap();
        let said: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(said, text(choice));
        for token in content {
            let top: Vec<f64> = token["top_logprobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["logprob"].as_f64().unwrap())
                .collect();
            assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b) && top[0] <= 0.0, "{token}");
            assert!(token["logprob"].as_f64().unwrap() <= top[0]);
        }
    }
    let usage = &whole["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    let options = json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}});
    let mut events: Vec<_> = server.stream(CHAT, chat(options)).events().collect();
    assert_eq!(events.pop().unwrap().data, "[DONE]");
    let last = events.pop().unwrap().json();
    assert_eq!((&last["choices"], counts(&last["usage"])), (&json!([]), counts(usage)));
    let mut texts = vec![String::new(); 3];
    let mut ends = [0; 3];
    for event in &events {
        let chunk = event.json();
        assert_eq!(
            (&chunk["object"], chunk.get("usage")),
            (&json!("chat.completion.chunk"), Some(&Value::Null))
        );
        for choice in chunk["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
            ends[index] += i32::from(choice["finish_reason"] == "stop");
        }
    }
    assert_eq!(texts, choices.iter().map(text).collect::<Vec<_>>());
    assert_eq!(ends, [1; 3]);
    assert_eq!(events[0].json()["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let without = server.stream(CHAT, chat(json!({"stream": true, "max_tokens": 2}))).events();
    assert!(without.filter(|event| event.data != "[DONE]").all(|event| event.json().get("usage").is_none()));
}

#[test]
fn conversations_are_the_templates() {
    let server = start(config());
    let tokens = |messages: Value, more: Value| {
        let mut body = chat(json!({"messages": messages, "max_tokens": 1}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(CHAT, body).good()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let text = json!([{"role": "user", "content": "one two"}]);
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]}]);
    assert_eq!(tokens(text.clone(), json!({})), tokens(parts, json!({})));
    let system =
        |role: &str| json!([{"role": role, "content": "Be kind."}, {"role": "user", "content": "one"}]);
    assert_eq!(tokens(system("system"), json!({})), tokens(system("developer"), json!({})));
    // What OpenAI's client sends back of an answer: everything it knows, mostly null.
    let turns = json!([
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "refusal": null, "tool_calls": null, "audio": null,
         "function_call": null, "annotations": null},
        {"role": "user", "content": "three"},
    ]);
    assert!(tokens(turns, json!({})) > tokens(text, json!({})));
}

#[test]
fn tools_reach_the_template() {
    let template = "{{ messages | tojson }}{% if tools %}{{ tools | tojson }}{% endif %}";
    let server = start_with(config(), move |max_num_sequences, control| {
        let template = ChatTemplate::new(template, "", "");
        open(max_num_sequences, control).map(|model| ServedModel { template, ..model })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    let prompt = |body: Value| server.post(CHAT, body).good()["usage"]["prompt_tokens"].clone();
    let count = |text: &str| server.post("/tokenize", json!({"text": text})).good()["count"].clone();
    let tool = json!({"type": "function", "function": {"name": "weather", "description": "Now", "parameters": {"type": "object"}}});
    let messages = json!([
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]);
    let body = |choice: Value| json!({"messages": messages, "tools": [tool], "tool_choice": choice, "max_tokens": 1});
    // Arguments are an object for the template, as the models were trained.
    let history = concat!(
        r#"[{"role": "user", "content": "?"}, {"role": "assistant", "content": null, "tool_calls": "#,
        r#"[{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}, "#,
        r#"{"role": "tool", "content": "sun", "tool_call_id": "c1"}]"#,
    );
    let tools = r#"[{"type": "function", "function": {"name": "weather", "description": "Now", "parameters": {"type": "object"}}}]"#;
    assert_eq!(prompt(body(json!("none"))), count(history));
    assert_eq!(prompt(body(json!("auto"))), count(&format!("{history}{tools}")));
    let bad = json!({"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{"}}]}]});
    let refused = server.post(CHAT, bad).json();
    assert_eq!(refused["error"]["param"], "messages[0].tool_calls[0].function.arguments");
}

#[test]
fn completions_of_several_prompts() {
    let server = start(config());
    let body = json!({"prompt": ["a sail, then", "the lighthouse"], "n": 2, "seed": 5, "logprobs": 2});
    let whole = server.post(COMPLETIONS, &body).good();
    assert_eq!(whole["object"], "text_completion");
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], i);
        let logprobs = &choice["logprobs"];
        let count = logprobs["tokens"].as_array().unwrap().len();
        for list in ["token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), count, "{list}");
        }
        assert_eq!(logprobs["text_offset"][0], 0);
        assert!(count <= 16, "OpenAI's default is 16 tokens");
    }
    // Each is what it is alone.
    let alone = json!({"prompt": "the lighthouse", "n": 2, "seed": 5});
    let alone = server.post(COMPLETIONS, alone).good();
    assert_eq!(alone["choices"][1]["text"], choices[3]["text"]);

    let ids = |text: &str| server.post("/tokenize", json!({"text": text})).good()["ids"].clone();
    let of_ids = json!({"prompt": [ids("a sail, then"), ids("the lighthouse")], "n": 2, "seed": 5});
    let of_ids = server.post(COMPLETIONS, of_ids).good();
    assert_eq!(of_ids["choices"][3]["text"], choices[3]["text"]);
    let one = server.post(COMPLETIONS, json!({"prompt": ids("a sail, then"), "n": 2, "seed": 5})).good();
    assert_eq!(one["choices"][1]["text"], choices[1]["text"]);

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let mut events: Vec<_> = server.stream(COMPLETIONS, streamed).events().collect();
    assert_eq!(events.pop().unwrap().data, "[DONE]");
    assert_eq!(counts(&events.pop().unwrap().json()["usage"]), counts(&whole["usage"]));
    let mut texts = vec![String::new(); 4];
    for event in events {
        assert_eq!(event.json().get("usage"), Some(&Value::Null));
        let choice = &event.json()["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert!(texts.iter().zip(choices).all(|(text, choice)| choice["text"] == text.as_str()));
}

#[test]
fn greedy_draws_are_the_likeliest_tokens_and_penalties_look_at_the_answer() {
    let server = start(config());
    let body = |more: Value| {
        chat(
            json!({"temperature": 0, "logprobs": true, "top_logprobs": 1, "max_tokens": 20})
                .as_object()
                .map(|base| {
                    let mut base = base.clone();
                    base.extend(more.as_object().unwrap().clone());
                    Value::Object(base)
                })
                .unwrap(),
        )
    };
    let whole = server.post(CHAT, body(json!({}))).good();
    for token in whole["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        assert_eq!(token["token"], token["top_logprobs"][0]["token"]);
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"]);
    }
    // A strong penalty lets no token come twice.
    let penalised = server.post(CHAT, body(json!({"presence_penalty": 1e4, "ignore_eos": true}))).good();
    let content = penalised["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let mut tokens: Vec<String> = content.iter().map(|token| token["bytes"].to_string()).collect();
    assert_eq!(tokens.len(), 20);
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 20);
    // The first token comes before there is anything to penalise, whatever stands in the prompt.
    assert_eq!(content[0], whole["choices"][0]["logprobs"]["content"][0]);
}

#[test]
fn the_models() {
    let server = start(config());
    let list = server.get("/v1/models").good();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0], server.get("/v1/models/haiku").good());
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["object"]), (&json!("haiku"), &json!("model")));
    assert_eq!(server.get("/v1/models/gpt-4").json()["error"]["code"], "model_not_found");
    let other = server.post(CHAT, chat(json!({"model": "gpt-4"})));
    assert_eq!((other.status, other.json()["error"]["param"].as_str()), (404, Some("model")));
    assert_eq!(server.post(CHAT, chat(json!({"model": "haiku"}))).status, 200);
}
