//! Bounds: the queue, time, connections; and what happens to sequences nobody waits for.

use crate::client::*;
use qernel::server::Server;
use serde_json::{Value, json};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// An answer that ends with the context only: 490 tokens.
fn endless(stream: bool) -> Value {
    json!({"prompt": "Write a haiku about the sea", "ignore_eos": true, "stream": stream})
}

#[test]
fn a_client_that_leaves_frees_its_pages_within_a_step() {
    let server = start(config());
    server.control.pause.store(20, Ordering::Relaxed);
    // Streaming and not, one by one: a reader of events sees its own sequence begin.
    let mut events = server.stream("/v1/generate", endless(true)).events();
    events.next().unwrap();
    assert!(server.metric("qernel_kv_pages_used") > 0.0);
    drop(events);
    let left_at = server.control.steps.load(Ordering::Relaxed);
    server.wait_until_idle();
    // The step that ran, and those that began before it was seen that the socket is closed and not just its sending half.
    let more = server.control.steps.load(Ordering::Relaxed) - left_at;
    assert!(more <= 3, "{more} steps after the client had left");

    let waiting = server.stream("/v1/generate", endless(false));
    server.wait_until("running", |server| server.metric("qernel_requests_running") == 1.0);
    drop(waiting);
    server.wait_until_idle();
    assert_eq!(server.metric("qernel_requests_cancelled_total"), 2.0);
    server.wait_until("no connection but this one", |server| server.metric("qernel_connections") == 1.0);
}

/// What follows a request keeps hyper from reading on, and so from seeing the end.
#[test]
fn a_client_that_leaves_unread_bytes_behind_is_seen_to_leave() {
    let server = start(config());
    server.control.pause.store(20, Ordering::Relaxed);
    let body = endless(false).to_string();
    for behind in ["\r\n", "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut connection = server.connect();
        let head = format!(
            "POST /v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        connection.write((head + &body + behind).as_bytes());
        server.wait_until("running", |server| server.metric("qernel_requests_running") == 1.0);
        let left_at = server.control.steps.load(Ordering::Relaxed);
        drop(connection);
        server.wait_until_idle();
        let more = server.control.steps.load(Ordering::Relaxed) - left_at;
        assert!(more <= 4, "{more} steps after the client had left {behind:?} behind");
    }
    assert_eq!(server.metric("qernel_requests_cancelled_total"), 2.0);
}

#[test]
fn abandoned_texts_are_not_worked_on() {
    let server = start(config());
    let text = json!({"text": "the sea ".repeat(200_000)}).to_string();
    let start = Instant::now();
    assert_eq!(server.post("/tokenize", &text).status, 200);
    let one = start.elapsed();
    // As many as take 16 times as long, were all of them worked on.
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    for _ in 0..16 * cores {
        let mut connection = server.connect();
        let head = format!(
            "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        connection.write((head + &text).as_bytes());
    }
    let start = Instant::now();
    assert_eq!(server.post("/v1/generate", json!({"prompt": "x", "max_tokens": 1})).status, 200);
    assert!(start.elapsed() < 8 * one, "{:?}, and one takes {one:?}", start.elapsed());
    // More than the context can be is not tokenised at all.
    let long = server.post("/v1/generate", json!({"prompt": "the sea ".repeat(200_000)}));
    assert!(long.status == 400 && long.text().contains("bytes"), "{}", long.text());
}

#[test]
fn a_full_queue_is_said_at_once() {
    let mut small = config();
    (small.max_num_sequences, small.max_queue) = (1, 1);
    let server = start(small);
    server.control.pause.store(10, Ordering::Relaxed);
    let first = server.stream("/v1/generate", endless(true)).events();
    let second = server.stream("/v1/generate", endless(true));
    server.wait_until("a queue", |server| server.metric("qernel_requests_waiting") == 1.0);
    let third = server.post("/v1/generate", endless(true));
    assert_eq!((third.status, third.header("retry-after")), (429, Some("1")));
    assert_eq!(third.json()["error"]["code"], "queue_full");
    assert_eq!(server.metric("qernel_requests_rejected_total{reason=\"queue_full\"}"), 1.0);
    drop(first);
    // The second comes to its turn; then there is room for another.
    assert_eq!(second.events().next().unwrap().name, "token");
    server.wait_until_idle();
    server.control.pause.store(0, Ordering::Relaxed);
    assert_eq!(server.post("/v1/generate", endless(false)).status, 200);
}

#[test]
fn answers_have_an_end() {
    let mut hasty = config();
    hasty.request_timeout = Duration::from_millis(300);
    let server = start(hasty);
    server.control.pause.store(30, Ordering::Relaxed);
    let late = server.post("/v1/generate", endless(false));
    assert_eq!((late.status, late.json()["error"]["code"].as_str()), (504, Some("timeout")));
    let last = server.stream("/v1/generate", endless(true)).events().last().unwrap();
    assert_eq!((last.name.as_str(), last.json()["error"]["code"].as_str()), ("error", Some("timeout")));
    server.wait_until_idle();
}

#[test]
fn connections_are_counted() {
    let mut few = config();
    few.max_connections = 3;
    few.max_peer_connections = Some(3);
    let server = start(few);
    // One is let in once the server has seen the end of the one before, by which it was asked whether it is ready.
    let mut held = Vec::new();
    server.wait_until("three connections", |server| {
        let mut connection = server.connect();
        connection.write_some(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let is_held = connection.status() == Some(200);
        held.extend(is_held.then_some(connection));
        held.len() == 3
    });
    let turned_away = server.connect().response();
    assert_eq!((turned_away.status, turned_away.header("retry-after")), (503, Some("5")));
    assert_eq!(turned_away.json()["error"]["code"], "too_many_connections");
    drop(held);
    server.wait_until("room", |server| {
        let mut connection = server.connect();
        connection.write_some(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        connection.status() == Some(200)
    });
}

/// A system that knows no longer queue than the standard library asks for (128) leaves nothing to be tested.
#[test]
fn clients_that_come_at_once_are_all_let_in() {
    let server = Server::bind(config()).unwrap();
    let address = server.local_addr().unwrap();
    let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    let clients = longest.map_or(0, |longest| longest.trim().parse().unwrap()).min(300);
    // Nobody accepts yet.
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(900));
    let connected = (0..clients).map(connect).collect::<Result<Vec<_>, _>>();
    assert_eq!(connected.unwrap().len(), clients);
}

#[test]
fn a_failing_device_is_said_and_forgotten_when_it_works_again() {
    let server = start(config());
    server.control.pause.store(5, Ordering::Relaxed);
    let mut events = server.stream("/v1/generate", endless(true)).events();
    events.next().unwrap();
    server.control.fail.store(true, Ordering::Relaxed);
    let last = events.last().unwrap();
    assert_eq!(last.name, "error");
    assert!(last.data.contains("the cable was pulled"));
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("degraded")));
    assert!(health.json()["reason"].as_str().unwrap().contains("the cable was pulled"));
    assert_eq!(server.post("/v1/generate", endless(false)).status, 500);
    server.wait_until_idle();
    assert_eq!(server.get("/health").status, 503);
    server.control.fail.store(false, Ordering::Relaxed);
    let body = json!({"prompt": "x", "max_tokens": 2});
    assert_eq!(server.post("/v1/generate", body).status, 200);
    assert_eq!(server.get("/health").good()["status"], "ready");
    assert_eq!(server.metric("qernel_requests_failed_total"), 2.0);
}

#[test]
fn a_device_that_works_again_is_found_without_a_request() {
    let mut eager = config();
    eager.recovery_interval = Duration::from_millis(20);
    let server = start(eager);
    server.control.fail.store(true, Ordering::Relaxed);
    assert_eq!(server.post("/v1/generate", endless(false)).status, 500);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.get("/health").status, 503);
    server.control.fail.store(false, Ordering::Relaxed);
    server.wait_until("health", |server| server.get("/health").status == 200);
    server.wait_until_idle();
}

/// Logits that are no numbers end an answer with 500, a stream with an error event; the server goes on.
#[test]
fn an_answer_for_which_no_token_can_be_drawn_ends_with_an_error() {
    let server = start(config());
    server.control.broken.store(true, Ordering::Relaxed);
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8});
    let response = server.post("/v1/chat/completions", &body);
    assert_eq!(response.status, 500, "{}", response.text());
    assert!(response.text().contains("NaN or infinite"), "{}", response.text());
    let body = json!({"prompt": "hi", "max_tokens": 8, "stream": true});
    let events: Vec<_> = server.stream("/v1/completions", &body).events().collect();
    assert!(events.iter().any(|event| event.data.contains("NaN or infinite")), "{events:?}");

    server.control.broken.store(false, Ordering::Relaxed);
    assert_eq!(server.post("/v1/completions", json!({"prompt": "hi", "max_tokens": 8})).status, 200);
    assert_eq!(server.get("/health").status, 200);
}
