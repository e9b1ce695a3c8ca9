//! Steps that are queued, with the copies of states around them, and what becomes of them when one fails.

use super::Engine;
use crate::error::Result;
use crate::model::Runner;
use crate::scheduler::Step;

impl Engine {
    /// Forgets what is queued behind a failure. Pages are written again by the step that is tried again; slots may have moved on with it, so
    /// that sequences which have one begin anew.
    pub(super) fn take_back(&mut self) {
        self.discard();
        if self.runner.has_slots() {
            self.scheduler.restart();
        }
    }

    /// Queues a step with the copies of states before and behind it.
    pub(super) fn with_copies<T>(
        &mut self,
        step: &Step,
        queue: impl FnOnce(&mut dyn Runner) -> Result<T>,
    ) -> Result<T> {
        step.keeps.iter().try_for_each(|&copy| self.runner.save_state(copy))?;
        step.loads.iter().try_for_each(|&copy| self.runner.load_state(copy))?;
        let queued = queue(&mut *self.runner)?;
        let mut saves = step.sequences.iter().filter_map(|scheduled| scheduled.save);
        saves.try_for_each(|copy| self.runner.save_state(copy))?;
        Ok(queued)
    }

    /// Forgets what is queued; no sequence has moved.
    pub(super) fn discard(&mut self) {
        self.in_flight = None;
        self.runner.discard();
        self.scheduler.forget_copies();
    }

    /// Whether a sequence of the step has not ended.
    pub(super) fn is_live(&self, step: &Step) -> bool {
        step.sequences.iter().any(|scheduled| self.generations.contains_key(&scheduled.id))
    }
}
