//! Unicode's Normalization Form C, by the tables that the `tokenizers` crate has.
//!
//! What the crate of the tables does keeps sixteen bytes, twice, for each mark that stands behind a letter, and a text may be marks alone:
//! here a mark takes four.

use std::borrow::Cow;
use unicode_normalization_alignments::char::{canonical_combining_class, compose, decompose_canonical};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

/// The NFC of a text (UAX #15: decomposed, marks in the order of their classes, composed).
pub(super) fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    let mut composer = Composer { text: String::with_capacity(text.len()), ..Composer::default() };
    text.chars().for_each(|c| decompose_canonical(c, |part| composer.push(part)));
    composer.compose_marks();
    composer.write();
    Cow::Owned(composer.text)
}

#[derive(Default)]
struct Composer {
    /// What is done.
    text: String,
    /// The character of class 0 that others may combine with.
    starter: Option<char>,
    /// The marks behind it in the order of the text.
    marks: Vec<Mark>,
}

/// A character with a combining class other than 0, the class in the upper eight bits.
#[derive(Clone, Copy)]
struct Mark(u32);

impl Mark {
    fn new(class: u8, c: char) -> Self {
        Self(u32::from(class) << 24 | c as u32)
    }

    fn class(self) -> u8 {
        (self.0 >> 24) as u8
    }

    fn char(self) -> char {
        char::from_u32(self.0 & 0xFF_FFFF).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

impl Composer {
    /// Takes a character that is not decomposed any further.
    fn push(&mut self, c: char) {
        let class = canonical_combining_class(c);
        if class > 0 {
            return self.marks.push(Mark::new(class, c));
        }
        self.compose_marks();
        match self.starter.and_then(|starter| compose(starter, c)) {
            Some(composed) if self.marks.is_empty() => self.starter = Some(composed),
            _ => {
                self.write();
                self.starter = Some(c);
            }
        }
    }

    /// Leaves those marks, in order, that do not combine with the starter. One that stays blocks others of its class.
    fn compose_marks(&mut self) {
        self.marks.sort_by_key(|mark| mark.class());
        let Some(starter) = &mut self.starter else { return };
        let mut blocked = 0;
        self.marks.retain(|mark| {
            let composed = (mark.class() > blocked).then(|| compose(*starter, mark.char())).flatten();
            match composed {
                Some(composed) => *starter = composed,
                None => blocked = mark.class(),
            }
            composed.is_none()
        });
    }

    /// Writes what combines with nothing any more.
    fn write(&mut self) {
        self.text.extend(self.starter.take());
        self.text.extend(self.marks.drain(..).map(Mark::char));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};

    /// By the `tokenizers` crate.
    fn original(text: &str) -> String {
        let mut normalized = NormalizedString::from(text);
        NFC.normalize(&mut normalized).unwrap();
        normalized.get().to_owned()
    }

    #[test]
    fn every_character_alone_and_behind_a_letter_is_as_in_the_original() {
        for c in '\0'..=char::MAX {
            let text = format!("e{c}{c}\u{301}");
            assert_eq!(nfc(&text[1..]), original(&text[1..]), "{c:?} and an accent");
            assert_eq!(nfc(&text), original(&text), "e, {c:?} twice and an accent");
        }
    }

    const MARKED: &str = "[aeé\u{1100}\u{1161}\u{11A8}가각\u{212B}\u{A8}\u{300}-\u{345}\u{5B0}-\u{5C7}\u{338}\u{F71}-\u{F84}あ\u{3099}\u{1D165}]";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn texts_are_as_in_the_original(text in proptest::string::string_regex(&format!(r"({MARKED}|\PC){{0,24}}")).unwrap()) {
            prop_assert_eq!(nfc(&text), original(&text));
        }
    }
}
