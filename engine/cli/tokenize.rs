//! `qernel tokenize`: text -> token ids.

use super::options::FileArgs;
use super::output::Output;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use std::fmt::Write;
use std::io::{self, Read};

/// Turn text into token ids
#[derive(Debug, clap::Args)]
pub struct TokenizeArgs {
    /// The text; standard input, to the byte and with its last newline, where it is not given
    pub text: Option<String>,
    /// A file that holds only a vocabulary is enough.
    #[command(flatten)]
    pub file: FileArgs,
    /// Print {"ids": [...]}
    #[arg(long)]
    pub json: bool,
    /// Treat the names of special tokens as text
    #[arg(long)]
    pub no_special: bool,
}

/// Prints the ids of the text, on one line.
///
/// # Errors
/// [`Error::Request`] where the text is not UTF-8, and the errors of reading the file and of writing.
pub fn run(args: TokenizeArgs) -> Result<()> {
    let text = match args.text {
        Some(text) => text,
        None => utf8(read_stdin()?)?,
    };
    let tokenizer = Tokenizer::from_gguf(&args.file.open()?)?;
    let ids = tokenizer.encode(&text, !args.no_special)?;
    let separator = if args.json { "," } else { " " };
    let mut line = String::new();
    for (i, id) in ids.iter().enumerate() {
        let separator = if i > 0 { separator } else { "" };
        // Writing to a string does not fail.
        let _ = write!(line, "{separator}{id}");
    }
    Output::stdout().text(&if args.json { format!("{{\"ids\":[{line}]}}\n") } else { line + "\n" })
}

/// The model's words are cut between characters, so bytes that are no characters have no tokens of the model's making.
fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        Error::Request(format!(
            "standard input is not UTF-8: byte 0x{:02X} at offset {position} begins no character; convert it first, for \
             example with `iconv -t UTF-8`",
            error.as_bytes()[position]
        ))
    })
}

/// All of standard input.
pub(super) fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|error| Error::io("standard input", error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_is_no_text_is_located() {
        assert_eq!(utf8(b"a\0\r\n".to_vec()).unwrap(), "a\0\r\n");
        let error = utf8(b"ab\xE4\xB8".to_vec()).unwrap_err().to_string();
        assert!(error.contains("byte 0xE4 at offset 2"), "{error}");
    }
}
