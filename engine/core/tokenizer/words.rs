//! How Qwen2 cuts text into words, in time linear in the text.

use regex::Regex;
use tokenizers::pattern::Pattern;
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

/// The `Split` pattern of Qwen2's tokenizer.json without its look-ahead. Digits stand alone; a word may take one leading
/// character that is neither letter, digit nor line break.
///
/// The original ends in `\s+(?!\S)|\s+`: white space before a word leaves its last character to the word. That needs a
/// backtracking engine, and the one in the `tokenizers` crate gives up after a million steps and then returns the rest
/// of the text as one word, without an error. Here `\s+` alone is matched, and its last character given back by hand.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);

/// Qwen2's pre-tokenizer.
pub(super) struct Words {
    regex: Regex,
}

impl Words {
    pub(super) fn new() -> Result<Self, regex::Error> {
        Ok(Self { regex: Regex::new(WORDS)? })
    }
}

impl PreTokenizer for Words {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        text.split(|_, piece| piece.split(self, SplitDelimiterBehavior::Isolated))
    }
}

impl Pattern for &Words {
    /// Consecutive ranges that cover `text`; all of them are words, for every character matches.
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut words = Vec::new();
        let mut start = 0;
        while let Some(word) = self.regex.find_at(text, start) {
            let end = word_end(word.as_str(), &text[word.end()..]) + word.start();
            words.push(((word.start(), end), true));
            start = end;
        }
        Ok(words)
    }
}

/// The length of the word in what the expression found, `rest` following.
fn word_end(found: &str, rest: &str) -> usize {
    // Only the last alternative finds white space that does not end in a line break, and it stops at a non-space.
    match found.char_indices().next_back() {
        Some((last, c)) if last > 0 && c.is_whitespace() && !matches!(c, '\r' | '\n') && !rest.is_empty() => {
            last
        }
        _ => found.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType};

    /// The pattern as Qwen2's tokenizer.json has it.
    const ORIGINAL: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    static PRE_TOKENIZERS: LazyLock<(Words, Split)> = LazyLock::new(|| {
        let original = SplitPattern::Regex(ORIGINAL.to_owned());
        (Words::new().unwrap(), Split::new(original, SplitDelimiterBehavior::Isolated, false).unwrap())
    });

    fn words(pre_tokenizer: &impl PreTokenizer, text: &str) -> Vec<String> {
        let mut text = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut text).unwrap();
        let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, ..)| word.to_owned()).collect()
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word() {
        for (text, expected) in [
            ("a   b", &["a", "  ", " b"][..]),
            ("  1", &[" ", " ", "1"]),
            ("a  \n  b ", &["a", "  \n", " ", " b", " "]),
            ("it's  ", &["it", "'s", "  "]),
        ] {
            assert_eq!(words(&PRE_TOKENIZERS.0, text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn words_are_those_of_the_original(text in "([ \t\r\n\u{85}\u{A0}\u{3000}a1'sSſéÉ中.٣\u{301}]|\\PC){0,60}") {
            let (ours, original) = &*PRE_TOKENIZERS;
            prop_assert_eq!(words(ours, &text), words(original, &text));
        }
    }
}
