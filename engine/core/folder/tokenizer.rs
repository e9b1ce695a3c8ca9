//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` -> GGUF's metadata of vocabulary, template and sampling.

use super::config::{Metadata, Model};
use super::fault;
use super::files::Files;
use super::json::Fields;
use super::template;
use crate::error::Result;
use crate::gguf::ValueType;
use crate::gguf::write::Value;
use serde_json::Value as Json;
use std::collections::HashMap;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
/// Of embedding models: how rows become a vector.
pub(super) const POOLING: &str = "1_Pooling/config.json";

/// GGUF's types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// How text is cut into words: the expression of `Split`, and what GGUF calls it.
const PATTERNS: [(&str, &str); 3] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen35",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
];

/// The metadata of the vocabulary, and of all that goes with it.
///
/// # Errors
/// [`crate::Error::Folder`] for a vocabulary of another kind than byte-level BPE, and for what contradicts itself.
pub(super) fn metadata(files: &Files, model: &Model) -> Result<Metadata> {
    let generation = Fields::read(files, GENERATION_CONFIG)?.unwrap_or_default();
    let mut out = sampling(&generation)?;
    let Some(tokenizer) = Fields::read(files, TOKENIZER)? else {
        // llama.cpp's name for a model without a vocabulary.
        out.push(("tokenizer.ggml.model".to_owned(), "none".into()));
        return Ok(out);
    };
    let config = Fields::read(files, TOKENIZER_CONFIG)?.unwrap_or_default();
    let vocabulary = Vocabulary::new(&tokenizer, model.config.integer("vocab_size")?)?;
    let mut add = |key: &str, value: Value| out.push((format!("tokenizer.{key}"), value));
    add("ggml.model", "gpt2".into());
    add("ggml.pre", pre_tokenizer(&tokenizer)?.into());
    add("ggml.tokens", vocabulary.tokens.as_slice().into());
    add("ggml.token_type", vocabulary.types.clone().into());
    add("ggml.merges", merges(&tokenizer)?);

    let special = Special::new(&tokenizer, &config, &generation, model, &vocabulary)?;
    for (key, id) in [
        ("ggml.bos_token_id", special.bos),
        ("ggml.eos_token_id", special.eos.first().copied()),
        ("ggml.eot_token_id", special.eos.get(1).copied()),
        ("ggml.eom_token_id", special.eos.get(2).copied()),
        ("ggml.padding_token_id", special.padding),
    ] {
        if let Some(id) = id {
            add(key, id.into());
        }
    }
    add("ggml.add_bos_token", special.adds_bos.into());
    add("ggml.add_eos_token", special.adds_eos.into());
    out.extend(template::metadata(files, &config)?);
    Ok(out)
}

/// The text and the kind of every token.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn new(tokenizer: &Fields, vocab_size: Option<u64>) -> Result<Self> {
        let model = tokenizer.require("model", Fields::object)?;
        let kind = model.string("type")?.unwrap_or("BPE");
        if kind != "BPE" || model.flag("byte_fallback")? == Some(true) {
            let kind = if kind == "BPE" { "BPE with byte_fallback" } else { kind };
            return Err(model.invalid(
                "type",
                format!("{kind:?}"),
                "byte-level BPE; others are not implemented",
            ));
        }
        let vocab = model.require("vocab", Fields::object)?;
        let mut entries: Vec<(u64, &str, i32)> = Vec::with_capacity(vocab.values.len());
        for (text, id) in &vocab.values {
            let id = id.as_u64().ok_or_else(|| vocab.invalid(text, id, "a token's number"))?;
            entries.push((id, text, NORMAL));
        }
        let empty = Vec::new();
        for token in tokenizer.list("added_tokens")?.unwrap_or(&empty) {
            let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) else {
                return Err(tokenizer.invalid("added_tokens", token, "tokens with `id` and `content`"));
            };
            let is_control = token["special"].as_bool() == Some(true) || looks_special(text);
            entries.push((id, text, if is_control { CONTROL } else { USER_DEFINED }));
        }
        // Rows of the embedding that no token has are at most as many as tokens and a few: a number alone makes no long list.
        let named = entries.len() as u64;
        let most = vocab_size.unwrap_or(0).clamp(named, 2 * named + (1 << 16));
        if let Some((id, text, _)) = entries.iter().find(|(id, ..)| *id >= most) {
            return Err(fault(
                &tokenizer.file,
                format!("the token {text:?} has the number {id}; the model has {most} tokens"),
            ));
        }
        let mut tokens: Vec<String> = (0..most).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; most as usize];
        // Added tokens stand behind, and are often in the vocabulary too.
        for (id, text, kind) in entries {
            (tokens[id as usize], types[id as usize]) = (text.to_owned(), kind);
        }
        // Those that are in both lists were counted twice.
        let used = types.iter().rposition(|&kind| kind != UNUSED).map_or(0, |last| last as u64 + 1);
        let kept = used.max(vocab_size.unwrap_or(0)).min(most) as usize;
        tokens.truncate(kept);
        types.truncate(kept);
        let used = (0..).zip(&tokens).filter(|(id, _)| types[*id as usize] != UNUSED);
        let ids = used.map(|(id, text)| (text.clone(), id)).collect();
        Ok(Self { tokens, types, ids })
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }
}

/// Names that are structure whatever the file says of them: llama.cpp's converter takes them so.
fn looks_special(text: &str) -> bool {
    (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<｜") && text.ends_with("｜>"))
        || text == "<pad>"
}

/// The pairs that are merged, best first, as GGUF writes them.
fn merges(tokenizer: &Fields) -> Result<Value> {
    let model = tokenizer.require("model", Fields::object)?;
    let merge = |pair: &Json| {
        let text = match pair {
            Json::String(text) => Some(text.clone()),
            Json::Array(parts) => match &parts[..] {
                [Json::String(left), Json::String(right)] => Some(format!("{left} {right}")),
                _ => None,
            },
            _ => None,
        };
        text.map(Value::from).ok_or_else(|| model.invalid("merges", pair, "pairs of tokens"))
    };
    let merges = model.require("merges", Fields::list)?.iter().map(merge);
    Ok(Value::Array(ValueType::String, merges.collect::<Result<_>>()?))
}

/// What GGUF calls the way in which text is cut into words.
fn pre_tokenizer(tokenizer: &Fields) -> Result<&'static str> {
    let Some(whole) = tokenizer.object("pre_tokenizer")? else {
        return Err(fault(&tokenizer.file, "`pre_tokenizer` is missing: byte-level BPE has one"));
    };
    let steps = match whole.list("pretokenizers")? {
        Some(steps) => steps.clone(),
        None => vec![Json::Object(whole.values.clone())],
    };
    let of_kind = |kind: &str| steps.iter().find(|step| step["type"] == kind);
    let pattern = of_kind("Split").and_then(|step| step["pattern"]["Regex"].as_str());
    if let Some((_, name)) = pattern.and_then(|pattern| PATTERNS.iter().find(|(known, _)| *known == pattern))
    {
        return Ok(name);
    }
    let cuts_words = of_kind("ByteLevel").is_some_and(|step| step["use_regex"].as_bool().unwrap_or(true));
    let cuts_digits = of_kind("Digits").is_some_and(|step| step["individual_digits"] == true);
    match (pattern, cuts_words, steps.len()) {
        (None, true, 1) => Ok("gpt-2"),
        (None, true, 2) if cuts_digits => Ok("smollm"),
        _ => {
            let found = pattern.map_or_else(
                || Json::Object(whole.values.clone()).to_string(),
                |pattern| format!("{pattern:?}"),
            );
            let head: String = found.chars().take(200).collect();
            Err(tokenizer.invalid(
                "pre_tokenizer",
                head,
                "one of those of Qwen2, Qwen3.5, Llama 3, SmolLM or GPT-2; others are not implemented",
            ))
        }
    }
}

/// Tokens with a meaning of their own.
struct Special {
    bos: Option<u32>,
    /// All that end a generation, the tokenizer's own first.
    eos: Vec<u32>,
    padding: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
}

impl Special {
    fn new(
        tokenizer: &Fields,
        config: &Fields,
        generation: &Fields,
        model: &Model,
        vocabulary: &Vocabulary,
    ) -> Result<Self> {
        // A name, or an object with it.
        let named = |key: &str| {
            let value = config.get(key)?;
            vocabulary.id(value.as_str().or_else(|| value["content"].as_str())?)
        };
        let ids = |fields: &Fields, key: &str| -> Vec<u32> {
            let values = match fields.get(key) {
                Some(Json::Array(values)) => values.clone(),
                Some(value) => vec![value.clone()],
                None => Vec::new(),
            };
            values.iter().filter_map(|value| u32::try_from(value.as_u64()?).ok()).collect()
        };
        let mut eos: Vec<u32> = named("eos_token").into_iter().collect();
        eos.extend(ids(generation, "eos_token_id").into_iter().chain(ids(&model.config, "eos_token_id")));
        let mut seen = Vec::new();
        eos.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        let bos = named("bos_token").or_else(|| ids(&model.config, "bos_token_id").first().copied());
        let around = around(tokenizer, vocabulary);
        Ok(Self {
            adds_bos: config.flag("add_bos_token")?.unwrap_or(bos.is_some() && around[0] == bos),
            adds_eos: config.flag("add_eos_token")?.unwrap_or(around[1].is_some()),
            // What the tokenizer puts behind a text is its end, whatever else ends an answer.
            eos: around[1].into_iter().chain(eos.into_iter().filter(|&id| Some(id) != around[1])).collect(),
            padding: named("pad_token").or_else(|| ids(generation, "pad_token_id").first().copied()),
            bos,
        })
    }
}

/// The tokens that a template of the tokenizer puts before and behind a text.
fn around(tokenizer: &Fields, vocabulary: &Vocabulary) -> [Option<u32>; 2] {
    let Some(whole) = tokenizer.get("post_processor") else { return [None; 2] };
    let steps = whole["processors"].as_array().cloned().unwrap_or_else(|| vec![whole.clone()]);
    let Some(template) = steps.iter().find(|step| step["type"] == "TemplateProcessing") else {
        return [None; 2];
    };
    let parts = template["single"].as_array().cloned().unwrap_or_default();
    if parts.len() < 2 {
        return [None; 2];
    }
    [parts.first(), parts.last()].map(|part| vocabulary.id(part?["SpecialToken"]["id"].as_str()?))
}

/// How answers are to be drawn, where the publisher says so.
fn sampling(generation: &Fields) -> Result<Metadata> {
    let mut out = Vec::new();
    if generation.flag("do_sample")? == Some(false) {
        return Ok(out);
    }
    for (from, to) in [
        ("temperature", "temp"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("repetition_penalty", "penalty_repeat"),
    ] {
        if let Some(value) = generation.number(from)? {
            out.push((format!("general.sampling.{to}"), Value::F32(value as f32)));
        }
    }
    if let Some(top_k) = generation.integer("top_k")?.and_then(|top_k| i32::try_from(top_k).ok()) {
        out.push(("general.sampling.top_k".to_owned(), top_k.into()));
    }
    Ok(out)
}

/// llama.cpp's number of how the rows of a text become one vector, where the folder is of an embedding model (sentence-transformers).
pub(super) fn pooling(files: &Files) -> Result<Option<u32>> {
    let Some(pooling) = Fields::read(files, POOLING)? else { return Ok(None) };
    for (key, number) in
        [("pooling_mode_mean_tokens", 1), ("pooling_mode_cls_token", 2), ("pooling_mode_lasttoken", 3)]
    {
        if pooling.flag(key)? == Some(true) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}
