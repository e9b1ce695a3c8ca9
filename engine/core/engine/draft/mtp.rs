//! Drafts by a block of the model itself.

use super::{Drafter, Drafts, Round};
use crate::batch::Batch;
use crate::error::Result;
use crate::model::Runner;
use crate::model::draft::DraftFrom;
use crate::scheduler::{Scheduler, Step};

/// Goes on from the rows of the step itself.
#[derive(Default)]
pub struct Mtp {
    /// Those rows with the tokens that follow them.
    batch: Option<Batch>,
}

impl Drafter for Mtp {
    fn observe(&mut self, scheduler: &Scheduler, step: &Step) {
        self.batch = Some(scheduler.draft_batch(step));
    }

    fn draft(&mut self, runner: &mut dyn Runner, scheduler: &mut Scheduler, round: &Round) -> Result<Drafts> {
        let Some(mut batch) = self.batch.take() else { return Ok(Vec::new()) };
        let drafting = scheduler.begin_drafts(round.step, &mut batch, |id| round.wanted(id));
        if drafting.is_empty() {
            // The block has taken in all rows, for drafts to come.
            return runner.draft(&batch, &[], DraftFrom::Step).map(|_| Vec::new());
        }
        round.in_turn(&drafting, |ahead, tokens| {
            let rows = round.sampling_rows(&drafting, ahead);
            let drawn = match ahead {
                0 => runner.draft(&batch, &rows, DraftFrom::Step)?,
                _ => {
                    let batch = scheduler.next_drafts(&drafting, tokens, ahead);
                    runner.draft(&batch, &rows, DraftFrom::Draft)?
                }
            };
            Ok((drawn, runner.take_logprobs()))
        })
    }
}
