//! Who may connect, under which name, how often; and who is still there.

use crate::client::*;
use qernel::server::Server;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The status of a request that is these bytes, if the server says one.
fn status(server: &Running, request: &str) -> Option<u16> {
    let mut connection = server.connect();
    connection.write(request.as_bytes());
    connection.status()
}

/// A page of another site whose name points here (DNS rebinding) is let in nowhere.
#[test]
fn other_hosts_are_refused() {
    let server = start(config());
    let of = |host: &str| {
        let get = |path: &str| {
            status(&server, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
        };
        let found = ["/health", "/", "/v1/models", "/openapi.json"].map(get);
        assert!(found.iter().all(|status| *status == found[0]), "{host}: {found:?}");
        found[0]
    };
    let port = server.address.port();
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "app.localhost"] {
        assert_eq!(of(host), Some(200), "{host}");
        assert_eq!(of(&format!("{host}:{port}")), Some(200), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil", ""] {
        assert_eq!(of(host), Some(403), "{host}");
        assert_eq!(of(&format!("{host}:{port}")), Some(403), "{host}");
    }
    // As to a proxy: the first line counts.
    let named = "GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&server, named), Some(403));
    let body = json!({"messages": [{"role": "user", "content": "x"}]}).to_string();
    let post = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\norigin: http://evil.example\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut connection = server.connect();
    connection.write(post.as_bytes());
    let refused = connection.response();
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &json!("host_not_allowed")));
    assert!(refused.text().contains("--allowed-hosts"));

    let mut listed = config();
    listed.allowed_hosts = vec!["gpu.example".into()];
    let server = start(listed);
    let get = |host: &str| {
        status(&server, &format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
    };
    assert_eq!(
        (get("gpu.example:8080"), get("localhost"), get("evil.example")),
        (Some(200), Some(200), Some(403))
    );

    let mut wrong = config();
    wrong.allowed_hosts = vec!["http://gpu.example".into()];
    assert!(Server::bind(wrong).err().unwrap().to_string().contains("--allowed-hosts"));
}

#[test]
fn a_request_of_http_1_1_names_its_host_once() {
    let server = start(config());
    for (request, expected) in [
        ("GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
        ("GET http://localhost/health HTTP/1.1\r\n\r\n", 400),
        ("GET /health HTTP/1.0\r\n\r\n", 200),
        ("GET /health HTTP/1.0\r\nhost: evil.example\r\n\r\n", 403),
    ] {
        assert_eq!(status(&server, request), Some(expected), "{request:?}");
    }
}

/// A client that has said all it wants to say and closes its sending half waits for the answer.
#[test]
fn a_client_that_only_stops_sending_is_answered() {
    let server = start(config());
    server.control.pause.store(20, Ordering::Relaxed);
    let body = |stream: bool| json!({"prompt": "x", "max_tokens": 20, "ignore_eos": true, "seed": 1, "stream": stream});
    let whole = server.post("/v1/generate", body(false)).good();
    let mut half = server.stream("/v1/generate", body(false));
    half.finish();
    assert_eq!(half.response().good()["ids"], whole["ids"]);

    let mut half = server.stream("/v1/generate", body(true));
    half.finish();
    let events: Vec<_> = half.events().filter(|event| !event.data.is_empty()).collect();
    assert_eq!(events.last().unwrap().name, "end");
    assert_eq!(events.len(), 21);

    // Nothing stands before an answer of the older protocol, whose clients know of no interim ones.
    let body = body(false).to_string();
    let head = format!(
        "POST /v1/generate HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut half = server.connect();
    half.write((head + &body).as_bytes());
    half.finish();
    assert_eq!(half.status(), Some(200));

    // Several requests at once, and then no more.
    let get = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut half = server.connect();
    half.write(get.repeat(3).as_bytes());
    half.finish();
    let mut statuses = 0;
    while half.head_or_end().is_some_and(|head| head.status == 200) {
        statuses += 1;
    }
    assert_eq!(statuses, 3);
    server.wait_until_idle();
    assert_eq!(server.metric("qernel_requests_cancelled_total"), 0.0);
}

/// One that first stops sending and then goes, with an answer that has not begun and with one that has.
#[test]
fn a_client_that_stops_sending_and_then_goes_is_seen_to_go() {
    let server = start(config());
    server.control.pause.store(20, Ordering::Relaxed);
    for stream in [false, true] {
        let body = json!({"prompt": "x", "ignore_eos": true, "stream": stream});
        let mut connection = server.stream("/v1/generate", body);
        server.wait_until("running", |server| server.metric("qernel_requests_running") == 1.0);
        connection.finish();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(server.metric("qernel_requests_running"), 1.0, "it waits for its answer");
        // What the server has said meanwhile stands there unread: its end is told at once.
        let left_at = server.control.steps.load(Ordering::Relaxed);
        drop(connection);
        server.wait_until_idle();
        let more = server.control.steps.load(Ordering::Relaxed) - left_at;
        assert!(more <= 4, "{more} steps after the client had left");
    }
    assert_eq!(server.metric("qernel_requests_cancelled_total"), 2.0);
}

#[test]
fn a_client_that_goes_while_it_waits_for_its_turn_leaves_the_queue() {
    let mut narrow = config();
    narrow.max_num_sequences = 1;
    let server = start(narrow);
    server.control.pause.store(20, Ordering::Relaxed);
    let endless = |stream: bool| json!({"prompt": "x", "ignore_eos": true, "stream": stream});
    let mut first = server.stream("/v1/generate", endless(true)).events();
    first.next().unwrap();
    for stream in [false, true] {
        let second = server.stream("/v1/generate", endless(stream));
        server.wait_until("a queue", |server| server.metric("qernel_requests_waiting") == 1.0);
        drop(second);
        server.wait_until("an empty queue", |server| server.metric("qernel_requests_waiting") == 0.0);
    }
    assert!(first.next().is_some());
}

/// A connection from another address of loopback.
#[cfg(target_os = "linux")]
fn connect_from(from: &str, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[cfg(target_os = "linux")]
#[test]
fn one_client_with_idle_connections_does_not_lock_others_out() {
    let mut few = config();
    few.max_connections = 16;
    let server = start(few);
    let health = |stream: &mut TcpStream| {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    };
    // As many as it likes; three quarters stay.
    let mut greedy: Vec<TcpStream> = (0..40).map(|_| connect_from("127.0.0.2", server.address)).collect();
    let answer = health(greedy.last_mut().unwrap());
    assert!(answer.is_empty() || answer.contains("503") && answer.contains("from one address"), "{answer}");
    for from in ["127.0.0.1", "127.0.0.3"] {
        let answer = health(&mut connect_from(from, server.address));
        assert!(answer.starts_with("HTTP/1.1 200"), "{from}: {answer}");
    }
    // Those that were just answered may be a moment in going.
    server.wait_until("those that idle, and this one", |server| server.metric("qernel_connections") == 13.0);
    drop(greedy);
    server.wait_until("room", |_| {
        health(&mut connect_from("127.0.0.2", server.address)).starts_with("HTTP/1.1 200")
    });
}
