//! Drafts without a model: where the last tokens of a text came before, in it or in another one, what followed them there.
//!
//! Saxena, *Prompt Lookup Decoding* (2023), for the idea; llama.cpp's `--spec-type ngram-simple`, `ngram-map-k` and `ngram-mod` for the names.

use super::{Drafter, Drafts, Round};
use crate::error::Result;
use crate::model::Runner;
use crate::scheduler::{Scheduler, SequenceId};
use std::collections::HashMap;

/// Where is looked for what followed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NgramKind {
    /// In the text of the sequence itself, where the last tokens came last.
    Simple,
    /// The same, of tokens that came so many times before.
    MapK { min_hits: u32 },
    /// In a table of the tokens that followed others in any sequence, one for each token.
    Mod,
}

/// How drafts are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NgramOptions {
    pub kind: NgramKind,
    /// The tokens that must be the same, at least 1.
    pub size_n: usize,
    /// The tokens that are drafted behind them at most.
    pub size_m: usize,
}

impl NgramOptions {
    /// llama.cpp's numbers.
    pub fn new(kind: NgramKind) -> Self {
        Self { kind, size_n: 12, size_m: 48 }
    }
}

/// Entries of the table of all sequences: 16 MiB.
const TABLE: usize = 1 << 22;

/// Finds drafts in texts.
pub struct Ngram {
    options: NgramOptions,
    texts: HashMap<SequenceId, Text>,
    /// One more than the token that came last behind tokens of this hash; 0: none did.
    table: Vec<u32>,
}

/// What is known of a sequence.
#[derive(Default)]
struct Text {
    /// What ends at these places or before is known.
    seen: usize,
    /// By the hash of so many tokens where they ended last, and how often they came.
    ends: HashMap<u64, (u32, u32)>,
}

/// FNV-1a, by words.
fn hash(tokens: impl Iterator<Item = u32>) -> u64 {
    let mixed = tokens
        .fold(0xcbf2_9ce4_8422_2325, |hash, token| (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01b3));
    // Its lower bits say little of the upper ones.
    mixed ^ (mixed >> 29)
}

impl Ngram {
    pub fn new(options: NgramOptions) -> Self {
        let table = if options.kind == NgramKind::Mod { vec![0; TABLE] } else { Vec::new() };
        Self {
            options: NgramOptions { size_n: options.size_n.max(1), ..options },
            texts: HashMap::new(),
            table,
        }
    }

    /// Up to `count` tokens that may follow those of a sequence.
    fn find(&mut self, id: SequenceId, tokens: &[u32], count: usize) -> Vec<u32> {
        let NgramOptions { kind, size_n: n, size_m } = self.options;
        let (text, count) = (self.texts.entry(id).or_default(), count.min(size_m));
        let hash_before = |end: usize| hash(tokens[end - n..end].iter().copied());
        let first = n.max(text.seen + 1);
        if kind != NgramKind::Mod {
            text.ends.reserve(tokens.len().saturating_sub(first));
        }
        // All that ends before the last token: what follows it is known.
        for (end, next) in tokens.iter().enumerate().skip(first) {
            let key = hash_before(end);
            if kind == NgramKind::Mod {
                self.table[key as usize % TABLE] = next.wrapping_add(1);
            } else {
                let (last, hits) = text.ends.entry(key).or_default();
                (*last, *hits) = (end as u32, *hits + 1);
            }
        }
        text.seen = text.seen.max(tokens.len().saturating_sub(1));
        if tokens.len() < n || count == 0 {
            return Vec::new();
        }
        let mut drafts = Vec::with_capacity(count);
        match kind {
            NgramKind::Mod => {
                let mut newest = tokens[tokens.len() - n..].to_vec();
                while drafts.len() < count {
                    let next = self.table[hash(newest[drafts.len()..].iter().copied()) as usize % TABLE];
                    let Some(token) = next.checked_sub(1) else { break };
                    drafts.push(token);
                    newest.push(token);
                }
            }
            NgramKind::Simple | NgramKind::MapK { .. } => {
                let least = if let NgramKind::MapK { min_hits } = kind { min_hits } else { 1 };
                let key = &tokens[tokens.len() - n..];
                let found = text.ends.get(&hash_before(tokens.len())).filter(|&&(_, hits)| hits >= least);
                let end = found.map(|&(end, _)| end as usize).filter(|&end| tokens[end - n..end] == *key);
                if let Some(followed) = end.map(|end| &tokens[end..]) {
                    // What repeats itself goes on to: behind the last token comes what was drafted first.
                    drafts.extend(followed.iter().cycle().take(count));
                }
            }
        }
        drafts
    }
}

impl Drafter for Ngram {
    fn draft(&mut self, _: &mut dyn Runner, scheduler: &mut Scheduler, round: &Round) -> Result<Drafts> {
        let drafting = scheduler.drafting(round.step, |id| round.wanted(id));
        let drafts = drafting.filter_map(|(id, count)| {
            let tokens = scheduler.sequence(id)?.tokens();
            Some((id, self.find(id, tokens, count)))
        });
        Ok(drafts.collect())
    }

    fn forget(&mut self, id: SequenceId) {
        self.texts.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ngram(kind: NgramKind, size_n: usize, size_m: usize) -> Ngram {
        Ngram::new(NgramOptions { kind, size_n, size_m })
    }

    const ID: SequenceId = SequenceId(0);

    #[test]
    fn what_followed_last_time_is_drafted() {
        let mut drafts = ngram(NgramKind::Simple, 2, 48);
        assert_eq!(drafts.find(ID, &[1], 8), [0; 0], "shorter than what is looked for");
        let text = [1, 2, 3, 4, 5, 1, 2, 6, 7, 1, 2];
        assert_eq!(drafts.find(ID, &text, 8), [6, 7, 1, 2, 6, 7, 1, 2], "and what repeats itself goes on");
        assert_eq!(drafts.find(ID, &text, 3), [6, 7, 1]);
        let longer = [&text[..], &[3, 4]].concat();
        assert_eq!(drafts.find(ID, &longer, 3), [5, 1, 2]);
        assert_eq!(drafts.find(ID, &[&longer[..], &[9]].concat(), 3), [0; 0]);
        assert_eq!(drafts.find(SequenceId(1), &[3, 4], 3), [0; 0], "another sequence's text");
        assert_eq!(ngram(NgramKind::Simple, 2, 2).find(ID, &text, 8), [6, 7]);
        drafts.forget(ID);
        assert!(!drafts.texts.contains_key(&ID));
    }

    #[test]
    fn what_came_too_seldom_is_not() {
        let text = [1, 2, 3, 1, 2, 4, 1, 2];
        assert_eq!(ngram(NgramKind::MapK { min_hits: 2 }, 2, 48).find(ID, &text, 1), [4]);
        assert_eq!(ngram(NgramKind::MapK { min_hits: 3 }, 2, 48).find(ID, &text, 1), [0; 0]);
    }

    #[test]
    fn a_table_is_of_all_sequences() {
        let mut drafts = ngram(NgramKind::Mod, 2, 48);
        assert_eq!(drafts.find(ID, &[1, 2, 3, 4, 0, 6], 8), [0; 0]);
        assert_eq!(drafts.find(SequenceId(1), &[9, 1, 2], 8), [3, 4, 0, 6], "as far as it is known");
        assert_eq!(drafts.find(SequenceId(2), &[2, 3], 2), [4, 0]);
    }
}
