//! Byte-pair encoding: the bytes of a word -> tokens.
//!
//! Of all neighbours that a merge joins, those of the best merge are joined first, and of several such those that stand first, until none
//! are left (Sennrich et al., *Neural Machine Translation of Rare Words with Subword Units*, 2016), as the `tokenizers` crate does it.
//! A word may be a whole text, so what is kept of it is small: four bytes for each of its bytes, and eight for each place where two
//! tokens may be joined.

use crate::error::{Error, Result};
use crate::host_memory;
use foldhash::fast::RandomState;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Two tokens that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub left: u32,
    pub right: u32,
    pub merged: u32,
}

/// The merges of a vocabulary.
pub(super) struct Merges {
    /// Best first.
    merges: Vec<Merge>,
    /// Their places, by [`pair`].
    ranks: HashMap<u64, u32, RandomState>,
    byte_tokens: [Option<u32>; 256],
    /// How many bytes each token stands for.
    lengths: Vec<u32>,
}

/// What words are taken apart in, kept from one to the next.
#[derive(Default)]
pub(super) struct Scratch {
    /// One a byte of the word. The first and the last of a token's cells hold it, so that both its neighbours are found by lengths alone.
    cells: Vec<u32>,
    /// [`joint`]s, the least first. Some are out of date: one of their tokens has been joined with another one since.
    queue: BinaryHeap<Reverse<u64>>,
    /// The most that the queue holds.
    room: usize,
}

/// In the last cell of a token that has several.
const LAST: u32 = 1 << 31;
/// A cell between a token's first and last.
const INNER: u32 = u32::MAX;
/// The most tokens of a vocabulary: none is [`LAST`] or, with it, [`INNER`].
pub(super) const MAX_TOKENS: usize = (LAST - 1) as usize;
/// Joints that there is room for beyond one a byte, so that none of a short word has to make room.
const SPARE_JOINTS: usize = 64;

impl Merges {
    /// `byte_tokens` are the tokens of the bytes, `lengths` the bytes of every token, of which there are at most [`MAX_TOKENS`]; `merges`
    /// are the best first. Of two that join the same tokens the later one holds.
    pub(super) fn new(byte_tokens: [Option<u32>; 256], lengths: Vec<u32>, merges: Vec<Merge>) -> Self {
        let mut ranks = HashMap::with_capacity_and_hasher(merges.len(), RandomState::default());
        ranks.extend((0..).zip(&merges).map(|(rank, merge)| (pair(merge.left, merge.right), rank)));
        Self { merges, ranks, byte_tokens, lengths }
    }

    /// Appends the tokens of a word.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system refuses what is needed, [`Error::Request`] for a word of 4 GiB, and for a byte that the
    /// vocabulary has no token for.
    pub(super) fn encode(&self, word: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<()> {
        scratch.begin(self, word)?;
        while let Some(Reverse(joint)) = scratch.queue.pop() {
            scratch.join(self, joint);
        }
        ids.extend(scratch.cells.iter().copied().filter(|&cell| cell < LAST));
        Ok(())
    }

    fn length(&self, token: u32) -> usize {
        self.lengths[token as usize] as usize
    }

    /// What the queue holds of two neighbours, the left one at `start`, if a merge joins them.
    fn joint(&self, start: usize, left: u32, right: u32) -> Option<u64> {
        let rank = *self.ranks.get(&pair(left, right))?;
        Some(u64::from(rank) << 32 | start as u64)
    }
}

impl Scratch {
    /// A token for each byte.
    fn begin(&mut self, merges: &Merges, word: &[u8]) -> Result<()> {
        if word.len() > u32::MAX as usize {
            return Err(Error::Request(format!(
                "a word of {} bytes: at most 4 GiB are tokenised",
                word.len()
            )));
        }
        self.cells.clear();
        host_memory::reserve("a word", &mut self.cells, word.len())?;
        for &byte in word {
            self.cells.push(merges.byte_tokens[byte as usize].ok_or_else(|| no_token(byte, word))?);
        }
        self.room = word.len() + SPARE_JOINTS;
        let mut joints = std::mem::take(&mut self.queue).into_vec();
        joints.clear();
        host_memory::reserve("a word", &mut joints, self.room)?;
        let neighbours = self.cells.windows(2).enumerate();
        joints.extend(neighbours.filter_map(|(start, two)| merges.joint(start, two[0], two[1]).map(Reverse)));
        self.queue = joints.into();
        Ok(())
    }

    /// Joins two tokens if they are still there, and queues what the new one may be joined with.
    fn join(&mut self, merges: &Merges, joint: u64) {
        let Some((merge, start, middle, end)) = self.found(merges, joint) else { return };
        let token = merge.merged;
        self.cells[middle - 1] = INNER;
        self.cells[middle] = INNER;
        self.cells[start] = token;
        self.cells[end - 1] = token | LAST;
        if start > 0 {
            let before = self.cells[start - 1] & !LAST;
            self.queue_joint(merges, merges.joint(start - merges.length(before), before, token));
        }
        if let Some(&behind) = self.cells.get(end) {
            self.queue_joint(merges, merges.joint(start, token, behind));
        }
    }

    /// The merge of a joint, where its left token begins, where its right one does, and where that ends; `None` if they are not there any
    /// more. A token that begins somewhere only grows, and with it what it can be joined with: the same two tokens are the same joint.
    fn found(&self, merges: &Merges, joint: u64) -> Option<(Merge, usize, usize, usize)> {
        let (rank, start) = ((joint >> 32) as usize, joint as u32 as usize);
        let merge = merges.merges[rank];
        let middle = start + merges.length(merge.left);
        let is_there = self.cells[start] == merge.left && self.cells.get(middle) == Some(&merge.right);
        is_there.then(|| (merge, start, middle, middle + merges.length(merge.right)))
    }

    /// Where there is no room left, those out of date make room. After `n` merges of a word of `N` bytes fewer than `N - n` others are left,
    /// and a merge adds at most one: there is room for as many merges again, so that this happens a few times in the longest word.
    fn queue_joint(&mut self, merges: &Merges, joint: Option<u64>) {
        let Some(joint) = joint else { return };
        if self.queue.len() == self.room {
            let mut queue = std::mem::take(&mut self.queue);
            queue.retain(|&Reverse(joint)| self.found(merges, joint).is_some());
            self.queue = queue;
        }
        self.queue.push(Reverse(joint));
    }
}

fn no_token(byte: u8, word: &[u8]) -> Error {
    const SHOWN: usize = 40;
    let shown = String::from_utf8_lossy(&word[..word.len().min(SHOWN)]);
    Error::Request(format!(
        "the model's vocabulary has no token for byte 0x{byte:02X}, which is in {shown:?}: leave that character out"
    ))
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::collections::HashMap;
    use tokenizers::Model;
    use tokenizers::models::bpe::{BPE, Vocab};

    /// The same merges here and in the `tokenizers` crate, of a vocabulary of letters.
    struct Both {
        ours: Merges,
        theirs: BPE,
    }

    impl Both {
        /// Letters from `a` on, and merges of two tokens each, which are chosen among all that there are by then. What two tokens make
        /// may be there already: then another way leads to it.
        fn new(letters: usize, choices: &[[Index; 2]]) -> Self {
            let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| char::from(byte).to_string()).collect();
            let mut ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
            let (mut merges, mut names) = (Vec::new(), Vec::new());
            for choice in choices {
                let [left, right] = choice.map(|choice| match choice.index(letters + tokens.len() - 256) {
                    letter if letter < letters => usize::from(b'a') + letter,
                    merged => 256 + merged - letters,
                });
                names.push((tokens[left].clone(), tokens[right].clone()));
                let text = [tokens[left].as_str(), &tokens[right]].concat();
                let merged = *ids.entry(text.clone()).or_insert_with(|| {
                    tokens.push(text);
                    tokens.len() as u32 - 1
                });
                merges.push(Merge { left: left as u32, right: right as u32, merged });
            }
            let lengths = tokens.iter().map(|token| token.chars().count() as u32).collect();
            let byte_tokens = std::array::from_fn(|byte| Some(byte as u32));
            Self {
                ours: Merges::new(byte_tokens, lengths, merges),
                theirs: BPE::builder()
                    .vocab_and_merges(ids.into_iter().collect::<Vocab>(), names)
                    .build()
                    .unwrap(),
            }
        }

        fn check(&self, word: &str, scratch: &mut Scratch) -> Result<(), TestCaseError> {
            let mut ids = vec![7];
            self.ours.encode(word.as_bytes(), scratch, &mut ids).unwrap();
            let theirs = self.theirs.tokenize(word).unwrap();
            prop_assert_eq!(&ids[1..], theirs.iter().map(|token| token.id).collect::<Vec<_>>(), "{}", word);
            prop_assert!(scratch.room <= word.len() + SPARE_JOINTS);
            Ok(())
        }
    }

    fn word(letters: usize, most: usize) -> impl Strategy<Value = String> {
        let letter = (0..letters as u8).prop_map(|letter| char::from(b'a' + letter));
        prop::collection::vec(letter, 1..most).prop_map(String::from_iter)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn tokens_are_those_of_the_original(
            (letters, choices, words) in (1..5_usize).prop_flat_map(|letters| {
                let choices = prop::collection::vec(any::<[Index; 2]>(), 0..40);
                (Just(letters), choices, prop::collection::vec(word(letters, 300), 1..4))
            }),
        ) {
            let both = Both::new(letters, &choices);
            let mut scratch = Scratch::default();
            for word in &words {
                both.check(word, &mut scratch)?;
            }
        }
    }

    #[test]
    fn nothing_is_done_to_bytes_that_no_merge_joins() {
        let both = Both::new(1, &[]);
        let mut ids = Vec::new();
        both.ours.encode(&[0xFF, 0, 0], &mut Scratch::default(), &mut ids).unwrap();
        both.ours.encode(&[], &mut Scratch::default(), &mut ids).unwrap();
        assert_eq!(ids, [0xFF, 0, 0]);
    }
}
