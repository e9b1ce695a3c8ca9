//! What each fuzz target does with its bytes: a function that returns, whatever they are. One that panics, never ends or takes all memory
//! has found something.

use qernel::chat::{ChatTemplate, Message};
use qernel::config::Config;
use qernel::folder;
use qernel::gguf::Gguf;
use qernel::load::embedded;
use qernel::server::{Server, ServerConfig};
use qernel::tokenizer::Tokenizer;
use qernel::weights::Weights;
use qernel::{Device, Model};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

pub type Target = fn(&[u8]);

/// All targets by name: that of their seeds' folder.
pub const ALL: [(&str, Target); 6] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("tokenizer", tokenizer),
    ("template", template),
    ("schema", schema),
    ("request", request),
];

/// A model file: everything that is read before a tensor is computed with.
pub fn gguf(data: &[u8]) {
    let Ok(file) = Gguf::from_bytes(data.to_vec().into()) else { return };
    for (key, value) in file.metadata() {
        assert!(file.value(key).is_some(), "{key:?} is listed and not found");
        let _ = value.to_string();
    }
    for tensor in file.tensors() {
        assert!(file.tensor(tensor.name()).is_some(), "{:?} is listed and not found", tensor.name());
        if let Ok(bytes) = tensor.data() {
            assert_eq!(Some(bytes.len() as u64), tensor.num_bytes());
        }
    }
    if let Ok(config) = Config::from_gguf(&file) {
        let _ = Weights::from_gguf(&file, &config);
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file) {
        let ids = tokenizer.encode("Hello <|im_end|>\n 1 é", true).expect("any text can be encoded");
        tokenizer.decode_bytes(&ids, false).expect("ids are of the vocabulary");
    }
}

/// A file of weights in a folder: no two tensors have a name.
pub fn safetensors(data: &[u8]) {
    let Ok(names) = folder::tensor_names(&data.to_vec().into()) else { return };
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
}

static HAIKU: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = embedded::haiku().expect("the program carries a model");
    Tokenizer::from_gguf(&file).expect("which has a vocabulary")
});

/// A text: its tokens are those of what they stand for, with control tokens and without.
pub fn tokenizer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for parse_special in [false, true] {
        let ids = HAIKU.encode(&text, parse_special).expect("any text can be encoded");
        let decoded = HAIKU.decode(&ids, false).expect("ids are of the vocabulary");
        let again = HAIKU.encode(&decoded, parse_special).expect("any text can be encoded");
        assert_eq!(again, ids, "{text:?} and {decoded:?}");
    }
}

/// A chat template, rendered with a conversation.
pub fn template(data: &[u8]) {
    let source = String::from_utf8_lossy(data);
    let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") else { return };
    let messages = ["system", "user", "assistant"].map(|role| Message::new(role, "Hi <there>"));
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {}}})];
    for tools in [&[][..], &tools] {
        let _ = template.render(&messages, tools, true);
    }
}

/// A JSON schema that an answer must follow.
pub fn schema(data: &[u8]) {
    let Ok(schema) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let messages = json!([{"role": "user", "content": "x"}]);
    let body = json!({"messages": messages, "max_tokens": 2, "response_format": format});
    post("/v1/chat/completions", body.to_string().as_bytes());
}

/// A request's body; the first byte chooses the path.
pub fn request(data: &[u8]) {
    const PATHS: [&str; 5] =
        ["/v1/chat/completions", "/v1/completions", "/v1/generate", "/tokenize", "/detokenize"];
    let Some((&path, body)) = data.split_first() else { return };
    post(PATHS[usize::from(path) % PATHS.len()], body);
}

/// A server with the model that the program carries, for as long as the process.
static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| {
    let config = ServerConfig { port: 0, request_timeout: Duration::from_secs(5), ..ServerConfig::default() };
    let max_num_sequences = config.max_num_sequences;
    let server = Server::bind(config).expect("there is a free port");
    let address = server.local_addr().expect("it has an address");
    let open = move || {
        let model = Model::options().device(Device::Cpu).max_num_sequences(max_num_sequences).open_haiku()?;
        Ok(model.into_served("haiku"))
    };
    std::thread::spawn(move || server.run(open, std::future::pending()));
    while status(address, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n") != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
    address
});

/// Whatever a client sends, the server answers, and not that it was the server's fault.
fn post(path: &str, body: &[u8]) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let status = status(*SERVER, &[head.as_bytes(), body].concat());
    // 504: the answer took longer than the five seconds it has.
    assert!(
        (200..500).contains(&status) || status == 504,
        "{status} for {:?}",
        String::from_utf8_lossy(body)
    );
}

/// The status of the answer to a request, of which all is read.
fn status(address: SocketAddr, request: &[u8]) -> u16 {
    let mut connection = TcpStream::connect(address).expect("the server listens");
    connection.set_read_timeout(Some(Duration::from_secs(60))).expect("a minute is a time");
    connection.write_all(request).expect("the server reads");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).expect("the server answers within a minute");
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an answer begins with its status")
}
