//! GGUF vocabulary -> byte-level BPE, and tokens -> text.
//!
//! Text is encoded in the steps of Qwen2's published tokenizer.json: added tokens are cut out, the rest is brought to
//! Unicode's NFC (not for GPT-2), cut into words, and each word is merged by BPE over its bytes. So decoding what
//! was encoded gives back the NFC of the text, which for most text is the text itself. Tokens are those of the `tokenizers` crate, which
//! takes hundreds of bytes of memory for a byte of text; the tests compare both.

mod bpe;
mod fim;
mod nfc;
mod stream;
#[cfg(test)]
mod tests;
mod vocabulary;
mod words;

pub use fim::FimTokens;
pub use stream::StreamDecoder;
pub use vocabulary::{TokenKind, TokenizerParts, byte_to_char};

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use aho_corasick::{AhoCorasick, MatchKind};
use bpe::{Merges, Scratch};
use nfc::nfc;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use vocabulary::Ids;
use words::{Rules, Words};

/// A model's vocabulary, both ways.
pub struct Tokenizer {
    ids: Ids,
    merges: Merges,
    words: Words,
    rules: &'static Rules,
    /// All added tokens, and those that are found even where special tokens are plain text.
    added: AddedTokens,
    user_defined: AddedTokens,
    kinds: Vec<TokenKind>,
    /// The bytes of token `id` are `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Bytes of the longest token.
    longest: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    padding_token_id: Option<u32>,
    end_of_generation: Vec<u32>,
    fim: Option<FimTokens>,
    add_bos_token: bool,
    chat_template: Option<String>,
    tool_use_template: Option<String>,
}

impl Tokenizer {
    /// Builds the tokenizer from checked parts.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the vocabulary is of another kind than Qwen2's or contradicts itself: tokens twice,
    /// merges of unknown tokens. What is wrong with ids that no run needs is a warning.
    pub fn new(parts: &TokenizerParts) -> Result<Self> {
        let rules = parts.rules()?;
        let kinds = parts.kinds()?;
        let ids = parts.ids(&kinds)?;
        let byte_tokens = vocabulary::byte_tokens(&ids, &kinds);
        let merges = parts.merge_ids(&ids, &kinds)?;

        let (bytes, ends) = token_bytes(&parts.tokens, &kinds);
        let starts = std::iter::once(&0).chain(&ends);
        let lengths: Vec<u32> = ends.iter().zip(starts).map(|(end, start)| (end - start) as u32).collect();
        let longest = lengths.iter().max().map_or(0, |&length| length as usize);
        let eos_token_id = parts.named_id("eos_token_id", parts.eos_token_id);
        let end_token_ids = parts.end_token_ids.iter().filter_map(|&(key, id)| parts.named_id(key, Some(id)));
        let mut end_of_generation: Vec<u32> = end_token_ids
            .chain(eos_token_id)
            .chain(vocabulary::END_TOKEN_NAMES.iter().filter_map(|&name| ids.get(name).copied()))
            .collect();
        end_of_generation.sort_unstable();
        end_of_generation.dedup();

        let added = |wanted: &[TokenKind]| {
            let tokens = (0..).zip(parts.tokens.iter().zip(&kinds));
            let tokens = tokens.filter(|(_, (_, kind))| wanted.contains(kind));
            AddedTokens::new(tokens.map(|(id, (&text, _))| (text, id)))
        };
        Ok(Self {
            added: added(&[TokenKind::Control, TokenKind::UserDefined])?,
            user_defined: added(&[TokenKind::UserDefined])?,
            fim: FimTokens::of(parts, &ids),
            ids,
            merges: Merges::new(byte_tokens, lengths, merges),
            words: Words::new(rules).map_err(fault)?,
            rules,
            kinds,
            bytes,
            ends,
            longest,
            bos_token_id: parts.named_id("bos_token_id", parts.bos_token_id),
            eos_token_id,
            padding_token_id: parts.named_id("padding_token_id", parts.padding_token_id),
            end_of_generation,
            add_bos_token: parts.add_bos_token.unwrap_or(rules.adds_bos),
            chat_template: parts.chat_template.map(str::to_owned),
            tool_use_template: parts.tool_use_template.map(str::to_owned),
        })
    }

    /// Builds the tokenizer of a model file, or of one that holds only a vocabulary.
    ///
    /// # Errors
    /// As [`TokenizerParts::from_gguf`] and [`Tokenizer::new`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::new(&TokenizerParts::from_gguf(gguf)?)
    }

    /// Text -> ids. With `parse_special` the names of control tokens in the text become those tokens; without, they are text like any
    /// other. Nothing is added: where [`Tokenizer::adds_bos`] says so, the caller puts BOS first.
    ///
    /// Takes at most sixteen bytes of memory for a byte of text, and mostly not more than the text and its ids do.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system refuses that, [`Error::Request`] where a word has 4 GiB, or a byte that the vocabulary has no
    /// token for.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let added = if parse_special { &self.added } else { &self.user_defined };
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        let mut start = 0;
        for (found, id) in added.find(text) {
            self.encode_text(&text[start..found.start], &mut scratch, &mut ids)?;
            ids.push(id);
            start = found.end;
        }
        self.encode_text(&text[start..], &mut scratch, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of a text without added tokens.
    fn encode_text(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        let text = if self.rules.is_nfc { nfc(text) } else { Cow::Borrowed(text) };
        self.words.of(&text).try_for_each(|word| match self.whole_word(word) {
            Some(id) => {
                ids.push(id);
                Ok(())
            }
            None => self.merges.encode(word.as_bytes(), scratch, ids),
        })
    }

    /// The token that a word is, where the rules ask for it before any merge.
    fn whole_word(&self, word: &str) -> Option<u32> {
        if !self.rules.takes_whole_words || word.len() > self.longest {
            return None;
        }
        let text: String = word.bytes().map(byte_to_char).collect();
        self.ids.get(&text).copied().filter(|&id| self.kinds[id as usize] == TokenKind::Normal)
    }

    /// Ids -> text. `skip_special` leaves control tokens out. Bytes that are no UTF-8 become U+FFFD;
    /// [`Tokenizer::decode_bytes`] keeps them.
    ///
    /// # Errors
    /// [`Error::Request`] where an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let bytes = self.decode_bytes(ids, skip_special)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Ids -> the exact bytes that they stand for.
    ///
    /// # Errors
    /// [`Error::Request`] where an id is outside the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32], skip_special: bool) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for &id in ids {
            let token = self.token_bytes(id).ok_or_else(|| {
                Error::Request(format!(
                    "token id {id} is outside the vocabulary of {} tokens",
                    self.vocab_size()
                ))
            })?;
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(bytes)
    }

    /// The bytes of one token, perhaps only a part of a character; none for padding. `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.bytes[start..end])
    }

    /// What a token is for; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether `id` is a control token, which plain output leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Control)
    }

    /// The id of an added token by its name, such as `<|im_start|>`.
    pub fn added_token(&self, name: &str) -> Option<u32> {
        let id = self.token(name)?;
        matches!(self.kind(id)?, TokenKind::Control | TokenKind::UserDefined).then_some(id)
    }

    /// The id of a token by its text as the vocabulary writes it.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The number of ids, padding included; at most the rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos_token_id
    }

    pub fn padding_token_id(&self) -> Option<u32> {
        self.padding_token_id
    }

    /// The tokens that end a generation, ascending: EOS, those of the keys for end of turn, end of message and filling
    /// in the middle, and those that Qwen2 and Llama 3 end with by name (llama.cpp's rule, src/llama-vocab.cpp, `special_eog_ids`).
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether generation ends at `id`.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// The tokens by which the model fills in the middle of a text, where it knows how.
    pub fn fim(&self) -> Option<FimTokens> {
        self.fim
    }

    /// Whether a prompt that no template made begins with BOS. Qwen2's does not; DeepSeek's distillates' does.
    pub fn adds_bos(&self) -> bool {
        self.add_bos_token && self.bos_token_id.is_some()
    }

    /// The file's Jinja template; see [`crate::chat::ChatTemplate`].
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The file's template for conversations with tools, where it is another one.
    pub fn tool_use_template(&self) -> Option<&str> {
        self.tool_use_template.as_deref()
    }
}

/// Words of the vocabulary that are found in text before it is cut: of those that begin first the longest, as in the `tokenizers` crate.
struct AddedTokens {
    texts: AhoCorasick,
    /// In the order of the texts.
    ids: Vec<u32>,
}

impl AddedTokens {
    fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Result<Self> {
        let (texts, ids): (Vec<_>, _) = tokens.unzip();
        let texts = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        Ok(Self { texts: texts.map_err(fault)?, ids })
    }

    /// Where they are in a text, and their ids.
    fn find(&self, text: &str) -> impl Iterator<Item = (Range<usize>, u32)> {
        self.texts.find_iter(text).map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("added", &self.added.ids.len())
            .field("end_of_generation", &self.end_of_generation)
            .finish_non_exhaustive()
    }
}

/// The bytes of all tokens, one after the other, and where each ends.
fn token_bytes(tokens: &[&str], kinds: &[TokenKind]) -> (Vec<u8>, Vec<usize>) {
    let alphabet = vocabulary::ByteAlphabet::new();
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(tokens.len());
    for (text, kind) in tokens.iter().zip(kinds) {
        match kind {
            TokenKind::Normal => alphabet.decode_into(text, &mut bytes),
            TokenKind::Control | TokenKind::UserDefined => bytes.extend_from_slice(text.as_bytes()),
            TokenKind::Unused => {}
        }
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn fault(error: impl fmt::Display) -> Error {
    Error::Tokenizer(error.to_string())
}
