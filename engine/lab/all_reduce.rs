//! The sum over ranks on devices of their own, a thread each, as a step has it behind every o_proj and every down: checked to the bit,
//! and timed between GPUs, beside NCCL where that is installed. The operation `add_ranks` has all ranks on one device.

use super::device::LabDevice;
use super::values::random;
use crate::batch::BatchLimits;
use crate::cuda::{CudaOps, Device, Graph, Group, KernelChoice, Nccl, NcclId, Timer};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::lab::case::plain_config;
use crate::ops::ranks::RankOps;
use crate::ops::{Ops, Rows};
use crate::stats::Stats;
use qernel_core::config::Config;
use qernel_core::model::published_config;
use serde::Serialize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What it is called in `lab check` and `lab bench`.
pub const OP: &str = "all_reduce";

/// Bytes of what each rank adds: rows of f32 of the hidden sizes of the smallest models and of 7B, and 128, 512 and 2,048 rows of 7B.
pub const SIZES: [usize; 7] = [3584, 7168, 14_336, 28_672, 128 * 14_336, 512 * 14_336, 2048 * 14_336];

/// How long a rank waits for another.
const LIMIT: Duration = Duration::from_secs(60);
/// Exchanges that are checked: slots are used again.
const ROUNDS: usize = 3;
/// Exchanges of a lap, one behind the other in a graph, and laps that are timed.
const EXCHANGES: usize = 56;
const LAPS: usize = 50;

/// An exchange that was right, and how long it takes.
#[derive(Clone, Debug, Serialize)]
pub struct Exchange {
    pub ranks: usize,
    /// That each rank tells all others.
    pub bytes: usize,
    /// Seconds of one of many behind each other, by the clock of the first GPU; `null` where devices are emulated.
    pub seconds: Option<Stats>,
    /// The same of NCCL's sum, of f32 too and in place; `null` also where its library is not found.
    pub nccl_seconds: Option<Stats>,
}

/// What a rank took, and NCCL on it.
type Times = [Option<Stats>; 2];

impl Exchange {
    /// Lets a rank on each of `devices` add `bytes` bytes of f32 to the same values, and looks at what each of them has.
    ///
    /// # Errors
    /// [`Error::Device`] if a sum is wrong, or devices fail or do not reach each other's memory.
    pub fn run(devices: &[LabDevice], bytes: usize, seed: u64) -> Result<Self> {
        let (ranks, cols) = (devices.len(), bytes / size_of::<f32>());
        let group = &Arc::new(Group::new(ranks, LIMIT));
        let nccl = if devices.contains(&LabDevice::Emulated) { None } else { NcclId::new()? };
        let times = std::thread::scope(|scope| {
            let start = |(rank, &device): (usize, &LabDevice)| {
                scope.spawn(move || {
                    let run = || {
                        run_rank(group, nccl, rank, device, cols, seed)
                            .inspect_err(|error| group.fail(&format!("rank {rank}: {error}")))
                    };
                    if device != LabDevice::Emulated {
                        return run();
                    }
                    // Kernels of an emulated device run on the threads of rayon, and wait for those of others.
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                    pool.map_err(|error| Error::Device(format!("a rank has no thread: {error}")))?
                        .install(run)
                })
            };
            let threads: Vec<_> = devices.iter().enumerate().map(start).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Result<Vec<Times>>>()
        })?;
        let [seconds, nccl_seconds] = times[0];
        Ok(Self { ranks, bytes, seconds, nccl_seconds })
    }
}

/// What a rank adds.
fn part_of(seed: u64, rank: usize, cols: usize) -> Vec<f32> {
    random(seed, &format!("all_reduce: rank {rank}"), cols)
}

/// Checks and times the exchanges of a rank.
fn run_rank(
    group: &Arc<Group>,
    nccl: Option<NcclId>,
    rank: usize,
    device: LabDevice,
    cols: usize,
    seed: u64,
) -> Result<Times> {
    let ranks = group.num_ranks();
    let device: Rc<Device> = device.open(seed)?;
    let limits = BatchLimits { max_num_tokens: 1, max_num_logits: 1, ..plain_config().limits };
    // Of a model, the size of a row alone says how much room slots have.
    let config = Config { hidden_size: cols, tensor_parallel_size: ranks, ..published_config("qwen2.5-7b")? };
    let choice = KernelChoice::parse("matmul=plain")?;
    let ops = CudaOps::new(&device, &plain_config(), Dtype::F32, choice)?;
    let mut ops = ops.with_ranks(group, rank, &config, &limits)?;
    // From here on nobody frees what others write to before all have left.
    group.start();
    let batch = ops.new_batch(&limits)?;
    let rows = Rows { batch: &batch, n: 1, padded: 1 };
    let (mut part, mut x) = (ops.new_tensor(1, cols)?, ops.new_tensor(1, cols)?);
    let mut expected = random(seed, "all_reduce: x", cols);
    x.write(&expected)?;
    let parts: Vec<_> = (0..ranks).map(|rank| part_of(seed, rank, cols)).collect();
    for _ in 0..ROUNDS {
        part.write(&parts[rank])?;
        ops.add_ranks(rows, &mut part, &mut x)?;
        for (i, value) in expected.iter_mut().enumerate() {
            *value += parts.iter().fold(0.0, |sum, part| sum + part[i]);
        }
        let found = ops.read(1, &x)?;
        if let Some(i) = (0..cols).find(|&i| found[i].to_bits() != expected[i].to_bits()) {
            return Err(Error::Device(format!(
                "{OP}: value {i} of {cols} on rank {rank} of {ranks} is {}, expected {}",
                found[i], expected[i]
            )));
        }
    }
    if device.is_emulated() {
        return Ok([None; 2]);
    }
    // Parts are 0 now, and sums stay as they are.
    let seconds = time(&device, || ops.add_ranks(rows, &mut part, &mut x))?;
    let nccl_seconds = match nccl {
        None => None,
        Some(id) => {
            let nccl = Nccl::join(&device, id, rank, ranks)?;
            Some(time(&device, || nccl.all_reduce(&mut part))?)
        }
    };
    ops.read(1, &x)?;
    Ok([Some(seconds), nccl_seconds])
}

/// Seconds of what `queue` queues, of many behind each other as a step has them in its graph.
fn time(device: &Rc<Device>, mut queue: impl FnMut() -> Result<()>) -> Result<Stats> {
    // The first one is for what comes when it is first needed, and may not be recorded.
    queue()?;
    device.synchronize()?;
    let graph = Graph::record(device, || (0..EXCHANGES).try_for_each(|_| queue()))?;
    let mut timer = Timer::new(device, 1)?;
    let mut samples = Vec::with_capacity(LAPS);
    for lap in 0..=LAPS {
        timer.start(0)?;
        graph.launch()?;
        timer.stop(0)?;
        let seconds = timer.seconds(0)?;
        if lap > 0 {
            samples.push(seconds / EXCHANGES as f64);
        }
    }
    Ok(Stats::of(&samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_on_emulated_devices_have_the_same_sums() {
        for (ranks, bytes) in [(2, SIZES[0]), (3, 1000), (4, SIZES[1])] {
            let exchange = Exchange::run(&vec![LabDevice::Emulated; ranks], bytes, 1).unwrap();
            let Exchange { seconds, nccl_seconds, .. } = exchange;
            assert_eq!((exchange.ranks, exchange.bytes), (ranks, bytes));
            assert!(seconds.is_none() && nccl_seconds.is_none());
        }
    }
}
