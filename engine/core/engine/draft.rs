//! Drafts behind a step: what may come next, for the next step to compute at once. Who drafts is a [`Drafter`]: a block of the model itself,
//! what followed the last tokens earlier in the text, or a smaller model.
//!
//! Where there are probabilities, a draft is drawn as the sequence's own tokens are, with the same numbers at the same positions, and whatever
//! drafted it, it stays where it is what is drawn there then. So answers are those without drafts token by token, greedy or not: sampling
//! keeps its distribution because it keeps its draws. Where a token depends on more than the ones before (penalties, constraints, banned
//! strings, log-probabilities, a chain of samplers) nothing is drafted.

mod model;
mod mtp;
mod ngram;

pub use ngram::{NgramKind, NgramOptions};

use super::Engine;
use super::generation::Generation;
use crate::error::Result;
use crate::model::Runner;
use crate::sampler::{Logprobs, NO_TOKEN, SamplingRow};
use crate::scheduler::{ScheduledSequence, Scheduler, SequenceId, Step};
use std::collections::HashMap;
use std::time::Instant;

/// What drafts tokens for an engine.
pub enum DraftSource {
    /// The block behind the model's last layer.
    Mtp,
    /// What followed the last tokens where they came before.
    Ngram(NgramOptions),
    /// A smaller model of the same vocabulary, whose KV cache has pages of the same numbers.
    Model(Box<dyn Runner>),
}

/// How far one request's tokens are drafted, within what the engine was made for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speculative {
    /// Tokens at a time, at most; 0: none. `None` is the engine's own number.
    pub n_max: Option<usize>,
    /// Fewer are not worth a step of theirs: they are let go.
    pub n_min: Option<usize>,
    /// A token that is less probable ends a draft, where what drafts knows probabilities; 0 is off.
    pub p_min: Option<f32>,
}

impl Speculative {
    /// These where they say something, else what `others` say.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            n_max: self.n_max.or(others.n_max),
            n_min: self.n_min.or(others.n_min),
            p_min: self.p_min.or(others.p_min),
        }
    }
}

/// Drafts that were made for each of some sequences.
type Drafts = Vec<(SequenceId, Vec<u32>)>;

/// Tokens that were drawn, with log-probabilities where they were asked for.
type Drawn = (Vec<u32>, Vec<Option<Logprobs>>);

/// What drafts tokens behind a step.
pub(super) trait Drafter {
    /// Looks at a step that was completed and behind which sequences draft, before any of them ends with its tokens.
    fn observe(&mut self, scheduler: &Scheduler, step: &Step) {
        let _ = (scheduler, step);
    }

    /// Drafts for those sequences of the step that want it.
    ///
    /// # Errors
    /// What a device says; there are no drafts then.
    fn draft(&mut self, runner: &mut dyn Runner, scheduler: &mut Scheduler, round: &Round) -> Result<Drafts>;

    /// Forgets a sequence, which has ended.
    fn forget(&mut self, id: SequenceId) {
        let _ = id;
    }
}

/// A step that was completed, and who drafts behind it.
pub(super) struct Round<'a> {
    pub step: &'a Step,
    generations: &'a HashMap<SequenceId, Generation>,
    max_model_len: usize,
}

impl Round<'_> {
    /// How many tokens a sequence wants drafted at most, whatever there is room for.
    pub fn wanted(&self, id: SequenceId) -> usize {
        let Some(generation) = self.generations.get(&id).filter(|known| known.may_draft()) else { return 0 };
        let most = generation.request.speculative.n_max.unwrap_or(usize::MAX);
        let made = generation.completion_tokens;
        let of_answer = generation.request.max_tokens.map_or(usize::MAX, |most| most.saturating_sub(made));
        let of_context = self.max_model_len.saturating_sub(generation.prompt_tokens + made);
        // A step makes a token more than were drafted.
        most.min(of_answer.min(of_context).saturating_sub(1))
    }

    /// What the sampler needs for the token that a sequence draws next but `ahead`.
    fn sampling_row(&self, id: SequenceId, ahead: usize) -> SamplingRow {
        let generation = &self.generations[&id];
        let row = generation.sampling_row(&[], ahead);
        SamplingRow { logprobs: (self.p_min(id) > 0.0).then_some(0), ..row }
    }

    /// What it needs for the tokens that sequences draw next but `ahead`.
    pub fn sampling_rows(&self, drafting: &[(SequenceId, usize)], ahead: usize) -> Vec<SamplingRow> {
        drafting.iter().map(|&(id, _)| self.sampling_row(id, ahead)).collect()
    }

    /// Whether a draft ends where its token is improbable.
    pub fn has_p_min(&self, drafting: &[(SequenceId, usize)]) -> bool {
        drafting.iter().any(|&(id, _)| self.p_min(id) > 0.0)
    }

    fn p_min(&self, id: SequenceId) -> f32 {
        self.generations[&id].request.speculative.p_min.unwrap_or(0.0)
    }

    /// Drafts one token after the other for sequences that want so many each. `draw` draws the tokens behind those that it drew before, given
    /// how many it drew of each sequence, with their log-probabilities where [`Round::sampling_rows`] ask for them.
    ///
    /// # Errors
    /// What `draw` says.
    pub fn in_turn(
        &self,
        drafting: &[(SequenceId, usize)],
        mut draw: impl FnMut(usize, &[u32]) -> Result<Drawn>,
    ) -> Result<Drafts> {
        let most = drafting.iter().map(|&(_, count)| count).max().unwrap_or(0);
        let mut drafts: Drafts = drafting.iter().map(|&(id, _)| (id, Vec::with_capacity(most))).collect();
        let mut tokens = Vec::new();
        for ahead in 0..most {
            let (drawn, logprobs) = draw(ahead, &tokens)?;
            tokens = drawn;
            let mut logprobs = logprobs.into_iter();
            let mut any = false;
            for ((&(id, count), (_, drafts)), &token) in drafting.iter().zip(&mut drafts).zip(&tokens) {
                let probability = logprobs.next().flatten().map_or(1.0, |logprobs| logprobs.sampled.exp());
                let is_open = drafts.len() == ahead && ahead < count;
                if is_open && token != NO_TOKEN && probability >= self.p_min(id) {
                    drafts.push(token);
                    any = true;
                }
            }
            if !any || tokens.contains(&NO_TOKEN) {
                break;
            }
        }
        Ok(drafts)
    }
}

impl Engine {
    /// The same with another source of drafts than the model's own block, for a runner that was made with room for them
    /// ([`Runner::max_drafts`]). Without room nothing is drafted.
    ///
    /// # Errors
    /// [`crate::Error::Request`](crate::error::Error::Request) where a model that drafts does not fit this one.
    pub fn with_drafts(mut self, source: DraftSource) -> Result<Self> {
        let drafter: Box<dyn Drafter> = match source {
            DraftSource::Mtp => Box::new(mtp::Mtp::default()),
            DraftSource::Ngram(options) => Box::new(ngram::Ngram::new(options)),
            DraftSource::Model(drafts) => Box::new(model::DraftModel::new(drafts, &*self.runner)?),
        };
        self.drafter = (self.max_drafts > 0).then_some(drafter);
        Ok(self)
    }

    /// The same, with what holds for requests that do not say how far they are drafted.
    #[must_use]
    pub fn with_speculative(self, speculative: Speculative) -> Self {
        Self { speculative, ..self }
    }

    /// Tokens that are drafted at a time, at most; 0 where nothing drafts.
    pub fn max_drafts(&self) -> usize {
        self.max_drafts
    }

    /// Whether a sequence of the step may draft behind it.
    pub(super) fn drafts_behind(&self, step: &Step) -> bool {
        let generation = |scheduled: &ScheduledSequence| self.generations.get(&scheduled.id);
        self.drafter.is_some() && step.sequences.iter().filter_map(generation).any(Generation::may_draft)
    }

    /// Lets who drafts see a step that was completed, before sequences end with its tokens.
    pub(super) fn observe(&mut self, step: &Step) {
        if let Some(drafter) = &mut self.drafter {
            drafter.observe(&self.scheduler, step);
        }
    }

    /// Drafts behind a step. Without drafts the next one computes a token a sequence: a failure costs time alone, and a device that fails fails
    /// the next step too.
    pub(super) fn draft(&mut self, step: &Step) {
        let start = Instant::now();
        if let Err(error) = self.try_draft(step) {
            tracing::warn!("no tokens are drafted: {error}");
            self.runner.discard();
        }
        let seconds = start.elapsed().as_secs_f64();
        for scheduled in &step.sequences {
            self.generations.entry(scheduled.id).and_modify(|generation| {
                let timings = &mut generation.timings;
                let time = if scheduled.prefill {
                    &mut timings.prefill_seconds
                } else {
                    &mut timings.decode_seconds
                };
                *time += seconds;
            });
        }
    }

    fn try_draft(&mut self, step: &Step) -> Result<()> {
        let Self { scheduler, generations, runner, drafter, .. } = self;
        let Some(drafter) = drafter else { return Ok(()) };
        let round = Round { step, generations, max_model_len: self.max_model_len };
        for (id, drafts) in drafter.draft(&mut **runner, scheduler, &round)? {
            let least = generations[&id].request.speculative.n_min.unwrap_or(0);
            if drafts.len() >= least {
                scheduler.set_drafts(id, drafts);
            }
        }
        Ok(())
    }
}
