//! Answers that follow a grammar of llama.cpp's form (the field `grammar`).

use crate::client::*;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const GENERATE: &str = "/v1/generate";

/// A list of lists of small numbers and words, as JSON.
const NESTED: &str = r#"
# The whole answer.
root  ::= "[" ws ( value ("," ws value)* )? "]"
value ::= ( root | number | word ) ws
number ::= "-"? ("0" | [1-9] [0-9]{0,2})   # no fractions
word  ::= "\"" [a-z]{0,8} "\""
ws    ::= [ ]?
"#;

fn answer(server: &Running, path: &str, grammar: &str, seed: u64) -> (String, Value) {
    let mut body = json!({"grammar": grammar, "seed": seed, "max_tokens": 200, "temperature": 1.2});
    match path {
        CHAT => body["messages"] = json!([{"role": "user", "content": "the sea"}]),
        _ => body["prompt"] = json!("the sea"),
    }
    let whole = server.post(path, body).good();
    let choice = if path == GENERATE { whole } else { whole["choices"][0].clone() };
    let text = choice.pointer("/message/content").unwrap_or(&choice["text"]).as_str().unwrap().to_owned();
    (text, choice["finish_reason"].clone())
}

#[test]
fn answers_follow_the_grammar() {
    let server = start(config());
    for path in [CHAT, COMPLETIONS, GENERATE] {
        for seed in 0..4 {
            let (text, reason) = answer(&server, path, "root ::= \"yes\" | \"no\" \" never\"?", seed);
            assert!(["yes", "no", "no never"].contains(&text.as_str()), "{path}: {text}");
            assert_eq!(reason, "stop");
            let (text, reason) = answer(&server, path, NESTED, seed);
            if reason == "stop" {
                let list: Value =
                    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert!(list.is_array(), "{text}");
            } else {
                assert!(text.starts_with('['), "{text}");
            }
        }
    }
    let date = "root ::= year \"-\" [01] [0-9]\nyear ::= [12] [0-9]{3}";
    let (text, _) = answer(&server, GENERATE, date, 7);
    assert_eq!((text.len(), &text[4..5]), (7, "-"), "{text}");
    let (text, _) = answer(&server, GENERATE, "root ::= [^\\n]{3} \"é\\u0021\"", 7);
    assert!(text.ends_with("é!") && text.chars().count() == 5, "{text}");
    let nothing = json!({"prompt": "the sea", "seed": 1, "grammar": "", "max_tokens": 5});
    let plain = json!({"prompt": "the sea", "seed": 1, "max_tokens": 5});
    let [nothing, plain] = [nothing, plain].map(|body| server.post(GENERATE, body).good()["ids"].clone());
    assert_eq!(nothing, plain);
    // What the model would say is let through where the grammar has it, and no more than that.
    server.control.say("a sail\nand more");
    let (text, reason) = answer(&server, GENERATE, "root ::= [a-z ]+", 1);
    assert!(text.starts_with("a sail") && !text.contains('\n') && reason == "stop", "{text}");
    server.wait_until_idle();
}

#[test]
fn a_grammar_begins_behind_the_thoughts() {
    let template = "{{ messages[0].content }}<think>\n";
    let server = start_with_template(config(), template);
    server.control.begin("so be it</think>");
    let body = json!({"messages": [{"role": "user", "content": "?"}], "grammar": "root ::= \"yes\"", "max_tokens": 100});
    let message = server.post(CHAT, body).good()["choices"][0]["message"].clone();
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("yes"), &json!("so be it")),
        "{message}"
    );
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let server = start(config());
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let chat = json!([{"role": "user", "content": "x"}]);
    let yes = "root ::= \"yes\"";
    for (path, body, param, says) in [
        (
            CHAT,
            json!({"messages": chat, "grammar": "root ::= b"}),
            "grammar",
            "line 1, column 10: there is no rule `b`",
        ),
        (COMPLETIONS, json!({"prompt": "x", "grammar": "yes"}), "grammar", "expected `::=`, found the end"),
        (GENERATE, json!({"prompt": "x", "grammar": "a ::= \"x\""}), "grammar", "expected a rule `root`"),
        (GENERATE, json!({"prompt": "x", "grammar": 7}), "grammar", "expected a string"),
        (
            GENERATE,
            json!({"prompt": "x", "grammar": yes, "ignore_eos": true}),
            "ignore_eos",
            "ends where that does",
        ),
        (
            CHAT,
            json!({"messages": chat, "grammar": yes, "ignore_eos": true}),
            "ignore_eos",
            "ends where that does",
        ),
        (CHAT, json!({"messages": chat, "grammar": yes, "tools": [tool]}), "grammar", "nor a call"),
        (
            CHAT,
            json!({"messages": chat, "grammar": yes, "response_format": {"type": "json_object"}}),
            "grammar",
            "JSON by a schema",
        ),
    ] {
        let refused = server.post(path, &body);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (400, &json!(param)), "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{says}: {error}");
    }
    server.wait_until_idle();
}

/// Grammars that are made to take much: they are refused or followed, and the server goes on.
#[test]
fn hostile_grammars_do_no_harm() {
    let server = start(config());
    let doubling: String = (0..40).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
    let looping: String =
        (0..500).map(|i| format!("r{i} ::= r{} | r{} \"x\"\n", (i + 1) % 500, (i * 7) % 500)).collect();
    for grammar in [
        "root ::= root".to_owned(),
        "root ::= root root | \"\"".to_owned(),
        "root ::= \"a\" root".to_owned(),
        "root ::= (((\"a\"{1000}){1000}){1000}){1000}".to_owned(),
        "root ::= (((\"(\" root \")\" | \"x\"){1000}){1000}){1000}".to_owned(),
        "root ::= ((\"a\"? root? \"b\"?)*)*".to_owned(),
        format!("root ::= r0\n{doubling}r40 ::= [a-z]*"),
        format!("root ::= r0\n{looping}"),
        format!("root ::= {}\"x\"", "[a-z]* ".repeat(5000)),
        format!("root ::= \"{}\"", "x".repeat(60_000)),
        format!("root ::= {}", "\"a\" | ".repeat(9000)),
        format!(
            "root ::= [{}]*",
            (0..5000).map(|i| format!("\\U{:08x}", 0x4e00 + 2 * i)).collect::<String>()
        ),
    ] {
        let body = json!({"prompt": "x", "grammar": grammar, "max_tokens": 4});
        let answer = server.post(GENERATE, &body);
        let begin: String = grammar.chars().take(60).collect();
        assert!([200, 400].contains(&answer.status), "{begin}: {}", answer.text());
        if answer.status == 400 {
            assert_eq!(answer.json()["error"]["param"], "grammar", "{begin}: {}", answer.text());
        }
    }
    server.wait_until_idle();
    assert_eq!(server.get("/health").status, 200);
}
