//! The runner of devices that have some layers each: a step goes through all of them.

use super::team::Team;
use qernel_core::batch::{Batch, BatchLimits};
use qernel_core::error::Result;
use qernel_core::kv_layout::{KvLayout, StateCopy};
use qernel_core::model::draft::DraftFrom;
use qernel_core::model::{AdapterInfo, Runner};
use qernel_core::sampler::{Logprobs, SamplingRow};
use qernel_core::weights::DecodeBytes;

/// A model whose layers are on several devices: the last of them, which has the head, on the thread that uses it, the others on theirs.
pub(super) struct StagesRunner {
    team: Team,
    /// Of the pages of all layers.
    layout: KvLayout,
    /// A layer on one of them keeps a slot.
    has_slots: bool,
    num_checkpoints: usize,
    /// Of all of them.
    decode_bytes: DecodeBytes,
    device_name: String,
}

impl StagesRunner {
    /// The runners of all devices; `layout` is that of the pages of all layers.
    ///
    /// # Errors
    /// What the devices say.
    pub(super) fn new(mut team: Team, layout: KvLayout) -> Result<Self> {
        let said = |runner: &mut dyn Runner| {
            let slots = (runner.has_slots(), runner.num_checkpoints());
            Ok((slots, runner.decode_bytes(), runner.device_name()))
        };
        let mut of_each = team.ask(said)?;
        // In the order of their layers.
        of_each.rotate_left(1);
        let sum = |bytes: fn(&DecodeBytes) -> u64| of_each.iter().map(|(_, of, _)| bytes(of)).sum();
        let names: Vec<_> = of_each.iter().map(|(_, _, name)| name.as_str()).collect();
        Ok(Self {
            layout,
            has_slots: of_each.iter().any(|((has, _), _, _)| *has),
            num_checkpoints: of_each.iter().map(|((_, count), _, _)| *count).max().unwrap_or(0),
            decode_bytes: DecodeBytes {
                always: sum(|bytes| bytes.always),
                experts: sum(|bytes| bytes.experts),
                idle_share: team.own.decode_bytes().idle_share,
            },
            device_name: names.join(" + "),
            team,
        })
    }

    /// What the last device says of a step that goes through all of them.
    fn through_all<T: Send + 'static>(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        self.team.group().begin_step();
        self.team.ask_own(call)
    }

    /// Lets the devices whose layers keep slots do something with them.
    fn with_slots(
        &mut self,
        call: impl Fn(&mut dyn Runner) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        self.team.ask_own(move |runner| if runner.has_slots() { call(runner) } else { Ok(()) })
    }
}

impl Runner for StagesRunner {
    fn limits(&self) -> &BatchLimits {
        self.team.own.limits()
    }

    /// Of all layers.
    fn kv_layout(&self) -> &KvLayout {
        &self.layout
    }

    fn has_slots(&self) -> bool {
        self.has_slots
    }

    fn num_checkpoints(&self) -> usize {
        self.num_checkpoints
    }

    fn save_state(&mut self, copy: StateCopy) -> Result<()> {
        self.with_slots(move |runner| runner.save_state(copy))
    }

    fn load_state(&mut self, copy: StateCopy) -> Result<()> {
        self.with_slots(move |runner| runner.load_state(copy))
    }

    fn adapters(&self) -> &[AdapterInfo] {
        self.team.own.adapters()
    }

    fn vocab_size(&self) -> usize {
        self.team.own.vocab_size()
    }

    fn max_model_len(&self) -> usize {
        self.team.own.max_model_len()
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        self.discard();
        self.queue(batch, rows)?;
        self.take()
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        self.team.own.take_logprobs()
    }

    fn num_replays(&self) -> u64 {
        self.team.own.num_replays()
    }

    /// The last device alone has the tokens.
    fn runs_ahead(&self) -> bool {
        false
    }

    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        let step = (batch.clone(), rows.to_vec());
        self.through_all(move |runner| runner.queue(&step.0, &step.1))
    }

    fn take(&mut self) -> Result<Vec<u32>> {
        self.team.ask_alone(|runner| runner.take())
    }

    fn warm_up(&mut self) -> Result<()> {
        self.team.ask_own(|runner| runner.warm_up())
    }

    fn discard(&mut self) {
        self.team.own.discard();
    }

    fn max_drafts(&self) -> usize {
        self.team.own.max_drafts()
    }

    /// The block that drafts is where the last layer is.
    fn draft(&mut self, batch: &Batch, rows: &[SamplingRow], from: DraftFrom) -> Result<Vec<u32>> {
        self.team.ask_alone(|runner| runner.draft(batch, rows, from))
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.through_all(move |runner| runner.logits(&batch))
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.through_all(move |runner| runner.hidden(&batch))
    }

    fn hidden_of_all(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let batch = batch.clone();
        self.through_all(move |runner| runner.hidden_of_all(&batch))
    }

    fn device_name(&self) -> String {
        self.device_name.clone()
    }

    fn decode_bytes(&self) -> DecodeBytes {
        self.decode_bytes
    }

    /// That of one device which would take as long for the weights of a step as all of them do, one after the other.
    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        let of_each = self.team.ask(|runner| {
            let bytes = runner.decode_bytes().of(1) as f64;
            Ok(runner.read_bandwidth()?.map(|speed| (bytes, bytes / speed)))
        })?;
        let sum = |all: (f64, f64), of: (f64, f64)| (all.0 + of.0, all.1 + of.1);
        let sums = of_each.into_iter().try_fold((0.0, 0.0), |all, of| of.map(|of| sum(all, of)));
        Ok(sums.filter(|(_, seconds)| *seconds > 0.0).map(|(bytes, seconds)| bytes / seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fault, LIMIT, rank};
    use super::super::thread::RankThread;
    use super::*;
    use crate::device_choice::DeviceChoice;
    use qernel_core::batch::{LogitRows, SequenceRows};
    use qernel_cuda::Group;
    use std::sync::Arc;

    /// Three devices, the second of which has a fault.
    fn stages(fault: Fault) -> StagesRunner {
        let group = Arc::new(Group::new(3, if fault == Fault::Silence { LIMIT } else { 100 * LIMIT }));
        let others = [(0, Fault::None), (1, fault)].map(|(number, fault)| {
            let mut thread =
                RankThread::start(&group, number, DeviceChoice::Cpu, move || rank(fault)).unwrap();
            thread.opened().unwrap();
            thread
        });
        let own = rank(Fault::None).unwrap();
        let layout = *own.kv_layout();
        StagesRunner::new(Team::new(own, 2, others.into(), group), layout).unwrap()
    }

    fn logits(runner: &mut StagesRunner, token: u32) -> Result<Vec<f32>> {
        let rows = SequenceRows { tokens: &[token], position: 0, pages: &[0], logits: LogitRows::Last };
        runner.logits(&Batch::new(&[rows]))
    }

    #[test]
    fn a_device_that_fails_ends_requests_with_its_reason() {
        for (fault, expected) in [
            (Fault::Error, "rank 1: device: broken"),
            (Fault::Panic, "rank 1"),
            (Fault::Silence, "rank 1 gives no answer for 0.2 s"),
        ] {
            let mut runner = stages(fault);
            logits(&mut runner, 5).unwrap();
            let error = logits(&mut runner, 5).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            let later = logits(&mut runner, 5).unwrap_err().to_string();
            assert!(later.contains("rank 1") && later.contains("to be opened again"), "{later}");
        }
    }

    #[test]
    fn what_is_read_on_all_devices_is_added_up() {
        let mut runner = stages(Fault::None);
        let of_one = runner.team.own.decode_bytes().of(1);
        assert_eq!(runner.decode_bytes().of(1), 3 * of_one);
        // Each reads a byte a second.
        assert_eq!(runner.read_bandwidth().unwrap(), if of_one > 0 { Some(1.0) } else { None });
        assert_eq!(runner.device_name().matches("CPU").count(), 3);
        assert!(logits(&mut runner, u32::MAX).is_err() && logits(&mut runner, 5).is_ok());
    }
}
