//! A conversation: one line of standard input is one message.
//!
//! `cargo run --release --example chat -- [model.gguf]`

use qernel::{Message, Model};
use std::io::Write;

fn main() -> qernel::Result<()> {
    let file = std::env::args().nth(1);
    let mut model = file.map_or_else(Model::haiku, Model::open)?;
    let mut messages = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        messages.push(Message::new("user", line));
        let mut answer = String::new();
        for piece in model.chat(&messages).pieces() {
            let piece = piece?;
            print!("{piece}");
            let _ = std::io::stdout().flush();
            answer += &piece;
        }
        println!();
        messages.push(Message::new("assistant", answer));
    }
    Ok(())
}
