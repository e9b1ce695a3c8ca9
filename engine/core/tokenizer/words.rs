//! How text is cut into words before it becomes tokens, in time linear in the text.

use regex::Regex;

/// A way to cut text: an expression without its look-ahead.
///
/// The originals end in `\s+(?!\S)|\s+`: white space before a word leaves its last character to the word. That needs a
/// backtracking engine, and that of the `tokenizers` crate gives up after a million steps and then returns the rest
/// of the text as one word, without an error. Here `\s+` alone is matched, and its last character given back by hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// What `tokenizer.ggml.pre` calls it.
    names: &'static [&'static str],
    pattern: &'static str,
    /// White space that ends in a line break is a word of its own, by an earlier alternative.
    keeps_line_breaks: bool,
    /// Text becomes Unicode's NFC before.
    pub(super) is_nfc: bool,
}

/// Every way that is known.
const RULES: [Rules; 3] = [
    // The `Split` pattern of Qwen2's tokenizer.json. Digits stand alone; a word may take one leading character that is neither
    // letter, digit nor line break. DeepSeek's Qwen distillates keep the expression under their own name; llama.cpp maps both to
    // LLAMA_VOCAB_PRE_TYPE_QWEN2 (src/llama-vocab.cpp).
    Rules {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        ),
        keeps_line_breaks: true,
        is_nfc: true,
    },
    // The same of Qwen3.5: marks stand with letters, as most scripts of India need it.
    Rules {
        names: &["qwen35"],
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        ),
        keeps_line_breaks: true,
        is_nfc: true,
    },
    // `encoder.py` of GPT-2.
    Rules {
        names: &["gpt-2"],
        pattern: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+",
        keeps_line_breaks: false,
        is_nfc: false,
    },
];

impl Rules {
    /// What a file calls `name`.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rules| rules.names.contains(&name))
    }

    /// The names that [`Rules::named`] knows, for people.
    pub(super) fn names() -> String {
        let names: Vec<_> =
            RULES.iter().flat_map(|rules| rules.names).map(|name| format!("`{name}`")).collect();
        names.join(", ")
    }
}

/// Cuts text into words.
pub(super) struct Words {
    regex: Regex,
    keeps_line_breaks: bool,
}

impl Words {
    pub(super) fn new(rules: &Rules) -> Result<Self, regex::Error> {
        Ok(Self { regex: Regex::new(rules.pattern)?, keeps_line_breaks: rules.keeps_line_breaks })
    }

    /// The length of the word in what the expression found, `rest` following.
    fn word_end(&self, found: &str, rest: &str) -> usize {
        // Only the last alternative finds white space at the end (that is no line break, where those are kept), and it stops at a
        // non-space.
        let gives_back = |c: char| c.is_whitespace() && !(self.keeps_line_breaks && matches!(c, '\r' | '\n'));
        match found.char_indices().next_back() {
            Some((last, c)) if last > 0 && gives_back(c) && !rest.is_empty() => last,
            _ => found.len(),
        }
    }

    /// The words of a text, which together are the text: every character matches.
    pub(super) fn of<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let found = self.regex.find_at(text, start)?;
            let end = found.start() + self.word_end(found.as_str(), &text[found.end()..]);
            start = end;
            Some(&text[found.start()..end])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    /// The patterns as Qwen2's and Qwen3.5's tokenizer.json and the crate's own GPT-2 have them, by their names.
    const ORIGINALS: [(&str, &str); 3] = [
        (
            "qwen2",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        (
            "qwen35",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ("gpt-2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    ];

    static PRE_TOKENIZERS: LazyLock<[(Words, Split); 3]> = LazyLock::new(|| {
        ORIGINALS.map(|(name, original)| {
            let original = SplitPattern::Regex(original.to_owned());
            let words = Words::new(Rules::named(name).unwrap()).unwrap();
            (words, Split::new(original, SplitDelimiterBehavior::Isolated, false).unwrap())
        })
    });

    fn words<'t>(words: &Words, text: &'t str) -> Vec<&'t str> {
        words.of(text).collect()
    }

    fn original_words(original: &Split, text: &str) -> Vec<String> {
        let mut text = PreTokenizedString::from(text);
        original.pre_tokenize(&mut text).unwrap();
        let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, ..)| word.to_owned()).collect()
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word() {
        for (text, qwen2, gpt2) in [
            ("a   b", &["a", "  ", " b"][..], &["a", "  ", " b"][..]),
            ("  1", &[" ", " ", "1"], &[" ", " 1"]),
            ("a  \n  b ", &["a", "  \n", " ", " b", " "], &["a", "  \n ", " b", " "]),
            ("it's  ", &["it", "'s", "  "], &["it", "'s", "  "]),
            ("a\n\nb 12", &["a", "\n\n", "b", " ", "1", "2"], &["a", "\n", "\n", "b", " 12"]),
        ] {
            assert_eq!(words(&PRE_TOKENIZERS[0].0, text), qwen2, "{text:?}");
            assert_eq!(words(&PRE_TOKENIZERS[1].0, text), qwen2, "{text:?}");
            assert_eq!(words(&PRE_TOKENIZERS[2].0, text), gpt2, "{text:?}");
        }
    }

    #[test]
    fn marks_stand_with_letters_where_the_rules_say_so() {
        // Devanagari: letters, vowel signs and a virama.
        let text = "हिन्दी";
        assert_eq!(words(&PRE_TOKENIZERS[0].0, text), ["ह", "िन", "्द", "ी"]);
        assert_eq!(words(&PRE_TOKENIZERS[1].0, text), [text]);
    }

    proptest! {
        #[test]
        fn words_are_those_of_the_originals(text in "([ \t\r\n\u{85}\u{A0}\u{3000}a1'sSſéÉ中.٣\u{301}हि]|\\PC){0,60}") {
            for (ours, original) in &*PRE_TOKENIZERS {
                prop_assert_eq!(words(ours, &text), original_words(original, &text));
            }
        }
    }
}
