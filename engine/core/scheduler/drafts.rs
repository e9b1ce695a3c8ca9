//! Tokens that were drafted: a step computes them like others, behind those that are known, and draws a token for each. They stay as long as
//! they are what is drawn, so that a sequence has the tokens that it would have without.
//!
//! K and V of drafts that do not stay are written over. A state cannot be cut back: it is kept before drafts are taken in, and where not all
//! stay the sequence goes on from there, with the rows of what stayed once more.

use super::{ScheduledSequence, Scheduler, Sequence, SequenceId, Step};
use crate::batch::{Batch, GIVEN, LogitRows, SequenceRows};
use crate::kv_layout::{PAGE_SIZE, StateCopy};
use crate::sampler::NO_TOKEN;

/// How sequences draft.
#[derive(Clone, Copy, Debug)]
pub struct Drafting {
    /// Tokens at most, at a time.
    pub max: usize,
    /// Tokens of the longest sequence.
    pub max_model_len: usize,
    /// Of the places for copies of states the one where slot 0 is kept, before those of the others; `None` where no layer has slots.
    pub first_place: Option<u32>,
}

impl Drafting {
    /// Where the state of a slot is kept.
    pub(super) fn place(&self, slot: u32) -> Option<u32> {
        self.first_place.map(|first| first + slot)
    }
}

impl Step {
    /// The tokens that its sequences take of those that were drawn, in their order: a draft that is what was drawn stays, and what was drawn
    /// behind it is the next token.
    ///
    /// # Panics
    /// If there is not a token for each row of logits.
    pub fn accepted<'a>(&self, sampled: &'a [u32]) -> Vec<&'a [u32]> {
        assert_eq!(sampled.len(), self.batch.num_logits(), "one token for each row of logits");
        let mut rest = sampled;
        let ends = self.batch.query_start.iter().skip(1).map(|&end| end as usize);
        let of = |(scheduled, end): (&ScheduledSequence, usize)| {
            let (drawn, behind) = rest[scheduled.num_scored..].split_at(scheduled.num_draws());
            rest = behind;
            let drafts = &self.batch.tokens[end - scheduled.num_drafts..end];
            let agreed = drafts.iter().zip(drawn).take_while(|(draft, drawn)| draft == drawn).count();
            &drawn[..drawn.len().min(agreed + 1)]
        };
        self.sequences.iter().zip(ends).map(of).collect()
    }
}

/// A sequence of a step that wants to draft.
pub(super) struct Wanting {
    /// In the step.
    place: usize,
    /// Of those that run.
    pub i: usize,
    /// Tokens.
    pub count: usize,
}

impl Scheduler {
    /// The same with sequences that draft.
    pub fn with_drafting(self, drafting: Drafting) -> Self {
        Self { drafting: Some(drafting), ..self }
    }

    /// Rows of running sequence `i`, which is generating, of at most `budget`: what is not computed of it, and its drafts. A row is left for
    /// each of the sequences behind it.
    pub(super) fn generating_rows(&mut self, i: usize, budget: usize) -> usize {
        let most = budget.saturating_sub(self.running.len() - i - 1).max(1);
        let Sequence { tokens, num_cached, pages, drafts, .. } = &mut self.running[i];
        let missing = tokens.len() - *num_cached;
        drafts.truncate(most.saturating_sub(missing));
        if !drafts.is_empty() && !pages.grow(tokens.len() + drafts.len(), &mut self.pool) {
            drafts.clear();
        }
        missing.min(most) + drafts.len()
    }

    /// The copy of a state that is made before the step in which so many rows of running sequence `i` are computed.
    pub(super) fn keep_before(&self, (i, rows): (usize, usize)) -> Option<StateCopy> {
        let Sequence { tokens, num_cached, slot, load, .. } = &self.running[i];
        let drafts = num_cached + rows > tokens.len();
        let place = self.drafting?.place(*slot)?;
        // What it begins with is that copy already, or one that stays where it is.
        (drafts && load.is_none()).then_some(StateCopy { slot: *slot, place })
    }

    /// A step that was completed, for drafts to go on from: each row with the token that follows it, where that is known, and no logits.
    pub fn draft_batch(&self, step: &Step) -> Batch {
        let mut batch = step.batch.clone();
        batch.logit_rows.clear();
        // Drafts are guesses: what drafts has no adapters.
        batch.adapters.clear();
        batch.sampled_rows.fill(GIVEN);
        for (token, (&s, &position)) in
            batch.tokens.iter_mut().zip(batch.sequence_of_token.iter().zip(&batch.positions))
        {
            let sequence = self.sequence(step.sequences[s as usize].id);
            let next = sequence.and_then(|sequence| sequence.tokens.get(position as usize + 1));
            *token = next.copied().filter(|&token| token != NO_TOKEN).unwrap_or(0);
        }
        batch
    }

    /// Who drafts behind `step`, of those that want to draft at least a token, and how many tokens each; `batch` gets the rows of logits for
    /// the first ones.
    pub fn begin_drafts(
        &mut self,
        step: &Step,
        batch: &mut Batch,
        wanted: impl Fn(SequenceId) -> usize,
    ) -> Vec<(SequenceId, usize)> {
        let Some(Drafting { max_model_len, .. }) = self.drafting else { return Vec::new() };
        // The row that the last token of a sequence came of.
        let row = |running: &[Sequence], &Wanting { place, i, .. }: &Wanting| {
            let start = step.batch.query_start[place];
            let first = step.batch.positions[start as usize] as usize;
            (running[i].tokens.len() - 1).checked_sub(first + 1).map(|row| start + row as u32)
        };
        let mut drafting = self.wanting(step, wanted);
        drafting.retain(|wanting| row(&self.running, wanting).is_some());
        self.grow_all(&mut drafting, max_model_len);
        batch.logit_rows = drafting.iter().filter_map(|wanting| row(&self.running, wanting)).collect();
        drafting.iter().map(|&Wanting { i, count, .. }| (self.running[i].id, count)).collect()
    }

    /// The sequences of `step` that want to draft at least a token and have use for it, and how many tokens each.
    pub fn drafting(
        &self,
        step: &Step,
        wanted: impl Fn(SequenceId) -> usize,
    ) -> impl Iterator<Item = (SequenceId, usize)> {
        self.wanting(step, wanted).into_iter().map(|Wanting { i, count, .. }| (self.running[i].id, count))
    }

    pub(super) fn wanting(&self, step: &Step, wanted: impl Fn(SequenceId) -> usize) -> Vec<Wanting> {
        let sampling = step.sequences.iter().enumerate().filter(|(_, scheduled)| scheduled.samples);
        let wanting = sampling.filter_map(|(place, scheduled)| {
            let i = self.place_of(scheduled.id)?;
            let count = self.room_of(i).min(wanted(scheduled.id));
            (count > 0).then_some(Wanting { place, i, count })
        });
        wanting.collect()
    }

    /// Keeps those that there are pages for, in a context of at most `longest`: all draft as many, and some of them for nothing.
    pub(super) fn grow_all(&mut self, wanting: &mut Vec<Wanting>, longest: usize) {
        let most = wanting.iter().map(|wanting| wanting.count).max().unwrap_or(0);
        wanting.retain(|&Wanting { i, .. }| {
            let Sequence { tokens, pages, .. } = &mut self.running[i];
            tokens.len() + most <= longest && pages.grow(tokens.len() + most, &mut self.pool)
        });
    }

    /// The rows that the `ahead`-th token of each draft is taken in by, for the next one to be drafted.
    pub fn next_drafts(&self, drafting: &[(SequenceId, usize)], tokens: &[u32], ahead: usize) -> Batch {
        let running = drafting.iter().filter_map(|&(id, _)| self.sequence(id));
        let running: Vec<(&Sequence, &[u32])> = running.zip(tokens.chunks(1)).collect();
        let rows = running.iter().map(|(sequence, tokens)| SequenceRows {
            tokens,
            position: sequence.tokens.len() - 2 + ahead,
            pages: sequence.pages.pages(),
            logits: LogitRows::Last,
        });
        let rows: Vec<_> = rows.collect();
        let state_slots = running.iter().map(|(sequence, _)| sequence.slot).collect();
        Batch { state_slots, drafts: true, ..Batch::new(&rows) }
    }

    /// Tokens that a sequence may have next.
    pub fn set_drafts(&mut self, id: SequenceId, drafts: Vec<u32>) {
        if let Some(i) = self.place_of(id) {
            self.running[i].drafts = drafts;
        }
    }

    /// How many drafts running sequence `i` has use for.
    fn room_of(&self, i: usize) -> usize {
        let Some(Drafting { max, first_place, .. }) = self.drafting else { return 0 };
        let Sequence { tokens, num_cached, .. } = &self.running[i];
        // One whose drafts did not stay again and again first takes in what did.
        if first_place.is_some() && tokens.len() - num_cached > max + 1 {
            return 0;
        }
        match &self.checkpoints {
            None => max,
            // A copy of its state is made behind a full page, where it has taken in nothing else.
            Some(_) => max.min((tokens.len().next_multiple_of(PAGE_SIZE) - tokens.len()).saturating_sub(1)),
        }
    }
}
