//! A model that is shared out over several GPUs: one rank each, on a thread of its own.

mod runner;
mod stages;
mod stages_runner;
mod team;
mod thread;

use super::device_choice::DeviceChoice;
use super::fit::fit;
use super::gpu::{self, Which, budget, held, matrix_dtype, with_fallback};
use super::runner::{ModelData, RunnerOptions};
use qernel_core::config::Config;
use qernel_core::error::{Error, Result};
use qernel_core::model::{ModelRunner, Runner, build};
use qernel_core::weights::Weights;
use qernel_cuda::{self as cuda, CudaOps, Group};
use runner::RanksRunner;
use std::sync::Arc;
use team::Team;

pub use stages::LayerSplit;
pub(crate) use stages::open as open_stages;
use thread::RankThread;

/// Opens the model on as many GPUs as `options` say. `progress` is called with the bytes of weights that the first of them has loaded, and
/// with their sum.
///
/// # Errors
/// [`Error::Request`] for a model or options that are not shared out, [`Error::Device`] for GPUs that are missing or do not reach each
/// other's memory; as [`open_runner`](super::open_runner).
pub(crate) fn open(
    model: &ModelData,
    has_draft: bool,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    let config = model.config.of_rank(options.tensor_parallel)?;
    let with = [(has_draft, "a model that drafts"), (options.cpu_moe > 0, "experts in host memory")];
    if let Some((_, what)) = with.iter().find(|(asked, _)| *asked) {
        return Err(Error::Request(format!("--tensor-parallel: there is none with {what}")));
    }
    let devices = devices("--tensor-parallel", options.device, Some(options.tensor_parallel))?;
    let runners = with_fallback(model, None, options, |options, _| {
        let loaded = load(model, &config, &devices, options, progress);
        loaded.map(|runner| (runner, None)).map_err(|error| (Which::Model, error))
    });
    runners.map(|(runner, _)| runner)
}

/// A device for each rank: `count` GPUs from `device` on, or from the first; all of those where nobody says how many. `option` is what asks
/// for several.
///
/// # Errors
/// [`Error::Request`] for the CPU, [`Error::Device`] if there are not as many.
pub fn devices(option: &str, device: DeviceChoice, count: Option<usize>) -> Result<Vec<DeviceChoice>> {
    let first = match (device, count) {
        (DeviceChoice::Emulated, Some(count)) => return Ok(vec![DeviceChoice::Emulated; count]),
        (DeviceChoice::Emulated, None) => {
            return Err(Error::Request(format!(
                "{option}: there are as many emulated devices as are asked for: say how many by --tensor-split 1,1"
            )));
        }
        (DeviceChoice::Cpu, _) => {
            return Err(Error::Request(format!("{option} is for GPUs, and --device is cpu")));
        }
        (DeviceChoice::Auto | DeviceChoice::Cuda(None), _) => 0,
        (DeviceChoice::Cuda(Some(ordinal)), _) => ordinal,
    };
    let found: Vec<u32> = cuda::probe()?
        .iter()
        .filter(|device| device.ordinal >= first && device.target().is_ok())
        .map(|device| device.ordinal)
        .take(count.unwrap_or(usize::MAX))
        .collect();
    if found.len() < count.unwrap_or(1) {
        return Err(Error::Device(format!(
            "{option}: expected {} GPUs of compute capability 8.0 or later from cuda:{first} on, found {}",
            count.unwrap_or(1),
            found.len()
        )));
    }
    Ok(found.into_iter().map(|ordinal| DeviceChoice::Cuda(Some(ordinal))).collect())
}

/// The model with its weights as `options` say.
fn load(
    model: &ModelData,
    config: &Config,
    devices: &[DeviceChoice],
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    let group = Arc::new(Group::new(devices.len(), options.rank_limit));
    // What is loaded on another thread may outlive the borrow; what the file has is not copied.
    let part = |rank, device| Rank {
        group: group.clone(),
        rank,
        device,
        weights: model.weights.clone(),
        config: config.clone(),
        options: options.clone(),
    };
    let ranks = devices.iter().enumerate().map(|(rank, &device)| part(rank, device));
    let mut others = Vec::new();
    for rank in ranks.clone().skip(1) {
        let started = RankThread::start(&group, rank.rank, rank.device, move || rank.open(&mut |_, _| ()));
        others.push(started.inspect_err(|error| group.fail(&error.to_string()))?);
    }
    let mut ranks = ranks;
    let own = ranks.next().ok_or_else(|| Error::Request("--tensor-parallel needs a rank".into()))?;
    let first = own.open(progress).inspect_err(|error| group.fail(&format!("rank 0: {error}")));
    let opened: Result<Vec<()>> = others.iter_mut().map(RankThread::opened).collect();
    // What another rank says comes before that rank 0 has not heard of it.
    let first = match (first, opened) {
        (Ok(first), Ok(_)) => first,
        (Err(Error::Device(_)) | Ok(_), Err(error)) | (Err(error), _) => return Err(error),
    };
    group.start();
    Ok(Box::new(RanksRunner::new(Team::new(first, 0, others, group))))
}

/// What a rank is made of.
struct Rank {
    group: Arc<Group>,
    rank: usize,
    device: DeviceChoice,
    /// Of all ranks.
    weights: Weights,
    /// Of this one.
    config: Config,
    options: RunnerOptions,
}

impl Rank {
    /// Opens the device and loads the rank's part.
    fn open(self, progress: &mut dyn FnMut(u64, u64)) -> Result<Box<dyn Runner>> {
        let Self { group, rank, device, weights, config, options } = self;
        let device = gpu::open_device(device)?
            .ok_or_else(|| Error::Request("--tensor-parallel is for GPUs alone".into()))?;
        let build::Plan { tensors, adaptable, .. } = build::plan(&config)?;
        let weights = weights.of_rank(&tensors, &adaptable, rank)?;
        // All have the same plan: that of the one with the least memory.
        let (free, total) = device.memory_info()?;
        let free = group.smallest(rank, free as u64)? as usize;
        let options = held(&device, &weights, &options);
        let data = ModelData { weights: &weights, config: &config };
        let dtype = matrix_dtype(&weights, &options);
        let budget = budget(device.is_emulated(), (free, total), &data, dtype, &options)?;
        let (ops_config, layout) = fit(&config, &options, &budget)?;
        let ops = CudaOps::new(&device, &ops_config, dtype, options.kernels.clone())?.with_ranks(
            &group,
            rank,
            &config,
            &ops_config.limits,
        )?;
        let runner = ModelRunner::new(ops, &weights, &config, &ops_config, layout, progress)?;
        Ok(Box::new(runner.with_drafts(options.max_drafts).with_checkpoints(options.checkpoints)?))
    }
}

#[cfg(test)]
mod tests;
