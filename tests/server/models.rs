//! Several models in one server: each answers as it does alone, they come and go as there is room, and one that cannot be loaded harms no other.

mod folder;

pub use folder::Folder;

use crate::client::*;
use qernel::server::{ModelSource, Open, ServedModel, ServerConfig};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn several(max_models: usize) -> ServerConfig {
    ServerConfig { max_models, ..config() }
}

fn start(config: ServerConfig, folder: &Arc<Folder>) -> Running {
    start_models(config, None, Arc::clone(folder) as Arc<dyn ModelSource>)
}

fn ask(model: &str, prompt: usize) -> Value {
    let prompt = format!("{prompt} birds over the sea");
    json!({"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": true, "logprobs": 0})
}

/// The tokens of an answer of `/v1/completions` and how likely they were.
fn said(answer: &Value) -> Value {
    answer["choices"][0]["logprobs"].clone()
}

/// What a model says of each prompt in a server of its own.
fn alone(folder: &Folder, name: &str, prompts: usize) -> Vec<Value> {
    let path = folder.file(name);
    let server = start_with(config(), move |max, control| {
        Ok(ServedModel { name: "alone".into(), ..open_file(&path, max, control)? })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    (0..prompts).map(|prompt| said(&server.post("/v1/completions", ask("alone", prompt)).good())).collect()
}

fn statuses(server: &Running) -> BTreeMap<String, String> {
    let list = server.get("/v1/models").good();
    let models = list["data"].as_array().unwrap().iter();
    let pair =
        |model: &Value| [&model["id"], &model["status"]["value"]].map(|of| of.as_str().unwrap().to_owned());
    models.map(|model| pair(model).into()).collect()
}

fn load(server: &Running, action: &str, model: &str) -> Response {
    server.post(&format!("/models/{action}"), json!({"model": model}))
}

const NAMES: [&str; 3] = ["haiku", "one", "two"];

#[test]
fn fifty_clients_of_three_models_where_two_have_room() {
    let folder = Folder::new(&[("one", 1), ("two", 2)]);
    let expected = NAMES.map(|name| alone(&folder, name, 4));
    assert_eq!(BTreeSet::from_iter(expected.iter().map(|of| of[0].to_string())).len(), 3);
    // Either bound leaves one of them out.
    let bytes: u64 = NAMES.iter().map(|name| folder.check(name).unwrap()).sum();
    let of_memory = ServerConfig { models_memory: Some(bytes - 1), ..several(0) };
    for config in [several(2), of_memory] {
        fifty_clients(&folder, &expected, config);
    }
}

fn fifty_clients(folder: &Arc<Folder>, expected: &[Vec<Value>; 3], config: ServerConfig) {
    let server = start(config, folder);
    assert_eq!(server.get("/health").good()["status"], "ready");
    assert!(statuses(&server).values().all(|status| status == "unloaded"));
    std::thread::scope(|scope| {
        for client in 0..50 {
            let server = &server;
            scope.spawn(move || {
                for turn in 0..3 {
                    let (model, prompt) = ((client + turn) % 3, (client + turn) % 4);
                    let answer = server.post("/v1/completions", ask(NAMES[model], prompt)).good();
                    assert_eq!(answer["model"], NAMES[model]);
                    assert_eq!(said(&answer), expected[model][prompt], "client {client}, turn {turn}");
                    assert!(folder.in_memory() <= 2, "more models are loaded than may be");
                }
            });
        }
    });
    server.wait_until_idle();
    let loads = |name: &str| server.metric(&format!("qernel_model_loads_total{{model=\"{name}\"}}"));
    let all: f64 = NAMES.iter().map(|name| loads(name)).sum();
    assert!(NAMES.iter().all(|name| loads(name) >= 1.0) && all >= 3.0, "{all}");
    let loaded = server.metric("qernel_models_loaded");
    assert!(loaded <= 2.0, "{loaded}");
    let for_room = |name: &str| {
        server.metric(&format!("qernel_model_unloads_total{{model=\"{name}\",reason=\"room\"}}"))
    };
    assert_eq!(NAMES.iter().map(|name| for_room(name)).sum::<f64>(), all - loaded);
    assert!(server.metric("qernel_kv_pages") > 0.0);
    for (name, status) in statuses(&server) {
        assert_eq!(load(&server, "unload", &name).status, if status == "loaded" { 200 } else { 400 });
    }
    assert_eq!((server.metric("qernel_models_loaded"), server.metric("qernel_kv_pages")), (0.0, 0.0));
    assert_eq!(folder.in_memory(), 0);
}

#[test]
fn each_interface_chooses_its_model() {
    let folder = Folder::new(&[("one", 1)]);
    let aliases = BTreeMap::from([("gpt-4o".to_owned(), "one".to_owned())]);
    let server = start(ServerConfig { aliases, ..several(0) }, &folder);
    let none = server.post("/v1/completions", json!({"prompt": "a"}));
    assert_eq!((none.status, none.json()["error"]["param"].as_str()), (400, Some("model")));
    assert!(none.text().contains("haiku") && none.text().contains("one"), "{}", none.text());
    assert_eq!(server.get("/props").status, 400);
    assert_eq!(server.get("/props?model=one").json()["error"]["code"], "model_not_loaded");

    let turn = json!([{"role": "user", "content": "Write of rain"}]);
    let cases = [
        ("/v1/chat/completions", json!({"messages": turn, "max_tokens": 2})),
        ("/v1/responses", json!({"input": "Write of rain", "max_output_tokens": 2})),
        ("/v1/messages", json!({"messages": turn, "max_tokens": 2})),
        ("/v1/completions", json!({"prompt": "rain", "max_tokens": 2})),
        ("/v1/embeddings", json!({"input": "rain"})),
    ];
    for (path, body) in cases {
        let with = |model: &str| {
            let mut body = body.clone();
            body["model"] = model.into();
            server.post(path, body)
        };
        for (asked, own) in [("haiku", "haiku"), ("one", "one"), ("gpt-4o", "one")] {
            assert_eq!(with(asked).good()["model"], own, "{path}");
        }
        let unknown = with("nobody");
        assert_eq!(unknown.status, 404, "{path}");
        let message = unknown.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("nobody") && message.contains("\"one\""), "{message}");
        assert_eq!(unknown.json()["type"] == "error", path == "/v1/messages", "{path}");
    }
    let ids = |model: Value| {
        server.post("/tokenize", json!({"text": "the haiku of rain", "model": model})).good()["ids"].clone()
    };
    assert_ne!(ids(json!("haiku")), ids(json!("one")));
    assert_eq!(ids(json!("gpt-4o")), ids(json!("one")));
    let text = server.post("/detokenize", json!({"ids": ids(json!("one")), "model": "one"})).good();
    assert_eq!(text["text"], "the haiku of rain");
    let generate =
        json!({"prompt": "rain", "raw": true, "max_tokens": 2, "temperature": 0, "model": "haiku"});
    assert_eq!(server.post("/v1/generate", generate).status, 200);
    let infill = json!({"input_prefix": "a", "input_suffix": "", "model": "nobody"});
    assert_eq!(server.post("/infill", infill).status, 404);

    // What names none is the one's that was loaded last.
    assert_eq!(load(&server, "unload", "haiku").status, 200);
    assert_eq!(
        server.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1})).good()["model"],
        "one"
    );
    assert_eq!(load(&server, "load", "haiku").good(), json!({"success": true}));
    assert_eq!(
        server.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1})).good()["model"],
        "haiku"
    );
    assert_eq!(server.get("/props").good()["model_alias"], "haiku");
    assert_eq!(server.get("/props?model=gpt%2d4o").good()["model_alias"], "one");
    assert_eq!(server.get("/slots?model=one").good().as_array().unwrap().len(), 64);
    assert_eq!(server.get("/lora-adapters?model=nobody").status, 404);
    assert_eq!(server.get("/get_load").good()[0]["num_reqs"], 0);
    let one = server.get("/v1/models/gpt-4o").good();
    assert_eq!((&one["id"], &one["aliases"]), (&json!("one"), &json!(["gpt-4o"])));
    assert_eq!(one["max_model_len"], 2048);
    assert_eq!(server.get("/v1/models/nobody").status, 404);
    for bad in [json!({}), json!({"model": 1}), json!({"model": "one", "x": 1})] {
        assert_eq!(server.post("/models/load", bad).status, 400);
    }
    assert_eq!(load(&server, "load", "nobody").status, 404);
}

#[test]
fn a_broken_file_fails_its_own_requests_until_it_is_another() {
    let folder = Folder::new(&[("one", 1)]);
    std::fs::write(folder.file("broken"), b"GGUF and nothing behind it").unwrap();
    let server = start(ServerConfig { models_retry: Duration::from_secs(3600), ..several(1) }, &folder);
    assert_eq!(server.post("/v1/completions", ask("one", 0)).status, 200);
    let ask_broken = || server.post("/v1/completions", ask("broken", 0));
    let failed = ask_broken();
    assert_eq!((failed.status, failed.json()["error"]["code"].as_str()), (500, Some("model_failed")));
    assert!(failed.text().contains("not a usable GGUF file"), "{}", failed.text());
    assert!(!failed.text().contains(&*folder.path.path().to_string_lossy()), "{}", failed.text());
    assert_eq!(ask_broken().text(), failed.text());
    assert_eq!(
        server.metric("qernel_model_load_failures_total{model=\"broken\"}"),
        1.0,
        "it is not tried at once"
    );
    let status = server.get("/v1/models/broken").good()["status"].clone();
    assert_eq!((&status["value"], &status["failed"]), (&json!("unloaded"), &json!(true)));
    assert!(status["reason"].as_str().unwrap().contains("GGUF"), "{status}");
    assert_eq!(statuses(&server)["one"], "loaded", "it took nobody's place");
    assert_eq!(server.post("/v1/completions", ask("one", 0)).status, 200);
    assert_eq!(server.get("/health").status, 200);

    folder.write("broken", 7);
    server.wait_until("another file", |_| ask_broken().status == 200);
    // A file that came is found, and one that went is not.
    folder.write("new", 8);
    assert_eq!(server.post("/v1/completions", ask("new", 0)).status, 200);
    std::fs::remove_file(folder.file("new")).unwrap();
    server.wait_until("its end", |server| !statuses(server).contains_key("new"));
    assert_eq!(server.post("/v1/completions", ask("new", 0)).status, 404);
}

#[test]
fn a_model_is_tried_again_after_a_while() {
    let folder = Folder::new(&[]);
    std::fs::write(folder.file("broken"), b"GGUF").unwrap();
    let server = start(ServerConfig { models_retry: Duration::from_millis(1), ..several(2) }, &folder);
    for count in 1..=3 {
        assert_eq!(server.post("/v1/completions", ask("broken", 0)).status, 500);
        let failures = server.metric("qernel_model_load_failures_total{model=\"broken\"}");
        assert!(failures >= f64::from(count), "{failures}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_model_that_is_replaced_answers_anew_once_it_has_answered() {
    let folder = Folder::new(&[("one", 1)]);
    let old = alone(&folder, "one", 1);
    let server = start(several(2), &folder);
    let answer = || said(&server.post("/v1/completions", ask("one", 0)).good());
    assert_eq!(answer(), old[0]);
    folder.control("one").pause.store(20, Ordering::Relaxed);
    let mut body = ask("one", 0);
    body["stream"] = true.into();
    body["max_tokens"] = 100.into();
    let mut events = server.stream("/v1/completions", body).events();
    let first = events.next().unwrap().json();
    assert_eq!(first["choices"][0]["logprobs"]["tokens"][0], old[0]["tokens"][0]);
    folder.write("one", 5);
    let new = alone(&folder, "one", 1);
    assert_ne!(old, new);
    server.wait_until("the new model", |_| answer() == new[0]);
    // The stream was not cut off.
    let last = events.filter(|event| event.data != "[DONE]").last().unwrap().json();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let changed = "qernel_model_unloads_total{model=\"one\",reason=\"changed\"}";
    assert_eq!(server.metric(changed), 1.0);
}

/// A stream of 500 tokens that has begun.
fn long_stream(server: &Running, model: &str) -> Events {
    let body = json!({"model": model, "prompt": "x", "max_tokens": 500, "ignore_eos": true, "stream": true});
    let mut events = server.stream("/v1/completions", body).events();
    events.next().unwrap();
    events
}

#[test]
fn what_has_requests_stays_and_others_are_told_to_come_again() {
    let folder = Folder::new(&[("one", 1), ("two", 2)]);
    let patience = Duration::from_millis(50);
    let server = start(ServerConfig { models_patience: patience, ..several(1) }, &folder);
    assert_eq!(load(&server, "load", "one").status, 200);
    folder.control("one").pause.store(10, Ordering::Relaxed);
    let events = long_stream(&server, "one");
    let refused = load(&server, "unload", "one");
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (409, Some("model_in_use")));
    let busy = server.post("/v1/completions", ask("two", 0));
    assert_eq!((busy.status, busy.json()["error"]["code"].as_str()), (503, Some("models_busy")));
    assert!(busy.header("retry-after").is_some() && busy.text().contains("one"), "{}", busy.text());
    assert_eq!(server.metric("qernel_requests_rejected_total{reason=\"models_busy\"}"), 1.0);
    // Nobody waits for its place any more: it takes requests again.
    assert_eq!(server.post("/v1/completions", ask("one", 0)).status, 200);
    // A client that leaves lets its model go.
    drop(events);
    server.wait_until_idle();
    assert_eq!(server.post("/v1/completions", ask("two", 0)).status, 200);
    assert_eq!(load(&server, "unload", "one").status, 400, "it made room");
    assert_eq!(load(&server, "unload", "two").status, 200);
    assert_eq!(folder.in_memory(), 0);
}

#[test]
fn those_who_wait_get_their_turn_while_others_keep_coming() {
    let folder = Folder::new(&[("one", 1), ("two", 2)]);
    let server = start(several(1), &folder);
    assert_eq!(load(&server, "load", "one").status, 200);
    folder.control("one").pause.store(5, Ordering::Relaxed);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Never is there a moment without a request for it.
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    assert_eq!(server.post("/v1/completions", ask("one", 0)).status, 200);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(server.post("/v1/completions", ask("two", 0)).status, 200);
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn too_little_memory_unloads_others() {
    let folder = Folder::new(&[("one", 1), ("two", 2)]);
    folder.memory.store(1, Ordering::Relaxed);
    let server = start(several(0), &folder);
    for name in ["one", "two", "haiku", "one"] {
        assert_eq!(server.post("/v1/completions", ask(name, 0)).good()["model"], name);
        assert_eq!(folder.in_memory(), 1);
    }
    folder.memory.store(0, Ordering::Relaxed);
    assert_eq!(server.post("/v1/completions", ask("two", 0)).status, 200);
    assert_eq!(folder.in_memory(), 2, "where there is memory again both stay");
}

#[test]
fn a_bound_of_memory_is_kept() {
    let folder = Folder::new(&[("one", 1), ("two", 2), ("three", 3)]);
    let bytes = folder.check("one").unwrap();
    let of_file = std::fs::metadata(folder.file("one")).unwrap().len();
    // K and V of 2,048 tokens, two layers and two heads of 64 values in f16.
    let of_weights = bytes - 2048 * 2 * 2 * 2 * 64 * 2;
    assert!((of_file / 2..of_file).contains(&of_weights), "{of_weights} of a file of {of_file}");
    for (memory, most) in [(1, 1), (2 * bytes, 2), (3 * bytes - 1, 2), (3 * bytes, 3)] {
        let server = start(ServerConfig { models_memory: Some(memory), ..several(0) }, &folder);
        for name in ["one", "two", "three"] {
            assert_eq!(server.post("/v1/completions", ask(name, 0)).status, 200);
        }
        let loaded = statuses(&server);
        let loaded = ["one", "two", "three"].map(|name| loaded[name] == "loaded");
        assert_eq!(loaded, [most > 2, most > 1, true], "{memory} bytes");
        assert_eq!(folder.in_memory(), most);
    }
}

#[test]
fn what_nobody_asks_for_is_unloaded() {
    let folder = Folder::new(&[("one", 1)]);
    let idle = Some(Duration::from_millis(100));
    let server = start(ServerConfig { models_idle: idle, ..several(2) }, &folder);
    folder.control("one").pause.store(10, Ordering::Relaxed);
    let events = long_stream(&server, "one");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(statuses(&server)["one"], "loaded", "it has a request");
    drop(events);
    // To look at it is no use of it.
    server.wait_until("its end", |server| server.get("/props?model=one").status == 503);
    assert_eq!(statuses(&server)["one"], "unloaded");
    server.wait_until("free memory", |_| folder.in_memory() == 0);
    assert_eq!(server.metric("qernel_model_unloads_total{model=\"one\",reason=\"idle\"}"), 1.0);
    let again = json!({"prompt": "x", "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", again).good()["model"], "one", "it was loaded last");
}

#[test]
fn the_model_that_the_server_was_started_with_stays() {
    let folder = Folder::new(&[("one", 1), ("two", 2)]);
    let open: Open = Box::new(|| Ok(ServedModel { name: "main".into(), ..open(64, Arc::default())? }));
    let server = start_models(several(1), Some(open), Arc::clone(&folder) as Arc<dyn ModelSource>);
    server.wait_until("ready", |server| server.get("/health").status == 200);
    for name in ["one", "two", "main", "one"] {
        assert_eq!(server.post("/v1/completions", ask(name, 0)).good()["model"], name);
        let unnamed = json!({"prompt": "x", "max_tokens": 1});
        assert_eq!(server.post("/v1/completions", unnamed).good()["model"], "main");
    }
    let loaded = BTreeMap::from_iter(statuses(&server).into_iter().filter(|(_, status)| status == "loaded"));
    assert_eq!(loaded.into_keys().collect::<Vec<_>>(), ["main", "one"]);
    assert_eq!(load(&server, "unload", "main").status, 404, "it is none of those that come and go");
    assert_eq!(server.post("/v1/completions", ask("nobody", 0)).status, 404);
}

#[test]
fn stopping_does_not_wait_for_a_load_that_nobody_waits_for() {
    let folder = Folder::new(&[("one", 1)]);
    folder.is_held.store(true, Ordering::Relaxed);
    let hasty = ServerConfig { shutdown_timeout: Duration::from_millis(100), ..several(2) };
    let server = start(hasty, &folder);
    let waiting = server.stream("/v1/completions", ask("one", 0));
    server.wait_until("loading", |server| statuses(server)["one"] == "loading");
    let begun = Instant::now();
    server.stop().unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop(waiting);
    folder.is_held.store(false, Ordering::Relaxed);
}

#[test]
fn stopping_answers_those_who_wait_for_a_load() {
    let folder = Folder::new(&[("one", 1)]);
    folder.is_held.store(true, Ordering::Relaxed);
    let server = start(several(2), &folder);
    let waiting = server.stream("/v1/completions", ask("one", 0));
    server.wait_until("loading", |server| statuses(server)["one"] == "loading");
    let stopping = std::thread::spawn(move || server.stop());
    std::thread::sleep(Duration::from_millis(50));
    folder.is_held.store(false, Ordering::Relaxed);
    assert_eq!(waiting.response().status, 200);
    stopping.join().unwrap().unwrap();
    assert_eq!(folder.in_memory(), 0);
}

#[test]
fn a_queue_of_those_who_wait_is_bounded() {
    let folder = Folder::new(&[("one", 1)]);
    folder.is_held.store(true, Ordering::Relaxed);
    let small = ServerConfig { max_num_sequences: 2, max_queue: 1, ..several(2) };
    let server = start(small, &folder);
    let waiting: Vec<_> = (0..3).map(|_| server.stream("/v1/completions", ask("one", 0))).collect();
    server.wait_until("a full queue", |server| {
        let health = server.get("/health").status == 200;
        health && server.metric("qernel_connections") >= 4.0
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(server.post("/v1/completions", ask("one", 0)).status, 429);
    folder.is_held.store(false, Ordering::Relaxed);
    assert!(waiting.into_iter().all(|waiting| waiting.response().status == 200));
}
