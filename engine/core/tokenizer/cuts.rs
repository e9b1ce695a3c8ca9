//! Where a text can be cut so that its parts encode to the tokens of the whole.
//!
//! Encoding takes some 300 bytes of memory for a byte of text, so a long text goes part by part; its added tokens have been taken out
//! before. A cut between the characters `x` and `y` changes nothing if both of this holds:
//!
//! 1. *Both are inert in NFC*: their combining class is 0 and they never combine with what stands before them (their quick check says
//!    yes). Then no character moves or combines across the cut (UAX #15, on concatenation), the left part still ends in `x`, and the
//!    right one begins with `y` or with what `y` and marks behind it combine to, which is of `y`'s class.
//! 2. *No word has a character of `x`'s class just before one of `y`'s*, by each alternative of Qwen's expressions in `words.rs`, so that
//!    a word of the whole ends there. The expression looks neither back nor ahead: the words behind the cut depend on the text behind it
//!    alone. And those before it are the same: of the ways to match that the expression prefers in the whole, none goes beyond the cut,
//!    and those that do not are there in the left part as well, in the same order. The one rule that looks ahead, for white space before
//!    a word, concerns words that end in white space other than a line break, and `x` is none.
//!
//! A text may have no such place for long (letters without anything between them): then the part is as long as it must be.

use regex::Regex;
use std::sync::LazyLock;
use unicode_normalization_alignments::char::canonical_combining_class;
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

/// Bytes that a part has at least.
pub(super) const PART: usize = 16 << 10;

/// What the expression for words tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\r` and `\n`
    Break,
    /// All other `\s`
    Space,
    /// `\p{M}`, which stands with letters or with signs
    Mark,
    /// Signs and the like.
    Other,
}

impl Class {
    /// As the expression's own tables say, which may be of another version of Unicode than the standard library's.
    fn of(c: char) -> Self {
        match c {
            '\r' | '\n' => Self::Break,
            'a'..='z' | 'A'..='Z' => Self::Letter,
            '0'..='9' => Self::Number,
            '\t' | '\u{B}' | '\u{C}' | ' ' => Self::Space,
            c if c.is_ascii() => Self::Other,
            c => {
                let mut buffer = [0; 4];
                let text = &*c.encode_utf8(&mut buffer);
                let known = CLASSES.iter().find(|(expression, _)| expression.is_match(text));
                known.map_or(Self::Other, |&(_, class)| class)
            }
        }
    }

    /// Whether no word has a character of this class just before one of class `next`, and none of this class at its end is left to the
    /// next word.
    fn ends_before(self, next: Self) -> bool {
        match (self, next) {
            // It would be given back, or goes on.
            (Self::Space, _) => false,
            // A number is a word by itself.
            (Self::Number, _) | (_, Self::Number) => true,
            // Behind a letter stand letters alone, or marks.
            (Self::Letter, next) => !matches!(next, Self::Letter | Self::Mark),
            // Signs go on with signs and line breaks, and one of them begins a word of letters.
            (Self::Other | Self::Mark, next) => next == Self::Space,
            // Line breaks are the last of their word, but white space may go on to a further one.
            (Self::Break, next) => matches!(next, Self::Letter | Self::Mark | Self::Other),
        }
    }
}

static CLASSES: LazyLock<[(Regex, Class); 4]> = LazyLock::new(|| {
    let classes = [
        (r"^\p{L}$", Class::Letter),
        (r"^\p{N}$", Class::Number),
        (r"^\s$", Class::Space),
        (r"^\p{M}$", Class::Mark),
    ];
    classes.map(|(expression, class)| (Regex::new(expression).expect("the expression is well-formed"), class))
});

/// Whether NFC leaves `c` and what stands before it as they are.
fn is_inert(c: char) -> bool {
    let quick = || is_nfc_quick(std::iter::once(c)) == IsNormalized::Yes;
    c.is_ascii() || (canonical_combining_class(c) == 0 && quick())
}

/// Parts of at least `least` bytes, but for the last, which together are the text.
pub(super) fn parts(text: &str, least: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (part, behind) = rest.split_at(cut(rest, least)?);
        rest = behind;
        Some(part)
    })
}

/// The first cut behind `least` bytes, or the end; `None` in an empty text.
fn cut(text: &str, least: usize) -> Option<usize> {
    if text.is_empty() {
        return None;
    }
    let start = (least.max(1)..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let mut before = text[..start].chars().next_back()?;
    for (at, c) in text[start..].char_indices() {
        if Class::of(before).ends_before(Class::of(c)) && is_inert(before) && is_inert(c) {
            return Some(start + at);
        }
        before = c;
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{Tokenizer, TokenizerParts, byte_to_char};
    use proptest::prelude::*;
    use tokenizers::normalizers::NFC;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{AddedToken, AddedVocabulary, Model, OffsetType, PreTokenizer};
    use unicode_normalization_alignments::UnicodeNormalization;

    /// Three control tokens, and others, which are found in any text.
    const ADDED: [&str; 7] = ["<|im_end|>", "<1 a>", "é.", "<1", "a 1 a", "  ", "1a"];

    /// A vocabulary whose merges reach over many bytes, and added tokens with all that a cut could fall into.
    static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| ["qwen2", "qwen35"].map(tokenizer));

    fn tokenizer(pre: &str) -> Tokenizer {
        let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| byte_to_char(byte).to_string()).collect();
        let merges = ["Ġ Ġ", "ĠĠ ĠĠ", "a 1", "1 1", "a a", "aa aa", "Ċ Ċ", "Ġ a", "' s", ". Ċ", "Ã ©", "e Ì"];
        tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        let mut types = vec![1; tokens.len()];
        for (token, kind) in
            [("<|im_end|>", 3), ("<1 a>", 3), ("<1", 4), ("a 1 a", 4), ("  ", 4), ("1a", 4), ("é.", 3)]
        {
            tokens.push(token.to_owned());
            types.push(kind);
        }
        Tokenizer::new(&TokenizerParts {
            model: "gpt2",
            pre: Some(pre),
            tokens: tokens.iter().map(String::as_str).collect(),
            token_types: types,
            merges: merges.to_vec(),
            ..TokenizerParts::default()
        })
        .unwrap()
    }

    const LITTLE: &str = "[ \t\r\n\u{85}\u{A0}a1'sSfé.<>|हि्٣Ⅷ\u{301}\u{308}\u{338}=中あ\u{3099}\u{1100}\u{1161}\u{11A8}가\u{212B}\u{1F980}]";

    /// Up to `most` of the characters that matter here and of what `others` matches.
    fn texts(others: &str, most: usize) -> impl Strategy<Value = String> {
        proptest::string::string_regex(&format!("({LITTLE}|{others}){{0,{most}}}")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Every place that is called a cut, alone: the two parts encode to the tokens of the whole.
        #[test]
        fn a_cut_changes_nothing(text in texts(r"\PC", 24)) {
            for tokenizer in &*TOKENIZERS {
                let whole = tokenizer.encode_part(&text).unwrap();
                for least in 1..=text.len() {
                    let at = cut(&text, least).unwrap();
                    let mut parts = tokenizer.encode_part(&text[..at]).unwrap();
                    parts.extend(tokenizer.encode_part(&text[at..]).unwrap());
                    prop_assert_eq!(&parts, &whole, "cut at {} of {:?}", at, text);
                }
            }
        }

        /// All parts of a text, as small as they can be.
        #[test]
        fn parts_are_the_whole(
            text in texts(r"[0-9]{1,9}|[a-z]{1,9}|[ \n]{1,9}", 60),
            least in 1_usize..12,
        ) {
            prop_assert_eq!(parts(&text, least).collect::<String>(), text.as_str());
            for tokenizer in &*TOKENIZERS {
                let mut ids = Vec::new();
                tokenizer.encode_text(&text, least, &mut ids).unwrap();
                prop_assert_eq!(ids, tokenizer.encode_part(&text).unwrap());
            }
        }

        /// Added tokens and all, beside the `tokenizers` crate, which takes the text as a whole.
        #[test]
        fn tokens_are_those_of_the_whole(
            text in texts(r"<\|im_end\|>|<1 a>|<1|a 1 a|1a|\PC", 40),
            parse_special: bool,
            rules in 0_usize..2,
        ) {
            let tokenizer = &TOKENIZERS[rules];
            let kinds = if parse_special { &ADDED[..] } else { &ADDED[3..] };
            let mut added = AddedVocabulary::new();
            let tokens = kinds.iter().map(|&text| AddedToken::from(text, false).normalized(false));
            added.add_tokens(tokens, &tokenizer.model, None::<&NFC>).unwrap();
            let mut pieces = added.extract_and_normalize(Some(&NFC), &text);
            tokenizer.words.pre_tokenize(&mut pieces).unwrap();
            ByteLevel::new(false, false, false).pre_tokenize(&mut pieces).unwrap();
            pieces.tokenize(|word| tokenizer.model.tokenize(word.get())).unwrap();
            let whole = pieces.into_encoding(None, 0, OffsetType::None).unwrap();
            prop_assert_eq!(tokenizer.encode(&text, parse_special).unwrap(), whole.get_ids());
        }
    }

    /// What the proof takes for granted of characters, of all of them.
    #[test]
    fn classes_are_those_of_the_expression_and_combining_keeps_them() {
        let [letter, number, space, mark] =
            [r"^\p{L}$", r"^\p{N}$", r"^\s$", r"^\p{M}$"].map(|expression| Regex::new(expression).unwrap());
        for c in '\0'..=char::MAX {
            let mut buffer = [0; 4];
            let text = &*c.encode_utf8(&mut buffer);
            let class = Class::of(c);
            let expected = [&letter, &number, &space, &mark].map(|expression| expression.is_match(text));
            let is_space = matches!(class, Class::Space | Class::Break);
            let found = [class == Class::Letter, class == Class::Number, is_space, class == Class::Mark];
            assert_eq!(found, expected, "{c:?}");
            // What it is made of begins with a character of its class, unless nothing ever combines to it.
            let composed: String = text.nfc().map(|(c, _)| c).collect();
            let first = text.nfd().next().unwrap().0;
            if composed == text && first != c {
                assert_eq!(class, Class::of(first), "{c:?} begins with {first:?}");
            }
        }
    }

    #[test]
    fn common_texts_fall_into_small_parts() {
        for (text, longest) in [
            ("1234567890".repeat(5000), PART),
            ("It's 5 o'clock, and all is well.\n".repeat(2000), PART + 40),
            ("今天天气很好。我们去公园吧，好吗？".repeat(2000), PART + 60),
            ("{\"a\": [1, 2.5, \"x\"]}\n".repeat(2000), PART + 40),
            ("é e\u{301} \u{1F980}! ".repeat(5000), PART + 40),
        ] {
            let found = parts(&text, PART).map(str::len).max().unwrap();
            assert!(found <= longest, "{found} bytes in a part of {:?}…", &text[..20]);
        }
        let word = "a".repeat(3 * PART);
        assert_eq!(parts(&word, PART).count(), 1, "a word is whole");
        assert_eq!(parts("", PART).count(), 0);
    }
}
