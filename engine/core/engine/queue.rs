//! Steps that are queued, with the copies of states around them, and what becomes of them when one fails.

use super::Engine;
use crate::error::{Error, Result};
use crate::host_checkpoints::HostCheckpoints;
use crate::model::{Kept, KeptLayout, Runner};
use crate::scheduler::Step;

impl Engine {
    /// The same that keeps copies of the states of recurrent layers in at most so many bytes of host memory where they have to make room for
    /// others; 0, or a model without such layers, keeps none.
    ///
    /// # Errors
    /// [`Error::Request`] if there are no places for copies, if not one fits, or if the states stay where they are: those of a model whose layers are
    /// on several devices do.
    pub fn with_host_checkpoints(mut self, max_bytes: usize) -> Result<Self> {
        if max_bytes == 0 || !self.runner.has_slots() {
            return Ok(self);
        }
        let refused =
            |why: String| Err(Error::Request(format!("--checkpoint-host-memory {max_bytes}: {why}")));
        if self.runner.num_checkpoints() == 0 {
            return refused(
                "copies of states are made in a place of the device first: it needs --checkpoints 1 or more"
                    .into(),
            );
        }
        let Some(KeptLayout { state_bytes, .. }) = self.runner.kept_layout() else {
            return refused(
                "the states of a model whose layers are on several devices stay there; leave it out".into(),
            );
        };
        let host = HostCheckpoints::new(max_bytes, state_bytes);
        if host.capacity() == 0 {
            return refused(format!(
                "a copy of a sequence's states takes {state_bytes} bytes; expected at least that"
            ));
        }
        self.scheduler.set_host_checkpoints(host);
        Ok(self)
    }

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
        for &(place, prefix) in &step.evicted {
            match self.runner.read_kept(Kept::State(place)) {
                Ok(state) => self.scheduler.keep_on_host(prefix, state),
                // It is forgotten as it would be without room for it.
                Err(error @ Error::Memory(_)) => tracing::warn!("no state is kept in host memory: {error}"),
                Err(error) => return Err(error),
            }
        }
        step.keeps.iter().try_for_each(|&copy| self.runner.save_state(copy))?;
        step.loads.iter().try_for_each(|&copy| self.runner.load_state(copy))?;
        let mut of_host = step.host_loads.iter();
        of_host.try_for_each(|(slot, state)| self.runner.write_kept(Kept::Slot(*slot), state))?;
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
