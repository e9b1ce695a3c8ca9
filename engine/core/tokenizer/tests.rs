//! The tokenizer beside the `tokenizers` crate.

use super::{Tokenizer, TokenizerParts, byte_to_char};
use proptest::prelude::*;
use std::sync::LazyLock;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, AddedVocabulary, Model, OffsetType, PreTokenizer, SplitDelimiterBehavior};

/// Three control tokens, and others, which are found in any text, with all that a word could be cut by.
const ADDED: [(&str, i32); 7] =
    [("<|im_end|>", 3), ("<1 a>", 3), ("é.", 3), ("<1", 4), ("a 1 a", 4), ("  ", 4), ("1a", 4)];
const NUM_CONTROL: usize = 3;

/// Merges that reach over many bytes, and over parts of characters.
const MERGES: [&str; 12] =
    ["Ġ Ġ", "ĠĠ ĠĠ", "a 1", "1 1", "a a", "aa aa", "Ċ Ċ", "Ġ a", "' s", ". Ċ", "Ã ©", "e Ì"];

/// Qwen2's expression, as its tokenizer.json has it.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

struct Both {
    ours: Tokenizer,
    model: BPE,
    split: Split,
}

static BOTH: LazyLock<Both> = LazyLock::new(|| {
    let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| byte_to_char(byte).to_string()).collect();
    tokens.extend(MERGES.map(|merge| merge.replace(' ', "")));
    let mut token_types = vec![1; tokens.len()];
    for (token, kind) in ADDED {
        tokens.push(token.to_owned());
        token_types.push(kind);
    }
    let ours = Tokenizer::new(&TokenizerParts {
        model: "gpt2",
        pre: Some("qwen2"),
        tokens: tokens.iter().map(String::as_str).collect(),
        token_types,
        merges: MERGES.to_vec(),
        ..TokenizerParts::default()
    });
    let pairs = MERGES.map(|merge| merge.split_once(' ').unwrap());
    let pairs = pairs.map(|(left, right)| (left.to_owned(), right.to_owned())).to_vec();
    let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
    Both {
        ours: ours.unwrap(),
        model: BPE::builder().vocab_and_merges(vocabulary, pairs).build().unwrap(),
        split: Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .unwrap(),
    }
});

impl Both {
    fn original(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let found = if parse_special { &ADDED[..] } else { &ADDED[NUM_CONTROL..] };
        let mut added = AddedVocabulary::new();
        let tokens = found.iter().map(|&(text, _)| AddedToken::from(text, false).normalized(false));
        added.add_tokens(tokens, &self.model, None::<&NFC>).unwrap();
        let mut pieces = added.extract_and_normalize(Some(&NFC), text);
        self.split.pre_tokenize(&mut pieces).unwrap();
        ByteLevel::new(false, false, false).pre_tokenize(&mut pieces).unwrap();
        pieces.tokenize(|word| self.model.tokenize(word.get())).unwrap();
        pieces.into_encoding(None, 0, OffsetType::None).unwrap().get_ids().to_vec()
    }
}

const LITTLE: &str = "[ \t\r\n\u{85}\u{A0}a1'sSfé.<>|٣Ⅷ\u{301}\u{308}\u{338}=中あ\u{3099}\u{1100}\u{1161}\u{11A8}가\u{212B}\u{1F980}]";

/// Up to `most` of the characters that matter here and of what `others` matches.
fn texts(others: &str, most: usize) -> impl Strategy<Value = String> {
    proptest::string::string_regex(&format!("({LITTLE}|{others}){{0,{most}}}")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn tokens_are_those_of_the_original(
        text in texts(r"<\|im_end\|>|<1 a>|<1|a 1 a|1a|a{1,40}|\PC", 40),
        parse_special: bool,
    ) {
        let ours = BOTH.ours.encode(&text, parse_special).unwrap();
        prop_assert_eq!(ours, BOTH.original(&text, parse_special), "{:?}", text);
    }
}

#[test]
fn long_words_are_as_in_the_original() {
    for unit in ["a", "é", "aa1", "a\u{301}", "\u{301}", ".", "\n", " ", "中"] {
        let text = unit.repeat(30_000);
        assert!(BOTH.ours.encode(&text, false).unwrap() == BOTH.original(&text, false), "{unit:?}");
    }
}

/// Set where a test runs in a process of its own.
#[cfg(target_os = "linux")]
const ALONE: &str = "QERNEL_TEST_TOKENIZER_ALONE";

/// One word of megabytes whose neighbours can all be joined is the worst; one where nothing can be has the most tokens, and one of marks is
/// brought to NFC as a whole.
#[test]
#[cfg(target_os = "linux")]
fn a_word_takes_less_than_twenty_times_its_memory_and_gives_it_back() {
    const MIB: usize = 1 << 20;
    if std::env::var_os(ALONE).is_none() {
        let (_, module) = module_path!().split_once("::").unwrap();
        let test = format!("{module}::a_word_takes_less_than_twenty_times_its_memory_and_gives_it_back");
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", &test]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let status = |field: &str| {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        value.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    };
    BOTH.ours.encode("a 1é", false).unwrap();
    let first = status("RssAnon");
    for unit in ["a", "b", "\u{301}"] {
        let text = unit.repeat(MIB / unit.len());
        // The peak begins anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let ids = BOTH.ours.encode(&text, false).unwrap();
        let taken = status("VmHWM") - before;
        assert!(taken < 20 * text.len(), "{} KiB for {unit:?}", taken / 1024);
        drop((text, ids));
        // The allocator keeps some of what is free.
        let kept = status("RssAnon").saturating_sub(first);
        assert!(kept < 12 * MIB, "{} KiB are left of {unit:?}", kept / 1024);
    }
}
