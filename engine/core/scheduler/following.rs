//! A model that drafts and follows the sequences of another: its K and V of a token are on the page of the same number, in a cache of its own.
//! So sequences that share pages share what it has computed too.
//!
//! It takes tokens in when it is to draft behind them, and no sooner: how far it has come is kept for each sequence and for each page. What it
//! took in of its own drafts counts where they stayed.

use super::drafts::Wanting;
use super::{Scheduler, Sequence, SequenceId, Step};
use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::kv_layout::{PAGE_SIZE, StateCopy};
use std::collections::HashSet;

/// How far a model that drafts has followed a sequence.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Tokens of the sequence that it has taken in.
    pub num_tokens: usize,
    /// Those that it took in behind them and that were drafts then.
    pub drafts: Vec<u32>,
    /// It has a copy of the state behind those tokens.
    is_kept: bool,
}

impl Followed {
    /// Tokens are on other pages now, where it has taken in the first `known` of them.
    pub fn move_to(&mut self, known: usize) {
        self.num_tokens = self.num_tokens.min(known);
        self.drafts.clear();
        self.is_kept = false;
    }
}

/// What a model that follows takes in at a time.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    /// Rows of a step.
    pub max_num_tokens: usize,
    /// Its longest sequence.
    pub max_model_len: usize,
    /// Tokens that both models have; behind others it does not follow.
    pub vocab_size: usize,
    /// Whether it keeps states in slots, which are those of the sequences. Behind all tokens that stay it has a copy of each, at the place of
    /// that number: drafts move the states on.
    pub has_slots: bool,
}

/// A step of a model that follows.
#[derive(Debug, Default)]
pub struct FollowingStep {
    pub batch: Batch,
    /// Its sequences, in its order, and how many rows each has.
    rows: Vec<(SequenceId, usize)>,
    /// Those that have no tokens left behind it, with the drafts that are wanted.
    pub drafting: Vec<(SequenceId, usize)>,
    /// The states that its sequences go on from.
    pub loads: Vec<StateCopy>,
    /// Those to be kept behind it.
    pub saves: Vec<StateCopy>,
}

impl Sequence {
    /// What is not taken in of it by a model that follows, once its drafts that stayed are counted.
    fn not_followed(&mut self, has_slots: bool) -> usize {
        let Followed { num_tokens, drafts, is_kept } = &mut self.followed;
        let drafts = std::mem::take(drafts);
        if has_slots && !*is_kept {
            *num_tokens = 0;
        } else if !has_slots {
            let stayed =
                drafts.iter().zip(&self.tokens[*num_tokens..]).take_while(|(draft, token)| draft == token);
            *num_tokens += stayed.count();
        }
        // The last one is taken in once more, for its logits.
        *num_tokens = (*num_tokens).min(self.tokens.len() - 1);
        self.tokens.len() - *num_tokens
    }
}

impl Scheduler {
    /// The rows that a model takes in to draft behind `step`, for those of its sequences that want to draft at least a token: all that it has
    /// not taken in of them, as far as there is room, the first sequences first.
    pub fn follow(
        &mut self,
        step: &Step,
        follower: &Follower,
        wanted: impl Fn(SequenceId) -> usize,
    ) -> FollowingStep {
        let longest = self.drafting.map_or(0, |drafting| drafting.max_model_len).min(follower.max_model_len);
        let mut wanting = self.wanting(step, wanted);
        self.grow_all(&mut wanting, longest);
        let (mut following, mut budget) = (FollowingStep::default(), follower.max_num_tokens);
        let (mut chosen, mut written) = (Vec::new(), HashSet::<u32>::new());
        for Wanting { i, count, .. } in wanting {
            let sequence = &mut self.running[i];
            let before = sequence.followed.num_tokens;
            let missing = sequence.not_followed(follower.has_slots);
            let rows = missing.min(budget);
            let first = sequence.followed.num_tokens;
            if before < first {
                self.pool.follow(sequence.pages.pages(), before..first);
            }
            let pages = first / PAGE_SIZE..(first + rows).div_ceil(PAGE_SIZE);
            let known = |&token: &u32| (token as usize) < follower.vocab_size;
            if !sequence.tokens[first..][..rows].iter().all(known) {
                continue;
            }
            // Two that share a page do not write to it at once.
            if rows == 0 || sequence.pages.pages()[pages.clone()].iter().any(|page| written.contains(page)) {
                continue;
            }
            written.extend(&sequence.pages.pages()[pages]);
            budget -= rows;
            following.rows.push((sequence.id, rows));
            if rows == missing {
                following.drafting.push((sequence.id, count));
            }
            if follower.has_slots {
                let copy = StateCopy { slot: sequence.slot, place: sequence.slot };
                following.loads.extend((first > 0).then_some(copy));
                following.saves.push(copy);
            }
            chosen.push((i, rows, rows == missing));
        }
        let rows = chosen.iter().map(|&(i, rows, is_last)| {
            let Sequence { tokens, pages, followed, .. } = &self.running[i];
            SequenceRows {
                tokens: &tokens[followed.num_tokens..][..rows],
                position: followed.num_tokens,
                pages: pages.pages(),
                logits: if is_last { LogitRows::Last } else { LogitRows::None },
            }
        });
        let rows: Vec<_> = rows.collect();
        let state_slots = chosen.iter().map(|&(i, ..)| self.running[i].slot).collect();
        following.batch = Batch { state_slots, drafts: true, ..Batch::new(&rows) };
        following
    }

    /// The rows of a step were taken in.
    pub fn followed(&mut self, step: &FollowingStep) {
        for &(id, rows) in &step.rows {
            let Some(i) = self.place_of(id) else { continue };
            let Sequence { pages, followed, .. } = &mut self.running[i];
            let first = followed.num_tokens;
            followed.num_tokens += rows;
            followed.is_kept = true;
            self.pool.follow(pages.pages(), first..followed.num_tokens);
        }
    }

    /// Tokens that were drafted were taken in too, one of each of these sequences.
    pub fn followed_drafts(&mut self, drafting: &[(SequenceId, usize)], tokens: &[u32]) {
        for (&(id, _), &token) in drafting.iter().zip(tokens) {
            if let Some(i) = self.place_of(id) {
                self.running[i].followed.drafts.push(token);
            }
        }
    }

    /// What running sequence `i` has on its pages of what a model has taken in that follows.
    pub(super) fn find_followed(&mut self, i: usize) {
        let Sequence { pages, num_cached, followed, .. } = &mut self.running[i];
        let num_tokens = self.pool.num_followed(pages.pages(), *num_cached);
        *followed = Followed { num_tokens, ..Followed::default() };
    }
}
