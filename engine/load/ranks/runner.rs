//! The runner of all ranks: what it is asked, it asks each of them.

use super::team::Team;
use qernel_core::batch::{Batch, BatchLimits};
use qernel_core::error::{Error, Result};
use qernel_core::kv_layout::{KvLayout, StateCopy};
use qernel_core::model::draft::DraftFrom;
use qernel_core::model::{AdapterInfo, Kept, KeptLayout, Runner};
use qernel_core::sampler::{Logprobs, SamplingRow};
use qernel_core::weights::DecodeBytes;

/// A model that is shared out: rank 0 on the thread that uses it, the others on theirs. All do the same steps and draw the same tokens;
/// rank 0's are taken.
pub(super) struct RanksRunner(Team);

impl RanksRunner {
    /// The runners of all ranks.
    pub(super) fn new(team: Team) -> Self {
        Self(team)
    }

    /// The tokens that all ranks drew.
    fn tokens(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<Vec<u32>> + Send + Sync + 'static,
    ) -> Result<Vec<u32>> {
        let mut tokens = self.0.ask(call)?;
        if let Some(rank) = tokens.iter().position(|of_rank| *of_rank != tokens[0]) {
            let why = format!("rank {rank} drew other tokens than rank 0: one of them computes wrongly");
            self.0.group().fail(&why);
            return Err(Error::Device(why));
        }
        Ok(tokens.swap_remove(0))
    }
}

impl Runner for RanksRunner {
    fn limits(&self) -> &BatchLimits {
        self.0.own.limits()
    }

    /// Of a rank.
    fn kv_layout(&self) -> &KvLayout {
        self.0.own.kv_layout()
    }

    fn has_slots(&self) -> bool {
        self.0.own.has_slots()
    }

    fn num_checkpoints(&self) -> usize {
        self.0.own.num_checkpoints()
    }

    fn save_state(&mut self, copy: StateCopy) -> Result<()> {
        self.0.ask_own(move |runner| runner.save_state(copy))
    }

    fn load_state(&mut self, copy: StateCopy) -> Result<()> {
        self.0.ask_own(move |runner| runner.load_state(copy))
    }

    /// What all ranks give out, one behind the other.
    fn kept_layout(&self) -> Option<KeptLayout> {
        let ranks = self.0.num_ranks();
        let KeptLayout { meaning, page_bytes, state_bytes } = self.0.own.kept_layout()?;
        Some(KeptLayout {
            meaning: format!("{ranks} ranks: {meaning}"),
            page_bytes: ranks * page_bytes,
            state_bytes: ranks * state_bytes,
        })
    }

    fn read_kept(&mut self, kept: Kept) -> Result<Vec<u8>> {
        Ok(self.0.ask(move |runner| runner.read_kept(kept))?.concat())
    }

    fn write_kept(&mut self, kept: Kept, bytes: &[u8]) -> Result<()> {
        let of_rank = bytes.len().div_ceil(self.0.num_ranks());
        let bytes = bytes.to_vec();
        // A rank refuses another number of bytes than its own.
        let write = move |rank: usize, runner: &mut dyn Runner| {
            let part = bytes.get(rank * of_rank..(rank + 1) * of_rank);
            runner.write_kept(kept, part.unwrap_or_default())
        };
        self.0.ask_each(write).map(drop)
    }

    fn adapters(&self) -> &[AdapterInfo] {
        self.0.own.adapters()
    }

    fn vocab_size(&self) -> usize {
        self.0.own.vocab_size()
    }

    fn max_model_len(&self) -> usize {
        self.0.own.max_model_len()
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        let step = (batch.clone(), rows.to_vec());
        self.tokens(move |runner| runner.step(&step.0, &step.1))
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        self.0.own.take_logprobs()
    }

    fn num_replays(&self) -> u64 {
        self.0.own.num_replays()
    }

    fn runs_ahead(&self) -> bool {
        self.0.own.runs_ahead()
    }

    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        let step = (batch.clone(), rows.to_vec());
        self.0.ask_own(move |runner| runner.queue(&step.0, &step.1))
    }

    fn take(&mut self) -> Result<Vec<u32>> {
        self.tokens(|runner| runner.take())
    }

    fn warm_up(&mut self) -> Result<()> {
        self.0.ask_own(|runner| runner.warm_up())
    }

    fn discard(&mut self) {
        // Where a rank has failed, the next step says so.
        let _ = self.0.ask_own(|runner| {
            runner.discard();
            Ok(())
        });
    }

    fn max_drafts(&self) -> usize {
        self.0.own.max_drafts()
    }

    fn draft(&mut self, batch: &Batch, rows: &[SamplingRow], from: DraftFrom) -> Result<Vec<u32>> {
        let step = (batch.clone(), rows.to_vec());
        self.tokens(move |runner| runner.draft(&step.0, &step.1, from))
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.0.ask_own(move |runner| runner.logits(&batch))
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.0.ask_own(move |runner| runner.hidden(&batch))
    }

    fn hidden_of_all(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.0.ask_own(move |runner| runner.hidden_of_all(&batch))
    }

    fn device_name(&self) -> String {
        format!("{} × {}", self.0.num_ranks(), self.0.own.device_name())
    }

    /// Of all ranks.
    fn decode_bytes(&self) -> DecodeBytes {
        let DecodeBytes { always, experts, idle_share } = self.0.own.decode_bytes();
        let ranks = self.0.num_ranks() as u64;
        DecodeBytes { always: always * ranks, experts: experts * ranks, idle_share }
    }

    /// Of all ranks together.
    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        Ok(self.0.ask(|runner| runner.read_bandwidth())?.into_iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fault, LIMIT, rank};
    use super::super::thread::RankThread;
    use super::*;
    use crate::device_choice::DeviceChoice;
    use qernel_core::batch::{LogitRows, SequenceRows};
    use qernel_core::engine::{Engine, EngineConfig, Request};
    use qernel_core::sampler::SamplingParams;
    use qernel_cuda::Group;
    use std::ops::ControlFlow;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    /// Three ranks, the second of which has a fault.
    fn ranks(fault: Fault) -> RanksRunner {
        let group = Arc::new(Group::new(3, if fault == Fault::Silence { LIMIT } else { 100 * LIMIT }));
        let start = |number, fault| {
            let mut thread =
                RankThread::start(&group, number, DeviceChoice::Cpu, move || rank(fault)).unwrap();
            thread.opened().unwrap();
            thread
        };
        let others = vec![start(1, fault), start(2, Fault::None)];
        RanksRunner::new(Team::new(rank(Fault::None).unwrap(), 0, others, group))
    }

    fn step(runner: &mut RanksRunner, token: u32) -> Result<Vec<u32>> {
        let rows = SequenceRows { tokens: &[token], position: 0, pages: &[0], logits: LogitRows::Last };
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        runner.step(&Batch::new(&[rows]), &[SamplingRow::new(greedy, 1)])
    }

    #[test]
    fn a_rank_that_fails_ends_requests_with_its_reason() {
        for (fault, expected) in [
            (Fault::Error, "rank 1: device: broken"),
            (Fault::Panic, "rank 1"),
            (Fault::Silence, "rank 1 gives no answer for 0.2 s"),
            (Fault::OtherTokens, "rank 1 drew other tokens than rank 0"),
        ] {
            let mut runner = ranks(fault);
            step(&mut runner, 5).unwrap();
            let error = step(&mut runner, 5).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            let later = step(&mut runner, 5).unwrap_err().to_string();
            assert!(later.contains("rank 1") && later.contains("to be opened again"), "{later}");
        }
    }

    #[test]
    fn what_all_ranks_refuse_leaves_them_as_they_were() {
        let mut runner = ranks(Fault::None);
        let expected = step(&mut runner, 5).unwrap();
        let beyond = runner.vocab_size() as u32;
        assert!(matches!(step(&mut runner, beyond), Err(Error::Request(_))));
        assert_eq!(step(&mut runner, 5).unwrap(), expected);
        assert_eq!(runner.read_bandwidth().unwrap(), Some(3.0));
        assert!(runner.device_name().starts_with("3 × CPU"));
    }

    #[test]
    fn a_request_ends_where_a_rank_fails() {
        let mut engine = Engine::new(Box::new(ranks(Fault::Error)), None, EngineConfig::default()).unwrap();
        let request = Request { text: false, ..Request::new(vec![5, 6]) };
        let never = AtomicBool::new(false);
        let error = engine.run_to_end(request, &never, |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(&error, Error::Device(why) if why.contains("rank 1: device: broken")), "{error}");
    }
}
