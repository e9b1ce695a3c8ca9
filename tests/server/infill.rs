//! Filling in the middle (`suffix` of completions, `/infill`), answers that begin with their prompts, the best of several, and what front
//! ends of llama.cpp's server ask for.

use crate::client::*;
use qernel::error::Result;
use qernel::gguf::Gguf;
use qernel::load::LoadedModel;
use qernel::server::ServedModel;
use qernel::tokenizer::{Tokenizer, TokenizerParts};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const COMPLETIONS: &str = "/v1/completions";
const INFILL: &str = "/infill";

/// Tokens of the embedded model that stand for those of filling in the middle, which it does not have.
const FIM: [(&str, u32); 5] = [
    ("tokenizer.ggml.fim_pre_token_id", 500),
    ("tokenizer.ggml.fim_suf_token_id", 501),
    ("tokenizer.ggml.fim_mid_token_id", 502),
    ("tokenizer.ggml.fim_rep_token_id", 503),
    ("tokenizer.ggml.fim_sep_token_id", 504),
];

/// Gives the embedded model them.
pub fn add_fim(model: &mut LoadedModel) -> Result<()> {
    let file = Gguf::open(Path::new("models/haiku/haiku.gguf"))?;
    let parts = TokenizerParts { fim_token_ids: FIM.to_vec(), ..TokenizerParts::from_gguf(&file)? };
    model.tokenizer = Arc::new(Tokenizer::new(&parts)?);
    Ok(())
}

/// The embedded model with them.
pub fn open_with_fim(max_num_sequences: usize, control: Arc<Control>) -> Result<ServedModel> {
    open_changed(max_num_sequences, control, add_fim)
}

fn start_with_fim() -> Running {
    let server = start_with(config(), open_with_fim);
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server
}

fn ids(server: &Running, text: &str) -> Vec<u64> {
    let tokens = server.post("/tokenize", json!({"text": text, "parse_special": false})).good();
    tokens["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn a_suffix_makes_the_prompt_of_filling_in() {
    let server = start_with_fim();
    let (before, behind) = (ids(&server, "a sail, then"), ids(&server, "\nthe lighthouse"));
    let by_hand = [&[500], &before[..], &[501], &behind, &[502]].concat();
    let answer = |mut body: Value| {
        body["seed"] = json!(3);
        server.post(COMPLETIONS, body).good()
    };
    let expected = answer(json!({"prompt": by_hand}));
    for prompt in [json!("a sail, then"), json!(before)] {
        let filled = answer(json!({"prompt": prompt, "suffix": "\nthe lighthouse"}));
        assert_eq!(filled["choices"], expected["choices"]);
        assert_eq!(filled["usage"]["prompt_tokens"], by_hand.len());
    }
    assert_eq!(
        answer(json!({"prompt": "a sail", "suffix": ""}))["choices"],
        answer(json!({"prompt": "a sail"}))["choices"]
    );
    let echoed =
        answer(json!({"prompt": "a sail, then", "suffix": "\nthe lighthouse", "echo": true}))["choices"][0]
            ["text"]
            .clone();
    let text = expected["choices"][0]["text"].as_str().unwrap();
    assert_eq!(echoed, format!("a sail, then{text}"));
    let refused = start(config()).post(COMPLETIONS, json!({"prompt": "a", "suffix": "b"}));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("suffix")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("cannot fill in the middle"));
}

#[test]
fn an_answer_begins_with_its_prompt_where_that_is_asked_for() {
    let server = start(config());
    let prompts = ["a sail, then", "the lighthouse"];
    let body = json!({"prompt": prompts, "n": 2, "seed": 5, "logprobs": 2, "max_tokens": 5});
    let plain = server.post(COMPLETIONS, &body).good();
    let mut with_echo = body.clone();
    with_echo["echo"] = json!(true);
    let whole = server.post(COMPLETIONS, &with_echo).good();
    with_echo["stream"] = json!(true);
    let mut streamed = vec![(String::new(), Vec::new(), Vec::new()); 4];
    for event in server.stream(COMPLETIONS, with_echo).events().filter(|event| event.data != "[DONE]") {
        let choice = event.json()["choices"][0].clone();
        let found = &mut streamed[choice["index"].as_u64().unwrap() as usize];
        found.0 += choice["text"].as_str().unwrap();
        let of = |list: &str| choice["logprobs"][list].as_array().cloned().unwrap_or_default();
        found.1.extend(of("tokens"));
        found.2.extend(of("text_offset"));
    }
    for (i, prompt) in [(0, prompts[0]), (1, prompts[0]), (2, prompts[1]), (3, prompts[1])] {
        let (choice, answer) = (&whole["choices"][i], &plain["choices"][i]);
        let text = format!("{prompt}{}", answer["text"].as_str().unwrap());
        assert_eq!(choice["text"], text.as_str());
        let of = |list: &str| choice["logprobs"][list].as_array().unwrap().clone();
        let joined: String = of("tokens").iter().map(|token| token.as_str().unwrap()).collect();
        // The token that ends an answer has no part in its text.
        assert_eq!(joined.trim_end_matches("<|im_end|>"), text);
        let count = ids(&server, prompt).len();
        assert_eq!(of("tokens").len(), count + answer["logprobs"]["tokens"].as_array().unwrap().len());
        assert_eq!((&of("token_logprobs")[0], &of("top_logprobs")[0]), (&Value::Null, &Value::Null));
        assert!(of("token_logprobs")[1..].iter().all(|logprob| logprob.as_f64().unwrap() <= 0.0));
        assert_eq!(of("top_logprobs")[1].as_object().unwrap().len(), 2);
        assert_eq!(of("text_offset")[count], prompt.chars().count());
        let found = (text, of("tokens"), of("text_offset"));
        assert_eq!(streamed[i], found);
    }
    // As the model gave them when it made the text.
    let made = json!({"prompt": "a sail, then", "seed": 5, "logprobs": 0, "max_tokens": 8, "temperature": 0});
    let made = server.post(COMPLETIONS, made).good()["choices"][0].clone();
    let text = format!("a sail, then{}", made["text"].as_str().unwrap());
    if ids(&server, &text).len() == ids(&server, "a sail, then").len() + 8 {
        let read = json!({"prompt": text, "echo": true, "logprobs": 0, "max_tokens": 1});
        let read = server.post(COMPLETIONS, read).good()["choices"][0]["logprobs"].clone();
        let values = |list: &Value| -> Vec<f64> {
            list.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
        };
        let (made, read) = (values(&made["logprobs"]["token_logprobs"]), values(&read["token_logprobs"]));
        let read = &read[ids(&server, "a sail, then").len() - 1..][..8];
        // A prompt of several rows and steps of one may be summed in different orders.
        assert!(made.iter().zip(read).all(|(one, other)| (one - other).abs() < 1e-2), "{made:?} {read:?}");
    }
    let tokens = json!({"prompt": [5, 7], "echo": true, "max_tokens": 1});
    let text = server.post("/detokenize", json!({"ids": [5, 7]})).good()["text"].clone();
    let echoed = server.post(COMPLETIONS, tokens).good()["choices"][0]["text"].clone();
    assert!(echoed.as_str().unwrap().starts_with(text.as_str().unwrap()));
    let outside = server.post(COMPLETIONS, json!({"prompt": [5, 99_999], "echo": true, "logprobs": 1}));
    assert_eq!((outside.status, &outside.json()["error"]["param"]), (400, &json!("prompt")));
    server.wait_until_idle();
}

#[test]
fn the_best_answers_are_the_likeliest() {
    let server = start(config());
    let body = json!({"prompt": ["a sail, then", "the sea"], "seed": 5, "max_tokens": 12, "logprobs": 0, "temperature": 1.5});
    let with = |n: usize, best_of: Option<usize>| {
        let mut body = body.clone();
        body["n"] = json!(n);
        body["best_of"] = json!(best_of);
        server.post(COMPLETIONS, body).good()
    };
    let all = with(4, None);
    let best = with(2, Some(4));
    for count in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(best["usage"][count], all["usage"][count]);
    }
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs.iter().map(|logprob| logprob.as_f64().unwrap()).sum::<f64>() / logprobs.len() as f64
    };
    for prompt in 0..2 {
        let mut of_prompt = all["choices"].as_array().unwrap()[prompt * 4..][..4].to_vec();
        of_prompt.sort_by(|one, other| mean(other).total_cmp(&mean(one)));
        for (rank, expected) in of_prompt.iter().take(2).enumerate() {
            let found = &best["choices"][prompt * 2 + rank];
            assert_eq!((&found["text"], &found["index"]), (&expected["text"], &json!(prompt * 2 + rank)));
        }
    }
    // Log-probabilities that only the choice needs are not shown.
    let quiet = json!({"prompt": "the sea", "best_of": 2, "max_tokens": 2});
    assert_eq!(server.post(COMPLETIONS, quiet).good()["choices"][0]["logprobs"], Value::Null);
    for (field, value, says) in [
        ("best_of", json!({"best_of": 2, "n": 3}), "at least n, which is 3"),
        ("best_of", json!({"best_of": 2, "stream": true}), "in a stream"),
        ("best_of", json!({"best_of": 100}), "1 to 16 answers"),
        ("best_of", json!({"best_of": 0}), "at least n"),
    ] {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        let refused = server.post(COMPLETIONS, body);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (400, &json!(field)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}

#[test]
fn a_place_in_a_file_is_filled_in() {
    let server = start_with_fim();
    let generate = |prompt: &[u64]| {
        let body = json!({"ids": prompt, "seed": 3, "n_predict": 9, "ignore_eos": true});
        server.post("/v1/generate", body).good()["text"].clone()
    };
    let base = json!({"input_prefix": "a sail,", "prompt": " then", "input_suffix": "\nthe sea", "seed": 3, "n_predict": 9,
                      "ignore_eos": true});
    let around =
        [&[500], &ids(&server, "a sail, then")[..], &[501], &ids(&server, "\nthe sea"), &[502]].concat();
    let filled = server.post(INFILL, &base).good();
    assert_eq!(filled["content"], generate(&around));
    assert_eq!((&filled["stop"], &filled["stop_type"]), (&json!(true), &json!("limit")));
    assert_eq!((&filled["tokens_predicted"], &filled["tokens_evaluated"]), (&json!(9), &json!(around.len())));
    assert_eq!((&filled["truncated"], &filled["tokens_cached"]), (&json!(false), &json!(around.len() + 9)));
    assert_eq!(filled["timings"]["predicted_n"], 9);

    // With other files before it.
    let mut with_files = base.clone();
    with_files["input_extra"] =
        json!([{"filename": "one", "text": "gulls"}, {"text": "<|im_end|>", "time": 1}]);
    let parts = [(503, "project\n"), (504, "one\ngulls"), (504, "unnamed\n<|im_end|>"), (504, "current\n")];
    let files = parts.into_iter().flat_map(|(mark, text)| {
        let text = text.split_inclusive('\n').flat_map(|text| ids(&server, text));
        std::iter::once(mark).chain(text).collect::<Vec<_>>()
    });
    let prompt: Vec<u64> = files.chain(around.iter().copied()).collect();
    let found = server.post(INFILL, &with_files).good();
    assert_eq!((&found["content"], &found["tokens_evaluated"]), (&generate(&prompt), &json!(prompt.len())));

    // A file that is longer than the context: what is near the place stays.
    let mut long = base.clone();
    long["input_prefix"] = json!("the sea ".repeat(2000) + "a sail,");
    long["input_suffix"] = json!("the sea ".repeat(2000));
    let found = server.post(INFILL, long).good();
    assert_eq!(found["truncated"], true);
    let tokens = found["tokens_evaluated"].as_u64().unwrap();
    assert!((400..512).contains(&tokens), "{tokens}");
    server.wait_until_idle();
}

#[test]
fn what_editors_send_is_answered() {
    let server = start_with_fim();
    // As llama.vim has it.
    let fields =
        ["content", "timings/prompt_n", "timings/predicted_per_second", "truncated", "tokens_cached"];
    let editor = json!({"id_slot": 0, "input_prefix": "fn f() {\n", "input_suffix": "}\n", "input_extra": [], "prompt": "    ",
                        "n_predict": 8, "n_indent": 0, "top_k": 40, "top_p": 0.9, "stream": false,
                        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true, "t_max_prompt_ms": 500,
                        "t_max_predict_ms": 1000, "response_fields": fields});
    let answer = server.post(INFILL, &editor).good();
    let names: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.len(), fields.len());
    assert!(fields.iter().all(|name| names.contains(name)), "{answer}");
    // What warms the cache.
    let warm = json!({"input_prefix": "fn", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": [],
                      "cache_prompt": true, "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""]});
    assert_eq!(server.post(INFILL, &warm).good(), json!({}));
    let empty = json!({"input_prefix": "fn", "input_suffix": "", "n_predict": 0});
    let empty = server.post(INFILL, empty).good();
    assert_eq!((&empty["content"], &empty["tokens_predicted"]), (&json!(""), &json!(0)));

    // Lines that are indented by less end it, and so does the time once there is a line break.
    let body = |more: Value| {
        let mut body = json!({"input_prefix": "x", "input_suffix": "y", "n_predict": 60});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    server.control.say("one\n  two\n\n  three\nfour\nfive");
    let indented = server.post(INFILL, body(json!({"n_indent": 2}))).good();
    assert_eq!(indented["content"], "one\n  two\n\n  three\n");
    assert_eq!((&indented["stop_type"], &indented["has_new_line"]), (&json!("limit"), &json!(true)));
    server.wait_until_idle();
    server.control.say("one two three four\nfive six seven eight");
    server.control.pause.store(20, std::sync::atomic::Ordering::Relaxed);
    let late = server.post(INFILL, body(json!({"t_max_predict_ms": 1}))).good();
    server.control.pause.store(0, std::sync::atomic::Ordering::Relaxed);
    server.wait_until_idle();
    let content = late["content"].as_str().unwrap();
    assert!(content.starts_with("one two three four\n") && !content.contains("eight"), "{content}");
    for (said, stop, stop_type) in [("one\ntwo", "\n", "word"), ("one", "\n", "eos")] {
        server.control.say(said);
        let ended = server.post(INFILL, body(json!({"stop": stop}))).good();
        assert_eq!((&ended["content"], &ended["stop_type"]), (&json!("one"), &json!(stop_type)));
    }

    server.control.say("one\ntwo");
    let events: Vec<Value> =
        server.stream(INFILL, body(json!({"stream": true}))).events().map(|event| event.json()).collect();
    let said: String = events.iter().map(|event| event["content"].as_str().unwrap()).collect();
    assert_eq!(said, "one\ntwo");
    let (last, pieces) = events.split_last().unwrap();
    assert_eq!((&last["stop"], &last["stop_type"]), (&json!(true), &json!("eos")));
    assert!(pieces.iter().all(|piece| piece["stop"] == false && piece.get("timings").is_none()));

    for (field, value) in [
        ("stream", json!({"stream": true, "n_indent": 2})),
        ("n_predict", json!({"n_predict": -2})),
        ("samplers", json!({"samplers": ["infil"]})),
        ("input_extra[0]", json!({"input_extra": [{"filename": "x"}]})),
        ("t_max_predict_ms", json!({"t_max_predict_ms": -1})),
    ] {
        let refused = server.post(INFILL, body(value));
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (400, &json!(field)), "{error}");
    }
    let without = start(config()).post(INFILL, body(json!({})));
    assert_eq!((without.status, &without.json()["error"]["param"]), (400, &json!("input_prefix")));
    server.wait_until_idle();
}

#[test]
fn what_the_server_is_and_which_slots_are_in_use() {
    let mut small = config();
    small.max_num_sequences = 1;
    let server = start(small);
    let props = server.get("/props").good();
    assert_eq!(props["default_generation_settings"]["n_ctx"], 512);
    assert_eq!((&props["total_slots"], &props["model_alias"]), (&json!(1), &json!("haiku")));
    assert_eq!((&props["bos_token"], &props["eos_token"]), (&json!("<|endoftext|>"), &json!("<|im_end|>")));
    assert!(props["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    let idle = json!([{"id": 0, "n_ctx": 512, "is_processing": false}]);
    assert_eq!(server.get("/slots").good(), idle);
    assert_eq!(server.get("/slots?fail_on_no_slot=1").status, 200);
    server.control.pause.store(20, std::sync::atomic::Ordering::Relaxed);
    let endless = json!({"prompt": "the sea", "ignore_eos": true, "stream": true});
    let mut events = server.stream("/v1/generate", endless).events();
    events.next().unwrap();
    server.wait_until("a slot in use", |server| server.get("/slots").good()[0]["is_processing"] == true);
    let busy = server.get("/slots?fail_on_no_slot=1");
    assert_eq!((busy.status, &busy.json()["error"]["code"]), (503, &json!("no_slot")));
    drop(events);
    server.control.pause.store(0, std::sync::atomic::Ordering::Relaxed);
    server.wait_until("a free slot", |server| server.get("/slots").good() == idle);
}
