//! The timeline of one step: when each block of each kernel began, waited for the kernel before it, and ended, by the device's
//! clock. The kernels are those of this build with stores added to their PTX (`instrument.rs`); what the library launches is not seen.

mod instrument;
mod page;

pub use page::page;

use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::config::Config;
use crate::cuda::{CudaOps, Device, DeviceBuffer, KernelChoice};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, pages_for};
use crate::ops::OpsConfig;
use crate::sampler::{SamplingParams, SamplingRow};
use crate::weights::Weights;
use instrument::{HEADER_WORDS, RECORD_WORDS, Target};
use qernel_core::model::{ModelRunner, Runner};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

/// Warps whose records there is room for: 48 bytes each.
const CAPACITY: u32 = 4 << 20;

/// Decode steps before the one that is traced: the second of a shape is recorded, and the ones behind it are replayed.
const STEPS_BEFORE: usize = 4;

/// What is traced.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Tokens of each sequence's prompt.
    pub prompt: Vec<u32>,
    /// Rows of a decode step.
    pub sequences: usize,
    /// The prompt's step instead of a decode step.
    pub of_prompt: bool,
}

impl Plan {
    /// Tokens of a sequence.
    pub fn max_model_len(&self) -> usize {
        self.prompt.len() + STEPS_BEFORE + 2
    }
}

/// A device whose kernels leave records, and the memory that these are in.
pub struct Recorder {
    records: DeviceBuffer<u64>,
    names: Vec<String>,
    device: Rc<Device>,
}

impl Recorder {
    /// Opens `cuda:N`, or the first device.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none, [`Error::Memory`] if it has no room for the records.
    pub fn open(ordinal: Option<u32>) -> Result<Self> {
        // Memory is the context's, which all openings of a device share.
        let plain = Rc::new(Device::open(ordinal, qernel_ptx::ptx)?);
        let records = DeviceBuffer::zeroed(&plain, HEADER_WORDS + CAPACITY as usize * RECORD_WORDS)?;
        let target = plain.info().target()?;
        let text = qernel_ptx::ptx(target)
            .ok_or_else(|| Error::Device(format!("the kernels are not compiled for {target}")))?;
        let address = records.ptr().as_raw();
        let (text, names) = instrument::instrument(text, Target { address, capacity: CAPACITY });
        let device = Rc::new(Device::open_text(ordinal, text)?);
        Ok(Self { records, names, device })
    }

    /// Whose kernels leave records.
    pub fn device(&self) -> &Rc<Device> {
        &self.device
    }

    fn clear(&mut self) -> Result<()> {
        self.device.synchronize()?;
        self.records.write(0, &[0])
    }

    /// What was launched since [`Recorder::clear`].
    fn take(&mut self) -> Result<(Vec<Launch>, usize)> {
        self.device.synchronize()?;
        let count = self.records.read(0, 1)?[0] as u32;
        let kept = count.min(CAPACITY) as usize;
        let words = self.records.read(HEADER_WORDS, kept * RECORD_WORDS)?;
        let records = words.chunks_exact(RECORD_WORDS).map(Record::new).collect();
        Ok((launches(records, &self.names), count as usize - kept))
    }
}

/// What a warp left. Times are nanoseconds of the device's clock.
#[derive(Clone, Copy, Debug)]
struct Record {
    start: u64,
    ready: u64,
    wait: u64,
    end: u64,
    block: u32,
    warp: u32,
    multiprocessor: u32,
    kernel: u32,
}

impl Record {
    fn new(words: &[u64]) -> Self {
        let [start, ready, wait, end] = [words[0], words[1], words[2], words[3]];
        let (low, high) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
        let (block, multiprocessor) = (low(words[4]), high(words[4]));
        let (kernel, warp) = (low(words[5]), high(words[5]));
        Self { start, ready, wait, end, block, warp, multiprocessor, kernel }
    }
}

/// A block of a launch: nanoseconds since the step began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Block {
    pub multiprocessor: u32,
    pub start: u64,
    /// When its last warp came to its wait for the kernel before; where it does not wait, when that began.
    pub ready: u64,
    /// When its last warp stopped waiting; likewise.
    pub wait: u64,
    pub end: u64,
}

/// A kernel of the step.
#[derive(Clone, Debug, Serialize)]
pub struct Launch {
    pub kernel: String,
    pub blocks: Vec<Block>,
}

impl Launch {
    /// When its first block stopped waiting.
    pub fn begin(&self) -> u64 {
        self.blocks.iter().map(|block| block.wait).min().unwrap_or_default()
    }

    /// When its last block ended.
    pub fn end(&self) -> u64 {
        self.blocks.iter().map(|block| block.end).max().unwrap_or_default()
    }
}

/// The launch of a kernel that warps belong to.
struct Current {
    launch: usize,
    end: u64,
    /// Blocks of another kernel stopped waiting behind its end.
    is_over: bool,
    /// Blocks and their warps that are there.
    warps: HashSet<(u32, u32)>,
}

/// Warps by launches and blocks. A kernel's blocks stop waiting when the kernel before it has ended: a warp that does so behind the end of all
/// before it is of its kernel's next launch if it is there already, or if another kernel was between; else it waited for room.
fn launches(mut records: Vec<Record>, names: &[String]) -> Vec<Launch> {
    records.sort_by_key(|record| record.wait);
    let zero = records.iter().map(|record| record.start).min().unwrap_or_default();
    let mut current: HashMap<u32, Current> = HashMap::new();
    let mut found: Vec<(u32, BTreeMap<u32, Block>)> = Vec::new();
    for record in records {
        let Record { block, warp, multiprocessor, kernel, wait, end, .. } = record;
        for (other, current) in &mut current {
            current.is_over |= *other != kernel && wait >= current.end;
        }
        let is_next = current.get(&kernel).is_none_or(|current| {
            wait > current.end && (current.is_over || current.warps.contains(&(block, warp)))
        });
        if is_next {
            let next = Current { launch: found.len(), end, is_over: false, warps: HashSet::new() };
            current.insert(kernel, next);
            found.push((kernel, BTreeMap::new()));
        }
        let current = current.get_mut(&kernel).expect("it was there, or is now");
        current.end = current.end.max(end);
        current.warps.insert((block, warp));
        let launch = current.launch;
        let [start, ready, wait, end] = [record.start, record.ready, wait, end].map(|time| time - zero);
        let whole = found[launch].1.entry(block).or_insert(Block { multiprocessor, start, ready, wait, end });
        whole.start = whole.start.min(start);
        whole.ready = whole.ready.max(ready);
        whole.wait = whole.wait.max(wait);
        whole.end = whole.end.max(end);
    }
    let name =
        |kernel: u32| names.get(kernel as usize).cloned().unwrap_or_else(|| format!("kernel {kernel}"));
    let launch = |(kernel, blocks): (u32, BTreeMap<u32, Block>)| Launch {
        kernel: name(kernel),
        blocks: blocks.into_values().collect(),
    };
    let mut launches: Vec<Launch> = found.into_iter().map(launch).collect();
    launches.sort_by_key(Launch::end);
    launches
}

/// A step's timeline.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    pub device: String,
    /// Rows of the step, and tokens of each sequence before it.
    pub rows: usize,
    pub context: usize,
    /// In the order of their ends.
    pub launches: Vec<Launch>,
    /// Warps that there was no room for.
    pub dropped: usize,
}

/// What the launches of a kernel take of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    pub kernel: String,
    pub launches: usize,
    /// Of the first of them.
    pub blocks: usize,
    /// Seconds of the step that end with one of them: from the end of the launch before to the end of this one.
    pub seconds: f64,
    /// Of a launch, medians: from the end of the one before until a block came to its wait, less than 0 where it had to wait;
    pub ready: f64,
    /// from that end until its first block stops waiting,
    pub hand_over: f64,
    /// what a block takes behind its wait,
    pub work: f64,
    /// and from the end of the first block to that of the last.
    pub ragged: f64,
}

impl Trace {
    /// Nanoseconds from the first block's beginning to the last one's end.
    pub fn nanoseconds(&self) -> u64 {
        self.launches.last().map_or(0, Launch::end)
    }

    /// By kernels, those that take most first.
    pub fn shares(&self) -> Vec<Share> {
        let mut of_kernel: BTreeMap<&str, Vec<(&Launch, u64)>> = BTreeMap::new();
        let mut before = 0;
        for launch in &self.launches {
            of_kernel.entry(&launch.kernel).or_default().push((launch, before));
            before = launch.end();
        }
        let seconds = |nanoseconds: u64| nanoseconds as f64 * 1e-9;
        let share = |(kernel, launches): (&str, Vec<(&Launch, u64)>)| {
            let all = || launches.iter();
            let works = all().flat_map(|(launch, _)| launch.blocks.iter().map(|b| b.end - b.wait));
            let first_end = |launch: &Launch| launch.blocks.iter().map(|b| b.end).min().unwrap_or_default();
            Share {
                kernel: kernel.to_owned(),
                launches: launches.len(),
                blocks: launches[0].0.blocks.len(),
                seconds: all().map(|(launch, before)| seconds(launch.end() - before)).sum(),
                ready: median(all().flat_map(|(launch, before)| {
                    launch.blocks.iter().map(|block| block.ready as i64 - *before as i64)
                })) as f64
                    * 1e-9,
                hand_over: seconds(median(
                    all().map(|(launch, before)| launch.begin().saturating_sub(*before)),
                )),
                work: seconds(median(works)),
                ragged: seconds(median(all().map(|(launch, _)| launch.end() - first_end(launch)))),
            }
        };
        let mut shares: Vec<Share> = of_kernel.into_iter().map(share).collect();
        shares.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        shares
    }
}

fn median<T: Copy + Default + Ord>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// How a model is run: for [`Plan::sequences`] sequences of [`Plan::max_model_len`] tokens, on the recorder's device.
pub struct Place {
    pub ops_config: OpsConfig,
    pub layout: KvLayout,
    /// Of matrices.
    pub dtype: Dtype,
    pub kernels: KernelChoice,
}

/// Runs prompts and some decode steps, and traces the last one.
///
/// # Errors
/// [`Error::Request`] for a variant that cannot compute the model; what the device says.
pub fn trace(
    recorder: &mut Recorder,
    weights: &Weights,
    config: &Config,
    place: Place,
    plan: &Plan,
) -> Result<Trace> {
    let Place { ops_config, layout, dtype, kernels } = place;
    let ops = CudaOps::new(recorder.device(), &ops_config, dtype, kernels)?;
    let runner = ModelRunner::new(ops, weights, config, &ops_config, layout, &mut |_, _| ())?;
    let mut steps = Steps { runner, rows_at_once: ops_config.limits.max_num_tokens };
    if plan.of_prompt {
        for _ in 0..STEPS_BEFORE {
            recorder.clear()?;
            steps.prompt(0, &plan.prompt)?;
        }
    } else {
        let mut last = (0..plan.sequences)
            .map(|sequence| steps.prompt(sequence, &plan.prompt))
            .collect::<Result<Vec<u32>>>()?;
        for step in 0..STEPS_BEFORE {
            recorder.clear()?;
            last = steps.decode(&last, plan.prompt.len() + step)?;
        }
    }
    let (launches, dropped) = recorder.take()?;
    let (rows, context) = match plan.of_prompt {
        true => (plan.prompt.len(), 0),
        false => (plan.sequences, plan.prompt.len() + STEPS_BEFORE - 1),
    };
    Ok(Trace { device: recorder.device().info().name.clone(), rows, context, launches, dropped })
}

/// A model, and sequences that have their pages one behind the other.
struct Steps {
    runner: ModelRunner<CudaOps>,
    rows_at_once: usize,
}

impl Steps {
    /// The token that follows a prompt.
    fn prompt(&mut self, sequence: usize, prompt: &[u32]) -> Result<u32> {
        let mut token = None;
        for (i, tokens) in prompt.chunks(self.rows_at_once).enumerate() {
            let position = i * self.rows_at_once;
            let is_last = position + tokens.len() == prompt.len();
            let logits = if is_last { LogitRows::Last } else { LogitRows::None };
            token = self.step(&[(sequence, tokens)], position, logits)?.first().copied();
        }
        token.ok_or_else(|| Error::Request("the prompt has no token".into()))
    }

    /// The tokens behind those of all sequences.
    fn decode(&mut self, last: &[u32], position: usize) -> Result<Vec<u32>> {
        let rows: Vec<(usize, &[u32])> = last.iter().map(std::slice::from_ref).enumerate().collect();
        self.step(&rows, position, LogitRows::Last)
    }

    fn step(&mut self, rows: &[(usize, &[u32])], position: usize, logits: LogitRows) -> Result<Vec<u32>> {
        let count = pages_for(self.runner.max_model_len());
        let page = |page| page as u32;
        let pages: Vec<Vec<u32>> = rows
            .iter()
            .map(|(sequence, _)| (sequence * count..(sequence + 1) * count).map(page).collect())
            .collect();
        let rows: Vec<SequenceRows> = rows
            .iter()
            .zip(&pages)
            .map(|(&(_, tokens), pages)| SequenceRows { tokens, position, pages, logits })
            .collect();
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let greedy =
            |rows: &SequenceRows| SamplingRow::new(params.clone(), (position + rows.tokens.len()) as u32);
        let sampling = if logits == LogitRows::None { Vec::new() } else { rows.iter().map(greedy).collect() };
        self.runner.step(&Batch::new(&rows), &sampling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a block of kernel `kernel`, which has one warp.
    fn record(kernel: u32, block: u32, times: [u64; 3]) -> Record {
        of_warp(0, kernel, block, times)
    }

    fn of_warp(warp: u32, kernel: u32, block: u32, [start, wait, end]: [u64; 3]) -> Record {
        Record { start, ready: start, wait, end, block, warp, multiprocessor: block, kernel }
    }

    /// Two launches of a kernel with another between them, which begins while the first one runs.
    fn some() -> Trace {
        let records = vec![
            record(0, 0, [100, 100, 140]),
            of_warp(1, 0, 0, [101, 105, 150]),
            record(0, 1, [100, 102, 160]),
            record(1, 0, [120, 165, 200]),
            record(0, 0, [170, 210, 240]),
            record(0, 1, [170, 211, 260]),
        ];
        let names = ["first".into(), "second".into()];
        let launches = launches(records, &names);
        Trace { device: "a device".into(), rows: 1, context: 7, launches, dropped: 0 }
    }

    #[test]
    fn warps_are_put_together_to_blocks_and_launches() {
        let trace = some();
        let kernels: Vec<&str> = trace.launches.iter().map(|launch| &*launch.kernel).collect();
        assert_eq!(kernels, ["first", "second", "first"]);
        let first = Block { multiprocessor: 0, start: 0, ready: 1, wait: 5, end: 50 };
        assert_eq!(
            trace.launches[0].blocks,
            [first, Block { multiprocessor: 1, start: 0, ready: 0, wait: 2, end: 60 }]
        );
        assert_eq!((trace.launches[2].begin(), trace.nanoseconds()), (110, 160));
    }

    #[test]
    fn blocks_that_waited_for_room_are_of_the_same_launch_and_what_comes_again_is_not() {
        let names = ["first".into(), "second".into()];
        let waited = vec![record(0, 0, [10, 10, 20]), record(0, 1, [22, 22, 30]), record(1, 0, [25, 31, 40])];
        let found = launches(waited, &names);
        assert_eq!(found.iter().map(|launch| launch.blocks.len()).collect::<Vec<_>>(), [2, 1]);
        let twice = vec![record(0, 0, [10, 10, 20]), record(0, 1, [10, 11, 21]), record(0, 0, [22, 22, 30])];
        let found = launches(twice, &names);
        assert_eq!(found.iter().map(|launch| launch.blocks.len()).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn shares_add_up_to_the_step() {
        let trace = some();
        let shares = trace.shares();
        let nanoseconds = |seconds: f64| (seconds * 1e9).round() as u64;
        let [first, second] = &shares[..] else { panic!("{shares:?}") };
        assert_eq!((&*first.kernel, first.launches, first.blocks), ("first", 2, 2));
        assert_eq!((nanoseconds(first.seconds), nanoseconds(second.seconds)), (60 + 60, 40));
        assert_eq!([second.hand_over, second.work, second.ragged].map(nanoseconds), [5, 35, 0]);
        assert_eq!((second.ready * 1e9).round(), -40.0);
    }

    #[test]
    fn the_page_has_a_row_a_multiprocessor_and_names_what_ran() {
        let page = page(&some());
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert!(page.contains("<title>2: first, 2 blocks, 0.11 µs to 0.16 µs</title>"), "{page}");
        assert_eq!(page.matches("<g class=\"launch\"").count(), 3);
    }
}
