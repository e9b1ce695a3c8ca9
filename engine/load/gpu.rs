//! The part of opening a model that a GPU, or an emulated one, needs.

use super::device_choice::DeviceChoice;
use super::fit::{CPU_NUM_TOKENS, FittedPair, MemoryBudget, fit, fit_pair};
use super::memory_plan::{self, Free};
use super::runner::{DtypeChoice, ModelData, RunnerOptions, Runners};
use cuda_std::emulation;
use qernel_core::batch::BatchLimits;
use qernel_core::config::Config;
use qernel_core::cpu::host_experts::CpuExperts;
use qernel_core::cpu::kernels::MatmulBlocks;
use qernel_core::dtype::Dtype;
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use qernel_core::kv_format::KvFormats;
use qernel_core::kv_layout::KvLayout;
use qernel_core::model::{ModelRunner, Runner, build};
use qernel_core::ops::OpsConfig;
use qernel_core::ops::experts::Offload;
use qernel_core::weights::Weights;
use qernel_cuda::{self as cuda, CudaOps, Device, Group};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;

/// Which of two models.
pub(crate) enum Which {
    Model,
    Draft,
}

/// As [`open_runners`](super::runner::open_runners), on `device`.
pub(crate) fn open_runners(
    device: &Rc<Device>,
    model: &ModelData,
    draft: Option<&ModelData>,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Runners> {
    with_fallback(model, draft, options, |options, draft| load(device, model, draft, options, progress))
}

/// What `load` makes of the models, with the format that it is given for one that drafts; in a format of larger range where a weight is beyond
/// that of the first and nobody asked for it.
pub(crate) fn with_fallback<'a>(
    model: &ModelData,
    draft: Option<&'a ModelData<'a>>,
    options: &RunnerOptions,
    mut load: impl FnMut(
        &RunnerOptions,
        Option<(&'a ModelData<'a>, DtypeChoice)>,
    ) -> Result<Runners, (Which, Error)>,
) -> Result<Runners> {
    let (mut options, mut draft_dtype) = (options.clone(), options.dtype);
    loop {
        let (which, why) = match load(&options, draft.map(|draft| (draft, draft_dtype))) {
            Ok(runners) => return Ok(runners),
            Err((which, Error::Range(why))) => (which, why),
            Err((_, error)) => return Err(error),
        };
        let (weights, dtype) = match (which, draft) {
            (Which::Draft, Some(draft)) => (draft.weights, &mut draft_dtype),
            _ => (model.weights, &mut options.dtype),
        };
        let Some(fallback) = dtype.fallback(cuda::compute_dtype(weights)) else {
            return Err(Error::Range(why));
        };
        tracing::warn!("{why}; loading the weights as {fallback}");
        *dtype = fallback;
    }
}

/// The models with their weights as `options` say, the one that drafts as its format says.
fn load(
    device: &Rc<Device>,
    model: &ModelData,
    draft: Option<(&ModelData, DtypeChoice)>,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Runners, (Which, Error)> {
    let of_model = |error| (Which::Model, error);
    let of_draft = |error| (Which::Draft, error);
    let draft = draft.map(|(draft, dtype)| (draft, held_of_draft(device, draft, dtype, options)));
    let options = held(device, model.weights, options);
    let (fitted, draft_fitted) = fit_both(device, model, draft.as_ref(), &options).map_err(of_model)?;
    let mut drafts = None;
    if let Some(((draft, options), fitted)) = draft.zip(draft_fitted) {
        drafts = Some(load_draft(device, draft, &options, fitted, progress).map_err(of_draft)?);
    }
    let loading = Loading::whole(model, &options);
    let runner = load_one(device, model, &options, fitted, &loading, progress).map_err(of_model)?;
    Ok((runner, drafts))
}

/// The options with the choice of how weights are held.
pub(crate) fn held(device: &Device, weights: &Weights, options: &RunnerOptions) -> RunnerOptions {
    let mut options = options.clone();
    // An emulated device chooses nothing by itself: it is there to try kernels.
    if !device.is_emulated() {
        let dtype = matrix_dtype(weights, &options);
        cuda::choose_holding(&mut options.kernels, weights, dtype);
    }
    options
}

/// [`held`] of a model that drafts.
pub(crate) fn held_of_draft(
    device: &Device,
    draft: &ModelData,
    dtype: DtypeChoice,
    options: &RunnerOptions,
) -> RunnerOptions {
    held(device, draft.weights, &RunnerOptions { dtype, cpu_moe: 0, ..options.clone() })
}

/// Loads a model that drafts.
pub(crate) fn load_draft(
    device: &Rc<Device>,
    draft: &ModelData,
    options: &RunnerOptions,
    fitted: (OpsConfig, KvLayout),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    let loading = Loading { checkpoints: 0, ..Loading::whole(draft, options) };
    load_one(device, draft, options, fitted, &loading, progress)
}

/// How a model, or the layers of it that one of several devices has, are loaded.
pub(crate) struct Loading<'a> {
    /// Of the whole model's matrices, [`matrix_dtype`].
    pub dtype: Dtype,
    /// Copies of states that are kept.
    pub checkpoints: usize,
    /// The devices that have its layers, and which of them this is.
    pub stage: Option<(&'a Arc<Group>, usize)>,
}

impl Loading<'_> {
    /// All layers on one device.
    fn whole(model: &ModelData, options: &RunnerOptions) -> Self {
        Self { dtype: matrix_dtype(model.weights, options), checkpoints: options.checkpoints, stage: None }
    }
}

/// A model with its weights as `options` say.
pub(crate) fn load_one(
    device: &Rc<Device>,
    &ModelData { weights, config }: &ModelData,
    options: &RunnerOptions,
    (ops_config, layout): (OpsConfig, KvLayout),
    &Loading { dtype, checkpoints, stage }: &Loading,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    let mut ops = CudaOps::new(device, &ops_config, dtype, options.kernels.clone())?;
    if let Some(offload) = offload(weights, config, options.cpu_moe, options.cpu_blocks) {
        ops = ops.with_host_experts(offload, rows_to_host(&ops_config.limits))?;
    }
    if let Some((group, rank)) = stage {
        ops = ops.with_stage(group, rank, config.hidden_size)?;
    }
    let runner = ModelRunner::new(ops, weights, config, &ops_config, layout, progress)?;
    Ok(Box::new(runner.with_drafts(options.max_drafts).with_checkpoints(checkpoints)?))
}

/// Rows that go at once to experts in host memory: so many that their matrices are read once for all of them, so few that buffers are
/// small.
fn rows_to_host(limits: &BatchLimits) -> usize {
    limits.max_num_tokens.clamp(1, 1024)
}

/// Names of the matrices of experts that stay in host memory.
fn names_on_host(weights: &Weights, layers: usize) -> HashSet<String> {
    weights.experts_of_first(layers).map(|matrix| matrix.name.clone()).collect()
}

/// Whether some experts are on the device.
pub(crate) fn has_experts(weights: &Weights, options: &RunnerOptions) -> bool {
    weights.experts().count() > names_on_host(weights, options.cpu_moe).len()
}

/// The experts of the first `layers` layers, to be computed by the CPU; `None` where there are none.
fn offload(weights: &Weights, config: &Config, layers: usize, blocks: MatmulBlocks) -> Option<Offload> {
    const MIB: f64 = 1024.0 * 1024.0;
    let names = names_on_host(weights, layers);
    let of = OpsConfig::experts_of(config).filter(|_| !names.is_empty());
    let Some(config) = of else {
        if layers > 0 && config.experts.is_none() {
            tracing::warn!("no experts stay in host memory: the model has none");
        }
        return None;
    };
    let bytes: usize = weights.experts_of_first(layers).map(|matrix| matrix.data.len()).sum();
    tracing::info!("{} matrices of experts stay in host memory, {:.1} MiB", names.len(), bytes as f64 / MIB);
    if let Some(free) = host_memory::available().filter(|&free| free < bytes) {
        tracing::warn!(
            "the experts in host memory are {:.1} MiB and {:.1} MiB are free: what is read of them is read from the disk again and again",
            bytes as f64 / MIB,
            free as f64 / MIB
        );
    }
    Some(Offload { names, config, experts: Box::new(CpuExperts::new(blocks)) })
}

/// The format of float matrices on a GPU, and of pages that nobody asked another one for.
pub fn matrix_dtype(weights: &Weights, options: &RunnerOptions) -> Dtype {
    options.dtype.preferred(cuda::compute_dtype(weights))
}

/// Opens the device that was chosen; `None` is the CPU.
///
/// # Errors
/// [`Error::Device`] if the device that was asked for is missing or fails.
pub fn open_device(choice: DeviceChoice) -> Result<Option<Rc<Device>>> {
    let ordinal = match choice {
        DeviceChoice::Cpu => return Ok(None),
        DeviceChoice::Emulated => {
            let options = emulation::Options { range: true, ..emulation::Options::default() };
            return Ok(Some(Rc::new(Device::emulated(options))));
        }
        DeviceChoice::Cuda(ordinal) => ordinal,
        DeviceChoice::Auto => match cuda::probe().and_then(|devices| {
            // A device that is too old is no reason to fail where nobody asked for it.
            devices
                .into_iter()
                .find(|device| device.target().is_ok())
                .ok_or_else(|| Error::Device("no GPU of compute capability 8.0 or later".into()))
        }) {
            Ok(device) => Some(device.ordinal),
            Err(why) => {
                tracing::info!("computing on the CPU: {why}");
                return Ok(None);
            }
        },
    };
    cuda::preload_cublas();
    Ok(Some(Rc::new(Device::open(ordinal, qernel_ptx::ptx)?)))
}

/// As [`fit_cpu`](super::fit_cpu), in the memory of `device`; pages are in the format that matrices get there, [`matrix_dtype`], or in q8_0.
///
/// # Errors
/// As [`fit_cpu`](super::fit_cpu); [`Error::Device`].
pub fn fit_cuda(
    device: &Device,
    weights: &Weights,
    config: &Config,
    options: &RunnerOptions,
) -> Result<(OpsConfig, KvLayout)> {
    let (dtype, data) = (matrix_dtype(weights, options), ModelData { weights, config });
    fit(config, options, &budget(device.is_emulated(), device.memory_info()?, &data, dtype, options)?)
}

/// As [`fit_cuda`], with a model that drafts for this one, and its options.
fn fit_both(
    device: &Device,
    model: &ModelData,
    draft: Option<&(&ModelData, RunnerOptions)>,
    options: &RunnerOptions,
) -> Result<FittedPair> {
    let memory = device.memory_info()?;
    let whole = |model: &ModelData, options: &RunnerOptions| {
        budget(device.is_emulated(), memory, model, matrix_dtype(model.weights, options), options)
    };
    let of_draft = |(draft, options): &(&ModelData, RunnerOptions)| -> Result<_> {
        Ok(Box::new((draft.config.clone(), whole(draft, options)?)))
    };
    let draft = draft.map(of_draft).transpose()?;
    fit_pair(model.config, options, &MemoryBudget { draft, ..whole(model, options)? })
}

/// What a model with matrices of `dtype` takes on a device, of whose memory so many bytes are free, and so many there in all.
pub(crate) fn budget(
    is_emulated: bool,
    (free, total): (usize, usize),
    &ModelData { weights, config }: &ModelData,
    dtype: Dtype,
    options: &RunnerOptions,
) -> Result<MemoryBudget> {
    let [k, v] = options.kv_types;
    let kv = KvFormats { k: k.on_gpu(dtype)?, v: v.on_gpu(dtype)? };
    let on_host = names_on_host(weights, options.cpu_moe);
    let has_offload = !on_host.is_empty();
    let rank = weights.adapter_rank();
    Ok(MemoryBudget {
        free: Free {
            bytes: free,
            taken: Some(total.saturating_sub(free)),
            fraction: options.memory_fraction,
        },
        // That of an emulated one is the host's.
        shared: is_emulated,
        weights: cuda::weight_bytes(weights, dtype, &options.kernels, &on_host)
            .saturating_add(weights.adapter_bytes()),
        kv,
        activation: cuda::precise_dtype(dtype),
        max_num_tokens: gpu_num_tokens(free, config, dtype)?,
        has_experts: has_experts(weights, options),
        extra: Box::new(move |config, ops_config, dtype, kv| {
            let limits = &ops_config.limits;
            let of_host = cuda::host_experts_bytes(config.hidden_size, rows_to_host(limits));
            cuda::device_workspace_bytes(ops_config)
                + cuda::ranks_bytes(config, limits)
                + cuda::split_bytes(config, limits, dtype)
                + cuda::staging_bytes(ops_config, kv)
                + if has_offload { of_host } else { 0 }
                + 4 * rank.saturating_mul(limits.max_num_tokens)
        }),
        matrix: dtype,
        draft: None,
    })
}

/// Rows of a step where nobody asks for more or fewer, on a GPU that has room for them: large products are the faster ones.
const GPU_NUM_TOKENS: usize = 8192;

/// Rows of a step whose buffers take no more than a sixteenth of `free` bytes, at least [`CPU_NUM_TOKENS`].
fn gpu_num_tokens(free: usize, config: &Config, dtype: Dtype) -> Result<usize> {
    let mut rows = GPU_NUM_TOKENS;
    let model = build::plan(config)?;
    let bytes = |rows| {
        let limits =
            BatchLimits { max_num_tokens: rows, max_num_sequences: 1, max_num_logits: 1, max_blocks: 1 };
        memory_plan::workspace_bytes(&model, config, &limits, 1, cuda::precise_dtype(dtype))
    };
    while rows > CPU_NUM_TOKENS && bytes(rows) > free / 16 {
        rows /= 2;
    }
    Ok(rows)
}
