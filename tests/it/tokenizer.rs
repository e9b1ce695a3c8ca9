//! The tokenizer against the Python package `tokenizers`, and its rules on a vocabulary of a few hundred tokens.
//!
//! Tests named `qwen2_…` take a part of Qwen2's vocabulary that has its ids (`tests/data/qwen2_vocabulary.txt`); the one that
//! is ignored does the same with the whole vocabulary, of the GGUF file that the environment variable QERNEL_VOCAB names.

use proptest::prelude::*;
use qernel::error::Error;
use qernel::gguf::Gguf;
use qernel::tokenizer::{FimTokens, StreamDecoder, TokenKind, Tokenizer, TokenizerParts, byte_to_char};
use std::sync::{Arc, LazyLock, OnceLock};

/// Ids of Qwen2's vocabulary, padding included.
const QWEN2_SIZE: u32 = 151_936;

/// The part of Qwen2's vocabulary that the golden texts can come to, whatever order merges are taken in and wherever the texts
/// are cut; all other ids are padding.
fn qwen2() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        // Types of ggml: 1 is BPE's, 3 a special token, 4 the padding in older files.
        let mut tokens: Vec<String> = (0..QWEN2_SIZE).map(|id| format!("[PAD{id}]")).collect();
        let mut token_types = vec![4; tokens.len()];
        let mut merges = Vec::new();
        for line in include_str!("../data/qwen2_vocabulary.txt").lines().skip(1) {
            let (id, text) = line.split_once(' ').unwrap();
            let id: usize = id.parse().unwrap();
            token_types[id] = if text.starts_with("<|") && text.len() > 2 { 3 } else { 1 };
            tokens[id] = match text.split_once(' ') {
                Some((left, right)) => {
                    merges.push(text);
                    [left, right].concat()
                }
                None => text.to_owned(),
            };
        }
        let parts = TokenizerParts {
            model: "gpt2",
            pre: Some("qwen2"),
            tokens: tokens.iter().map(String::as_str).collect(),
            token_types,
            merges,
            eos_token_id: Some(151_643),
            ..TokenizerParts::default()
        };
        Arc::new(Tokenizer::new(&parts).unwrap())
    });
    Arc::clone(&TOKENIZER)
}

#[test]
fn qwen2_ids_equal_those_of_the_python_package() {
    check_golden_ids(&qwen2());
}

fn check_golden_ids(tokenizer: &Tokenizer) {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../data/tokenizer_golden.json")).unwrap();
    let ids_of = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids = ids_of(&case["ids"]);
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        let plain = case.get("plain_ids").map_or_else(|| ids.clone(), ids_of);
        assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "as plain text: {text:?}");
        let decoded = case.get("decoded").map_or(text, |decoded| decoded.as_str().unwrap());
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), decoded, "{ids:?}");
    }
}

#[test]
fn qwen2_special_tokens() {
    check_special_tokens(&qwen2());
}

fn check_special_tokens(tokenizer: &Tokenizer) {
    assert_eq!(tokenizer.vocab_size(), QWEN2_SIZE as usize);
    assert_eq!(tokenizer.end_of_generation(), [151_643, 151_645]);
    assert_eq!(tokenizer.encode("<|im_end|>", true).unwrap(), [151_645]);
    assert!(tokenizer.encode("<|im_end|>", false).unwrap().len() > 1);
    assert_eq!(tokenizer.added_token("<|im_start|>"), Some(151_644));
    assert_eq!(tokenizer.kind(151_646), Some(TokenKind::Unused));
    assert!(!tokenizer.encode("[PAD151646]", true).unwrap().contains(&151_646));
    assert_eq!(tokenizer.decode(&[9707, 151_645, 151_646, 0], false).unwrap(), "Hello<|im_end|>!");
    assert_eq!(tokenizer.decode(&[9707, 151_645, 151_646, 0], true).unwrap(), "Hello!");
    assert!(tokenizer.decode(&[QWEN2_SIZE], false).unwrap_err().to_string().contains("151936"));
}

#[test]
fn qwen2_long_runs() {
    check_long_runs(&qwen2());
}

/// Runs that make a quadratic merge or a backtracking expression explode; the longest exceeds the million steps after
/// which the one in the `tokenizers` crate gives up and returns the rest of the text as one word.
fn check_long_runs(tokenizer: &Tokenizer) {
    let runs = ["\n", "\t ", "a", "é", "1", "'", "!\n", "\u{3000}", "中"].map(|unit| (unit, 100_000));
    for (unit, count) in runs.into_iter().chain([(" ", 2_000_000)]) {
        let text = format!("{}x\n", unit.repeat(count));
        let ids = tokenizer.encode(&text, true).unwrap();
        assert!(tokenizer.decode(&ids, false).unwrap() == text, "a run of {unit:?} changed");
        let short = tokenizer.encode(&format!("{}x\n", unit.repeat(1000)), true).unwrap();
        assert_eq!(ids[ids.len() - 2..], short[short.len() - 2..], "the end of a run of {unit:?}");
    }
}

/// The same with the whole vocabulary, of which the part above is one.
#[test]
#[ignore = "needs QERNEL_VOCAB, a GGUF file with Qwen2's vocabulary"]
fn qwen2_s_whole_vocabulary_does_the_same() {
    let path =
        std::env::var_os("QERNEL_VOCAB").expect("QERNEL_VOCAB names a GGUF file with Qwen2's vocabulary");
    let whole = Arc::new(Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap());
    let part = qwen2();
    for id in (0..QWEN2_SIZE).filter(|&id| part.kind(id) != Some(TokenKind::Unused)) {
        assert_eq!(whole.token_bytes(id), part.token_bytes(id), "token {id}");
        assert_eq!(whole.kind(id), part.kind(id), "token {id}");
    }
    check_golden_ids(&whole);
    check_special_tokens(&whole);
    check_long_runs(&whole);
    check_round_trips(&whole);
    check_streams(&whole);
}

/// A byte-level vocabulary of 256 bytes, four merges, and added tokens of every kind.
struct Tiny {
    tokens: Vec<String>,
    token_types: Vec<i32>,
    merges: Vec<String>,
}

const IM_START: u32 = 260;
const IM_END: u32 = 261;
const TOOL: u32 = 262;

impl Tiny {
    fn new() -> Self {
        let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| byte_to_char(byte).to_string()).collect();
        tokens.extend(["he", "Ġhe", "ðŁ", "ðŁĺ"].map(str::to_owned));
        let mut token_types = vec![1; tokens.len()];
        for (token, kind) in
            [("<|im_start|>", 3), ("<|im_end|>", 3), ("<tool>", 4), ("[PAD263]", 4), ("<|pad|>", 5)]
        {
            tokens.push(token.to_owned());
            token_types.push(kind);
        }
        Self { tokens, token_types, merges: ["h e", "Ġ he", "ð Ł", "ðŁ ĺ"].map(str::to_owned).to_vec() }
    }

    fn parts(&self) -> TokenizerParts<'_> {
        TokenizerParts {
            model: "gpt2",
            pre: Some("qwen2"),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            token_types: self.token_types.clone(),
            merges: self.merges.iter().map(String::as_str).collect(),
            eos_token_id: Some(IM_END),
            ..TokenizerParts::default()
        }
    }

    fn build() -> Tokenizer {
        Tokenizer::new(&Self::new().parts()).unwrap()
    }
}

fn byte_ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn merges_and_added_tokens() {
    let tokenizer = Tiny::build();
    assert_eq!(tokenizer.encode("he he", true).unwrap(), [256, 257]);
    assert_eq!(tokenizer.encode("", true).unwrap(), [0u32; 0]);
    assert_eq!(
        tokenizer.encode("<|im_start|>he<tool><|im_end|>", true).unwrap(),
        [IM_START, 256, TOOL, IM_END]
    );
    // Words that were added stay tokens in plain text, padding never is one.
    let plain = tokenizer.encode("<|im_end|><tool>", false).unwrap();
    assert_eq!(plain, [byte_ids("<|im_end|>"), vec![TOOL]].concat());
    for padding in ["[PAD263]", "<|pad|>"] {
        assert_eq!(tokenizer.encode(padding, true).unwrap(), byte_ids(padding));
    }
    assert_eq!(tokenizer.token_bytes(257), Some(&b" he"[..]));
    assert_eq!(tokenizer.token_bytes(263), Some(&b""[..]));
    assert_eq!(tokenizer.token_bytes(265), None);
    assert_eq!(tokenizer.decode(&[IM_START, 256, TOOL, IM_END], true).unwrap(), "he<tool>");
    assert_eq!(tokenizer.end_of_generation(), [IM_END]);
    assert!(tokenizer.is_end_of_generation(IM_END) && !tokenizer.is_end_of_generation(IM_START));
    // Normalised to NFC outside added tokens, as the model was trained.
    assert_eq!(tokenizer.encode("e\u{301}", true).unwrap(), byte_ids("é"));
}

#[test]
fn end_tokens_of_keys_and_names() {
    let tiny = Tiny::new();
    let parts =
        TokenizerParts { eos_token_id: None, end_token_ids: vec![("eot", 7), ("eom", 7)], ..tiny.parts() };
    assert_eq!(Tokenizer::new(&parts).unwrap().end_of_generation(), [7, IM_END]);
}

#[test]
fn tokens_that_fill_in_the_middle() {
    let tiny = Tiny::new();
    assert_eq!(Tokenizer::new(&tiny.parts()).unwrap().fim(), None);
    let keys = ["fim_pre", "fim_suf", "fim_mid"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
    let fim_token_ids: Vec<_> = keys.iter().map(String::as_str).zip([5, 6, 7]).collect();
    let parts = TokenizerParts { fim_token_ids: fim_token_ids.clone(), ..tiny.parts() };
    let expected = FimTokens { prefix: 5, suffix: 6, middle: 7, repository: None, file: None };
    assert_eq!(Tokenizer::new(&parts).unwrap().fim(), Some(expected));
    // Beyond the vocabulary, or not all that are needed.
    for (i, id) in [(1, Some(9999)), (2, None)] {
        let mut ids = fim_token_ids.clone();
        ids[i].1 = id.unwrap_or_default();
        ids.truncate(if id.is_some() { 3 } else { 2 });
        let parts = TokenizerParts { fim_token_ids: ids, ..tiny.parts() };
        assert_eq!(Tokenizer::new(&parts).unwrap().fim(), None);
    }
    // By name, which most files of Qwen leave it at.
    let mut named = Tiny::new();
    let first = named.tokens.len() as u32;
    for name in ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"] {
        named.tokens.push(name.to_owned());
        named.token_types.push(3);
    }
    let fim = Tokenizer::new(&named.parts()).unwrap().fim().unwrap();
    let expected = [first, first + 1, first + 2];
    assert_eq!([fim.prefix, fim.suffix, fim.middle], expected);
    assert_eq!((fim.repository, fim.file), (Some(first + 3), Some(first + 4)));
}

/// No run needs them: llama.cpp warns and goes on, and files with such ids are in use.
#[test]
fn named_ids_beyond_the_vocabulary_are_left_out() {
    let tiny = Tiny::new();
    for beyond in [265, u32::MAX] {
        let parts = TokenizerParts {
            bos_token_id: Some(beyond),
            eos_token_id: Some(beyond),
            padding_token_id: Some(beyond),
            end_token_ids: vec![("eot", beyond), ("eom", 7)],
            add_bos_token: Some(true),
            ..tiny.parts()
        };
        let tokenizer = Tokenizer::new(&parts).unwrap();
        let named = [tokenizer.bos_token_id(), tokenizer.eos_token_id(), tokenizer.padding_token_id()];
        assert_eq!(named, [None; 3]);
        assert!(!tokenizer.adds_bos());
        assert_eq!(tokenizer.end_of_generation(), [7, IM_END]);
    }
}

#[test]
fn vocabularies_that_cannot_be_right() {
    type Change = fn(&mut Tiny);
    let changes: [(&str, Change); 7] = [
        ("tokens 256 and 257 are both \"he\"", |tiny| tiny.tokens[257] = "he".to_owned()),
        ("token 256 is empty", |tiny| tiny.tokens[256].clear()),
        ("token types", |tiny| tiny.token_types.truncate(9)),
        ("type 6", |tiny| tiny.token_types[256] = 6),
        ("merge 4 (\"h x\"): \"hx\" is not a normal token", |tiny| tiny.merges.push("h x".to_owned())),
        ("merge 4 (\"<tool >\"): ", |tiny| tiny.merges.push("<tool >".to_owned())),
        ("expected two tokens", |tiny| tiny.merges.push("he".to_owned())),
    ];
    for (expected, change) in changes {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        let error = Tokenizer::new(&tiny.parts()).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    }
    let tiny = Tiny::new();
    for (expected, parts) in [
        ("`llama`", TokenizerParts { model: "llama", ..tiny.parts() }),
        ("`tekken`", TokenizerParts { pre: Some("tekken"), ..tiny.parts() }),
        ("old converter", TokenizerParts { pre: Some("default"), ..tiny.parts() }),
        ("old converter", TokenizerParts { pre: None, ..tiny.parts() }),
    ] {
        let error = Tokenizer::new(&parts).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    }
}

/// SmolLM2's has no tokens for 21 bytes: it is used, and a text that needs one of them is refused.
#[test]
fn a_vocabulary_need_not_have_a_token_for_every_byte() {
    for change in [(|tiny| tiny.tokens[usize::from(b'a')] = "letter".to_owned()) as fn(&mut Tiny), |tiny| {
        tiny.token_types[usize::from(b'a')] = 3
    }] {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        let tokenizer = Tokenizer::new(&tiny.parts()).unwrap();
        assert_eq!(tokenizer.encode("bc d", false).unwrap(), byte_ids("bc d"));
        let error = tokenizer.encode("bc da", false).unwrap_err();
        assert!(
            matches!(&error, Error::Request(text) if text.contains("0x61") && text.contains("\" da\"")),
            "{error}"
        );
    }
}

/// Llama 3's words that are tokens are those tokens, whatever merges there are; and its prompts begin with BOS where nothing else is said.
#[test]
fn words_that_are_tokens_are_whole_where_the_rules_say_so() {
    let mut tiny = Tiny::new();
    tiny.tokens.push("Ġxyz".to_owned());
    tiny.token_types.push(1);
    let ids = |pre, text: &str| {
        let parts = TokenizerParts { pre: Some(pre), bos_token_id: Some(7), ..tiny.parts() };
        let tokenizer = Tokenizer::new(&parts).unwrap();
        assert_eq!(tokenizer.adds_bos(), pre == "llama-bpe");
        let silent = TokenizerParts { add_bos_token: Some(false), ..parts };
        assert!(!Tokenizer::new(&silent).unwrap().adds_bos());
        tokenizer.encode(text, false).unwrap()
    };
    assert_eq!(ids("llama-bpe", "b xyz xyzx"), [byte_ids("b"), vec![265], byte_ids(" xyzx")].concat());
    assert_eq!(ids("qwen2", "b xyz"), byte_ids("b xyz"));
}

/// All pieces of a stream, the last one from `finish`.
fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut decoder = StreamDecoder::new(tokenizer.clone(), skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
    pieces.push(decoder.finish());
    pieces
}

#[test]
fn a_stream_waits_for_whole_characters() {
    let tokenizer = Arc::new(Tiny::build());
    let pieces = stream(&tokenizer, &byte_ids("é😀a"), false);
    assert_eq!(pieces, ["", "é", "", "", "", "😀", "a", ""]);
    // A character that breaks off: what follows is not held back, and what is missing at the end is replaced.
    assert_eq!(
        stream(&tokenizer, &[0xF0, 0x9F, 0x61, 0xE4, 0xB8], false),
        ["", "", "\u{FFFD}a", "", "", "\u{FFFD}"]
    );
    // A special token that is skipped does not break a character apart; neither does an id without text.
    assert_eq!(stream(&tokenizer, &[0xC3, IM_END, 9999, 0xA9], true), ["", "", "", "é", ""]);
    assert_eq!(stream(&tokenizer, &[0xC3, IM_END], false), ["", "\u{FFFD}<|im_end|>", ""]);
}

fn check_round_trip(tokenizer: &Tokenizer, text: &str) -> Result<(), TestCaseError> {
    // A special token is found first: what follows it is not put together with its last letter, as it is in plain text.
    let parts: Vec<String> = text.split("<|im_end|>").map(nfc).collect();
    for (parse_special, expected) in [(false, nfc(text)), (true, parts.join("<|im_end|>"))] {
        let ids = tokenizer.encode(text, parse_special).unwrap();
        prop_assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), expected.as_bytes(), "of {:?}", text);
    }
    Ok(())
}

#[test]
fn a_special_token_is_found_before_the_text_is_normalised() {
    // U+0338 turns the `>` before it into U+226F where that is text.
    check_round_trip(&qwen2(), "<|im_end|>\u{338}").unwrap();
    check_round_trip(&Tiny::build(), "<|im_end|>\u{338}").unwrap();
}

/// NFC of a text, by the crate that the tokenizer uses; its agreement with Python's is part of the golden numbers.
fn nfc(text: &str) -> String {
    use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};
    let mut normalized = NormalizedString::from(text);
    NFC.normalize(&mut normalized).unwrap();
    normalized.get().to_owned()
}

/// Text as people write it and as they do not: scripts, controls, combining marks, joined emoji, NUL.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "\\PC{0,12}",
        "[ \t\r\n]{1,9}",
        "[\u{4E00}-\u{9FFF}]{1,9}",
        "[\u{600}-\u{6FF}]{1,9}",
        "[a-z\u{300}-\u{36F}]{1,9}",
        "[\0-\u{1F}\u{7F}-\u{9F}]{1,5}",
        "[\u{1F468}\u{1F469}\u{1F3FB}-\u{1F3FF}\u{200D}\u{FE0F}\u{1F1E6}-\u{1F1FF}]{1,9}",
        "[\u{AC00}-\u{D7A3}\u{1100}-\u{11FF}]{1,6}",
        Just("<|im_end|>".to_owned()),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn round_trips(text in texts()) {
        static TINY: OnceLock<Tokenizer> = OnceLock::new();
        check_round_trip(TINY.get_or_init(Tiny::build), &text)?;
    }

    #[test]
    fn streams_equal_decoding_at_once(ids in prop::collection::vec(0u32..265, 0..60), skip_special: bool) {
        static TINY: OnceLock<Arc<Tokenizer>> = OnceLock::new();
        let tokenizer = TINY.get_or_init(|| Arc::new(Tiny::build()));
        prop_assert_eq!(stream(tokenizer, &ids, skip_special).concat(), tokenizer.decode(&ids, skip_special).unwrap());
    }

    /// Valid text streams without a single replacement, however its bytes are dealt to tokens.
    #[test]
    fn streams_of_text_are_exact(text in "[^\u{FFFD}]{0,40}") {
        static TINY: OnceLock<Arc<Tokenizer>> = OnceLock::new();
        let pieces = stream(TINY.get_or_init(|| Arc::new(Tiny::build())), &byte_ids(&text), false);
        let replaced = pieces.iter().any(|piece| piece.contains(char::REPLACEMENT_CHARACTER));
        prop_assert!(!replaced);
        prop_assert_eq!(pieces.concat(), text);
    }
}

/// Runs a property over cases of its own.
fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&strategy, test)
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn qwen2_round_trips() {
    check_round_trips(&qwen2());
}

fn check_round_trips(tokenizer: &Tokenizer) {
    check(texts(), |text| check_round_trip(tokenizer, &text));
}

#[test]
fn qwen2_streams_equal_decoding_at_once() {
    check_streams(&qwen2());
}

fn check_streams(tokenizer: &Arc<Tokenizer>) {
    // Any id, but mostly those below a thousand, of which the part of the vocabulary has every second one, and special ones.
    let id = prop_oneof![6 => 0u32..1000, 1 => 151_640..151_650u32, 1 => 0..QWEN2_SIZE];
    check((prop::collection::vec(id, 0..60), any::<bool>()), |(ids, skip_special)| {
        prop_assert_eq!(
            stream(tokenizer, &ids, skip_special).concat(),
            tokenizer.decode(&ids, skip_special).unwrap()
        );
        Ok(())
    });
}
