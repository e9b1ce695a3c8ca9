//! What the sampler is given for a step, and what becomes of the tokens that it draws.

use super::Engine;
use super::banned::{Banned, Taken};
use super::request::{Event, FinishReason, Usage};
use super::text::TextStream;
use crate::sampler::{Logprobs, NO_TOKEN, SamplingRow};
use crate::scheduler::{ScheduledSequence, Sequence, SequenceId, Step};

impl Engine {
    /// What the sampler needs for the tokens of a step, before which each sequence draws `ahead` others.
    pub(super) fn sampling_rows(&self, step: &Step, ahead: usize) -> Vec<SamplingRow> {
        let sampling = step.sequences.iter().filter(|scheduled| scheduled.num_logits() > 0);
        let rows = |scheduled: &ScheduledSequence| {
            let sequence = self.scheduler.sequence(scheduled.id);
            let tokens = sequence.map_or(&[][..], Sequence::tokens);
            let generation = &self.generations[&scheduled.id];
            let first = sequence.map_or(0, Sequence::next_scored);
            let of_prompt = (first..first + scheduled.num_scored).map(|position| {
                let count = generation.request.prompt_logprobs.unwrap_or(0);
                SamplingRow::of_prompt(tokens[position], position as u32, count)
            });
            let draws = (0..scheduled.num_draws()).map(|i| generation.sampling_row(tokens, ahead + i));
            of_prompt.chain(draws).collect::<Vec<_>>()
        };
        sampling.flat_map(rows).collect()
    }

    /// Takes what a step says of the next tokens of a prompt; once that is all, it is told.
    pub(super) fn take_scored(&mut self, scheduled: &ScheduledSequence, logprobs: Vec<Option<Logprobs>>) {
        let Some(generation) = self.generations.get_mut(&scheduled.id) else { return };
        if let Some(known) = &mut generation.prompt_logprobs {
            known.extend(logprobs.into_iter().flatten());
        }
        if scheduled.samples
            && let Some(logprobs) = generation.prompt_logprobs.take()
        {
            self.events.push(Event::Prompt { id: scheduled.id, index: generation.request.index, logprobs });
        }
    }

    /// Takes a token that was drawn for a sequence, and perhaps drafted: its event, and the end if it is one.
    pub(super) fn take_token(
        &mut self,
        scheduled: &ScheduledSequence,
        drafted: bool,
        token: u32,
        logprobs: Option<Logprobs>,
    ) {
        let id = scheduled.id;
        let (Some(generation), Some(sequence)) = (self.generations.get_mut(&id), self.scheduler.sequence(id))
        else {
            return;
        };
        generation.timings.decode_tokens += usize::from(!scheduled.prefill);
        generation.timings.accepted_draft_tokens += usize::from(drafted);
        if token == NO_TOKEN {
            let has_tried = |banned: &Banned| banned.num_tried(generation.completion_tokens) > 0;
            let is_out = generation.banned.as_ref().is_some_and(has_tried);
            return self.finish(id, if is_out { FinishReason::Constraint } else { FinishReason::Failed });
        }
        let mark = generation.mark();
        generation.completion_tokens += 1;
        if let Some(penalties) = &mut generation.penalties {
            let skipped = if generation.request.penalize_prompt { 0 } else { generation.prompt_tokens };
            penalties.advance(&sequence.tokens()[skipped..]);
        }
        let is_end = self.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.is_end_of_generation(token));
        let is_end = is_end && !generation.request.ignore_eos;
        let (text, stopped) = match &mut generation.text {
            Some(stream) if !is_end => stream.push(token),
            _ => (String::new(), false),
        };
        let reason = if is_end || stopped {
            Some(FinishReason::Stop)
        } else if Some(generation.completion_tokens) == generation.request.max_tokens {
            Some(FinishReason::Length)
        } else if generation.prompt_tokens + generation.completion_tokens >= self.max_model_len {
            Some(FinishReason::Context)
        } else {
            None
        };
        let event = Event::Token { id, index: generation.request.index, token, text, logprobs };
        match generation.hold(token, event, mark, reason.is_some()) {
            Taken::Stays(events) => self.events.extend(events),
            Taken::Back(place) => return self.go_back(id, place),
        }
        if let Some(reason) = reason.or_else(|| generation.advance_constraint(id, token)) {
            self.finish(id, reason);
        }
    }

    /// Lets a sequence go back to where so many tokens of its answer were there.
    fn go_back(&mut self, id: SequenceId, place: usize) {
        let (Some(generation), Some(sequence)) = (self.generations.get_mut(&id), self.scheduler.sequence(id))
        else {
            return;
        };
        let reason = generation.go_back(place, sequence.tokens()).unwrap_or_else(|error| {
            tracing::warn!("sequence {id} cannot go on as it must: {error}");
            Some(FinishReason::Constraint)
        });
        let len = generation.prompt_tokens + place;
        if let Some(drafter) = &mut self.drafter {
            drafter.forget(id);
        }
        self.scheduler.rewind(id, len);
        if let Some(reason) = reason {
            self.finish(id, reason);
        }
    }

    /// Ends a sequence that waits or runs.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let Some(mut generation) = self.generations.remove(&id) else { return };
        if let Some(drafter) = &mut self.drafter {
            drafter.forget(id);
        }
        let sequence = self.scheduler.finish(id);
        let (mut text, stopped) = generation.text.as_mut().map(TextStream::finish).unwrap_or_default();
        if let Some(banned) = &mut generation.banned {
            let events;
            (events, text) = banned.finish(text);
            self.events.extend(events);
        }
        self.events.push(Event::Finished {
            id,
            index: generation.request.index,
            text,
            // A character that never became complete may complete a stop string as U+FFFD.
            reason: if stopped { FinishReason::Stop } else { reason },
            usage: Usage {
                prompt_tokens: generation.prompt_tokens,
                completion_tokens: generation.completion_tokens,
                cached_tokens: sequence.map_or(0, |sequence| sequence.num_reused()),
            },
            timings: generation.timings,
        });
    }
}
