//! A hub on this machine: the requests of Hugging Face's interface that are used, a second port in the place of the hosts that large
//! files come from, and what may go wrong on the way.

use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

pub const REPO: &str = "Owner/Tiny-GGUF";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has, and how it behaves. All may be changed between requests.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    pub commit: String,
    /// Commits of revisions beside `main`, as they stand in an address; all have the same files.
    pub revisions: BTreeMap<String, String>,
    /// Without it everything is 401; with another 403.
    pub token: Option<String>,
    /// Answers that are made before any other, each once: status and header lines.
    pub first: VecDeque<(u16, String)>,
    /// The same, of files alone.
    pub after_listing: VecDeque<(u16, String)>,
    /// Bytes after which the connections of large files end, each once.
    pub cuts: VecDeque<usize>,
    /// Bytes after which nothing more comes of large files, until the client leaves.
    pub stalls: VecDeque<usize>,
    /// Large files come as other bytes, so many times.
    pub wrong: usize,
    /// Ranges are not known.
    pub no_ranges: bool,
    /// The listing has neither sizes nor hashes.
    pub bare: bool,
    /// What the listing has besides, as JSON.
    pub more: String,
    /// The hub names these hashes for files, whatever they are.
    pub hashes: BTreeMap<String, String>,
    pub seen: Vec<Seen>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub is_hub: bool,
    /// Method and path.
    pub what: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// Runs until the process ends.
pub struct HubServer {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// A hub with one repository that has these files.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, commit: COMMIT.to_owned(), ..State::default() }));
        let cdn = serve(&state, String::new());
        Self { address: serve(&state, cdn), state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The requests since this was asked last.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What git calls a file.
pub fn blob_id(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Large files are those that the hub keeps elsewhere.
fn is_large(path: &str) -> bool {
    path.ends_with(".gguf") || path.ends_with(".safetensors")
}

/// Answers on a port of its own, as the hub where there is a host to send to, as that host where not. Gives its address.
fn serve(state: &Arc<Mutex<State>>, cdn: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, cdn) = (Arc::clone(&state), cdn.clone());
            // A client that leaves is what some tests are about.
            thread::spawn(move || drop(answer(stream, &state, &cdn)));
        }
    });
    address
}

/// An answer: status, header lines and body, of which only so many bytes may be sent.
struct Reply {
    status: u16,
    headers: String,
    body: Vec<u8>,
    cut: Option<usize>,
    stall: Option<usize>,
}

impl Reply {
    fn new(status: u16, headers: String, body: Vec<u8>) -> Self {
        Self { status, headers, body, cut: None, stall: None }
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>, cdn: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (mut range, mut authorization) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match &name.to_ascii_lowercase()[..] {
            "range" => range = Some(value.to_owned()),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let (method, rest) = line.split_once(' ').unwrap_or_default();
    let target = rest.split(' ').next().unwrap_or_default();
    let is_hub = !cdn.is_empty();
    let reply = {
        let mut state = state.lock().unwrap();
        let seen = Seen { is_hub, what: format!("{method} {target}"), range: range.clone(), authorization };
        let path = target.split('?').next().unwrap_or_default();
        let reply = if is_hub { hub(&mut state, &seen, path, cdn) } else { large(&mut state, &seen, path) };
        state.seen.push(seen);
        reply
    };
    send(stream, method, &reply)
}

fn send(mut stream: TcpStream, method: &str, reply: &Reply) -> std::io::Result<()> {
    let Reply { status, headers, body, cut, stall } = reply;
    write!(stream, "HTTP/1.1 {status} X\r\n{headers}")?;
    if !headers.to_ascii_lowercase().contains("content-length") {
        write!(stream, "Content-Length: {}\r\n", body.len())?;
    }
    write!(stream, "Connection: close\r\n\r\n")?;
    if method != "HEAD" {
        stream.write_all(&body[..cut.or(*stall).unwrap_or(body.len()).min(body.len())])?;
    }
    stream.flush()?;
    if stall.is_some() {
        // Clients send no more: this ends when they leave.
        return stream.read_exact(&mut [0; 1]);
    }
    // Until the client has closed: an end with unread bytes would be a reset, which may overtake the answer.
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read(&mut [0; 1]);
    Ok(())
}

fn hub(state: &mut State, seen: &Seen, path: &str, cdn: &str) -> Reply {
    if let Some((status, headers)) = state.first.pop_front() {
        return Reply::new(status, headers, Vec::new());
    }
    match (&state.token, &seen.authorization) {
        (Some(_), None) => return Reply::new(401, String::new(), Vec::new()),
        (Some(token), Some(shown)) if *shown != format!("Bearer {token}") => {
            return Reply::new(403, String::new(), Vec::new());
        }
        _ => {}
    }
    let asked = path.strip_prefix(&format!("/api/models/{REPO}"));
    let revision = asked.and_then(|rest| rest.strip_prefix("/revision/"));
    let of_other = revision.and_then(|revision| state.revisions.get(revision));
    let commit =
        of_other.or_else(|| (asked == Some("") || revision == Some("main")).then_some(&state.commit));
    if let Some(commit) = commit {
        let body = listing(state, commit).into_bytes();
        return Reply::new(200, "Content-Type: application/json\r\n".to_owned(), body);
    }
    if let Some((status, headers)) = state.after_listing.pop_front() {
        return Reply::new(status, headers, Vec::new());
    }
    let file = path.strip_prefix(&format!("/{REPO}/resolve/")).and_then(|rest| rest.split_once('/'));
    let Some((name, bytes)) = file.and_then(|(_, name)| Some((name, state.files.get(name)?.clone()))) else {
        return Reply::new(404, String::new(), Vec::new());
    };
    let said = state.hashes.get(name).cloned();
    let headers = format!("X-Repo-Commit: {}\r\n", state.commit);
    if is_large(name) {
        let hash = said.unwrap_or_else(|| sha256(&bytes));
        let (size, to) = (bytes.len(), format!("{cdn}/{name}?signature=secret"));
        let headers =
            format!("{headers}X-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {size}\r\nLocation: {to}\r\n");
        return Reply::new(302, headers, Vec::new());
    }
    let hash = said.unwrap_or_else(|| blob_id(&bytes));
    ranged(seen, state.no_ranges, bytes, format!("{headers}ETag: \"{hash}\"\r\n"))
}

/// What the hub says of its files.
fn listing(state: &State, commit: &str) -> String {
    let siblings = state.files.iter().map(|(path, bytes)| {
        let (size, id) = (bytes.len(), blob_id(bytes));
        let lfs =
            format!(r#", "lfs": {{"sha256": "{}", "size": {size}, "pointerSize": 130}}"#, sha256(bytes));
        let more = if is_large(path) { &lfs[..] } else { "" };
        let known = format!(r#", "size": {size}, "blobId": "{id}"{more}"#);
        format!(r#"{{"rfilename": "{path}"{}}}"#, if state.bare { "" } else { &known })
    });
    let siblings: Vec<String> =
        siblings.chain((!state.more.is_empty()).then(|| state.more.clone())).collect();
    let siblings = siblings.join(", ");
    format!(
        r#"{{"id": "{REPO}", "modelId": "{REPO}", "sha": "{commit}", "private": false, "downloads": 1, "tags": [], "siblings": [{siblings}]}}"#
    )
}

/// The host that large files come from.
fn large(state: &mut State, seen: &Seen, path: &str) -> Reply {
    let Some(mut bytes) = state.files.get(path.trim_start_matches('/')).cloned() else {
        return Reply::new(404, String::new(), Vec::new());
    };
    if state.wrong > 0 {
        state.wrong -= 1;
        bytes.reverse();
    }
    let mut reply = ranged(seen, state.no_ranges, bytes, "ETag: \"of-this-host\"\r\n".to_owned());
    (reply.cut, reply.stall) = (state.cuts.pop_front(), state.stalls.pop_front());
    reply
}

fn ranged(seen: &Seen, no_ranges: bool, bytes: Vec<u8>, headers: String) -> Reply {
    let start = seen.range.as_deref().filter(|_| !no_ranges).and_then(|range| range.strip_prefix("bytes="));
    let Some(start) = start.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok()) else {
        return Reply::new(200, headers, bytes);
    };
    let size = bytes.len();
    if start >= size {
        return Reply::new(416, format!("{headers}Content-Range: bytes */{size}\r\n"), Vec::new());
    }
    let headers = format!("{headers}Content-Range: bytes {start}-{}/{size}\r\n", size - 1);
    Reply::new(206, headers, bytes[start..].to_vec())
}
