//! `/v1/embeddings` and `/v1/rerank`: whole, beside answers, and what is refused.

use crate::client::*;
use qernel::engine::EngineConfig;
use qernel::gguf::Gguf;
use qernel::gguf::write::Writer;
use qernel::load::{DeviceChoice, LoadedModel, RunnerOptions};
use qernel::server::ServedModel;
use qernel::testing::TinyModel;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Instant;

const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";

fn vector(of: &Value) -> Vec<f64> {
    of["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The floats of base64, decoded here by hand.
fn decoded(text: &str) -> Vec<f32> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sixes =
        text.bytes().filter(|&c| c != b'=').map(|c| LETTERS.iter().position(|&l| l == c).unwrap() as u32);
    let sixes: Vec<u32> = sixes.collect();
    let mut bytes = Vec::new();
    for group in sixes.chunks(4) {
        let word = group.iter().fold(0, |word, six| word << 6 | six) << (6 * (4 - group.len()));
        bytes.extend(&word.to_be_bytes()[1..group.len()]);
    }
    bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
}

#[test]
fn vectors_are_in_the_order_of_their_texts() {
    let server = start(config());
    let of = |body: Value| server.post(EMBEDDINGS, body).good();
    let whole = of(json!({"input": ["the sea", "the moon"], "model": "haiku", "user": "me"}));
    assert_eq!((&whole["object"], &whole["model"]), (&json!("list"), &json!("haiku")));
    let data = whole["data"].as_array().unwrap();
    assert_eq!(data.iter().map(|one| one["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert_ne!(vector(&data[0]), vector(&data[1]));
    for one in data {
        let length: f64 = vector(one).iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let alone = of(json!({"input": "the moon"}));
    assert_eq!(vector(&alone["data"][0]), vector(&data[1]));
    let ids = server.post("/tokenize", json!({"text": "the moon"})).good()["ids"].clone();
    assert_eq!(
        alone["usage"],
        json!({"prompt_tokens": ids.as_array().unwrap().len(), "total_tokens": ids.as_array().unwrap().len()})
    );
    assert_eq!(of(json!({"input": ids}))["data"], alone["data"], "token ids");
    assert_eq!(of(json!({"input": [ids]}))["data"], alone["data"], "lists of token ids");

    let packed = of(json!({"input": "the moon", "encoding_format": "base64"}));
    let unpacked = decoded(packed["data"][0]["embedding"].as_str().unwrap());
    assert_eq!(unpacked, vector(&alone["data"][0]).iter().map(|&x| x as f32).collect::<Vec<_>>());
    let short = vector(&of(json!({"input": "the moon", "dimensions": 8}))["data"][0]);
    let length: f64 = short.iter().map(|x| x * x).sum();
    assert!(short.len() == 8 && (length - 1.0).abs() < 1e-5, "{short:?}");
}

#[test]
fn vectors_are_made_beside_answers() {
    let server = start(config());
    let before = server.post(EMBEDDINGS, json!({"input": "the sea"})).good();
    let prompt = json!({"messages": [{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}],
        "temperature": 0, "stream": true});
    let answer = |beside: bool| {
        let mut events = server.stream("/v1/chat/completions", prompt.clone()).events();
        let mut text = String::new();
        let first = events.next().unwrap();
        if beside {
            assert_eq!(server.post(EMBEDDINGS, json!({"input": "the sea"})).good(), before);
        }
        for event in std::iter::once(first).chain(events).filter(|event| event.data != "[DONE]") {
            text += event.json()["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        }
        text
    };
    let alone = answer(false);
    assert_eq!((alone.lines().count(), answer(true)), (3, alone));
}

/// Of one long text some rows are computed at a time, and each time a token of the answer that is being made.
#[test]
fn a_long_text_lets_answers_go_on() {
    let few_rows = EngineConfig { max_num_tokens: 16, ..EngineConfig::default() };
    let server = start_with(config(), move |max_num_sequences, control| {
        open_with(max_num_sequences, control, few_rows)
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    let long = json!({"input": "the sea ".repeat(50)});
    let alone = server.post(EMBEDDINGS, long.clone()).good();
    let chunks = alone["usage"]["prompt_tokens"].as_u64().unwrap().div_ceil(16) as usize;
    assert!(chunks >= 5, "{chunks}");

    server.control.pause.store(5, Ordering::Relaxed);
    let endless = json!({"prompt": "x", "ignore_eos": true, "stream": true});
    let mut answer = server.stream("/v1/generate", endless).events();
    answer.next().unwrap();
    server.control.calls.lock().unwrap().clear();
    assert_eq!(server.post(EMBEDDINGS, long).good()["data"], alone["data"]);
    assert!(answer.next().is_some());
    let calls = std::mem::take(&mut *server.control.calls.lock().unwrap());
    let first = calls.iter().position(|&call| call == "hidden").unwrap();
    let order = &calls[first..][..2 * chunks - 1];
    assert!(
        order.iter().zip(["hidden", "step"].iter().cycle()).all(|(call, expected)| call == expected),
        "{calls:?}"
    );
}

/// Whoever leaves is not computed to the end.
#[test]
fn a_text_that_nobody_waits_for_is_left() {
    let few_rows = EngineConfig { max_num_tokens: 1, ..EngineConfig::default() };
    let server = start_with(config(), move |max_num_sequences, control| {
        open_with(max_num_sequences, control, few_rows)
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server.control.pause.store(20, Ordering::Relaxed);
    let count = || server.control.calls.lock().unwrap().iter().filter(|&&call| call == "hidden").count();
    let left = server.stream(EMBEDDINGS, json!({"input": "the sea ".repeat(90)}));
    server.wait_until("some rows", |_| count() > 2);
    drop(left);
    server.wait_until("no page in use", |server| server.metric("qernel_kv_pages_used") == 0.0);
    assert!(count() < 180, "{}", count());
    server.post(EMBEDDINGS, json!({"input": "x"})).good();
}

#[test]
fn what_has_no_vector_is_refused() {
    let server = start(config());
    let refused = |body: Value, param: Value, says: &str| {
        let response = server.post(EMBEDDINGS, body);
        let error = response.json()["error"].clone();
        assert_eq!((response.status, &error["param"]), (400, &param), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    };
    refused(json!({"input": []}), json!("input"), "expected 1 to 2048 texts, found 0");
    refused(json!({"input": "x", "dimensions": 100_000}), json!("dimensions"), "found 100000");
    refused(json!({"input": "x", "encoding_format": "hex"}), json!("encoding_format"), "base64");
    let response = server.post(EMBEDDINGS, json!({"input": "x", "stream": true}));
    assert!(response.status == 400 && response.text().contains("stream"), "{}", response.text());
    refused(json!({"input": ""}), Value::Null, "expected 1 to");
    refused(json!({"input": [[1 << 20]]}), Value::Null, "only tokens 0 to");
    refused(json!({"input": "x ".repeat(100_000)}), json!("input"), "context length");
    let response = server.post(RERANK, json!({"query": "x", "documents": ["y"]}));
    assert_eq!(response.status, 400);
    assert!(response.text().contains("cannot rerank"), "{}", response.text());
    assert_eq!(server.post(EMBEDDINGS, json!({"input": "x", "model": "other"})).status, 404);
}

#[test]
fn a_device_that_fails_is_told() {
    let server = start(config());
    server.control.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let response = server.post(EMBEDDINGS, json!({"input": "x"}));
    assert_eq!(response.status, 500);
    assert!(response.text().contains("the cable was pulled"), "{}", response.text());
    server.control.fail.store(false, std::sync::atomic::Ordering::Relaxed);
    server.wait_until("ready again", |server| server.get("/health").status == 200);
    server.post(EMBEDDINGS, json!({"input": "x"})).good();
}

/// A small model with a classifier.
fn reranker() -> Writer {
    TinyModel::reranker("{query}: {document}")
}

#[test]
fn documents_are_ranked() {
    let server = start_with(config(), |max_num_sequences, _| {
        let gguf = Gguf::from_bytes(reranker().to_bytes().into())?;
        let options =
            RunnerOptions { device: DeviceChoice::Cpu, ..RunnerOptions::for_sequences(max_num_sequences) };
        let model = LoadedModel::load(&gguf, Instant::now(), &options, &mut |_, _| ())?;
        let template = model.template();
        Ok(ServedModel {
            engine: model.into_engine()?,
            template,
            name: "judge".into(),
            watch: Default::default(),
            fingerprint: None,
        })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    let documents = json!(["a", {"text": "wave"}, "of water"]);
    let of = |body: Value| server.post(RERANK, body).good();
    let whole = of(json!({"query": "sea", "documents": documents, "return_documents": true}));
    let results = whole["results"].as_array().unwrap();
    let scores: Vec<f64> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{whole}");
    assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{whole}");
    for result in results {
        let text = ["a", "wave", "of water"][result["index"].as_u64().unwrap() as usize];
        assert_eq!(result["document"], json!({"text": text}));
    }
    let best = of(json!({"query": "sea", "documents": documents, "top_n": 1, "model": "judge"}));
    assert_eq!(
        best["results"],
        json!([{"index": results[0]["index"], "relevance_score": results[0]["relevance_score"]}])
    );
    for (body, says) in [
        (json!({"query": "x", "documents": []}), "expected 1 to 2048"),
        (json!({"query": "x", "documents": [7]}), "a string or an object"),
        (json!({"documents": ["x"]}), "query"),
    ] {
        let response = server.post(RERANK, body);
        assert_eq!(response.status, 400);
        assert!(response.text().contains(says), "{}", response.text());
    }
    let response = server.post(EMBEDDINGS, json!({"input": "x"}));
    assert!(response.status == 400 && response.text().contains("/v1/rerank"), "{}", response.text());
}
