//! Drafts by a smaller model, which follows the sequences of the engine's.

use super::{Drafter, Drafts, Drawn, Round};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::kv_layout::StateCopy;
use crate::model::Runner;
use crate::sampler::{NO_TOKEN, SamplingRow};
use crate::scheduler::{Follower, FollowingStep, Scheduler};

/// A model that drafts. Its pages and slots are those of the engine's own, by number.
pub struct DraftModel {
    runner: Box<dyn Runner>,
    follower: Follower,
    /// What the last step drew, where the device does not run ahead.
    drawn: Vec<u32>,
}

impl DraftModel {
    /// Of a model that drafts for another.
    ///
    /// # Errors
    /// [`Error::Request`] where it has no room for the other's sequences.
    pub fn new(runner: Box<dyn Runner>, of: &dyn Runner) -> Result<Self> {
        let room = |runner: &dyn Runner| (runner.kv_layout().num_pages, runner.limits().max_num_sequences);
        let (found, expected) = (room(&*runner), room(of));
        if found.0 < expected.0 || found.1 < expected.1 {
            return Err(Error::Request(format!(
                "the model that drafts has room for {} pages and {} sequences, the other one for {} and {}",
                found.0, found.1, expected.0, expected.1
            )));
        }
        let limits = runner.limits();
        let follower = Follower {
            max_num_tokens: limits.max_num_tokens,
            max_model_len: runner.max_model_len(),
            has_slots: runner.has_slots(),
            vocab_size: runner.vocab_size().min(of.vocab_size()),
        };
        Ok(Self { runner, follower, drawn: Vec::new() })
    }

    /// Queues a step, or has its tokens at once where the device does not run ahead.
    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        if self.runner.runs_ahead() {
            return self.runner.queue(batch, rows);
        }
        self.drawn = self.runner.step(batch, rows)?;
        Ok(())
    }

    /// The tokens of the oldest step that was queued; none where the engine's model has no such token.
    fn take(&mut self) -> Result<Drawn> {
        let mut drawn =
            if self.runner.runs_ahead() { self.runner.take()? } else { std::mem::take(&mut self.drawn) };
        let known = self.follower.vocab_size as u64;
        drawn.iter_mut().filter(|token| u64::from(**token) >= known).for_each(|token| *token = NO_TOKEN);
        Ok((drawn, self.runner.take_logprobs()))
    }

    /// Queues what takes in the rows of a step and draws the tokens behind those that need logits.
    fn take_in(&mut self, step: &FollowingStep, rows: &[SamplingRow]) -> Result<()> {
        for &copy in &step.loads {
            self.runner.load_state(self.place(copy))?;
        }
        self.queue(&step.batch, rows)?;
        for &copy in &step.saves {
            self.runner.save_state(self.place(copy))?;
        }
        Ok(())
    }

    /// Drafts behind a step that is to be taken in. Where the device runs ahead, each token is drawn while the one before is read.
    fn drafts(&mut self, scheduler: &mut Scheduler, step: &FollowingStep, round: &Round) -> Result<Drafts> {
        let drafting = &step.drafting;
        let most = drafting.iter().map(|&(_, count)| count).max().unwrap_or(0);
        let is_ahead = self.runner.runs_ahead() && !round.has_p_min(drafting);
        round.in_turn(drafting, |ahead, tokens| {
            if ahead == 0 {
                self.take_in(step, &round.sampling_rows(drafting, ahead))?;
            } else if !is_ahead {
                // Counted from the row behind the last token.
                let batch = scheduler.next_drafts(drafting, tokens, ahead + 1);
                self.queue(&batch, &round.sampling_rows(drafting, ahead))?;
            }
            if is_ahead && ahead + 1 < most {
                let unknown = vec![0; drafting.len()];
                let next = scheduler.next_drafts(drafting, &unknown, ahead + 2);
                let sampled_rows = (0..drafting.len() as u32).collect();
                let rows = round.sampling_rows(drafting, ahead + 1);
                self.queue(&Batch { sampled_rows, ..next }, &rows)?;
            }
            let drawn = self.take()?;
            match ahead {
                0 => scheduler.followed(step),
                _ => scheduler.followed_drafts(drafting, tokens),
            }
            Ok(drawn)
        })
    }

    /// Where the copy of a state is: behind those that nobody makes here.
    fn place(&self, StateCopy { slot, place }: StateCopy) -> StateCopy {
        StateCopy { slot, place: place + self.runner.num_checkpoints() as u32 }
    }
}

impl Drafter for DraftModel {
    fn draft(&mut self, _: &mut dyn Runner, scheduler: &mut Scheduler, round: &Round) -> Result<Drafts> {
        let step = scheduler.follow(round.step, &self.follower, |id| round.wanted(id));
        if step.batch.num_tokens() == 0 {
            return Ok(Vec::new());
        }
        let drafts = match step.drafting.is_empty() {
            true => self.take_in(&step, &[]).and_then(|()| self.take()).map(|_| {
                scheduler.followed(&step);
                Vec::new()
            }),
            false => self.drafts(scheduler, &step, round),
        };
        // A draft that ended early leaves a step behind, and so does a failure.
        self.runner.discard();
        drafts
    }
}
