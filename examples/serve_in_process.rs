//! The HTTP server inside a program of one's own, which asks it something and stops it.
//!
//! `cargo run --release --example serve_in_process -- [model.gguf]`

use qernel::Model;
use qernel::server::{Server, ServerConfig};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use tokio::sync::oneshot;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1);
    // Port 0 is any that is free.
    let server = Server::bind(ServerConfig { port: 0, max_num_sequences: 8, ..ServerConfig::default() })?;
    let address = server.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();

    let client = std::thread::spawn(move || {
        let answer = ask(address, "Write a haiku about the sea with the word forty-two");
        // The server stops when the sender is dropped, too.
        let _ = stop.send(());
        answer
    });
    // A model stays on the thread that opens it, so the server opens it on its own.
    let open = move || {
        let options = Model::options().max_num_sequences(8);
        let model = file.map_or_else(|| options.open_haiku(), |path| options.open(path))?;
        Ok(model.into_served("example"))
    };
    server.run(open, async { drop(stopped.await) })?;
    println!("{}", client.join().expect("the client does not panic")?);
    Ok(())
}

/// The body of the answer to a request, once the model is loaded.
fn ask(address: SocketAddr, prompt: &str) -> std::io::Result<String> {
    let body = format!(r#"{{"messages": [{{"role": "user", "content": "{prompt}"}}], "max_tokens": 60}}"#);
    loop {
        let mut connection = TcpStream::connect(address)?;
        write!(
            connection,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        // 503 while the model loads.
        if !answer.starts_with("HTTP/1.1 503") {
            return Ok(answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
