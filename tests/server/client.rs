//! A server in this process, and a client of raw sockets that can also behave badly.

pub use crate::served_model::{Control, open, open_adapted, open_changed, open_file, open_model, open_with};
use qernel::chat::ChatTemplate;
use qernel::error::Result;
use qernel::server::{ModelSource, Open, ServedModel, Server, ServerConfig};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Long enough that only a hanging server is slower.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A bound for what takes milliseconds on an idle machine and, where it is wrong, at least half a minute: no test depends on how
/// busy the machine is.
pub const SOON: Duration = Duration::from_secs(15);

/// A server that runs until it is dropped.
pub struct Running {
    pub address: SocketAddr,
    pub control: Arc<Control>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The configuration that most tests take: a free port.
pub fn config() -> ServerConfig {
    ServerConfig { port: 0, ..ServerConfig::default() }
}

/// Starts a server and waits until it is ready.
pub fn start(config: ServerConfig) -> Running {
    let running = start_with(config, open);
    running.wait_until("ready", |running| running.get("/health").status == 200);
    running
}

/// Starts a server with another chat template.
pub fn start_with_template(config: ServerConfig, source: &'static str) -> Running {
    let server = start_with(config, move |max_num_sequences, control| {
        let template = ChatTemplate::new(source, "", "");
        open(max_num_sequences, control).map(|model| ServedModel { template, ..model })
    });
    server.wait_until("ready", |server| server.get("/health").status == 200);
    server
}

/// Starts a server with a model opened in another way.
pub fn start_with(
    config: ServerConfig,
    open: impl FnOnce(usize, Arc<Control>) -> Result<ServedModel> + Send + 'static,
) -> Running {
    let control = Arc::new(Control::default());
    let of_server = Arc::clone(&control);
    let max_num_sequences = config.max_num_sequences;
    run(config, control, move |server, stop| server.run(move || open(max_num_sequences, of_server), stop))
}

/// Starts a server of many models, and of one that it is started with where `open` says so.
pub fn start_models(config: ServerConfig, open: Option<Open>, source: Arc<dyn ModelSource>) -> Running {
    run(config, Arc::default(), move |server, stop| server.run_models(open, source, stop))
}

/// Runs a server on a thread.
fn run(
    config: ServerConfig,
    control: Arc<Control>,
    serve: impl FnOnce(Server, Pin<Box<dyn Future<Output = ()>>>) -> Result<()> + Send + 'static,
) -> Running {
    let server = Server::bind(config).unwrap();
    let address = server.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stopped = async {
        let _ = stopped.await;
    };
    let thread = std::thread::spawn(move || serve(server, Box::pin(stopped)));
    Running { address, control, stop: Some(stop), thread: Some(thread) }
}

impl Running {
    /// A server in another process.
    pub fn at(address: &str) -> Self {
        Self { address: address.parse().unwrap(), control: Arc::default(), stop: None, thread: None }
    }

    /// Stops it as a signal does and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        drop(self.stop.take());
        self.thread.take().expect("it runs").join().unwrap()
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "").response()
    }

    pub fn post(&self, path: &str, body: impl ToString) -> Response {
        self.stream(path, body).response()
    }

    /// Posts JSON and leaves the answer to be read.
    pub fn stream(&self, path: &str, body: impl ToString) -> Connection {
        self.send("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Connection {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if method == "POST" {
            text += &format!("content-length: {}\r\n", body.len());
        }
        let mut connection = self.connect();
        connection.write((text + "\r\n" + body).as_bytes());
        connection
    }

    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { stream: BufReader::new(stream) }
    }

    /// A value of `/metrics`; 0 where there is none yet.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits for a condition that must come.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "{what} never came");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until nothing waits, runs or holds a page.
    pub fn wait_until_idle(&self) {
        self.wait_until("idleness", |running| {
            let text = running.get("/metrics").text();
            ["requests_waiting", "requests_running", "kv_pages_used"]
                .iter()
                .all(|name| text.contains(&format!("qernel_{name} 0\n")))
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap().unwrap();
        }
    }
}

/// An open connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body of a good answer.
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }
}

impl Connection {
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Writes as far as the server takes it; a server may answer and close before it has read everything.
    pub fn write_some(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Closes the sending half.
    pub fn finish(&mut self) {
        self.stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Whether the server has closed without another word.
    pub fn is_closed(&mut self) -> bool {
        !matches!(self.stream.fill_buf(), Ok(bytes) if !bytes.is_empty())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The status, if the server says one before it closes.
    pub fn status(&mut self) -> Option<u16> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        line.split(' ').nth(1)?.parse().ok()
    }

    /// Status and headers, behind what the server said in the meantime.
    pub fn head(&mut self) -> Response {
        loop {
            let head = self.any_head();
            if head.status >= 200 {
                return head;
            }
        }
    }

    /// Status and headers of an answer to one of several requests, without its body; `None` where the server has closed.
    pub fn head_or_end(&mut self) -> Option<Response> {
        if self.is_closed() {
            return None;
        }
        let head = self.head();
        let length = head.header("content-length").map_or(0, |length| length.parse().unwrap());
        self.stream.read_exact(&mut vec![0; length]).unwrap();
        Some(head)
    }

    fn any_head(&mut self) -> Response {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {status:?}"));
        let status = status.parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Response { status, headers, body: Vec::new() }
    }

    /// The next chunk of a chunked body; empty at its end.
    fn chunk(&mut self) -> Vec<u8> {
        let size = self.line();
        let size =
            usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("no size of a chunk: {size:?}"));
        let mut bytes = vec![0; size + 2];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes.truncate(size);
        bytes
    }

    pub fn response(mut self) -> Response {
        let mut response = self.head();
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                response.body.extend(chunk);
            }
        } else {
            let length = response.header("content-length").map_or(0, |length| length.parse().unwrap());
            response.body.resize(length, 0);
            self.stream.read_exact(&mut response.body).unwrap();
        }
        response
    }

    /// The events of a stream that has begun well.
    pub fn events(mut self) -> Events {
        let head = self.head();
        if head.status != 200 {
            let length: usize = head.header("content-length").unwrap().parse().unwrap();
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).unwrap();
            panic!("{}: {}", head.status, String::from_utf8_lossy(&body));
        }
        assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
        Events { connection: self, buffer: String::new() }
    }
}

/// Server-Sent Events as they come.
pub struct Events {
    connection: Connection,
    buffer: String,
}

/// One event: its name, empty where it has none, and its data.
#[derive(Debug, PartialEq)]
pub struct SseEvent {
    pub name: String,
    pub data: String,
}

impl SseEvent {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }
}

impl Iterator for Events {
    type Item = SseEvent;

    fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
                };
                let event = SseEvent { name: field("event: "), data: field("data: ") };
                self.buffer = rest.to_owned();
                return Some(event);
            }
            let chunk = self.connection.chunk();
            if chunk.is_empty() {
                assert_eq!(self.buffer, "", "the stream ends within an event");
                return None;
            }
            self.buffer += std::str::from_utf8(&chunk).expect("events are cut between characters");
        }
    }
}
