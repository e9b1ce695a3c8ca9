//! The runner of all ranks: what it is asked, it asks each of them.

use super::thread::RankThread;
use qernel_core::batch::{Batch, BatchLimits};
use qernel_core::error::{Error, Result};
use qernel_core::kv_layout::KvLayout;
use qernel_core::model::Runner;
use qernel_core::sampler::{Logprobs, SamplingRow};
use qernel_core::weights::DecodeBytes;
use qernel_cuda::Group;
use std::sync::Arc;

/// A model that is shared out: rank 0 on the thread that uses it, the others on theirs. All do the same steps and draw the same tokens;
/// rank 0's are taken.
pub(super) struct RanksRunner {
    // Dropped in this order: rank 0 waits until the others, whose threads were told to end, reach its memory no more.
    first: Box<dyn Runner>,
    others: Vec<RankThread>,
    group: Arc<Group>,
}

impl RanksRunner {
    /// The runner of rank 0 and of the ranks behind it.
    pub(super) fn new(first: Box<dyn Runner>, others: Vec<RankThread>, group: Arc<Group>) -> Self {
        Self { first, others, group }
    }

    /// What each rank says to `call`, by its rank.
    ///
    /// # Errors
    /// What the ranks refuse; [`Error::Device`] where one of them fails, from then on.
    fn ask<T: Send + 'static>(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        if let Some(why) = self.group.failure() {
            return Err(Error::Device(format!("{why}; the model is to be opened again")));
        }
        let (group, call) = (self.group.clone(), Arc::new(call));
        let told = |(i, other): (usize, &RankThread)| {
            let (group, call) = (group.clone(), call.clone());
            other.tell(move |runner| call(runner).inspect_err(|error| tell_others(&group, i + 1, error)))
        };
        let answers: Vec<_> = self.others.iter().enumerate().map(told).collect();
        let own = call(&mut *self.first).inspect_err(|error| tell_others(&group, 0, error));
        // A rank waits for others in a kernel, and its thread for that.
        let limit = group.limit().saturating_mul(2);
        let mut results = vec![own];
        for (other, answer) in self.others.iter().zip(&answers) {
            results.push(other.answer(answer, limit).inspect_err(|error| tell_others(&group, other.rank(), error)));
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

    /// The tokens that all ranks drew.
    fn tokens(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<Vec<u32>> + Send + Sync + 'static,
    ) -> Result<Vec<u32>> {
        let mut tokens = self.ask(call)?;
        if let Some(rank) = tokens.iter().position(|of_rank| *of_rank != tokens[0]) {
            let why = format!("rank {rank} drew other tokens than rank 0: one of them computes wrongly");
            self.group.fail(&why);
            return Err(Error::Device(why));
        }
        Ok(tokens.swap_remove(0))
    }

    /// What rank 0 says where all are asked.
    fn of_first<T: Send + 'static>(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        Ok(self.ask(call)?.swap_remove(0))
    }
}

/// Ends what other ranks wait for, unless the request was refused, which all do.
fn tell_others(group: &Group, rank: usize, error: &Error) {
    if !matches!(error, Error::Request(_)) {
        group.fail(&format!("rank {rank}: {error}"));
    }
}

impl Drop for RanksRunner {
    fn drop(&mut self) {
        self.others.iter_mut().for_each(RankThread::close);
    }
}

impl Runner for RanksRunner {
    fn limits(&self) -> &BatchLimits {
        self.first.limits()
    }

    /// Of a rank.
    fn kv_layout(&self) -> &KvLayout {
        self.first.kv_layout()
    }

    fn vocab_size(&self) -> usize {
        self.first.vocab_size()
    }

    fn max_model_len(&self) -> usize {
        self.first.max_model_len()
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        let step = (batch.clone(), rows.to_vec());
        self.tokens(move |runner| runner.step(&step.0, &step.1))
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        self.first.take_logprobs()
    }

    fn num_replays(&self) -> u64 {
        self.first.num_replays()
    }

    fn runs_ahead(&self) -> bool {
        self.first.runs_ahead()
    }

    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        let step = (batch.clone(), rows.to_vec());
        self.of_first(move |runner| runner.queue(&step.0, &step.1))
    }

    fn take(&mut self) -> Result<Vec<u32>> {
        self.tokens(|runner| runner.take())
    }

    fn warm_up(&mut self) -> Result<()> {
        self.of_first(|runner| runner.warm_up())
    }

    fn discard(&mut self) {
        // Where a rank has failed, the next step says so.
        let _ = self.of_first(|runner| {
            runner.discard();
            Ok(())
        });
    }

    fn max_drafts(&self) -> usize {
        self.first.max_drafts()
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.of_first(move |runner| runner.logits(&batch))
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.of_first(move |runner| runner.hidden(&batch))
    }

    fn hidden_of_all(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.of_first(move |runner| runner.hidden_of_all(&batch))
    }

    fn device_name(&self) -> String {
        format!("{} × {}", 1 + self.others.len(), self.first.device_name())
    }

    /// Of all ranks.
    fn decode_bytes(&self) -> DecodeBytes {
        let DecodeBytes { always, experts, idle_share } = self.first.decode_bytes();
        let ranks = 1 + self.others.len() as u64;
        DecodeBytes { always: always * ranks, experts: experts * ranks, idle_share }
    }

    /// Of all ranks together.
    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        Ok(self.ask(|runner| runner.read_bandwidth())?.into_iter().sum())
    }
}
