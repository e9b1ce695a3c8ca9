//! Text from a prompt, token by token.
//!
//! `cargo run --release --example generate -- [model.gguf] "a prompt"`

use qernel::Model;
use std::io::Write;

fn main() -> qernel::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let prompt =
        arguments.pop().unwrap_or_else(|| "Write a haiku about the sea with the word forty-two".into());
    // Without a file, the small model that the library carries.
    let mut model = arguments.first().map_or_else(Model::haiku, Model::open)?;
    eprintln!("on {}, {} tokens of context", model.device_name(), model.context());

    for event in model.chat(prompt).max_tokens(200) {
        print!("{}", event?.text());
        // Whether a terminal shows it at once is no concern of the answer.
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}
