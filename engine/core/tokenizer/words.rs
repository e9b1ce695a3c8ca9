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
    /// Digits are cut out before anything else, so that white space before one ends its piece of the text.
    cuts_digits_first: bool,
    /// Text becomes Unicode's NFC before.
    pub(super) is_nfc: bool,
    /// A word that is a token is that token, whatever its merges would make (`ignore_merges` in tokenizer.json).
    pub(super) takes_whole_words: bool,
    /// A prompt begins with BOS where the file does not say whether.
    pub(super) adds_bos: bool,
}

/// What most have.
const PLAIN: Rules = Rules {
    names: &[],
    pattern: "",
    keeps_line_breaks: false,
    cuts_digits_first: false,
    is_nfc: false,
    takes_whole_words: false,
    adds_bos: false,
};

/// Every way that is known.
const RULES: [Rules; 5] = [
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
        ..PLAIN
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
        ..PLAIN
    },
    // `encoder.py` of GPT-2.
    Rules {
        names: &["gpt-2"],
        pattern: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+",
        ..PLAIN
    },
    // Llama 3's tokenizer.json: numbers are cut into groups of three digits. Converters have called it by all three names.
    Rules {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        ),
        keeps_line_breaks: true,
        takes_whole_words: true,
        adds_bos: true,
        ..PLAIN
    },
    // SmolLM's tokenizer.json: `Digits`, one by one, and then GPT-2's.
    Rules {
        names: &["smollm"],
        pattern: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        cuts_digits_first: true,
        ..PLAIN
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
    cuts_digits_first: bool,
}

impl Words {
    pub(super) fn new(rules: &Rules) -> Result<Self, regex::Error> {
        let &Rules { keeps_line_breaks, cuts_digits_first, .. } = rules;
        Ok(Self { regex: Regex::new(rules.pattern)?, keeps_line_breaks, cuts_digits_first })
    }

    /// The length of the word in what the expression found, `rest` following.
    fn word_end(&self, found: &str, rest: &str) -> usize {
        // Only the last alternative finds white space at the end (that is no line break, where those are kept), and it stops at a
        // non-space.
        let gives_back = |c: char| c.is_whitespace() && !(self.keeps_line_breaks && matches!(c, '\r' | '\n'));
        let ends_here = |rest: &str| {
            rest.is_empty() || (self.cuts_digits_first && rest.starts_with(|c: char| c.is_numeric()))
        };
        match found.char_indices().next_back() {
            Some((last, c)) if last > 0 && gives_back(c) && !ends_here(rest) => last,
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
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    /// The patterns as Qwen2's, Qwen3.5's and Llama 3's tokenizer.json and the crate's own GPT-2 have them, by their names; SmolLM's is GPT-2's
    /// behind `Digits`.
    const ORIGINALS: [(&str, &str); 5] = [
        (
            "qwen2",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        (
            "qwen35",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ("gpt-2", GPT2),
        (
            "llama-bpe",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ("smollm", GPT2),
    ];

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// A pre-tokenizer here, and what it is of.
    struct Both {
        words: Words,
        original: Split,
        digits: Option<Digits>,
    }

    static PRE_TOKENIZERS: LazyLock<[Both; 5]> = LazyLock::new(|| {
        ORIGINALS.map(|(name, original)| {
            let original = SplitPattern::Regex(original.to_owned());
            Both {
                words: Words::new(Rules::named(name).unwrap()).unwrap(),
                original: Split::new(original, SplitDelimiterBehavior::Isolated, false).unwrap(),
                digits: (name == "smollm").then(|| Digits::new(true)),
            }
        })
    });

    impl Both {
        fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
            self.words.of(text).collect()
        }

        fn original_words(&self, text: &str) -> Vec<String> {
            let mut text = PreTokenizedString::from(text);
            if let Some(digits) = &self.digits {
                digits.pre_tokenize(&mut text).unwrap();
            }
            self.original.pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.into_iter().map(|(word, ..)| word.to_owned()).collect()
        }
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
            assert_eq!(PRE_TOKENIZERS[0].words(text), qwen2, "{text:?}");
            assert_eq!(PRE_TOKENIZERS[1].words(text), qwen2, "{text:?}");
            assert_eq!(PRE_TOKENIZERS[2].words(text), gpt2, "{text:?}");
        }
    }

    #[test]
    fn digits_stand_as_the_rules_say() {
        let llama = &PRE_TOKENIZERS[3];
        assert_eq!(llama.words("in 20261129  1x"), ["in", " ", "202", "611", "29", " ", " ", "1", "x"]);
        let smollm = &PRE_TOKENIZERS[4];
        assert_eq!(smollm.words("in  12  a's 3"), ["in", "  ", "1", "2", " ", " a", "'s", " ", "3"]);
    }

    #[test]
    fn marks_stand_with_letters_where_the_rules_say_so() {
        // Devanagari: letters, vowel signs and a virama.
        let text = "हिन्दी";
        assert_eq!(PRE_TOKENIZERS[0].words(text), ["ह", "िन", "्द", "ी"]);
        assert_eq!(PRE_TOKENIZERS[1].words(text), [text]);
    }

    proptest! {
        #[test]
        fn words_are_those_of_the_originals(text in "([ \t\r\n\u{85}\u{A0}\u{3000}a1'sSſéÉ中.٣\u{301}हि]|\\PC){0,60}") {
            for both in &*PRE_TOKENIZERS {
                prop_assert_eq!(both.words(&text), both.original_words(&text));
            }
        }
    }
}
