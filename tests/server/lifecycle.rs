//! Start and stop: loading, signals, logs; the real binary.

use crate::client::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[test]
fn while_the_model_loads_only_health_and_the_page_answer() {
    let (go, wait) = mpsc::channel();
    let server = start_with(config(), move |max_num_sequences, control| {
        wait.recv().unwrap();
        open(max_num_sequences, control)
    });
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("loading")));
    assert_eq!(server.get("/v1/models").status, 503);
    let early = server.post("/v1/generate", json!({"prompt": "x"}));
    assert_eq!((early.status, early.json()["error"]["code"].as_str()), (503, Some("loading")));
    assert!(early.header("retry-after").is_some());
    assert_eq!(server.get("/").status, 200);
    go.send(()).unwrap();
    server.wait_until("ready", |server| server.get("/health").status == 200);
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let failing = start_with(config(), |_, _| Err(qernel::Error::Model("no such thing".into())));
    let error = wait_for_end(failing).unwrap_err();
    assert!(matches!(error, qernel::Error::Model(_)), "{error}");
}

fn wait_for_end(running: Running) -> qernel::Result<()> {
    while std::net::TcpStream::connect(running.address).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    running.stop()
}

#[test]
fn stopping_waits_for_answers_as_long_as_it_may() {
    let mut patient = config();
    patient.shutdown_timeout = Duration::from_secs(30);
    let server = start(patient);
    server.control.pause.store(5, Ordering::Relaxed);
    let body = json!({"prompt": "x", "ignore_eos": true, "max_tokens": 60, "stream": true});
    let mut events = server.stream("/v1/generate", &body).events();
    events.next().unwrap();
    let stopping = std::thread::spawn(move || server.stop());
    assert_eq!(events.last().unwrap().name, "end");
    stopping.join().unwrap().unwrap();

    let mut hasty = config();
    hasty.shutdown_timeout = Duration::from_millis(100);
    let server = start(hasty);
    // The answer takes half a minute.
    server.control.pause.store(500, Ordering::Relaxed);
    let mut connection = server.stream("/v1/generate", &body);
    assert_eq!(connection.head().status, 200);
    let start = Instant::now();
    server.stop().unwrap();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn stopping_waits_for_requests_alone() {
    let server = start(config());
    assert!(config().shutdown_timeout >= 2 * SOON);
    let mut half = server.connect();
    half.write(b"GET /hea");
    let _idle = server.connect();
    let start = Instant::now();
    server.stop().unwrap();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(half.is_closed());

    let (_never, wait) = mpsc::channel::<()>();
    let loading = start_with(config(), move |max_num_sequences, control| {
        let _ = wait.recv();
        open(max_num_sequences, control)
    });
    let start = Instant::now();
    assert_eq!(loading.get("/health").status, 503);
    loading.stop().unwrap();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

/// The real binary.
pub struct Program {
    pub child: Child,
    /// Reads what it says on standard error to the end.
    pub log: JoinHandle<String>,
    pub address: String,
}

impl Program {
    pub fn start(args: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_qernel")), args)
    }

    /// With a command that runs the program.
    pub fn start_by(mut command: Command, args: &[&str]) -> Self {
        command.args(["serve", "--port", "0", "--device", "cpu"]).args(args);
        command
            .env_remove("QERNEL_MODEL")
            .env("QERNEL_CONFIG", "/dev/null")
            .env_remove("QERNEL_API_KEY")
            .env_remove("RUST_LOG");
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        while !first.contains("listening on http://") {
            assert!(lines.read_line(&mut first).unwrap() > 0, "it does not say where it listens: {first}");
        }
        let (_, address) = first.split_once("listening on http://").unwrap();
        let address = address.split(|c: char| c == '"' || c.is_whitespace()).next().unwrap().to_owned();
        let log = std::thread::spawn(move || {
            lines.read_to_string(&mut first).unwrap();
            first
        });
        Self { child, log, address }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

#[test]
fn signals_end_the_program_with_0_and_the_log_is_json() {
    for signal in ["-TERM", "-INT"] {
        let mut program = Program::start(&["--log-format", "json"]);
        let client = || Running::at(&program.address);
        client().wait_until("ready", |server| server.get("/health").status == 200);
        let headers = [("content-type", "application/json"), ("x-request-id", "mine-42")];
        let body = json!({"prompt": "x", "ignore_eos": true, "stream": true, "max_tokens": 300}).to_string();
        let mut events = client().send("POST", "/v1/generate", &headers, &body).events();
        events.next().unwrap();
        program.signal(signal);
        assert_eq!(events.last().unwrap().name, "end", "what runs is completed");
        assert_eq!(program.child.wait().unwrap().code(), Some(0), "{signal}");
        let log = program.log.join().unwrap();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let answered = lines.iter().find(|line| line["span"]["id"] == "mine-42").expect("the request's line");
        assert_eq!((&answered["status"], &answered["span"]["path"]), (&json!(200), &json!("/v1/generate")));
        let mut stdout = String::new();
        program.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        assert_eq!(stdout, "");
    }
}

#[cfg(unix)]
#[test]
fn signals_end_a_program_that_loads_and_a_second_one_any() {
    // It says where it listens before it loads.
    let mut loading = Program::start(&[]);
    let start = Instant::now();
    loading.signal("-TERM");
    assert_eq!(loading.child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());

    let mut program = Program::start(&[]);
    let client = Running::at(&program.address);
    client.wait_until("ready", |server| server.get("/health").status == 200);
    let messages = json!([{"role": "user", "content": "x"}]);
    let forger = json!({"messages": messages, "user": "x\nforged\u{1b}[2J", "ignore_eos": true, "stream": true, "n": 16});
    let mut events = client.stream("/v1/chat/completions", forger).events();
    events.next().unwrap();
    program.signal("-INT");
    // Signals that come together may count as one.
    client.wait_until("the port closed", |server| std::net::TcpStream::connect(server.address).is_err());
    program.signal("-TERM");
    assert_eq!(program.child.wait().unwrap().code(), Some(130));
    let log = program.log.join().unwrap();
    assert!(log.contains("forged") && !log.lines().any(|line| line.starts_with("forged")), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[cfg(unix)]
#[test]
fn connections_are_as_many_as_there_are_file_descriptors_for() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 100 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_qernel")]);
    let mut program = Program::start_by(
        command,
        &["--max-connections-per-client", "36", "--allowed-hosts", "a.example,b.example"],
    );
    let client = Running::at(&program.address);
    client.wait_until("ready", |server| server.get("/health").status == 200);
    for (host, expected) in
        [("a.example", 200), ("b.example:80", 200), ("localhost", 200), ("c.example", 403)]
    {
        let mut connection = client.connect();
        connection
            .write(format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes());
        assert_eq!(connection.status(), Some(expected), "{host}");
    }
    let held: Vec<_> = (0..36).map(|_| client.connect()).collect();
    client.wait_until("a full server", |server| server.get("/health").status == 503);
    drop(held);
    client.wait_until("room", |server| {
        let mut connection = server.connect();
        connection.write_some(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        connection.status() == Some(200)
    });
    program.signal("-TERM");
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
    let log = program.log.join().unwrap();
    assert!(log.contains("--max-connections is 36 instead of 1024"), "{log}");
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let server = start(config());
    let port = server.address.port().to_string();
    let output =
        Command::new(env!("CARGO_BIN_EXE_qernel")).args(["serve", "--port", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&port));
}

/// The command that README shows for it, run as it stands there.
#[test]
fn the_call_in_the_readme_gives_a_haiku() {
    let readme = include_str!("../../README.md");
    let address = readme.find(" http://127.0.0.1:8080/v1/chat").expect("README shows a call");
    let call = &readme[readme[..address].rfind("curl ").expect("by curl")..];
    let call = &call[..call.find("```").unwrap()];
    if Command::new("curl").arg("--version").output().is_err() {
        println!("there is no curl on this machine; the call was not tried");
        return;
    }
    let server = start(config());
    let command = format!("{call} --silent --show-error")
        .replace("127.0.0.1:8080", &server.address.to_string())
        .replace('\n', " ");
    // The word is not known beforehand.
    let word = crate::minute::minute();
    let answers = (0..5).map(|_| {
        let output = Command::new("sh").args(["-c", &command.replace("forty-two", &word)]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {output:?}"));
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    });
    let answers: Vec<String> = answers.collect();
    let good = |text: &&String| text.lines().count() == 3 && text.contains(word.as_str());
    assert!(answers.iter().filter(good).count() >= 3, "{answers:?}");
}
