//! Clients that dawdle, flood or do not listen, while another stream goes on unharmed.

use crate::client::*;
use serde_json::{Value, json};
use std::time::Duration;

fn good() -> Value {
    json!({"prompt": "Write a haiku about the sea with the word forty-two", "seed": 9, "max_tokens": 200, "ignore_eos": true})
}

#[test]
fn dawdling_clients_are_let_go_and_others_do_not_notice() {
    let mut strict = config();
    strict.io_timeout = Duration::from_millis(500);
    strict.max_body_bytes = 100_000;
    let server = start(strict);
    let alone = server.post("/v1/generate", good()).good()["ids"].clone();
    let mut streamed = good();
    streamed["stream"] = json!(true);
    server.control.pause.store(5, std::sync::atomic::Ordering::Relaxed);
    let events = server.stream("/v1/generate", streamed).events();

    // A head that never ends, a body that never comes, one that is longer than said, one that is too long.
    let mut slow_head = server.connect();
    slow_head.write(b"POST /v1/generate HTTP/1.1\r\nhost: localhost\r\nx-a: ");
    let mut slow_body = server.connect();
    let post = "POST /v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    slow_body.write(format!("{post}content-length: 100\r\n\r\n{{\"prompt\"").as_bytes());
    let mut announced = server.connect();
    announced.write(format!("{post}content-length: 100001\r\n\r\n").as_bytes());
    announced.write_some(&[b' '; 100_001]);
    let mut chunked = server.connect();
    chunked.write(format!("{post}transfer-encoding: chunked\r\n\r\n").as_bytes());
    for _ in 0..60 {
        chunked.write_some(format!("1000\r\n{}\r\n", " ".repeat(4096)).as_bytes());
    }
    let mut long_head = server.connect();
    long_head.write_some(format!("GET / HTTP/1.1\r\nx-a: {}", "a".repeat(200_000)).as_bytes());
    let mut garbage = server.connect();
    garbage.write_some(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
    let mut gone = server.connect();
    gone.write(format!("{post}content-length: 100\r\n\r\n{{").as_bytes());
    drop(gone);

    assert_eq!(announced.response().status, 413);
    assert_eq!(chunked.response().status, 413);
    assert_eq!(slow_body.response().status, 408);
    assert_eq!(long_head.response().status, 431);
    assert_eq!(garbage.response().status, 400);
    assert!(slow_head.is_closed());

    let ids: Vec<Value> =
        events.filter(|event| event.name == "token").map(|event| event.json()["id"].clone()).collect();
    assert_eq!(Value::Array(ids), alone);
    server.wait_until_idle();
}

#[test]
fn a_reader_that_does_not_read_loses_its_answer() {
    let mut strict = config();
    strict.io_timeout = Duration::from_millis(500);
    strict.max_pending_events = 64;
    let server = start(strict);
    // Eight megabytes and more: no socket's buffers hold that.
    let body = json!({
        "messages": [{"role": "user", "content": "Write a haiku about the sea"}],
        "stream": true, "n": 16, "ignore_eos": true, "logprobs": true, "top_logprobs": 20, "seed": 1,
    });
    let unread = server.stream("/v1/chat/completions", body);
    server.wait_until("a slow reader", |server| {
        server.metric("qernel_requests_rejected_total{reason=\"slow_reader\"}") > 0.0
    });
    // Meanwhile and afterwards the others are served.
    assert_eq!(server.post("/v1/generate", good()).status, 200);
    server.wait_until_idle();
    server.wait_until("the connection's end", |server| server.metric("qernel_connections") == 1.0);
    drop(unread);
}
