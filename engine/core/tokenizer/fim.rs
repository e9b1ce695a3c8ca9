//! The tokens by which a model is asked to fill in the middle of a text.

use super::vocabulary::{Ids, TokenizerParts};

/// The tokens of filling in the middle: `<prefix> before <suffix> behind <middle>`, and then the model says what stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FimTokens {
    pub prefix: u32,
    pub suffix: u32,
    pub middle: u32,
    /// What the name of a repository follows, before its files.
    pub repository: Option<u32>,
    /// What the name of a file and its text follow.
    pub file: Option<u32>,
}

/// Keys of a token, the older one last, and its name in Qwen's vocabularies (Qwen2.5-Coder's model card), which files rarely have a key for.
type Token = (&'static [&'static str], &'static str);

const PREFIX: Token =
    (&["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"], "<|fim_prefix|>");
const SUFFIX: Token =
    (&["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"], "<|fim_suffix|>");
const MIDDLE: Token =
    (&["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"], "<|fim_middle|>");
const REPOSITORY: Token = (&["tokenizer.ggml.fim_rep_token_id"], "<|repo_name|>");
const FILE: Token = (&["tokenizer.ggml.fim_sep_token_id"], "<|file_sep|>");

/// All keys.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    [PREFIX, SUFFIX, MIDDLE, REPOSITORY, FILE].into_iter().flat_map(|(keys, _)| keys).copied()
}

impl FimTokens {
    /// Those of a vocabulary, if it has all that are needed.
    pub(super) fn of(parts: &TokenizerParts, ids: &Ids) -> Option<Self> {
        let of_key = |key: &str| {
            let (key, id) = parts.fim_token_ids.iter().find(|(known, _)| *known == key)?;
            parts.named_id(key, Some(*id))
        };
        let token =
            |(keys, name): Token| keys.iter().find_map(|key| of_key(key)).or_else(|| ids.get(name).copied());
        Some(Self {
            prefix: token(PREFIX)?,
            suffix: token(SUFFIX)?,
            middle: token(MIDDLE)?,
            repository: token(REPOSITORY),
            file: token(FILE),
        })
    }
}
