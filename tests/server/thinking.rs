//! What a model thinks: told from what it says, bounded, switched off.

use crate::client::*;
use qernel::server::{ReasoningFormat, ServerConfig};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// The model opens its thoughts.
const BY_MODEL: &str = include_str!("../data/dialects/json.jinja");
/// The prompt does.
const BY_PROMPT: &str = include_str!("../data/dialects/xml.jinja");

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "seed": 1, "max_tokens": 60});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn message(server: &Running, more: Value) -> Value {
    server.post(CHAT, body(more)).good()["choices"][0]["message"].clone()
}

/// Thoughts and content of a message.
fn both(message: &Value) -> (Option<&str>, Option<&str>) {
    (message.get("reasoning_content").and_then(Value::as_str), message["content"].as_str())
}

/// Thoughts and content of a stream, and the kinds of its pieces in order.
fn streamed(server: &Running, more: Value) -> (String, String, String) {
    let mut request = body(more);
    request["stream"] = true.into();
    let (mut thought, mut said, mut order) = (String::new(), String::new(), String::new());
    for event in server.stream(CHAT, request).events().filter(|event| event.data != "[DONE]") {
        let delta = event.json()["choices"][0]["delta"].clone();
        if let Some(text) = delta.get("reasoning_content").and_then(Value::as_str) {
            thought += text;
            order.push('t');
        }
        if let Some(text) = delta.get("content").and_then(Value::as_str).filter(|text| !text.is_empty()) {
            said += text;
            order.push('s');
        }
    }
    (thought, said, order)
}

#[test]
fn thoughts_stand_apart_whole_and_streamed() {
    for (template, written) in [
        (BY_MODEL, "<think>\nTwo <b>\nand two\n</think>\n\nFour."),
        (BY_PROMPT, "Two <b>\nand two\n</think>\n\nFour."),
    ] {
        let server = start_with_template(config(), template);
        server.control.say(written);
        let answer = server.post(CHAT, body(json!({}))).good();
        assert_eq!(both(&answer["choices"][0]["message"]), (Some("Two <b>\nand two"), Some("Four.")));
        let thoughts = answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        assert!(0 < thoughts && thoughts < answer["usage"]["completion_tokens"].as_u64().unwrap());
        server.control.say(written);
        let (thought, said, order) = streamed(&server, json!({}));
        assert_eq!((thought.as_str(), said.as_str()), ("Two <b>\nand two", "Four."));
        assert!(order.starts_with("tt") && order.ends_with("s") && !order.contains("st"), "{order}");
        // An answer that ends within thoughts says nothing.
        server.control.say(written.split_once("</think>").unwrap().0);
        assert_eq!(both(&message(&server, json!({}))), (Some("Two <b>\nand two"), Some("")));
    }
}

#[test]
fn an_answer_without_thoughts_has_none() {
    let server = start_with_template(config(), BY_MODEL);
    server.control.say("Four </think>.");
    assert_eq!(both(&message(&server, json!({}))), (None, Some("Four </think>.")));
    // A template that knows of no thoughts leaves them in the content.
    let server = start(config());
    server.control.say("<think>x</think>y");
    assert_eq!(both(&message(&server, json!({}))), (None, Some("<think>x</think>y")));
    assert_eq!(
        server.post(CHAT, body(json!({}))).good()["choices"][0]["message"].get("reasoning_content"),
        None
    );
}

#[test]
fn the_format_says_where_thoughts_are() {
    for (format, template, expected) in [
        (ReasoningFormat::None, Some(BY_MODEL), (None, Some("<think>x</think>y"))),
        (ReasoningFormat::Deepseek, Some(BY_MODEL), (Some("x"), Some("y"))),
        (ReasoningFormat::Deepseek, None, (Some("x"), Some("y"))),
    ] {
        let config = ServerConfig { reasoning_format: format, ..config() };
        let server = match template {
            Some(template) => start_with_template(config, template),
            None => start(config),
        };
        server.control.say("<think>x</think>y");
        assert_eq!(both(&message(&server, json!({}))), expected, "{format:?}");
    }
}

/// The budget in tokens, of the server or of the request, by any of its names.
#[test]
fn thoughts_are_closed_for_the_model() {
    let limited =
        ServerConfig { reasoning_budget: Some(4), reasoning_budget_message: " Enough.".into(), ..config() };
    let server = start_with_template(limited, BY_PROMPT);
    server.control.begin("abcdefghij");
    let first = message(&server, json!({}));
    let (thought, said) = both(&first);
    let thought = thought.unwrap();
    assert!(
        thought.ends_with(" Enough.") && "abcdefghij".starts_with(thought.trim_end_matches(" Enough.")),
        "{thought}"
    );
    assert!(said.unwrap().len() > 1, "it goes on behind the thoughts: {first}");
    for more in [
        json!({"thinking_budget_tokens": -1}),
        json!({"thinking_budget": 1000}),
        json!({"chat_template_kwargs": {"thinking_budget": 1000}}),
    ] {
        server.control.say("abcdefghij</think>k");
        assert_eq!(both(&message(&server, more.clone())), (Some("abcdefghij"), Some("k")), "{more}");
    }
    for (more, param) in [
        (json!({"thinking_budget_tokens": -2}), "thinking_budget_tokens"),
        (json!({"thinking_budget_tokens": 1, "thinking_budget": 2}), "thinking_budget"),
    ] {
        let refused = server.post(CHAT, body(more));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)));
    }
    // None at all: the template is told so, and one that opens them all the same has them closed.
    for template in [BY_PROMPT, BY_MODEL, include_str!("../data/dialects/r1.jinja")] {
        let server = start_with_template(config(), template);
        server.control.say("k");
        let answer = message(&server, json!({"thinking_budget_tokens": 0}));
        assert_eq!(both(&answer), (None, Some("k")), "{template}");
    }
}

#[test]
fn thinking_is_switched_and_an_effort_is_never_a_fault() {
    let server = start_with_template(config(), BY_PROMPT);
    let prompt =
        |more: Value| server.post(CHAT, body(more)).good()["usage"]["prompt_tokens"].as_u64().unwrap();
    let plain = prompt(json!({}));
    let off = prompt(json!({"chat_template_kwargs": {"enable_thinking": false}}));
    assert!(off > plain, "the template closes the thoughts");
    assert_eq!(prompt(json!({"enable_thinking": false})), off);
    assert_eq!(prompt(json!({"reasoning_effort": "none"})), off);
    assert_eq!(prompt(json!({"thinking_budget_tokens": 0})), off);
    let low = prompt(json!({"chat_template_kwargs": {"reasoning_effort": "low"}}));
    assert!(low > plain);
    for (effort, expected) in
        [("minimal", low), ("low", low), ("medium", plain), ("high", plain), ("xhigh", plain)]
    {
        assert_eq!(prompt(json!({"reasoning_effort": effort})), expected, "{effort}");
    }
    // What the client says in the template's own words is the client's, and what the template refuses is quoted.
    let refused = server.post(CHAT, body(json!({"chat_template_kwargs": {"reasoning_effort": "high"}})));
    assert_eq!(refused.status, 400);
    let said = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(said.ends_with("The effort high is not one of xhigh, medium, low."), "{said}");
    let unknown = server.post(CHAT, body(json!({"reasoning_effort": "some"})));
    assert_eq!((unknown.status, &unknown.json()["error"]["param"]), (400, &json!("reasoning_effort")));
}

#[test]
fn earlier_thoughts_are_the_templates() {
    let server = start_with_template(config(), BY_PROMPT);
    let turns = |thought: &str, last: Value| {
        let call = json!({"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}});
        json!({"messages": [{"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": [call]}, last], "max_tokens": 1})
    };
    let tokens = |body: Value| server.post(CHAT, body).good()["usage"]["prompt_tokens"].as_u64().unwrap();
    let (tool, user) = (
        json!({"role": "tool", "tool_call_id": "c", "content": "1"}),
        json!({"role": "user", "content": "so?"}),
    );
    // Behind the last question they are kept, before it not.
    assert!(tokens(turns("a long thought", tool.clone())) > tokens(turns("a", tool)));
    assert_eq!(tokens(turns("a long thought", user.clone())), tokens(turns("a", user.clone())));
    let mut kept = turns("a long thought", user);
    let dropped = tokens(kept.clone());
    kept["chat_template_kwargs"] = json!({"preserve_thinking": true});
    assert!(tokens(kept) > dropped);
}

#[test]
fn what_a_template_refuses_is_quoted() {
    let server = start_with_template(config(), BY_PROMPT);
    let user = json!({"role": "user", "content": "hi"});
    for (messages, said) in [
        (
            json!([user, {"role": "developer", "content": "Be kind."}]),
            "System message must be at the beginning.",
        ),
        (json!([{"role": "system", "content": "Be kind."}]), "No user query found in messages."),
    ] {
        let refused = server.post(CHAT, json!({"messages": messages}));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("messages")));
        assert!(refused.json()["error"]["message"].as_str().unwrap().ends_with(said), "{}", refused.text());
    }
}

/// What must be JSON, or a call, begins behind the thoughts.
#[test]
fn grammars_begin_behind_thoughts() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    for (template, opened) in [(BY_PROMPT, ""), (BY_MODEL, "<think>")] {
        let server = start_with_template(config(), template);
        server.control.begin(&format!("{opened}So it is.\n</think>\n\n"));
        let answer = message(&server, json!({"response_format": format, "max_tokens": 200}));
        let (thought, said) = both(&answer);
        if opened.is_empty() {
            assert_eq!(thought, Some("So it is."));
        }
        assert!(serde_json::from_str::<Value>(said.unwrap()).unwrap()["a"].is_boolean(), "{answer}");
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
        server.control.begin("So it is.</think>");
        let answer = message(
            &server,
            json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200}),
        );
        let arguments = answer["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(arguments).unwrap()["a"].is_boolean(), "{answer}");
    }
}

/// A budget that ends within a call: nothing is forced into it, nor behind it.
#[test]
fn the_budget_leaves_calls_alone() {
    let server = start_with_template(config(), BY_PROMPT);
    let schema = json!({"type": "object", "properties": {"to": {"type": "string"}}});
    let tools = json!([{"type": "function", "function": {"name": "sail", "parameters": schema}}]);
    let call = "<tool_call>\n<function=sail>\n<parameter=to>\nOslo\n</parameter>\n</function>\n</tool_call>";
    for budget in (2..60).step_by(3) {
        server.control.say(&format!("So{call} Gone."));
        let more = json!({"tools": tools, "thinking_budget_tokens": budget, "max_tokens": 200});
        let answer = message(&server, more);
        let arguments = &answer["tool_calls"][0]["function"]["arguments"];
        assert_eq!(arguments, r#"{"to": "Oslo"}"#, "{budget}: {answer}");
        assert!(!answer["content"].as_str().unwrap().contains("think"), "{budget}: {answer}");
    }
}

#[test]
fn stop_texts_are_looked_for_behind_thoughts() {
    let server = start_with_template(config(), BY_PROMPT);
    for (said, more, expected) in [
        ("a b\n</think>\n\nc b d", json!({"stop": "b"}), (Some("a b"), Some("c "))),
        ("a b\n</think>\n\nc\n\nd", json!({"stop": ["\n\n", "think"]}), (Some("a b"), Some("c"))),
    ] {
        server.control.say(said);
        assert_eq!(both(&message(&server, more)), expected);
    }
    // What closes thoughts for the model is no stop text either.
    server.control.begin("abcd");
    let answer = message(&server, json!({"stop": "\n\n", "thinking_budget_tokens": 2, "max_tokens": 20}));
    assert!(answer["content"].as_str().is_some_and(|said| !said.is_empty()), "{answer}");
}

/// What the server says for all requests gives way to what a request says.
#[test]
fn the_requests_effort_comes_before_the_servers_variables() {
    let of = |variables: Value| {
        let template_variables = variables.as_object().unwrap().clone();
        start_with_template(ServerConfig { template_variables, ..config() }, BY_PROMPT)
    };
    let prompt = |server: &Running, more: Value| {
        server.post(CHAT, body(more)).good()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = of(json!({}));
    let server = of(json!({"enable_thinking": false, "reasoning_effort": "low", "thinking_budget": 2}));
    assert_ne!(prompt(&server, json!({})), prompt(&plain, json!({})));
    for more in [
        json!({"reasoning_effort": "high"}),
        json!({"reasoning_effort": "none"}),
        json!({"thinking_budget_tokens": 0}),
    ] {
        assert_eq!(prompt(&server, more.clone()), prompt(&plain, more.clone()), "{more}");
    }
    let count = |server: &Running, thinking: Value| {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "thinking": thinking});
        server.post("/v1/messages/count_tokens", body).good()["input_tokens"].clone()
    };
    let server = of(json!({"enable_thinking": false}));
    for kind in ["enabled", "disabled"] {
        assert_eq!(count(&server, json!({"type": kind})), count(&plain, json!({"type": kind})), "{kind}");
    }
    // An effort is not raised by that.
    let server = of(json!({"reasoning_effort": "low"}));
    assert_eq!(count(&server, json!({"type": "enabled"})), count(&server, json!({"type": "adaptive"})));
    // The budget is among them.
    let server = of(json!({"thinking_budget": 2}));
    server.control.begin("abcdefghij");
    assert!(both(&message(&server, json!({}))).0.unwrap().len() < 10);
    let refused = ServerConfig {
        template_variables: json!({"thinking_budget": "2"}).as_object().unwrap().clone(),
        ..config()
    };
    let refused = qernel::server::Server::bind(refused).err().unwrap().to_string();
    assert!(refused.contains("thinking_budget"), "{refused}");
    let refused = plain.post(CHAT, body(json!({"chat_template_kwargs": {"thinking_budget": "2"}})));
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (400, &json!("chat_template_kwargs.thinking_budget"))
    );
}

/// A template that opens thoughts whatever it is told: they are closed at once.
#[test]
fn no_effort_is_no_thoughts() {
    let server = start_with_template(config(), include_str!("../data/dialects/r1.jinja"));
    server.control.say("k");
    assert_eq!(both(&message(&server, json!({"reasoning_effort": "none"}))), (None, Some("k")));
    server.control.say("k");
    let disabled = json!({"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "disabled"}, "max_tokens": 60});
    let answer = server.post("/v1/messages", disabled).good();
    assert_eq!(answer["content"], json!([{"type": "text", "text": "k"}]));
}

/// With a vocabulary that spells the tags, a call within thoughts would be bound to nothing.
#[test]
fn a_constrained_call_stands_behind_the_thoughts() {
    let server = start_with_template(config(), BY_PROMPT);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    let tools =
        json!([{"type": "function", "function": {"name": "f", "parameters": schema, "strict": true}}]);
    let call = |value: &str| {
        format!("<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>")
    };
    let (wrong, right) = (call("x"), call("true"));
    server.control.say(&format!("So{wrong}</think>{right}"));
    let answer = message(&server, json!({"tools": tools, "max_tokens": 300}));
    assert_eq!(answer["tool_calls"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["tool_calls"][0]["function"]["arguments"], r#"{"a": true}"#);
    // One without its block is text.
    let bare = "<function=f>\n<parameter=a>\nx\n</parameter>\n</function>";
    server.control.say(&format!("So</think>{bare}"));
    let answer = message(&server, json!({"tools": tools, "max_tokens": 300}));
    assert_eq!((answer.get("tool_calls"), &answer["content"]), (None, &json!(bare)));
}
