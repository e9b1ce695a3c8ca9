//! The memory that a model needs, and what each of several GPUs needs of it.

use super::InspectArgs;
use crate::cli::split_mode::Shares;
use crate::config::Config;
use crate::cuda;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_format::{KvFormat, KvFormats};
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use crate::load::{KvType, kv_layout};
use crate::model;
use crate::weights::Weights;
use std::fmt;

/// What running the model takes, workspace apart.
#[derive(Debug, serde::Serialize)]
pub(super) struct Memory {
    /// `null` where the weights cannot be used.
    weight_bytes: Option<u64>,
    /// Those of experts; 0 where there are none.
    expert_bytes: u64,
    /// Those of experts that stay in host memory (`--n-cpu-moe`, `--cpu-moe`) where the rest is on a GPU.
    host_expert_bytes: u64,
    /// Format of the KV pages on a GPU: that of the weights.
    kv_dtype: String,
    kv_bytes_per_token: u64,
    context: u64,
    /// Whole pages for `context` tokens of one sequence.
    kv_bytes: u64,
    /// What recurrent layers keep of a sequence, however long it is; 0 where there are none.
    state_bytes: u64,
    /// Copies of that in host memory, with `--checkpoint-host-memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_checkpoints: Option<u64>,
    /// Of each GPU that has layers, with `--tensor-split`, or a part of them, with `--tensor-parallel`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gpus: Vec<GpuMemory>,
}

/// What of a model is on one of several GPUs.
#[derive(Debug, serde::Serialize)]
struct GpuMemory {
    /// Its place among the proportions.
    gpu: usize,
    /// GPUs that each of its layers is shared out over; 1: it has them whole.
    tensor_parallel: usize,
    first_layer: usize,
    num_layers: usize,
    /// `null` where the weights cannot be used.
    weight_bytes: Option<u64>,
    kv_bytes: u64,
    state_bytes: u64,
}

impl GpuMemory {
    fn new(gpu: usize, config: &Config, weights: Option<&Weights>, whole: &KvLayout) -> Result<Self> {
        let plan = model::build::plan(config)?;
        let layout = plan.state.pages(whole.formats, whole.num_pages)?;
        Ok(Self {
            gpu,
            tensor_parallel: config.tensor_parallel_size,
            first_layer: config.layers().start,
            num_layers: config.layers().len(),
            weight_bytes: weights
                .map(|weights| match config.tensor_parallel_size {
                    1 => Ok(weights.of_stage(&plan.tensors, config.is_last_stage()).num_bytes()),
                    _ => weights.num_bytes_of_rank(&plan.tensors),
                })
                .transpose()?,
            kv_bytes: (layout.num_pages * layout.page_bytes()) as u64,
            state_bytes: plan.state.slot_bytes() as u64,
        })
    }
}

impl Memory {
    /// Of the model of `config`.
    ///
    /// # Errors
    /// [`Error::Request`](crate::error::Error::Request) for a split that there is not, and as [`kv_layout`].
    pub(super) fn new(config: &Config, weights: Option<&Weights>, args: &InspectArgs) -> Result<Self> {
        let context = args.context.unwrap_or(config.max_position_embeddings as u64);
        // Without weights: the format that most files have.
        let dtype = weights.map_or(Dtype::F16, cuda::compute_dtype);
        let [k, v] = args.cache_types.types(KvType::Auto).map(|kind| match kind {
            KvType::Only(format) => format,
            KvType::Auto | KvType::Precise => KvFormat::Float(dtype),
        });
        let layout = kv_layout(config, KvFormats { k, v }, context.div_ceil(PAGE_SIZE as u64) as usize)?;
        let of_gpus: Vec<(usize, Config)> = match (&args.tensor_split, args.tensor_parallel) {
            (Some(Shares(shares)), _) => (config.split_layers(shares)?.into_iter().enumerate())
                .filter(|(_, layers)| !layers.is_empty())
                .map(|(gpu, layers)| (gpu, config.of_stage(layers)))
                .collect(),
            (None, 1) => Vec::new(),
            (None, ranks) => {
                let of_rank = config.of_rank(ranks)?;
                (0..ranks).map(|gpu| (gpu, of_rank.clone())).collect()
            }
        };
        let experts_of = |layers| {
            let experts = weights.into_iter().flat_map(move |weights| weights.experts_of_first(layers));
            experts.map(|matrix| matrix.data.len() as u64).sum()
        };
        let state_bytes = model::build::plan(config)?.state.slot_bytes() as u64;
        let host = args.checkpoint_host_memory as u64;
        Ok(Self {
            weight_bytes: weights.map(Weights::num_bytes),
            expert_bytes: experts_of(usize::MAX),
            host_expert_bytes: experts_of(args.experts.layers()),
            kv_dtype: layout.formats.to_string(),
            kv_bytes_per_token: (layout.page_bytes() / PAGE_SIZE) as u64,
            context,
            kv_bytes: (layout.num_pages * layout.page_bytes()) as u64,
            state_bytes,
            host_checkpoints: host.checked_div(state_bytes).filter(|_| host > 0),
            gpus: (of_gpus.iter())
                .map(|(gpu, config)| GpuMemory::new(*gpu, config, weights, &layout))
                .collect::<Result<_>>()?,
        })
    }
}

/// As `1202.09 MiB`.
pub(super) struct Mib(pub u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.2} MiB", self.0 as f64 / f64::from(1 << 20)))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nmemory needed, workspace apart")?;
        let Self { kv_dtype, kv_bytes_per_token, context, .. } = self;
        if let Some(bytes) = self.weight_bytes {
            writeln!(f, "  {:10} {:>14}", "weights", Mib(bytes))?;
        }
        if self.expert_bytes > 0 {
            let (experts, on_host) = (Mib(self.expert_bytes), Mib(self.host_expert_bytes));
            let of_host = format!("{} of them in host memory beside a GPU (--n-cpu-moe N)", on_host);
            writeln!(f, "  {:10} {experts:>14}  {of_host}", "experts")?;
        }
        writeln!(
            f,
            "  {:10} {:>14}  for {context} tokens at {kv_bytes_per_token} bytes each in {kv_dtype}",
            "KV cache",
            Mib(self.kv_bytes)
        )?;
        if self.state_bytes > 0 {
            let states = Mib(self.state_bytes);
            write!(f, "  {:10} {states:>14}  for each sequence that runs", "states")?;
            match self.host_checkpoints {
                Some(count) => writeln!(f, "; host memory holds {count} copies")?,
                None => writeln!(f)?,
            }
        }
        for gpu in &self.gpus {
            let (weights, kv) = (Mib(gpu.weight_bytes.unwrap_or(0)), Mib(gpu.kv_bytes));
            let (first, last) = (gpu.first_layer, gpu.first_layer + gpu.num_layers - 1);
            let part = match gpu.tensor_parallel {
                1 => String::new(),
                ranks => format!("1/{ranks} of "),
            };
            write!(
                f,
                "  {:10} {part}layers {first} to {last}: weights {weights}, KV cache {kv}",
                format!("GPU {}", gpu.gpu)
            )?;
            match gpu.state_bytes {
                0 => writeln!(f)?,
                bytes => writeln!(f, ", states {}", Mib(bytes))?,
            }
        }
        Ok(())
    }
}
