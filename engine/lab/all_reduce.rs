//! The sum over ranks on devices of their own, a thread each, as a decode step has it behind every o_proj and every down: checked to the bit,
//! and timed between GPUs. The operation `add_ranks` has all ranks on one device.

use super::device::LabDevice;
use super::values::random;
use crate::batch::BatchLimits;
use crate::cuda::{CudaOps, Device, Group, KernelChoice, Timer};
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

/// Bytes of what each rank adds: rows of f32 of the hidden sizes of the smallest models and of 7B.
pub const SIZES: [usize; 4] = [3584, 7168, 14_336, 28_672];

/// How long a rank waits for another.
const LIMIT: Duration = Duration::from_secs(60);
/// Exchanges that are checked: slots are used again.
const ROUNDS: usize = 3;
/// Exchanges of a lap, one behind the other, and laps that are timed.
const EXCHANGES: usize = 100;
const LAPS: usize = 50;

/// An exchange that was right, and how long it takes.
#[derive(Clone, Debug, Serialize)]
pub struct Exchange {
    pub ranks: usize,
    /// That each rank tells all others.
    pub bytes: usize,
    /// Seconds of one of many behind each other, by the clock of the first GPU; `null` where devices are emulated.
    pub seconds: Option<Stats>,
}

impl Exchange {
    /// Lets a rank on each of `devices` add `bytes` bytes of f32 to the same values, and looks at what each of them has.
    ///
    /// # Errors
    /// [`Error::Device`] if a sum is wrong, or devices fail or do not reach each other's memory.
    pub fn run(devices: &[LabDevice], bytes: usize, seed: u64) -> Result<Self> {
        let (ranks, cols) = (devices.len(), bytes / size_of::<f32>());
        let group = &Arc::new(Group::new(ranks, LIMIT));
        let seconds = std::thread::scope(|scope| {
            let start = |(rank, &device): (usize, &LabDevice)| {
                scope.spawn(move || {
                    let run = || {
                        run_rank(group, rank, device, cols, seed)
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
            threads.into_iter().map(join).collect::<Result<Vec<Option<Stats>>>>()
        })?;
        Ok(Self { ranks, bytes, seconds: seconds[0] })
    }
}

/// What a rank adds.
fn part_of(seed: u64, rank: usize, cols: usize) -> Vec<f32> {
    random(seed, &format!("all_reduce: rank {rank}"), cols)
}

/// Checks and times the exchanges of a rank.
fn run_rank(
    group: &Arc<Group>,
    rank: usize,
    device: LabDevice,
    cols: usize,
    seed: u64,
) -> Result<Option<Stats>> {
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
        return Ok(None);
    }
    // Parts are 0 now, and sums stay as they are.
    let mut timer = Timer::new(&device, 1)?;
    let mut samples = Vec::with_capacity(LAPS);
    for lap in 0..=LAPS {
        timer.start(0)?;
        for _ in 0..EXCHANGES {
            ops.add_ranks(rows, &mut part, &mut x)?;
        }
        timer.stop(0)?;
        let seconds = timer.seconds(0)?;
        // The first one is for the kernels to come.
        if lap > 0 {
            samples.push(seconds / EXCHANGES as f64);
        }
    }
    ops.read(1, &x)?;
    Ok(Some(Stats::of(&samples)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_on_emulated_devices_have_the_same_sums() {
        for (ranks, bytes) in [(2, SIZES[0]), (3, 1000), (4, SIZES[1])] {
            let exchange = Exchange::run(&vec![LabDevice::Emulated; ranks], bytes, 1).unwrap();
            assert_eq!((exchange.ranks, exchange.bytes, exchange.seconds), (ranks, bytes, None));
        }
    }
}
