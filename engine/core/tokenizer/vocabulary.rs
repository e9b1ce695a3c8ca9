//! What a file says about its tokens, checked before anything is built from it.

use super::bpe::{MAX_TOKENS, Merge};
use super::fim;
use super::words::Rules;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Ids by the text of their tokens.
pub(super) type Ids = HashMap<String, u32, RandomState>;

/// The vocabulary of a file as it lies there; `tokenizer.ggml.*` in a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct TokenizerParts<'a> {
    /// `tokenizer.ggml.model`; `gpt2`, byte-level BPE, is the only one known.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: how text is cut into words.
    pub pre: Option<&'a str>,
    /// The text of every token, by id. Normal tokens in GPT-2's byte alphabet, all others as they are.
    pub tokens: Vec<&'a str>,
    /// ggml's token type of every token; empty where the file does not have them: then all are normal.
    pub token_types: Vec<i32>,
    /// `left right`, best first.
    pub merges: Vec<&'a str>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    pub padding_token_id: Option<u32>,
    /// Further ids that end a generation, each with the name of its key.
    pub end_token_ids: Vec<(&'a str, u32)>,
    /// Ids of the tokens that fill in the middle, each with the name of its key.
    pub fim_token_ids: Vec<(&'a str, u32)>,
    /// Whether a prompt begins with the BOS token; as the pre-tokenizer has it where the file does not say.
    pub add_bos_token: Option<bool>,
    /// The model's Jinja template.
    pub chat_template: Option<&'a str>,
    /// The one for conversations with tools, where the file has one by that name.
    pub tool_use_template: Option<&'a str>,
}

/// Keys of tokens that end a generation beside EOS: llama.cpp's rule, src/llama-vocab.cpp, `special_eog_ids`.
const END_TOKEN_KEYS: [&str; 5] = [
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
];

/// The names of Qwen2's and Llama 3's tokens that end a generation wherever they exist (the same rule of llama.cpp, which knows the
/// names of other families too). Files rarely have the keys, and Qwen's base models name another EOS than its chat models.
pub(super) const END_TOKEN_NAMES: [&str; 7] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|eot_id|>",
    "<|eom_id|>",
];

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text that BPE makes.
    Normal,
    /// Structure, such as `<|im_end|>`: found in text only where special tokens are parsed, left out of plain output.
    Control,
    /// A word that was added to the vocabulary, such as `<tool_call>`: always found in text, always part of output.
    UserDefined,
    /// Fills the embedding up to its row count: never found in text, and no text comes from it.
    Unused,
}

impl<'a> TokenizerParts<'a> {
    /// Reads the vocabulary of a file; no tensors are needed.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the file has no vocabulary, [`Error::Gguf`] where a key has another type than expected.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Self> {
        let Some(model) = gguf.get("tokenizer.ggml.model")? else {
            return Err(Error::Tokenizer(
                "the file has no vocabulary (no metadata `tokenizer.ggml.model`); use a file that a current \
                 converter wrote, or give token ids instead of text"
                    .to_owned(),
            ));
        };
        let mut end_token_ids = Vec::new();
        for key in END_TOKEN_KEYS {
            end_token_ids.extend(gguf.get_or_warn::<u32>(key).map(|id| (key, id)));
        }
        let of_key = |key| Some((key, gguf.get_or_warn::<u32>(key)?));
        let fim_token_ids = fim::keys().filter_map(of_key).collect();
        Ok(Self {
            model,
            pre: gguf.get("tokenizer.ggml.pre")?,
            tokens: gguf.require("tokenizer.ggml.tokens")?,
            token_types: gguf.get("tokenizer.ggml.token_type")?.unwrap_or_default(),
            merges: gguf.require("tokenizer.ggml.merges")?,
            bos_token_id: gguf.get_or_warn("tokenizer.ggml.bos_token_id"),
            eos_token_id: gguf.get_or_warn("tokenizer.ggml.eos_token_id"),
            padding_token_id: gguf.get_or_warn("tokenizer.ggml.padding_token_id"),
            end_token_ids,
            fim_token_ids,
            add_bos_token: gguf.get("tokenizer.ggml.add_bos_token")?,
            chat_template: gguf.get("tokenizer.chat_template")?,
            tool_use_template: gguf.get("tokenizer.chat_template.tool_use")?,
        })
    }

    /// How text is cut into words. Refuses what this engine would cut into other tokens than the model was trained on.
    pub(super) fn rules(&self) -> Result<&'static Rules> {
        if self.model != "gpt2" {
            return Err(Error::Tokenizer(format!(
                "vocabulary model `{}` is not supported; expected `gpt2` (byte-level BPE), which all Qwen2 models have",
                self.model
            )));
        }
        match self.pre {
            // llama.cpp reads such files with GPT-2's rules and warns of degraded output.
            None | Some("default") => Err(Error::Tokenizer(
                "the file does not say how text is cut into words (`tokenizer.ggml.pre` is missing or `default`); it \
                 comes from an old converter: convert the model again, or, if it is a Qwen2 model, add the key with \
                 gguf-py's `gguf-new-metadata --pre-tokenizer qwen2`"
                    .to_owned(),
            )),
            Some(name) => Rules::named(name).ok_or_else(|| {
                Error::Tokenizer(format!(
                    "pre-tokenizer `{name}` is not supported; those that are known are {}",
                    Rules::names()
                ))
            }),
        }
    }

    /// The kind of every token.
    pub(super) fn kinds(&self) -> Result<Vec<TokenKind>> {
        if !self.token_types.is_empty() && self.token_types.len() != self.tokens.len() {
            return Err(Error::Tokenizer(format!(
                "{} tokens but {} token types; the file is damaged",
                self.tokens.len(),
                self.token_types.len()
            )));
        }
        let types = self.token_types.iter().copied().chain(std::iter::repeat(1));
        (self.tokens.iter().zip(types).enumerate())
            .map(|(id, (text, kind))| token_kind(id, text, kind))
            .collect()
    }

    /// The id of every used token. No two may have the same text, or encoding would be ambiguous.
    pub(super) fn ids(&self, kinds: &[TokenKind]) -> Result<Ids> {
        if self.tokens.len() > MAX_TOKENS {
            return Err(Error::Tokenizer(format!(
                "{} tokens; a vocabulary has at most {MAX_TOKENS}",
                self.tokens.len()
            )));
        }
        let mut ids = Ids::with_capacity_and_hasher(self.tokens.len(), RandomState::default());
        for (id, (&text, &kind)) in (0u32..).zip(self.tokens.iter().zip(kinds)) {
            if kind == TokenKind::Unused {
                continue;
            }
            if text.is_empty() {
                return Err(Error::Tokenizer(format!("token {id} is empty; the file is damaged")));
            }
            if let Some(first) = ids.insert(text.to_owned(), id) {
                return Err(Error::Tokenizer(format!(
                    "tokens {first} and {id} are both {text:?}; the file is damaged"
                )));
            }
        }
        Ok(ids)
    }

    /// The ids of every merge. Both sides and what they make must be normal tokens: a merge that made `<|im_end|>`
    /// would let plain text end a turn.
    pub(super) fn merge_ids(&self, ids: &Ids, kinds: &[TokenKind]) -> Result<Vec<Merge>> {
        let mut joined = String::new();
        let merge = |(rank, merge): (usize, &&str)| {
            let fault = |what: String| Error::Tokenizer(format!("merge {rank} ({merge:?}): {what}"));
            let normal = |text: &str| {
                let id = ids.get(text).copied().filter(|&id| kinds[id as usize] == TokenKind::Normal);
                id.ok_or_else(|| fault(format!("{text:?} is not a normal token of the vocabulary")))
            };
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| fault("expected two tokens".to_owned()))?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            Ok(Merge { left: normal(left)?, right: normal(right)?, merged: normal(&joined)? })
        };
        self.merges.iter().enumerate().map(merge).collect()
    }

    /// `id` if the vocabulary has it. Files are in use whose keys name ids beyond it, and none of them is needed to run: llama.cpp warns
    /// likewise (src/llama-vocab.cpp, "bad special token").
    pub(super) fn named_id(&self, key: &str, id: Option<u32>) -> Option<u32> {
        let id = id?;
        let exists = (id as usize) < self.tokens.len();
        if !exists {
            tracing::warn!("left out: `{key}` is {id}, but the vocabulary has {} tokens", self.tokens.len());
        }
        exists.then_some(id)
    }
}

/// ggml's token types, gguf-py's `TokenType`: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
fn token_kind(id: usize, text: &str, token_type: i32) -> Result<TokenKind> {
    if END_TOKEN_NAMES.contains(&text) {
        // Some converters wrote them as normal tokens; llama.cpp overrides the type likewise.
        return Ok(TokenKind::Control);
    }
    match token_type {
        1 => Ok(TokenKind::Normal),
        2 | 3 => Ok(TokenKind::Control),
        // Older converters gave the padding `[PAD<id>]` this type instead of "unused"; no model was trained on it.
        4 if text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']')) == Some(&id.to_string()) => {
            Ok(TokenKind::Unused)
        }
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        other => Err(Error::Tokenizer(format!(
            "token {id} ({text:?}) has type {other}; a byte-level vocabulary has the types 1 to 5 only"
        ))),
    }
}

/// The character that stands for `byte` in the text of a normal token: the byte's own where that is printable,
/// otherwise the next free one from U+0100 (GPT-2, src/encoder.py, `bytes_to_unicode`).
pub fn byte_to_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        char::from(byte)
    } else {
        let rank = (0..byte).filter(|&other| !printable(other)).count();
        char::from_u32(0x100 + rank as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

/// The bytes of tokens of byte-level BPE.
pub(super) struct ByteAlphabet {
    /// By the character's number.
    bytes: Vec<Option<u8>>,
}

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        let mut bytes = vec![None; 0x200];
        for byte in 0..=u8::MAX {
            bytes[byte_to_char(byte) as usize] = Some(byte);
        }
        Self { bytes }
    }

    /// Appends the bytes of a normal token. One that is not in the alphabet stands for itself, as in the `tokenizers`
    /// crate.
    pub(super) fn decode_into(&self, text: &str, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        for c in text.chars() {
            match self.bytes.get(c as usize) {
                Some(&Some(byte)) => bytes.push(byte),
                _ => {
                    bytes.truncate(start);
                    return bytes.extend_from_slice(text.as_bytes());
                }
            }
        }
    }
}

/// The token of each byte; none of a byte that the vocabulary cannot say, as SmolLM2's has no tokens for 21 control characters and bytes
/// that are not in UTF-8. A text that needs one is refused: the `tokenizers` crate would drop it without a word.
pub(super) fn byte_tokens(ids: &Ids, kinds: &[TokenKind]) -> [Option<u32>; 256] {
    std::array::from_fn(|byte| {
        let text = byte_to_char(byte as u8);
        let id = ids.get(text.encode_utf8(&mut [0; 4]) as &str);
        id.copied().filter(|&id| kinds[id as usize] == TokenKind::Normal)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        // Known pairs: space, newline, NUL, DEL, no-break space and soft hyphen are moved; the rest stays.
        for (byte, c) in [
            (b' ', 'Ġ'),
            (b'\n', 'Ċ'),
            (0, 'Ā'),
            (0x7F, 'ġ'),
            (0xA0, 'ł'),
            (0xAD, 'Ń'),
            (b'a', 'a'),
            (0xFF, 'ÿ'),
        ] {
            assert_eq!(byte_to_char(byte), c, "byte 0x{byte:02X}");
        }
        let all: String = (0..=u8::MAX).map(byte_to_char).collect();
        let mut bytes = Vec::new();
        ByteAlphabet::new().decode_into(&all, &mut bytes);
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        ByteAlphabet::new().decode_into("a中", &mut bytes);
        assert_eq!(&bytes[256..], "a中".as_bytes());
    }

    #[test]
    fn padding_is_unused_whatever_its_type() {
        assert_eq!(token_kind(7, "[PAD7]", 4).unwrap(), TokenKind::Unused);
        assert_eq!(token_kind(7, "[PAD8]", 4).unwrap(), TokenKind::UserDefined);
        assert_eq!(token_kind(7, "<|x|>", 5).unwrap(), TokenKind::Unused);
        assert_eq!(token_kind(7, "<|im_end|>", 1).unwrap(), TokenKind::Control);
        assert!(token_kind(7, "x", 6).unwrap_err().to_string().contains("type 6"));
    }
}
