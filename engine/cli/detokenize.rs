//! `qernel detokenize`: token ids -> text.

use super::options::FileArgs;
use super::output::Output;
use super::tokenize::read_stdin;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Turn token ids into text
#[derive(Debug, clap::Args)]
pub struct DetokenizeArgs {
    /// Ids, with spaces or commas between them; standard input, also as JSON, where none are given
    pub ids: Vec<String>,
    /// A file that holds only a vocabulary is enough.
    #[command(flatten)]
    pub file: FileArgs,
    /// Print {"text": ...}; bytes that are not UTF-8 become U+FFFD
    #[arg(long)]
    pub json: bool,
    /// Leave special tokens out
    #[arg(long)]
    pub skip_special: bool,
}

/// Prints the text of the ids: the exact bytes and no newline, so that `tokenize | detokenize` changes nothing.
///
/// # Errors
/// [`Error::Request`] where the input is not a list of ids of this vocabulary, and the errors of reading and writing.
pub fn run(args: DetokenizeArgs) -> Result<()> {
    let ids = if args.ids.is_empty() {
        parse_ids(&String::from_utf8_lossy(&read_stdin()?))?
    } else {
        parse_ids(&args.ids.join(" "))?
    };
    let tokenizer = Tokenizer::from_gguf(&args.file.open()?)?;
    if args.json {
        let text = tokenizer.decode(&ids, args.skip_special)?;
        Output::stdout().json(&serde_json::json!({ "text": text }))
    } else {
        Output::stdout().bytes(&tokenizer.decode_bytes(&ids, args.skip_special)?)
    }
}

/// `1 2,3`, `[1, 2, 3]` or `{"ids": [1, 2, 3]}`, which `tokenize --json` prints.
fn parse_ids(input: &str) -> Result<Vec<u32>> {
    #[derive(serde::Deserialize)]
    struct Ids {
        ids: Vec<u32>,
    }
    let input = input.trim();
    if input.starts_with(['{', '[']) {
        let ids = match input.strip_prefix('[') {
            Some(_) => serde_json::from_str(input),
            None => serde_json::from_str(input).map(|Ids { ids }| ids),
        };
        return ids.map_err(|error| {
            Error::Request(format!(
                "expected token ids as JSON, {{\"ids\": [1, 2]}} or [1, 2]; found something else: {error}"
            ))
        });
    }
    let ids = input.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let parse = |word: &str| {
        word.parse()
            .map_err(|_| Error::Request(format!("expected token ids (whole numbers), found {word:?}")))
    };
    ids.map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ids() {
        for input in ["1 2 3", "1,2, 3\n", "[1,2, 3]", "{\"ids\": [1, 2, 3]}\n"] {
            assert_eq!(parse_ids(input).unwrap(), [1, 2, 3], "{input:?}");
        }
        assert_eq!(parse_ids(" \n").unwrap(), [0u32; 0]);
        for input in ["1 x", "-1", "4294967296", "[1, -2]", "{\"text\": 1}", "[1", "1.5"] {
            assert!(matches!(parse_ids(input), Err(Error::Request(_))), "{input:?}");
        }
    }
}
