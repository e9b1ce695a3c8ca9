//! Copies of the states of recurrent layers: when they are made, and what has to make room for them.

use super::Scheduler;
use crate::host_checkpoints::HostCheckpoints;
use crate::kv_layout::StateCopy;
use crate::prefix_cache::Prefix;

impl Scheduler {
    /// The copies that are made of the states of running sequences once so many of their tokens are taken in, and those in their places which
    /// host memory has room for; the one that was made last while a sequence generates is no longer needed then.
    pub(super) fn copies_behind(
        &mut self,
        ends: &[(usize, usize)],
    ) -> (Vec<Option<StateCopy>>, Vec<(u32, Prefix)>) {
        let (forgotten, mut evicted) = (self.pool.take_forgotten(), Vec::new());
        let Self { checkpoints: Some(checkpoints), running, .. } = self else {
            return (vec![None; ends.len()], evicted);
        };
        // A copy goes with the page that it stands behind: nobody would find it any more.
        forgotten.into_iter().for_each(|prefix| checkpoints.forget(prefix));
        let mut copy = |&(i, end): &(usize, usize)| {
            let sequence = &mut running[i];
            if !sequence.is_checkpoint(end) {
                return None;
            }
            sequence.newest.take().into_iter().for_each(|before| checkpoints.forget(before));
            let (place, before) = checkpoints.take_over()?;
            evicted.extend(before.map(|before| (place, before)));
            Some(StateCopy { slot: sequence.slot, place })
        };
        (ends.iter().map(&mut copy).collect(), evicted)
    }

    /// Room in host memory for copies of states that have to make room, where such are kept.
    pub(crate) fn set_host_checkpoints(&mut self, host: HostCheckpoints) {
        self.checkpoints = self.checkpoints.take().map(|checkpoints| checkpoints.with_host(host));
    }

    /// Keeps the state behind `prefix` in host memory.
    pub(crate) fn keep_on_host(&mut self, prefix: Prefix, state: Vec<u8>) {
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.host_mut().keep(prefix, state);
        }
    }

    /// Nothing is in flight any more: copies that were to be made are not.
    pub fn forget_copies(&mut self) {
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.release_pending();
        }
    }
}
