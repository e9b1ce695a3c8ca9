//! What would repeat itself: the tokens that [`Dry`] makes less likely.

use crate::sampler::Dry;
use crate::tokenizer::Tokenizer;
use std::collections::BTreeMap;

/// Penalties are at most `e ^ MAX_EXPONENT`, which is far beyond any logit.
const MAX_EXPONENT: f32 = 80.0;

/// Looks for repetitions at the end of a sequence.
pub(super) struct Repetitions {
    dry: Dry,
    /// By token: whether nothing is repeated across it.
    breaks: Vec<bool>,
}

impl Repetitions {
    /// `None` where nothing is asked for.
    pub(super) fn new(dry: &Dry, tokenizer: Option<&Tokenizer>) -> Option<Self> {
        if dry.multiplier == 0.0 || dry.last_n == 0 {
            return None;
        }
        let breakers: Vec<&[u8]> = dry
            .sequence_breakers
            .iter()
            .map(|text| text.as_bytes())
            .filter(|text| !text.is_empty())
            .collect();
        let mut begins = [false; 256];
        breakers.iter().for_each(|breaker| begins[usize::from(breaker[0])] = true);
        // The whole vocabulary is looked through for each request.
        let has_breaker = |bytes: &[u8]| {
            let mut starts = (0..bytes.len()).filter(|&at| begins[usize::from(bytes[at])]);
            starts.any(|at| breakers.iter().any(|breaker| bytes[at..].starts_with(breaker)))
        };
        let breaks = tokenizer.map_or_else(Vec::new, |tokenizer| {
            let tokens = 0..tokenizer.vocab_size() as u32;
            tokens
                .map(|id| tokenizer.is_special(id) || tokenizer.token_bytes(id).is_some_and(has_breaker))
                .collect()
        });
        Some(Self { dry: dry.clone(), breaks })
    }

    /// What each token that goes on with a repetition loses of its logit.
    pub(super) fn penalties(&self, tokens: &[u32]) -> Vec<(u32, f32)> {
        let most = usize::try_from(self.dry.last_n).unwrap_or(usize::MAX);
        let newest: Vec<u32> = tokens.iter().rev().take(most).copied().collect();
        let breaks = |token: &u32| self.breaks.get(*token as usize).copied().unwrap_or(false);
        let longest = newest.iter().position(breaks).unwrap_or(newest.len());
        let allowed = self.dry.allowed_length as usize;
        if longest < allowed.max(1) {
            return Vec::new();
        }
        let mut lengths: BTreeMap<u32, usize> = BTreeMap::new();
        // What ends `back` tokens before the end is as the end is, for so many tokens, and this one came next.
        for (back, &length) in common_lengths(&newest).iter().enumerate().skip(1) {
            let length = length.min(longest);
            if length >= allowed.max(1) {
                let most = lengths.entry(newest[back - 1]).or_default();
                *most = length.max(*most);
            }
        }
        let last_exponent = MAX_EXPONENT / self.dry.base.ln().max(f32::MIN_POSITIVE);
        let penalty = |length: usize| {
            self.dry.multiplier * self.dry.base.powf(((length - allowed) as f32).min(last_exponent))
        };
        lengths.into_iter().map(|(token, length)| (token, penalty(length))).collect()
    }
}

/// For each place how much of what begins there is as the beginning (the Z algorithm: linear in the text).
fn common_lengths(text: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; text.len()];
    // What is known to be as the beginning.
    let (mut left, mut right) = (0, 0);
    for at in 1..text.len() {
        let mut length = if at < right { lengths[at - left].min(right - at) } else { 0 };
        while at + length < text.len() && text[length] == text[at + length] {
            length += 1;
        }
        lengths[at] = length;
        if at + length > right {
            (left, right) = (at, at + length);
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repetitions(allowed_length: i32, last_n: i32, breakers: &[u32]) -> Repetitions {
        let dry = Dry { multiplier: 0.5, base: 2.0, allowed_length, last_n, ..Dry::default() };
        let breaks = (0..10).map(|id| breakers.contains(&id)).collect();
        Repetitions { dry, breaks }
    }

    #[test]
    fn what_goes_on_with_a_repetition_is_penalised_by_its_length() {
        let tokens = [1, 2, 3, 4, 2, 3, 5, 1, 2, 3];
        // `1 2 3` was followed by 4, `2 3` by 4 and by 5.
        assert_eq!(repetitions(2, -1, &[]).penalties(&tokens), [(4, 1.0), (5, 0.5)]);
        assert_eq!(repetitions(3, -1, &[]).penalties(&tokens), [(4, 0.5)]);
        assert_eq!(repetitions(2, 6, &[]).penalties(&tokens), [(5, 0.5)]);
        assert_eq!(repetitions(4, -1, &[]).penalties(&tokens), []);
    }

    #[test]
    fn nothing_is_repeated_across_a_breaker() {
        let tokens = [1, 2, 3, 4, 1, 2, 3];
        assert_eq!(repetitions(2, -1, &[1]).penalties(&tokens), [(4, 0.5)]);
        assert_eq!(repetitions(2, -1, &[2]).penalties(&tokens), []);
        assert_eq!(repetitions(1, -1, &[3]).penalties(&tokens), []);
    }

    #[test]
    fn the_longest_repetition_is_a_finite_number() {
        let penalties = repetitions(2, -1, &[]).penalties(&[7; 5000]);
        assert!(matches!(penalties[..], [(7, penalty)] if penalty.is_finite() && penalty > 1e30));
    }

    proptest! {
        #[test]
        fn common_lengths_are_those_that_are_counted(text in proptest::collection::vec(0u32..3, 0..40)) {
            let counted = |at: usize| text.iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
            let lengths = common_lengths(&text);
            for (at, &length) in lengths.iter().enumerate().skip(1) {
                prop_assert_eq!(length, counted(at));
            }
        }
    }
}
