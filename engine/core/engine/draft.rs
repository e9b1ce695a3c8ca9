//! Drafts behind a step: what a block of the model says may come next, for the next step to compute at once.
//!
//! A draft is drawn as the sequence's own tokens are, with the same numbers at the same positions, and stays where it is what is drawn there
//! then. So answers are those without drafts, greedy or not. Where a token depends on more than the ones before (penalties, constraints,
//! log-probabilities, a chain of samplers) nothing is drafted.

use super::Engine;
use crate::batch::Batch;
use crate::error::Result;
use crate::model::draft::DraftFrom;
use crate::sampler::{NO_TOKEN, SamplingRow};
use crate::scheduler::{SequenceId, Step};
use std::time::Instant;

impl Engine {
    /// The rows of a step that was completed with the tokens that follow them, where a sequence of it may draft.
    pub(super) fn draft_batch(&self, step: &Step) -> Option<Batch> {
        let drafts = |id: SequenceId| {
            self.generations.get(&id).is_some_and(|generation| !generation.needs_its_tokens())
        };
        let any = self.max_drafts > 0 && step.sequences.iter().any(|scheduled| drafts(scheduled.id));
        any.then(|| self.scheduler.draft_batch(step))
    }

    /// Drafts behind a step. Without drafts the next one computes a token a sequence: a failure costs time alone, and a device that fails fails
    /// the next step too.
    pub(super) fn draft(&mut self, step: &Step, batch: Batch) {
        let start = Instant::now();
        if let Err(error) = self.try_draft(step, batch) {
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

    fn try_draft(&mut self, step: &Step, mut batch: Batch) -> Result<()> {
        let Self { scheduler, generations, runner, max_drafts, max_model_len, .. } = self;
        let wanted = |id: SequenceId| {
            let Some(generation) = generations.get(&id).filter(|known| !known.needs_its_tokens()) else {
                return 0;
            };
            let made = generation.completion_tokens;
            let of_answer =
                generation.request.max_tokens.map_or(usize::MAX, |most| most.saturating_sub(made));
            let of_context = max_model_len.saturating_sub(generation.prompt_tokens + made);
            // A step makes a token more than were drafted.
            (*max_drafts).min(of_answer.min(of_context).saturating_sub(1))
        };
        let drafting = scheduler.begin_drafts(step, &mut batch, wanted);
        let most = drafting.iter().map(|&(_, count)| count).max().unwrap_or(0);
        let rows = |ahead: usize| -> Vec<SamplingRow> {
            drafting.iter().map(|(id, _)| generations[id].sampling_row(&[], ahead)).collect()
        };
        let mut drafts = vec![Vec::with_capacity(most); drafting.len()];
        let mut tokens = runner.draft(&batch, &rows(0), DraftFrom::Step)?;
        for ahead in 1..=most {
            drafts.iter_mut().zip(&tokens).for_each(|(drafts, &token)| drafts.push(token));
            if ahead == most || tokens.contains(&NO_TOKEN) {
                break;
            }
            let batch = scheduler.next_drafts(&drafting, &tokens, ahead);
            tokens = runner.draft(&batch, &rows(ahead), DraftFrom::Draft)?;
        }
        for (&(id, count), mut drafts) in drafting.iter().zip(drafts) {
            drafts.truncate(drafts.iter().position(|&token| token == NO_TOKEN).unwrap_or(count).min(count));
            scheduler.set_drafts(id, drafts);
        }
        Ok(())
    }
}
