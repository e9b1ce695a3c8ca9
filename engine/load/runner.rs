//! Opens a model on a device: what fits is worked out before anything is allocated.

use super::adapters::AdapterChoice;
use super::device_choice::DeviceChoice;
use super::draft_model::DraftChoice;
use super::fit::{fit_cpu, fit_cpu_with};
#[cfg(feature = "cuda")]
use super::{LayerSplit, gpu, ranks};
use qernel_core::config::Config;
use qernel_core::cpu::kernels::MatmulBlocks;
use qernel_core::cpu::{CpuOps, Observer};
use qernel_core::dtype::Dtype;
use qernel_core::engine::Speculative;
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use qernel_core::kv_format::KvFormat;
use qernel_core::kv_layout::PAGE_SIZE;
use qernel_core::model::{ModelRunner, Runner};
use qernel_core::weights::Weights;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The format that matrices have on a GPU. The CPU computes with them as the file has them.
///
/// bf16 keeps 8 bits, so inputs of its products would have to stay f32 and be multiplied in two parts
/// (docs/precision.md). As f16 a bf16 weight of magnitude 2^-17 to 65504 is the same number, smaller ones are off by at most
/// 2^-25, and inputs keep 11 bits: one product does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// That of most of the file's matrices; for bf16 f16, if no weight is beyond its range.
    #[default]
    Auto,
    F16,
    Bf16,
}

impl DtypeChoice {
    /// The format to load matrices in that are `file` for the most part.
    pub fn preferred(self, file: Dtype) -> Dtype {
        match self {
            Self::Auto if file == Dtype::Bf16 => Dtype::F16,
            Self::Auto => file,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// The format to load them in where [`DtypeChoice::preferred`] turned out to have too small a range; `None` where that is
    /// an error.
    pub fn fallback(self, file: Dtype) -> Option<Self> {
        (self == Self::Auto && self.preferred(file) == Dtype::F16).then_some(Self::Bf16)
    }
}

impl FromStr for DtypeChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::Request(format!("expected auto, f16 or bf16 as the dtype, found {text:?}"))),
        }
    }
}

impl fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The format of cached K, or of V.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// f16 on the CPU, that of matrices on a GPU.
    #[default]
    Auto,
    /// The most precise that the device has: f32 on the CPU, that of matrices on a GPU.
    Precise,
    /// This one; a GPU has no other floats than those of matrices.
    Only(KvFormat),
}

impl KvType {
    /// The format on the CPU.
    pub fn on_cpu(self) -> KvFormat {
        match self {
            Self::Auto => KvFormat::Float(Dtype::F16),
            Self::Precise => KvFormat::Float(Dtype::F32),
            Self::Only(format) => format,
        }
    }

    /// The format on a GPU where matrices are `dtype`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is other floats.
    pub fn on_gpu(self, dtype: Dtype) -> Result<KvFormat> {
        match self {
            Self::Only(KvFormat::Float(floats)) if floats != dtype => Err(Error::Request(format!(
                "a KV cache of {floats} was asked for; on a GPU it has the format of the matrices, here {dtype} (--dtype), or q8_0"
            ))),
            Self::Only(format) => Ok(format),
            Self::Auto | Self::Precise => Ok(KvFormat::Float(dtype)),
        }
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Only).map_err(|_: Error| {
                Error::Request(format!(
                    "expected auto, f32, f16, bf16 or q8_0 as the KV cache's format, found {text:?}"
                ))
            }),
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Precise => f.write_str("precise"),
            Self::Only(format) => format.fmt(f),
        }
    }
}

/// How much the KV cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheSize {
    /// On a GPU all that is left, at most what all sequences of full length could use. On the CPU, whose memory others use too, one
    /// sequence of full length, or more as long as that takes no more than [`SMALL_CACHE`](crate::SMALL_CACHE), and never more than
    /// half of what is free. There the memory is taken as it is used.
    #[default]
    Auto,
    /// As [`KvCacheSize::Auto`], but on the CPU as many tokens, of all sequences together.
    Tokens(usize),
    /// As many bytes.
    Bytes(usize),
}

/// Rows of a step of a model that drafts, at most: of prompts, which it takes in when it is to draft behind them.
const DRAFT_NUM_TOKENS: usize = 2048;

/// How long a GPU waits for another where nobody says it: longer than kernels take to be compiled when they come first.
const RANK_LIMIT: Duration = Duration::from_secs(120);

/// A context is not made shorter than this without being asked for it.
const SHORTEST_CONTEXT: usize = 8 * PAGE_SIZE;

/// Copies of states that are kept where nobody asks for more or fewer: two for each of eight conversations.
pub const CHECKPOINTS: usize = 16;

/// How large batches and contexts may be, and what they are computed with.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerOptions {
    pub device: DeviceChoice,
    /// Of matrices on a GPU.
    pub dtype: DtypeChoice,
    /// Of cached K, and of V.
    pub kv_types: [KvType; 2],
    pub kv_cache: KvCacheSize,
    /// Longest sequence in tokens; `None`: what the model was made for, or less where less fits. On the CPU no more than
    /// [`MODEST_CONTEXT`](crate::MODEST_CONTEXT) for each of `max_num_sequences`.
    pub max_model_len: Option<usize>,
    /// Rows of a step; also the length of a prefill chunk. `None`: 512 on the CPU; on a GPU up to 8192, as long as their buffers
    /// take no more than a sixteenth of its free memory.
    pub max_num_tokens: Option<usize>,
    /// Sequences of a step.
    pub max_num_sequences: usize,
    /// Copies of the states of recurrent layers that are kept, so that later prompts go on from there; of models that have such layers.
    pub checkpoints: usize,
    /// Bytes of host memory for copies that had to make room for others.
    pub checkpoint_host_memory: usize,
    /// Tokens that are drafted at a time, at most; 0: nothing drafts.
    pub max_drafts: usize,
    /// What drafts them.
    pub drafts: DraftChoice,
    /// For requests that say nothing of it.
    pub speculative: Speculative,
    /// Adapters that are loaded beside the model ([`with_adapters`](crate::with_adapters)).
    pub adapters: Vec<AdapterChoice>,
    /// Logit rows of a step, where that is more than `max_num_sequences`.
    pub max_num_logits: usize,
    /// Share of the free memory to use, above 0 and at most 1.
    pub memory_fraction: f64,
    /// Share of that which the KV cache may take where nobody asks for its size: less where other models want as much.
    pub cache_share: f64,
    /// Tokens of the shortest context that is taken where nobody asks for a length and a longer one does not fit.
    pub shortest_context: usize,
    /// Kernel variants of the GPU.
    #[cfg(feature = "cuda")]
    pub kernels: qernel_cuda::KernelChoice,
    /// Layers, from the first on, whose experts stay in host memory and are computed there, by the CPU; all where that is more than there are. The
    /// CPU has all in host memory anyway.
    pub cpu_moe: usize,
    /// How the CPU multiplies with matrices in blocks.
    pub cpu_blocks: MatmulBlocks,
    /// GPUs that the model is shared out over; 1: it is on one device.
    pub tensor_parallel: usize,
    /// GPUs that have some of its layers each.
    #[cfg(feature = "cuda")]
    pub layer_split: Option<LayerSplit>,
    /// How long one of them waits for another, at most.
    pub rank_limit: Duration,
    /// Look through all tensors first, and refuse a file with values that are NaN or infinite.
    pub check_tensors: bool,
    /// Say what the model is known by, for what is kept of it over a restart.
    pub fingerprint: bool,
}

impl RunnerOptions {
    /// The defaults for `count` sequences at a time.
    pub fn for_sequences(count: usize) -> Self {
        Self { max_num_sequences: count, max_num_logits: count, ..Self::default() }
    }

    /// Those of a model that drafts for another, whose steps have so many rows.
    pub(crate) fn of_draft_model(&self, rows: usize) -> Self {
        Self {
            max_num_tokens: Some(rows.min(DRAFT_NUM_TOKENS)),
            max_num_logits: self.max_num_sequences,
            checkpoints: 0,
            checkpoint_host_memory: 0,
            max_drafts: 0,
            cpu_moe: 0,
            adapters: Vec::new(),
            ..self.clone()
        }
    }
}

#[cfg(feature = "cuda")]
impl RunnerOptions {
    /// Takes the variants of `text`, as in `--kernel rms_norm=plain,matmul_blocks=exact`: those of a GPU and of the CPU, each for where
    /// the model comes to run.
    ///
    /// # Errors
    /// [`Error::Request`] that lists what exists.
    pub fn choose_kernels(&mut self, text: &str) -> Result<()> {
        let mut of_gpu = Vec::new();
        for pair in text.split(',') {
            let of_cpu = |blocks: &MatmulBlocks| {
                let (op, variant) = pair.split_once('=').unwrap_or_default();
                (op.trim(), variant.trim()) == (MatmulBlocks::OP, blocks.name())
            };
            match MatmulBlocks::ALL.into_iter().find(of_cpu) {
                Some(blocks) => self.cpu_blocks = blocks,
                None => of_gpu.push(pair),
            }
        }
        self.kernels = qernel_cuda::KernelChoice::parse(&of_gpu.join(",")).map_err(|error| match error {
            Error::Request(text) if text.contains(MatmulBlocks::OP) && text.contains("variants are") => {
                let names = MatmulBlocks::ALL.map(MatmulBlocks::name).join(", ");
                Error::Request(format!("{text}; on the CPU {names}"))
            }
            error => error,
        })?;
        Ok(())
    }
}

impl Default for RunnerOptions {
    /// One sequence at a time.
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            dtype: DtypeChoice::Auto,
            kv_types: [KvType::Auto; 2],
            kv_cache: KvCacheSize::Auto,
            max_model_len: None,
            max_num_tokens: None,
            max_num_sequences: 1,
            max_num_logits: 1,
            checkpoints: CHECKPOINTS,
            checkpoint_host_memory: 0,
            max_drafts: 0,
            drafts: DraftChoice::default(),
            speculative: Speculative::default(),
            adapters: Vec::new(),
            memory_fraction: 0.9,
            cache_share: 1.0,
            shortest_context: SHORTEST_CONTEXT,
            #[cfg(feature = "cuda")]
            kernels: qernel_cuda::KernelChoice::default(),
            cpu_moe: 0,
            cpu_blocks: MatmulBlocks::default(),
            tensor_parallel: 1,
            #[cfg(feature = "cuda")]
            layer_split: None,
            rank_limit: RANK_LIMIT,
            check_tensors: false,
            fingerprint: false,
        }
    }
}

/// Starts the threads that compute, if nobody has.
fn start_threads() -> Result<()> {
    match rayon::ThreadPoolBuilder::new().build_global() {
        // Threads that run already are an error without a source.
        Err(error) if std::error::Error::source(&error).is_some() => {
            Err(host_memory::no_thread("computing", error))
        }
        _ => Ok(()),
    }
}

/// Refuses options that are out of range.
fn check(config: &Config, options: &RunnerOptions) -> Result<()> {
    if let Some(len) = options.max_model_len
        && !(1..=config.max_position_embeddings).contains(&len)
    {
        return Err(Error::Request(format!(
            "a context of {len} tokens was asked for; this model takes 1 to {}",
            config.max_position_embeddings
        )));
    }
    if options.max_num_tokens == Some(0) || options.max_num_sequences == 0 {
        return Err(Error::Request("a step needs at least one row and one sequence".into()));
    }
    Ok(())
}

/// As [`open_runner`] on the CPU, where `observer` is told of every product.
///
/// # Errors
/// As [`open_runner`].
pub fn open_observed_runner(
    weights: &Weights,
    config: &Config,
    options: &RunnerOptions,
    observer: Observer,
) -> Result<Box<dyn Runner>> {
    check(config, options)?;
    start_threads()?;
    let (ops_config, layout) = fit_cpu(config, options)?;
    let ops = CpuOps::new(&ops_config)?.observed_by(observer);
    Ok(Box::new(ModelRunner::new(ops, weights, config, &ops_config, layout, &mut |_, _| ())?))
}

/// A model file that was read.
#[derive(Clone, Copy)]
pub struct ModelData<'a> {
    pub weights: &'a Weights,
    pub config: &'a Config,
}

/// Loads `weights` on the device and allocates pages and work buffers. `progress` is called with the bytes of weights
/// loaded so far and with their sum.
///
/// # Errors
/// [`Error::Request`] for options out of range, [`Error::Memory`] with the numbers where weights, pages and work buffers do
/// not fit, [`Error::Device`] if the device is missing or fails.
pub fn open_runner(
    weights: &Weights,
    config: &Config,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    open_runners(&ModelData { weights, config }, None, options, progress).map(|(runner, _)| runner)
}

/// A model's runner, and that of the one which drafts for it.
pub type Runners = (Box<dyn Runner>, Option<Box<dyn Runner>>);

/// As [`open_runner`], with a model that drafts for this one, which gets pages of the same numbers.
///
/// # Errors
/// As [`open_runner`].
pub fn open_runners(
    model: &ModelData,
    draft: Option<&ModelData>,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Runners> {
    check(model.config, options)?;
    start_threads()?;
    #[cfg(feature = "cuda")]
    if options.tensor_parallel != 1 {
        return ranks::open(model, draft.is_some(), options, progress).map(|runner| (runner, None));
    }
    #[cfg(feature = "cuda")]
    if let Some(split) = &options.layer_split {
        return ranks::open_stages(model, draft, split, options, progress);
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = gpu::open_device(options.device)? {
        return gpu::open_runners(&device, model, draft, options, progress);
    }
    #[cfg(not(feature = "cuda"))]
    if options.tensor_parallel != 1 {
        return Err(Error::Device(
            "--tensor-parallel needs GPUs: this program was built without the feature `cuda`".into(),
        ));
    }
    #[cfg(not(feature = "cuda"))]
    if !matches!(options.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
        return Err(Error::Device(format!(
            "{} was asked for, but this program was built without the feature `cuda`: take auto or cpu",
            options.device
        )));
    }
    if options.cpu_moe > 0 {
        tracing::info!("experts are in host memory anyway: everything is computed on the CPU");
    }
    let (of_model, of_draft) = fit_cpu_with(model, draft, options)?;
    let mut load = |model: &ModelData, (ops_config, layout), checkpoints| -> Result<Box<dyn Runner>> {
        let ops = CpuOps::new(&ops_config)?.with_blocks(options.cpu_blocks);
        let runner = ModelRunner::new(ops, model.weights, model.config, &ops_config, layout, progress)?;
        Ok(Box::new(runner.with_drafts(options.max_drafts).with_checkpoints(checkpoints)?))
    };
    let draft = draft.zip(of_draft).map(|(draft, fitted)| load(draft, fitted, 0)).transpose()?;
    Ok((load(model, of_model, options.checkpoints)?, draft))
}

#[cfg(test)]
mod tests {
    use super::*;
    use qernel_core::testing::TinyModel;

    #[test]
    fn bf16_is_held_as_f16_where_nothing_else_is_asked_for() {
        use DtypeChoice::{Auto, Bf16, F16};
        assert_eq!(Dtype::ALL.map(|file| Auto.preferred(file)), [Dtype::F32, Dtype::F16, Dtype::F16]);
        assert_eq!((F16.preferred(Dtype::Bf16), Bf16.preferred(Dtype::F16)), (Dtype::F16, Dtype::Bf16));
        assert_eq!([Dtype::F16, Dtype::Bf16].map(|file| Auto.fallback(file)), [Some(Bf16); 2]);
        assert_eq!((Auto.fallback(Dtype::F32), F16.fallback(Dtype::Bf16)), (None, None));
        for text in ["auto", "f16", "bf16"] {
            assert_eq!(text.parse::<DtypeChoice>().unwrap().to_string(), text);
        }
        assert!(matches!("float16".parse::<DtypeChoice>(), Err(Error::Request(_))));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn variants_are_of_a_gpu_or_of_the_cpu() {
        let mut options = RunnerOptions::default();
        assert_eq!(options.cpu_blocks, MatmulBlocks::Int8);
        options.choose_kernels("rms_norm=plain, matmul_blocks=exact").unwrap();
        assert_eq!(options.cpu_blocks, MatmulBlocks::Exact);
        assert_eq!(
            (options.kernels.get("rms_norm"), options.kernels.get("matmul_blocks")),
            (Some("plain"), None)
        );
        options.choose_kernels("matmul_blocks=inline").unwrap();
        assert_eq!(options.kernels.get("matmul_blocks"), Some("inline"));
        let error = options.choose_kernels("matmul_blocks=fast").unwrap_err().to_string();
        assert!(error.contains("inline") && error.ends_with("on the CPU int8, exact"), "{error}");
        assert!(options.choose_kernels("matmul_blocks").is_err());
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let gguf = TinyModel::default().gguf();
        let config = Config::from_gguf(&gguf).unwrap();
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let fine = RunnerOptions {
            device: DeviceChoice::Cpu,
            max_model_len: Some(64),
            max_num_tokens: Some(8),
            ..RunnerOptions::default()
        };
        let open = |options| open_runner(&weights, &config, &options, &mut |_, _| ());
        assert!(open(fine.clone()).is_ok());
        for bad in [
            RunnerOptions { max_model_len: Some(2049), ..fine.clone() },
            RunnerOptions { max_model_len: Some(0), ..fine.clone() },
            RunnerOptions { max_num_tokens: Some(0), ..fine.clone() },
            RunnerOptions { max_num_sequences: 0, ..fine.clone() },
            RunnerOptions { memory_fraction: 0.0, ..fine.clone() },
        ] {
            assert!(matches!(open(bad.clone()), Err(Error::Request(_))), "{bad:?}");
        }
        let enormous = RunnerOptions { max_num_tokens: Some(1 << 40), ..fine };
        assert!(matches!(open(enormous), Err(Error::Memory(_))));
    }
}
