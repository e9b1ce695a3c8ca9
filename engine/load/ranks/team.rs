//! Devices that are asked the same: one by the thread that uses them, the others on theirs.

use super::thread::RankThread;
use qernel_core::error::{Error, Result};
use qernel_core::model::Runner;
use qernel_cuda::Group;
use std::sync::Arc;

/// The runners of all ranks.
pub(super) struct Team {
    // Dropped in this order: this thread's rank waits until the others, whose threads were told to end, reach its memory no more.
    pub own: Box<dyn Runner>,
    /// The rank of this thread.
    rank: usize,
    others: Vec<RankThread>,
    group: Arc<Group>,
}

impl Team {
    /// The runner of rank `rank` and those of the others.
    pub fn new(own: Box<dyn Runner>, rank: usize, others: Vec<RankThread>, group: Arc<Group>) -> Self {
        Self { own, rank, others, group }
    }

    pub fn num_ranks(&self) -> usize {
        1 + self.others.len()
    }

    /// What they share.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// What each rank says to `call`, that of this thread first, the others in their order.
    ///
    /// # Errors
    /// What the ranks refuse; [`Error::Device`] where one of them fails, from then on.
    pub fn ask<T: Send + 'static>(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        self.ask_each(move |_, runner| call(runner))
    }

    /// As [`Team::ask`], where `call` is told which rank it asks.
    ///
    /// # Errors
    /// As [`Team::ask`].
    pub fn ask_each<T: Send + 'static>(
        &mut self,
        call: impl Fn(usize, &mut dyn Runner) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        if let Some(why) = self.group.failure() {
            return Err(Error::Device(format!("{why}; the model is to be opened again")));
        }
        let (group, call) = (self.group.clone(), Arc::new(call));
        let told = |other: &RankThread| {
            let (group, call, rank) = (group.clone(), call.clone(), other.rank());
            other.tell(move |runner| call(rank, runner).inspect_err(|error| tell_others(&group, rank, error)))
        };
        let answers: Vec<_> = self.others.iter().map(told).collect();
        let own = call(self.rank, &mut *self.own).inspect_err(|error| tell_others(&group, self.rank, error));
        // A rank waits for others in a kernel, and its thread for that.
        let limit = group.limit().saturating_mul(2);
        let mut results = vec![own];
        for (other, answer) in self.others.iter().zip(&answers) {
            results.push(
                other.answer(answer, limit).inspect_err(|error| tell_others(&group, other.rank(), error)),
            );
        }
        if let Some(why) = self.group.failure() {
            return Err(Error::Device(why));
        }
        if results.iter().any(Result::is_ok) && results.iter().any(Result::is_err) {
            // Some have queued what others have not.
            group.fail("ranks did not agree on a request");
        }
        results.into_iter().collect()
    }

    /// What the rank of this thread says where all are asked.
    ///
    /// # Errors
    /// As [`Team::ask`].
    pub fn ask_own<T: Send + 'static>(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        Ok(self.ask(call)?.swap_remove(0))
    }

    /// What the rank of this thread says where the others have nothing to do.
    ///
    /// # Errors
    /// What it says; where it fails, so does every request from then on.
    pub fn ask_alone<T>(&mut self, call: impl FnOnce(&mut dyn Runner) -> Result<T>) -> Result<T> {
        call(&mut *self.own).inspect_err(|error| tell_others(&self.group, self.rank, error))
    }
}

/// Ends what other ranks wait for; a request that one refuses all do.
fn tell_others(group: &Group, rank: usize, error: &Error) {
    match error {
        Error::Request(_) => group.refuse_step(),
        _ => group.fail(&format!("rank {rank}: {error}")),
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.others.iter_mut().for_each(RankThread::close);
    }
}
