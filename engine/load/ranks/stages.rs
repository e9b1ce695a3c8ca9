//! A model whose layers are shared out over several GPUs: consecutive ones on each, computed one after the other.

use super::super::device_choice::DeviceChoice;
use super::super::fit::{FittedPair, MemoryBudget, page_bytes, plan_pair, warn_if_short};
use super::super::gpu::{self, Loading, Which, held, held_of_draft, load_draft, matrix_dtype, with_fallback};
use super::super::memory_plan::MemoryPlan;
use super::super::runner::{DtypeChoice, KvCacheSize, ModelData, RunnerOptions, Runners, open_runners};
use super::devices;
use super::stages_runner::StagesRunner;
use super::team::Team;
use super::thread::RankThread;
use qernel_core::config::Config;
use qernel_core::dtype::Dtype;
use qernel_core::error::{Error, Result};
use qernel_core::kv_layout::KvLayout;
use qernel_core::model::{Runner, build};
use qernel_core::ops::OpsConfig;
use qernel_core::weights::Weights;
use qernel_cuda::{Device, Group};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

/// Which layers of a model each of several GPUs has.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerSplit {
    /// As many as its free memory is of that of all; of so many GPUs, or of all.
    Memory(Option<usize>),
    /// As many as these proportions say, of as many GPUs; 0 leaves one out.
    Shares(Vec<f64>),
}

impl LayerSplit {
    /// GPUs, where it says how many.
    fn count(&self) -> Option<usize> {
        match self {
            Self::Memory(count) => *count,
            Self::Shares(shares) => Some(shares.len()),
        }
    }
}

/// What a rank needs of its device to make a plan: its bytes, free and in all.
type MemoryInfo = (usize, usize);

/// Opens the model on several GPUs. `progress` is called with the bytes of weights that the last of them has loaded, and with their sum.
///
/// # Errors
/// [`Error::Request`] for a split that there is not, [`Error::Device`] for GPUs that are missing; as
/// [`open_runner`](crate::open_runner).
pub(crate) fn open(
    model: &ModelData,
    draft: Option<&ModelData>,
    split: &LayerSplit,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Runners> {
    if let LayerSplit::Shares(all) = split {
        model.config.split_layers(all)?;
    }
    let mut chosen = devices("--split-mode layer", options.device, split.count())?;
    let mut shares = None;
    if let LayerSplit::Shares(all) = split {
        let used = chosen.into_iter().zip(all).filter(|(_, share)| **share > 0.0);
        let (with_layers, of_those): (Vec<_>, Vec<f64>) = used.unzip();
        (chosen, shares) = (with_layers, Some(of_those));
    }
    if let [device] = chosen[..] {
        let options = RunnerOptions { device, layer_split: None, ..options.clone() };
        return open_runners(model, draft, &options, progress);
    }
    with_fallback(model, draft, options, |options, draft| {
        load(model, draft, &chosen, shares.as_deref(), options, progress)
    })
}

/// A model that drafts, and the format of its matrices.
type Drafting<'a> = (&'a ModelData<'a>, DtypeChoice);

/// What a rank is told once the memory of all is known.
struct Told {
    weights: Weights,
    config: Config,
    options: RunnerOptions,
    dtype: Dtype,
    fitted: (OpsConfig, KvLayout),
}

/// The models with their weights as `options` say.
fn load(
    model: &ModelData,
    draft: Option<Drafting>,
    devices: &[DeviceChoice],
    shares: Option<&[f64]>,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Runners, (Which, Error)> {
    let group = Arc::new(Group::new(devices.len(), options.rank_limit));
    let of_model = |error| (Which::Model, error);
    let before = &devices[..devices.len().saturating_sub(1)];
    let (mut others, mut channels) = (Vec::new(), Vec::new());
    for (rank, &device) in before.iter().enumerate() {
        let (say, hear) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let part = (group.clone(), rank);
        let open = move || open_stage(&part.0, part.1, device, &say, &told);
        let started = RankThread::start(&group, rank, device, open);
        others.push(started.inspect_err(|error| group.fail(&error.to_string())).map_err(of_model)?);
        channels.push((hear, tell));
    }
    let rank = before.len();
    let last = Last { model, draft, devices, others: channels, group: &group };
    // With it goes what others wait to be told by, if they were not.
    let first = last
        .open(shares, options, progress)
        .inspect_err(|(_, error)| group.fail(&format!("rank {rank}: {error}")));
    let opened: Result<Vec<()>> = others.iter_mut().map(RankThread::opened).collect();
    // What another rank says comes before that this one has not heard of it.
    let (own, drafts, layout) = match (first, opened) {
        (Ok(own), Ok(_)) => own,
        (Err((_, Error::Device(_))) | Ok(_), Err(error)) => return Err(of_model(error)),
        (Err(error), _) => return Err(error),
    };
    let runner = StagesRunner::new(Team::new(own, rank, others, group), layout).map_err(of_model)?;
    Ok((Box::new(runner), drafts))
}

/// Opens a device and says how much memory it has; loads what is told then.
fn open_stage(
    group: &Arc<Group>,
    rank: usize,
    device: DeviceChoice,
    say: &Sender<MemoryInfo>,
    told: &Receiver<Told>,
) -> Result<Box<dyn Runner>> {
    let device = open_device(device)?;
    say.send(device.memory_info()?).map_err(|_| gone())?;
    let told = told.recv().map_err(|_| gone())?;
    load_stage(&device, group, rank, &told, &mut |_, _| ())
}

fn open_device(device: DeviceChoice) -> Result<Rc<Device>> {
    gpu::open_device(device)?.ok_or_else(|| Error::Request("--split-mode layer is for GPUs alone".into()))
}

/// The rank of this thread, the last one, which tells all others what to load.
struct Last<'a> {
    model: &'a ModelData<'a>,
    draft: Option<Drafting<'a>>,
    devices: &'a [DeviceChoice],
    others: Vec<(Receiver<MemoryInfo>, Sender<Told>)>,
    group: &'a Arc<Group>,
}

/// The last rank's runner, that of a model that drafts, and the shape of the pages of all layers.
type Opened = (Box<dyn Runner>, Option<Box<dyn Runner>>, KvLayout);

impl Last<'_> {
    /// As [`open_stage`].
    fn open(
        self,
        shares: Option<&[f64]>,
        options: &RunnerOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Opened, (Which, Error)> {
        let of_model = |error| (Which::Model, error);
        let Self { model, draft, devices, others, group } = self;
        let device = open_device(devices[others.len()]).map_err(of_model)?;
        let draft = draft.map(|(draft, dtype)| (draft, held_of_draft(&device, draft, dtype, options)));
        let split = || -> Result<Split> {
            let mut memory = Vec::new();
            for (hear, _) in &others {
                memory.push(hear.recv().map_err(|_| gone())?);
            }
            memory.push(device.memory_info()?);
            let of_memory: Vec<f64> = memory.iter().map(|&(free, _)| free as f64).collect();
            let layers = model.config.split_layers(shares.unwrap_or(&of_memory))?;
            let options = held(&device, model.weights, options);
            split(model, draft.as_ref(), devices, &layers, &memory, &options)
        };
        let Split { mut told, layout, draft_fitted } = split().map_err(of_model)?;
        let own = told.pop().ok_or_else(|| of_model(gone()))?;
        for ((_, tell), told) in others.iter().zip(told) {
            tell.send(told).map_err(|_| of_model(gone()))?;
        }
        let mut drafts = None;
        if let Some(((draft, options), fitted)) = draft.zip(draft_fitted) {
            let loaded = load_draft(&device, draft, &options, fitted, progress);
            drafts = Some(loaded.map_err(|error| (Which::Draft, error))?);
        }
        let runner = load_stage(&device, group, others.len(), &own, progress).map_err(of_model)?;
        Ok((runner, drafts, layout))
    }
}

fn gone() -> Error {
    Error::Device("the model was not opened on another GPU".into())
}

/// Loads the layers of a rank.
fn load_stage(
    device: &Rc<Device>,
    group: &Arc<Group>,
    rank: usize,
    Told { weights, config, options, dtype, fitted }: &Told,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    let loading = Loading { dtype: *dtype, checkpoints: options.checkpoints, stage: Some((group, rank)) };
    gpu::load_one(device, &ModelData { weights, config }, options, fitted.clone(), &loading, progress)
}

/// A part of the model, and what it takes of its GPU.
struct Part {
    /// For people.
    place: String,
    weights: Weights,
    config: Config,
    budget: MemoryBudget,
    /// K and V of a page.
    page_bytes: usize,
}

impl Part {
    /// What fits on its GPU, where pages of all layers are of `all` bytes.
    fn fit(&self, options: &RunnerOptions, all: usize) -> Result<(FittedPair, MemoryPlan)> {
        let kv_cache = match options.kv_cache {
            // Of the whole cache. Layers without pages have room for any number.
            KvCacheSize::Bytes(bytes) => KvCacheSize::Bytes(bytes / all.max(1) * self.page_bytes.max(1)),
            other => other,
        };
        let options = RunnerOptions { kv_cache, ..options.clone() };
        plan_pair(&self.config, &options, &self.budget).map_err(|error| match error {
            Error::Memory(why) => Error::Memory(format!("{}: {why} (--tensor-split)", self.place)),
            other => other,
        })
    }
}

/// Who has what.
struct Split {
    /// What each rank is to load.
    told: Vec<Told>,
    /// Of the pages of all layers.
    layout: KvLayout,
    /// Of a model that drafts, on the last rank.
    draft_fitted: Option<(OpsConfig, KvLayout)>,
}

/// What each rank is to load, for steps and contexts that fit on all, and pages of the same numbers.
fn split(
    model: &ModelData,
    draft: Option<&(&ModelData, RunnerOptions)>,
    devices: &[DeviceChoice],
    layers: &[Range<usize>],
    memory: &[MemoryInfo],
    options: &RunnerOptions,
) -> Result<Split> {
    let dtype = matrix_dtype(model.weights, options);
    let (mut parts, has_experts) = (Vec::new(), gpu::has_experts(model.weights, options));
    for ((device, layers), &memory) in devices.iter().zip(layers).zip(memory) {
        let config = model.config.of_stage(layers.clone());
        let plan = build::plan(&config)?;
        let weights = model.weights.of_stage(&plan.tensors, config.is_last_stage());
        let data = ModelData { weights: &weights, config: &config };
        let is_emulated = *device == DeviceChoice::Emulated;
        let budget = gpu::budget(is_emulated, memory, &data, dtype, options)?;
        let of_draft = |(draft, options): &(&ModelData, RunnerOptions)| -> Result<_> {
            let dtype = matrix_dtype(draft.weights, options);
            let budget = gpu::budget(is_emulated, memory, draft, dtype, options)?;
            Ok(Box::new((draft.config.clone(), budget)))
        };
        let draft = draft.filter(|_| config.is_last_stage()).map(of_draft).transpose()?;
        // Where some experts are on a GPU, the kernels of all layers are those of a model on one.
        let budget = MemoryBudget { has_experts, draft, ..budget };
        let page_bytes = page_bytes(&config, &budget)?;
        let place = format!("{device}, layers {} to {}", layers.start, layers.end - 1);
        parts.push(Part { place, weights, config, budget, page_bytes });
    }
    let of_all = parts.iter().map(|part| part.page_bytes).sum();
    let fit_all = |options: &RunnerOptions| -> Result<Vec<_>> {
        parts.iter().map(|part| part.fit(options, of_all)).collect()
    };
    // Steps and a context that fit on all; then as many pages as do.
    let alone = fit_all(options)?;
    let smallest =
        |size: fn(&OpsConfig) -> usize| alone.iter().map(|(((config, _), _), _)| size(config)).min();
    let asked = options;
    let options = RunnerOptions {
        max_model_len: smallest(|config| config.max_model_len),
        max_num_tokens: smallest(|config| config.limits.max_num_tokens),
        ..options.clone()
    };
    let fitted = fit_all(&options)?;
    let num_pages = fitted.iter().map(|(((_, layout), _), _)| layout.num_pages).min().unwrap_or(0);
    let budget = &parts[0].budget;
    let whole = build::plan(model.config)?.state.pages(budget.kv, num_pages)?;
    warn_if_short(model.config, asked, budget, options.max_model_len.unwrap_or(0));
    let (mut told, mut draft_fitted) = (Vec::new(), None);
    for (Part { place, weights, config, page_bytes, .. }, ((fitted, of_draft), plan)) in
        parts.into_iter().zip(fitted)
    {
        let of_pages = |(ops_config, layout)| (ops_config, KvLayout { num_pages, ..layout });
        let plan = MemoryPlan { num_pages, kv_cache: num_pages * page_bytes, ..plan };
        tracing::info!(?plan, max_model_len = options.max_model_len, "memory of {place}");
        draft_fitted = of_draft.map(of_pages);
        told.push(Told { weights, config, options: options.clone(), dtype, fitted: of_pages(fitted) });
    }
    Ok(Split { told, layout: whole, draft_fitted })
}
