//! A sequence that waits or runs, as the engine knows it.

use super::banned::Banned;
use super::constraint::TokenConstraint;
use super::penalties::PenaltyWindow;
use super::repetition::Repetitions;
use super::request::{FinishReason, Request, Timings};
use super::text::TextStream;
use crate::sampler::{HostRow, Logprobs, SamplingRow, TokenMask};
use crate::scheduler::{ScheduledSequence, SequenceId};
use std::sync::Arc;

/// What the engine knows of a sequence besides its tokens.
pub(super) struct Generation {
    pub(super) request: Request,
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) text: Option<TextStream>,
    pub(super) penalties: Option<PenaltyWindow>,
    pub(super) constraint: Option<Constrained>,
    /// Where the host draws, and what it must not repeat.
    pub(super) host: Option<HostRow>,
    pub(super) repetitions: Option<Repetitions>,
    pub(super) timings: Timings,
    /// What its text must not have.
    pub(super) banned: Option<Banned>,
    /// What is known of the prompt's tokens so far, until it is told.
    pub(super) prompt_logprobs: Option<Vec<Logprobs>>,
}

/// A constraint and what it allows for the next token.
pub(super) struct Constrained {
    pub(super) constraint: Box<dyn TokenConstraint>,
    pub(super) allowed: Arc<TokenMask>,
}

impl Generation {
    /// Whether what the sampler is given for a token depends on the tokens before it, or its logits are read by the host.
    pub(super) fn needs_its_tokens(&self) -> bool {
        self.penalties.is_some()
            || self.constraint.is_some()
            || self.request.logprobs.is_some()
            || self.host.is_some()
            || self.banned.is_some()
    }

    /// Whether its tokens may be drafted.
    pub(super) fn may_draft(&self) -> bool {
        !self.needs_its_tokens() && self.request.speculative.n_max != Some(0)
    }

    /// What the sampler needs for the token behind `tokens` and the next `ahead` ones.
    pub(super) fn sampling_row(&self, tokens: &[u32], ahead: usize) -> SamplingRow {
        let of_constraint = self.constraint.as_ref().map(|constrained| &constrained.allowed);
        let allowed = match &self.banned {
            Some(banned) => banned.allowed(self.completion_tokens, of_constraint),
            None => of_constraint.cloned(),
        };
        let mut host = self.host.clone();
        if let (Some(host), Some(repetitions)) = (&mut host, &self.repetitions) {
            host.repetitions = repetitions.penalties(tokens);
        }
        SamplingRow {
            params: self.request.sampling.clone(),
            position: (self.prompt_tokens + self.completion_tokens + ahead) as u32,
            index: (self.banned.as_ref()).map_or(self.request.index, |banned| {
                banned.index(self.completion_tokens, self.request.index)
            }),
            counts: self.penalties.as_ref().map_or_else(Vec::new, PenaltyWindow::counts),
            allowed,
            logprobs: self.request.logprobs,
            scored: None,
            host,
        }
    }

    /// Moves the constraint on by a token, where there is one, and says if that cannot be. One that is over is let go.
    pub(super) fn advance_constraint(&mut self, id: SequenceId, token: u32) -> Option<FinishReason> {
        let constrained = self.constraint.as_mut()?;
        let reason = constrained.advance(id, token);
        if constrained.constraint.is_over() {
            self.constraint = None;
        }
        reason
    }

    /// Whether another token may follow the one that is drawn next.
    pub(super) fn continues(&self, max_model_len: usize) -> bool {
        let sampled = self.completion_tokens + 1;
        Some(sampled) != self.request.max_tokens && self.prompt_tokens + sampled < max_model_len
    }
}

impl Constrained {
    /// Moves on by a token, and says if that cannot be.
    fn advance(&mut self, id: SequenceId, token: u32) -> Option<FinishReason> {
        match self.constraint.accept(token).and_then(|()| self.constraint.allowed()) {
            Ok(allowed) => {
                self.allowed = Arc::new(allowed);
                None
            }
            Err(error) => {
                tracing::warn!("sequence {id} cannot go on as it must: {error}");
                Some(FinishReason::Constraint)
            }
        }
    }
}

impl Timings {
    /// Adds what a sequence cost in a step of so many seconds; what a decode step made is added with each token.
    pub(super) fn add(&mut self, scheduled: &ScheduledSequence, seconds: f64) {
        if scheduled.prefill {
            self.prefill_tokens += scheduled.num_rows;
            self.prefill_seconds += seconds;
        } else {
            self.decode_seconds += seconds;
            self.decode_steps += 1;
            self.draft_tokens += scheduled.num_drafts;
        }
    }
}
