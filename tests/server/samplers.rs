//! The fields that say how tokens are drawn: at all interfaces they reach the sampler, and what has no meaning is refused by name.

use crate::client::*;
use crate::infill::open_with_fim;
use qernel::chat::Message;
use qernel::engine::{Engine, Request};
use qernel::sampler::{Dry, Mirostat, SamplerChain, SamplerKind, SamplingParams};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;

const GENERATE: &str = "/v1/generate";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const INFILL: &str = "/infill";
const PROMPT: &str = "Write a haiku about the sea with the word forty-two";

/// What the engine answers without a server.
struct ByHand {
    engine: Engine,
    prompt: Vec<u32>,
}

impl ByHand {
    fn new() -> Self {
        let model = open_model(1).unwrap();
        let text = model.template().unwrap().render(&[Message::new("user", PROMPT)], &[], true).unwrap();
        let prompt = model.tokenizer.encode(&text, true).unwrap();
        Self { engine: model.into_engine().unwrap(), prompt }
    }

    /// Of 60 tokens, with the defaults of the command line.
    fn ids(&mut self, chain: SamplerChain) -> Vec<u32> {
        let sampling = SamplingParams {
            seed: 3,
            temperature: 1.5,
            chain: Some(Arc::new(chain)),
            ..SamplingParams::default()
        };
        let request =
            Request { sampling, max_tokens: Some(60), ignore_eos: true, ..Request::new(self.prompt.clone()) };
        self.engine.run_to_end(request, &false.into(), |_| ControlFlow::Continue(())).unwrap().tokens
    }
}

/// Fields, and what they mean.
fn meanings() -> Vec<(Value, SamplerChain)> {
    let plain = SamplerChain::default;
    let dry = |dry| SamplerChain { dry, ..plain() };
    let mirostat = Some(Mirostat { tau: 2.0, eta: 0.5 });
    vec![
        (json!({"typical_p": 0.5}), SamplerChain { typical_p: 0.5, ..plain() }),
        (json!({"top_n_sigma": 0.5}), SamplerChain { top_n_sigma: 0.5, ..plain() }),
        (
            json!({"xtc_probability": 1, "xtc_threshold": 0.05}),
            SamplerChain { xtc_probability: 1.0, xtc_threshold: 0.05, ..plain() },
        ),
        (
            json!({"dynatemp_range": 1.4, "dynatemp_exponent": 2}),
            SamplerChain { dynatemp_range: 1.4, dynatemp_exponent: 2.0, ..plain() },
        ),
        (
            json!({"dry_multiplier": 5, "dry_base": 3, "dry_allowed_length": 1.0, "dry_penalty_last_n": 40,
                   "dry_sequence_breakers": ["qu"]}),
            dry(Dry {
                multiplier: 5.0,
                base: 3.0,
                allowed_length: 1,
                last_n: 40,
                sequence_breakers: vec!["qu".into()],
            }),
        ),
        (
            json!({"dry_multiplier": 9, "dry_allowed_length": 1}),
            dry(Dry { multiplier: 9.0, allowed_length: 1, ..Dry::default() }),
        ),
        (
            json!({"dry_multiplier": 9, "dry_allowed_length": 1, "dry_sequence_breakers": []}),
            dry(Dry { multiplier: 9.0, allowed_length: 1, sequence_breakers: Vec::new(), ..Dry::default() }),
        ),
        (
            json!({"mirostat": 2, "mirostat_tau": 2, "mirostat_eta": 0.5}),
            SamplerChain { mirostat, ..plain() },
        ),
        (
            json!({"samplers": ["temperature", "top-k"]}),
            SamplerChain { order: vec![SamplerKind::Temperature, SamplerKind::TopK], ..plain() },
        ),
        (
            json!({"samplers": "min_p;temp"}),
            SamplerChain { order: vec![SamplerKind::MinP, SamplerKind::Temperature], ..plain() },
        ),
        (json!({"samplers": []}), SamplerChain { order: Vec::new(), ..plain() }),
        (
            json!({"logit_bias": {"300": 20.5, "301": false}}),
            SamplerChain { logit_bias: vec![(300, 20.5), (301, f32::NEG_INFINITY)], ..plain() },
        ),
        (
            json!({"logit_bias": [[300, 20.5], [301.0, false]]}),
            SamplerChain { logit_bias: vec![(300, 20.5), (301, f32::NEG_INFINITY)], ..plain() },
        ),
    ]
}

#[test]
fn the_fields_have_the_meaning_of_the_command_lines() {
    let server = start(config());
    let mut engine = ByHand::new();
    let plain = engine.ids(SamplerChain::default());
    for (fields, chain) in meanings() {
        let mut body =
            json!({"prompt": PROMPT, "seed": 3, "temperature": 1.5, "max_tokens": 60, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let ids = server.post(GENERATE, &body).good()["ids"].clone();
        let expected = engine.ids(chain);
        assert_eq!(ids, json!(expected), "{fields}");
        assert_ne!(expected, plain, "{fields} should change this answer");
    }
}

/// A request of the prompt at an interface, with these fields besides.
fn body(path: &str, fields: &Value) -> Value {
    let turns = json!([{"role": "user", "content": PROMPT}]);
    let mut body = json!({"seed": 3, "temperature": 1.5, "ignore_eos": true});
    let own = match path {
        CHAT | MESSAGES => json!({"messages": turns, "max_tokens": 60}),
        RESPONSES => json!({"input": PROMPT, "max_output_tokens": 60}),
        INFILL => json!({"input_prefix": PROMPT, "input_suffix": "", "n_predict": 60}),
        _ => json!({"prompt": PROMPT, "max_tokens": 60}),
    };
    for more in [&own, fields] {
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    body
}

/// The text of an answer, whatever its interface.
fn text(path: &str, answer: &Value) -> String {
    let place = match path {
        CHAT => "/choices/0/message/content",
        COMPLETIONS => "/choices/0/text",
        RESPONSES => "/output/0/content/0/text",
        MESSAGES => "/content/0/text",
        INFILL => "/content",
        _ => "/text",
    };
    let found = answer.pointer(place).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("{path} has no {place}: {answer}")).to_owned()
}

#[test]
fn all_interfaces_take_them() {
    let server = start_with(config(), open_with_fim);
    server.wait_until("ready", |server| server.get("/health").status == 200);
    for path in [CHAT, COMPLETIONS, RESPONSES, MESSAGES, INFILL] {
        let text = |fields: &Value| text(path, &server.post(path, body(path, fields)).good());
        let plain = text(&json!({}));
        // Where top-k and min-p are off, an order that has them alone changes nothing.
        let meanings = meanings().into_iter().filter(|(fields, _)| fields.get("samplers").is_none());
        for (fields, _) in meanings.step_by(3) {
            assert_ne!(text(&fields), plain, "{path}: {fields}");
        }
        assert_ne!(text(&json!({"samplers": ["top_k"], "top_k": 1})), plain);
        assert_ne!(text(&json!({"top_k": 2})), plain);
        assert_ne!(text(&json!({"min_p": 0.9})), plain);
        assert_ne!(text(&json!({"repeat_penalty": 3})), plain);
        assert_ne!(
            text(&json!({"presence_penalty": 9, "repeat_last_n": 2})),
            text(&json!({"presence_penalty": 9}))
        );
        for nothing in [json!({"logit_bias": {}}), json!({"logit_bias": []}), json!({"mirostat": 0})] {
            assert_eq!(text(&nothing), plain, "{path}: {nothing}");
        }
    }
}

/// The three interfaces of conversations draw alike: the same fields give the same text.
#[test]
fn conversations_are_drawn_alike() {
    let server = start(config());
    let grammar = json!({"grammar": "root ::= [a-z ]{20}", "ignore_eos": false});
    let usual = json!({"frequency_penalty": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.01});
    for fields in meanings().into_iter().map(|(fields, _)| fields).chain([grammar, usual]) {
        let of = |path| text(path, &server.post(path, body(path, &fields)).good());
        let expected = of(CHAT);
        for path in [RESPONSES, MESSAGES] {
            assert_eq!(of(path), expected, "{path}: {fields}");
        }
    }
}

#[test]
fn biases_ban_and_force_tokens_and_texts() {
    let server = start(config());
    let answer = |bias: Value| {
        let body =
            json!({"prompt": PROMPT, "seed": 1, "max_tokens": 12, "ignore_eos": true, "logit_bias": bias});
        server.post(GENERATE, body).good()
    };
    let ids =
        server.post("/tokenize", json!({"text": " sail", "parse_special": false})).good()["ids"].clone();
    let ids = ids.as_array().unwrap().clone();
    let first = answer(json!({}))["ids"][0].clone();
    // A text is all its tokens.
    for bias in [json!({" sail": 1000}), json!([[" sail", 1000]])] {
        let found = answer(bias);
        assert!(found["ids"].as_array().unwrap().iter().all(|id| ids.contains(id)), "{found}");
    }
    let banned = answer(json!([[first, false]]));
    assert!(banned["ids"].as_array().unwrap().iter().all(|id| *id != first), "{banned}");
}

#[test]
fn what_has_no_meaning_is_refused_by_name() {
    let server = start(config());
    for path in [GENERATE, CHAT, COMPLETIONS, RESPONSES, MESSAGES] {
        for (field, value, says) in [
            ("typical_p", json!(1.5), "a number from 0 to 1"),
            ("xtc_probability", json!(-1), "a number from 0 to 1"),
            ("xtc_threshold", json!("x"), "f32"),
            ("dynatemp_range", json!(-0.5), "from 0 to 1e6"),
            ("dynatemp_exponent", json!(1e39), "from 0 to 1e6"),
            ("dry_multiplier", json!(-1), "from 0 to 1e6"),
            ("dry_base", json!(0.5), "from 1 to 1e6"),
            ("dry_allowed_length", json!(-1), "0 or more"),
            ("dry_allowed_length", json!(1.5), "a whole number"),
            ("dry_penalty_last_n", json!(-2), "-1, 0 or a count"),
            ("dry_sequence_breakers", json!(vec!["a"; 33]), "at most 32 texts"),
            ("dry_sequence_breakers", json!(["a".repeat(65)]), "64 bytes"),
            ("mirostat", json!(1), "the first version of Mirostat is not there"),
            ("mirostat", json!(3), "0 or 2"),
            ("mirostat_tau", json!(-1), "from 0 to 1e6"),
            ("mirostat_eta", json!(2), "from 0 to 1"),
            ("speculative.n_max", json!(-1), "from 0 to"),
            ("speculative.n_min", json!(0.5), "a whole number"),
            ("speculative.p_min", json!(1.5), "0 to 1"),
            ("samplers", json!(["top_x"]), "those that are known are penalties"),
            ("samplers", json!("top_k;top_x"), "`top_x` is no sampler"),
            ("samplers", json!(vec!["top_k"; 33]), "at most 32"),
            ("samplers", json!(7), "a list of samplers' names"),
            ("logit_bias", json!({"1": 1e7}), "numbers up to 1e6"),
            ("logit_bias", json!({"1": true}), "false to ban the token"),
            ("logit_bias", json!({"1": "x"}), "a map from tokens to numbers"),
            ("logit_bias", json!([[1]]), "a list of pairs"),
            ("logit_bias", json!([[-1, 1]]), "a list of pairs"),
            ("logit_bias", json!({"999999": 1}), "the model has only tokens 0 to"),
            ("logit_bias", json!(vec![json!([1, 1]); 100_000]), "as many as there are"),
            ("logit_bias", json!({"a".repeat(9000): 1}), "at most 8192 bytes"),
        ] {
            let fields = json!({field: value});
            let refused = server.post(path, body(path, &fields));
            let text = refused.text();
            assert_eq!(refused.status, 400, "{path} {field}: {text}");
            let error = &refused.json()["error"];
            assert_eq!(error["param"], field, "{text}");
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with(field) && message.contains(says), "{says}: {message}");
        }
    }
    server.wait_until_idle();
}
