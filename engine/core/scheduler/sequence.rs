//! What a scheduler keeps of a sequence.

use super::SequenceId;
use super::following::Followed;
use crate::batch::AdapterSet;
use crate::checkpoints::{Beginning, Checkpoints};
use crate::kv_cache::{PageList, PagePool};
use crate::kv_layout::{PAGE_SIZE, pages_for};
use crate::prefix_cache::Prefix;

/// A sequence's tokens and where they are.
#[derive(Debug)]
pub struct Sequence {
    pub(super) id: SequenceId,
    /// The prompt, then what was generated.
    pub(super) tokens: Vec<u32>,
    pub(super) adapters: AdapterSet,
    /// K and V of the first `num_cached` tokens are in `pages`.
    pub(super) num_cached: usize,
    /// Tokens when it last joined: what is before is prefill, what comes after is decode.
    pub(super) prefill_len: usize,
    /// Rows of the prompt whose logits are wanted, to score the token behind each; 0 where that is not asked for.
    pub(super) to_score: usize,
    /// Those of them whose logits were there.
    pub(super) num_scored: usize,
    /// Tokens of the prompt that were in the cache when it first joined.
    pub(super) num_reused: usize,
    pub(super) pages: PageList,
    /// Where layers keep what does not grow with it; it has one while it runs.
    pub(super) slot: u32,
    /// It gave its pages up at least once.
    pub(super) preempted: bool,
    /// The copy of its state that it begins with, until its first step.
    pub(super) load: Option<Beginning>,
    /// Behind what the newest copy was made of its state while it generates.
    pub(super) newest: Option<Prefix>,
    /// Tokens that were drafted to come next, for the next step.
    pub(super) drafts: Vec<u32>,
    /// What a model that drafts has taken in of it.
    pub(super) followed: Followed,
    /// Where states are copied: behind every so many tokens of its prompt.
    pub(super) stride: Option<usize>,
}

impl Sequence {
    /// The prompt, then what was generated.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt that were in the cache already and not computed.
    pub fn num_reused(&self) -> usize {
        self.num_reused
    }

    /// The first of the tokens that the rows of its next step score.
    pub fn next_scored(&self) -> usize {
        self.num_cached.max(self.num_scored) + 1
    }

    /// How many of its next so many rows score the token behind them: those that no step has scored.
    pub(super) fn scored_rows(&self, rows: usize) -> usize {
        (self.num_cached + rows).min(self.to_score).saturating_sub(self.num_cached.max(self.num_scored))
    }

    /// The logits of its next so many rows: to score tokens, and to draw.
    pub(super) fn num_logits(&self, rows: usize) -> usize {
        let behind = (self.num_cached + rows + 1).saturating_sub(self.tokens.len());
        self.scored_rows(rows) + behind
    }

    /// Tokens at its beginning that may be taken from the cache: one at least is computed, for its logits, and all that are to be scored.
    pub(super) fn num_reusable(&self) -> usize {
        if self.num_scored < self.to_score { self.num_scored } else { self.tokens.len() - 1 }
    }

    pub(super) fn is_prefill(&self) -> bool {
        self.num_cached < self.prefill_len
    }

    /// Has nothing computed any more; what it had stays known to the pool.
    pub(super) fn give_up_pages(&mut self, pool: &mut PagePool) {
        self.pages.clear(&self.tokens[..self.num_cached], pool);
        self.num_cached = 0;
        (self.load, self.newest) = (None, None);
        self.drafts.clear();
        self.followed = Followed::default();
    }

    /// Takes the pages that are known of its beginning. `false`, and nothing is taken, if `pool` has too few for the rest, with so many to
    /// spare.
    pub(super) fn begin(
        &mut self,
        pool: &mut PagePool,
        checkpoints: Option<&mut Checkpoints>,
        spare: usize,
    ) -> bool {
        // The page of its last token is never a shared one: without a free page there is no need to look for the others.
        if pool.num_free() <= spare {
            return false;
        }
        let known = &self.tokens[..self.num_reusable()];
        let stride = checkpoints.as_ref().map(|checkpoints| checkpoints.stride(self.tokens.len()));
        match checkpoints {
            None => self.num_cached = self.pages.reuse(known, pool),
            Some(checkpoints) => {
                let (num_cached, prefix) =
                    self.pages.reuse_to_checkpoint(known, pool, |prefix| checkpoints.has(prefix));
                self.num_cached = num_cached;
                self.load = prefix.and_then(|prefix| checkpoints.begin(prefix));
            }
        }
        let missing = pages_for(self.tokens.len()) - self.pages.pages().len();
        if pool.num_free() < missing + spare {
            self.give_up_pages(pool);
            return false;
        }
        (self.prefill_len, self.stride) = (self.tokens.len(), stride);
        true
    }

    /// Rows of its prompt for the next step, of at most `budget`, of which `logits` may have those, at least one. Where states are copied a
    /// step ends.
    pub(super) fn prefill_rows(&self, budget: usize, logits: usize) -> usize {
        let last_page = self.end_of_full_pages();
        let end = match self.stride {
            Some(stride) if self.num_cached < last_page => {
                last_page.min((self.num_cached / stride + 1).saturating_mul(stride))
            }
            _ => self.prefill_len,
        };
        let without_logits = self.num_scored.saturating_sub(self.num_cached);
        let most = if self.num_scored < self.to_score { without_logits + logits } else { usize::MAX };
        budget.min(most).min(end - self.num_cached)
    }

    /// The next `count` tokens that are not computed, of those that are known and of those that were drafted.
    pub(super) fn rows(&self, count: usize) -> Vec<u32> {
        self.tokens[self.num_cached..].iter().chain(&self.drafts).take(count).copied().collect()
    }

    /// Whether its state is worth a copy once `end` of its tokens are taken in.
    pub(super) fn is_checkpoint(&self, end: usize) -> bool {
        let is_stride = || self.stride.is_some_and(|stride| end.is_multiple_of(stride));
        end.is_multiple_of(PAGE_SIZE)
            && (end == self.end_of_full_pages() || end >= self.prefill_len || is_stride())
    }

    /// Tokens of its prompt on full pages, all but the last token at most.
    fn end_of_full_pages(&self) -> usize {
        (self.prefill_len - 1) / PAGE_SIZE * PAGE_SIZE
    }
}
