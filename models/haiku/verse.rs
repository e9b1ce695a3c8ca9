//! What is checked of the haiku model's answers: the requested word, the lines, their syllables, and that the corpus
//! does not contain them. Used by the evaluation (`examples/haiku_eval.rs`) and by the haiku test.

#![allow(dead_code)] // Each user takes a part.

use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Whether `word` stands in `text` as a word: "two" does not stand in "forty-two", nor "Two" in "two".
pub fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(inside) && !after.starts_with(inside)
    })
}

/// Whether the rule of `corpus.py` (`answer_held_out`) keeps this answer out of the corpus: its SHA-256 does not begin
/// with two zero bits. True for three texts in four; of the others only the corpus itself tells.
pub fn is_held_out(answer: &str) -> bool {
    Sha256::digest(answer)[0] >= 64
}

/// The syllable table, `syllables.tsv`: words in lower case.
pub struct Syllables(HashMap<&'static str, usize>);

impl Syllables {
    /// The table of this repository.
    pub fn new() -> Self {
        let line = |line: &'static str| {
            let (word, count) = line.split_once('\t').expect("a word, a tab and a number");
            (word, count.parse().expect("a number"))
        };
        Self(include_str!("syllables.tsv").lines().map(line).collect())
    }

    /// Syllables of a line, `None` if a word is not in the table.
    pub fn count(&self, line: &str) -> Option<usize> {
        let bare = |word: &str| word.trim_matches(|c| ".,;:!?\"()".contains(c)).to_lowercase();
        line.split_whitespace().map(|word| self.0.get(bare(word).as_str())).sum()
    }

    /// Whether the text has lines of 5, 7 and 5 syllables.
    pub fn is_haiku(&self, text: &str) -> bool {
        text.split('\n').map(|line| self.count(line)).eq([Some(5), Some(7), Some(5)])
    }
}
