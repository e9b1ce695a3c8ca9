//! A log that nobody reads or that cannot be written, and a model file that changes: the real binary goes on, and says so where it can.

use crate::client::*;
use crate::lifecycle::Program;
use serde_json::json;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, SystemTime};

/// A server, and its log up to the line that says where it listens.
fn start_unread() -> (Child, BufReader<ChildStderr>, Running) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command
        .args(["serve", "--port", "0", "--device", "cpu"])
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null")
        .env_remove("RUST_LOG");
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on http://") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    let address = line.split_once("listening on http://").unwrap().1.trim().to_owned();
    let client = Running::at(&address);
    client.wait_until("ready", |server| server.get("/health").status == 200);
    (child, log, client)
}

fn stop(mut child: Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let start = std::time::Instant::now();
    while start.elapsed() < SOON {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0));
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    panic!("it waits for its log");
}

/// Lines as long as names of requests allow, more than a pipe and the queue hold.
fn fill(client: &Running, requests: usize) {
    let id = "x".repeat(128);
    for i in 0..requests {
        let answer = client.send("GET", "/v1/models", &[("x-request-id", &id)], "");
        assert_eq!(answer.response().status, 200, "request {i}");
    }
}

#[cfg(unix)]
#[test]
fn answers_do_not_wait_for_a_log_that_nobody_reads() {
    let (child, mut log, client) = start_unread();
    // A pipe holds 64 KiB, which is some 300 lines.
    fill(&client, 1500);
    let prompt = json!({"prompt": "x", "max_tokens": 2});
    assert_eq!(client.post("/v1/generate", prompt).status, 200);
    stop(child);
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("answered"));
}

#[cfg(unix)]
#[test]
fn a_reader_of_the_log_that_leaves_ends_nothing() {
    let (child, log, client) = start_unread();
    drop(log);
    fill(&client, 20);
    let prompt = json!({"prompt": "x", "max_tokens": 2});
    assert_eq!(client.post("/v1/generate", prompt).status, 200);
    assert_eq!(client.get("/health").status, 200);
    stop(child);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_takes_no_log_and_ends_nothing() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command
        .args(["serve", "--device", "cpu", "--port", &port.to_string()])
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null");
    let child = command.stderr(full).stdout(Stdio::null()).spawn().unwrap();
    let address = format!("127.0.0.1:{port}");
    let start = std::time::Instant::now();
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    let client = Running::at(&address);
    client.wait_until("ready", |server| server.get("/health").status == 200);
    fill(&client, 20);
    stop(child);
}

#[cfg(unix)]
#[test]
fn a_model_file_that_changes_shows_in_its_health() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.gguf");
    let copy = || std::fs::write(&path, qernel::embedded::haiku_bytes()).unwrap();
    let touch = || {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    let model = path.to_str().unwrap();
    for (arguments, status) in [(&["--model", model][..], 503), (&["--model", model, "--no-mmap"], 200)] {
        copy();
        let mut program = Program::start(arguments);
        let client = Running::at(&program.address);
        client.wait_until("ready", |server| server.get("/health").status == 200);
        touch();
        let health = client.get("/health");
        assert_eq!(health.status, status, "{arguments:?}");
        if status == 503 {
            assert_eq!(health.json()["status"], "degraded");
            let reason = health.json()["reason"].as_str().unwrap().to_owned();
            assert!(reason.contains("copy.gguf") && reason.contains("was written to"), "{reason}");
        }
        // Another file in its place is nothing to the one that is mapped.
        std::fs::remove_file(&path).unwrap();
        copy();
        assert_eq!(client.get("/health").status, status);
        program.signal("-TERM");
        assert_eq!(program.child.wait().unwrap().code(), Some(0));
    }
}
