//! Drafts over HTTP: how far tokens are drafted is a matter of the request, no answer is another one, and what it brought is counted.

use crate::client::*;
use qernel::engine::{NgramKind, NgramOptions};
use qernel::error::Result;
use qernel::load::{DeviceChoice, DraftChoice, LoadedModel, RunnerOptions};
use qernel::server::{ServedModel, ServerConfig};
use serde_json::{Value, json};
use std::sync::Arc;

/// The haiku model, whose text is drafted from itself.
fn open_with_drafts(max_num_sequences: usize, _: Arc<Control>) -> Result<ServedModel> {
    let options = RunnerOptions {
        device: DeviceChoice::Cpu,
        max_model_len: Some(512),
        max_drafts: 5,
        drafts: DraftChoice::Ngram(NgramOptions { size_n: 1, ..NgramOptions::new(NgramKind::Simple) }),
        ..RunnerOptions::for_sequences(max_num_sequences)
    };
    let model = LoadedModel::open(None, &options, &mut |_, _| ())?;
    let (template, watch) = (model.template(), model.watch.clone());
    let engine = model.into_engine()?;
    Ok(ServedModel { engine, template, name: "haiku".into(), watch, fingerprint: None })
}

#[test]
fn requests_say_how_far_they_are_drafted() {
    let limits = || ServerConfig { max_num_sequences: 4, ..config() };
    let plain = start(limits());
    let server = start_with(limits(), open_with_drafts);
    server.wait_until("ready", |server| server.get("/health").status == 200);
    let body = |fields: &Value| {
        let mut body = json!({"prompt": "the sea, the sea, the sea", "max_tokens": 60, "temperature": 0.7, "seed": 3, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let expected = plain.post("/v1/generate", body(&json!({}))).good();
    assert!(expected["timings"].get("draft_tokens").is_none(), "{expected}");
    let drafted = |fields: Value| {
        let answer = server.post("/v1/generate", body(&fields)).good();
        assert_eq!(answer["ids"], expected["ids"], "{fields}");
        answer["timings"]["draft_tokens"].as_u64().unwrap_or(0)
    };
    let all = drafted(json!({}));
    assert!(all > 10, "{all}");
    assert_eq!(drafted(json!({"speculative.n_max": 100, "speculative.p_min": 0})), all);
    assert_eq!(drafted(json!({"speculative.n_max": 0})), 0);
    assert_eq!(drafted(json!({"speculative.n_min": 6})), 0, "never so many");
    assert!(drafted(json!({"speculative.n_max": 1})) < all);
    // Penalties are not drafted behind; and who does not draft takes the fields too.
    let penalty = json!({"repeat_penalty": 1.2});
    assert_eq!(server.post("/v1/generate", body(&penalty)).good()["timings"].get("draft_tokens"), None);
    assert_eq!(
        plain.post("/v1/generate", body(&json!({"speculative.n_max": 3}))).good()["ids"],
        expected["ids"]
    );

    let counted = server.metric("qernel_draft_tokens_total");
    assert!(counted > 2.0 * all as f64, "{counted}");
    let stayed = server.metric("qernel_draft_tokens_accepted_total");
    assert!(stayed > 0.0 && stayed < counted, "{stayed} of {counted}");
    let [tokens, steps] = ["qernel_completion_tokens_total", "qernel_sequence_decode_steps_total"]
        .map(|name| server.metric(name));
    assert!(steps > 60.0 && steps + stayed <= tokens, "{tokens} tokens in {steps} steps");
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let mut body = json!({"max_tokens": 30, "seed": 1, "temperature": 0});
        match path {
            "/v1/completions" => body["prompt"] = json!("the sea, the sea"),
            _ => body["messages"] = json!([{"role": "user", "content": "the sea, the sea"}]),
        }
        let before = server.metric("qernel_draft_tokens_total");
        let expected = plain.post(path, &body).good()["choices"].clone();
        assert_eq!(server.post(path, &body).good()["choices"], expected);
        let between = server.metric("qernel_draft_tokens_total");
        body["speculative.n_max"] = json!(0);
        assert_eq!(server.post(path, &body).good()["choices"], expected);
        assert!(between >= before && server.metric("qernel_draft_tokens_total") == between, "{path}");
    }
}
