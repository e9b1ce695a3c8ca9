//! [`Ops`] on an NVIDIA GPU: what its operations share. Which file computes what is in [`operations`].

mod direct;
mod hybrid;
mod load;
mod lora;
mod mixture;
mod operations;
mod range;
mod ranks;

use crate::batch::{self, CudaBatch};
use crate::config::Config;
use crate::convert::Narrowing;
use crate::cublas::Cublas;
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::memory::{DeviceBuffer, Uploader, Whereabouts};
use crate::ops::experts::Offload;
use crate::ops::{OpsConfig, Types, Work};
use crate::ranks::{Group, HAND_OVER, Ranks, Stage};
use crate::tensor::{Activation, KvCache, States, Tensor};
use crate::variant::KernelChoice;
use crate::weight::Weight;
use crate::{attention, delta_rule, experts, graph, host_experts, matmul, rope, sample, tensor_map, units};
use qernel_core::batch::BatchLimits;
use std::rc::Rc;
use std::sync::Arc;

/// Everything that the launches of a step depend on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct StepKey {
    work: Work,
    batch: batch::Bucket,
    /// `None` where nothing is drawn.
    draw: Option<sample::DrawShape>,
    /// Of the sampler's buffers, which the first kernel reads too.
    generation: usize,
}

/// cuBLAS, if the choice of kernels may come to it and the device has it.
fn open_cublas(device: &Rc<Device>, choice: &KernelChoice) -> Result<Option<Cublas>> {
    let needed = choice.get(matmul::OP).is_none_or(|name| name == matmul::CUBLAS)
        || choice.get(matmul::blocks::OP) == Some(matmul::CUBLAS);
    if needed && !device.is_emulated() { Cublas::new(device).map(Some) } else { Ok(None) }
}

/// The decoder's operations on one GPU, queued on one stream.
pub struct CudaOps {
    device: Rc<Device>,
    /// `None` where another matrix product was chosen.
    cublas: Option<Cublas>,
    choice: KernelChoice,
    uploader: Uploader,
    rope: rope::RopeTable,
    attention: attention::Workspace,
    sampler: sample::Sampler,
    /// Where there are experts.
    experts: Option<experts::Workspace>,
    /// Where there are layers of linear attention.
    delta: Option<delta_rule::Workspace>,
    /// Where some stay in host memory.
    host_experts: Option<host_experts::HostPart>,
    /// Where the device is a rank of several.
    ranks: Option<Ranks>,
    /// Where other devices have other layers.
    stage: Option<Stage>,
    /// Columns of the logits of the last draw.
    vocab_size: usize,
    graphs: graph::Graphs<StepKey>,
    /// Columns of the matrices that were loaded, each once.
    widths: Vec<usize>,
    num_attention_heads: usize,
    /// Rows of a step.
    max_num_tokens: usize,
    /// Of matrices, KV pages of floats and what attention writes.
    dtype: Dtype,
    /// For [`matmul::Tools`]; grown with every activation that may need it.
    bf16_halves: DeviceBuffer<u16>,
    /// Likewise; grown with every matrix in blocks.
    decoded: DeviceBuffer<u8>,
    scratch: matmul::Scratch,
    slices: units::Slices,
    /// Of the matrices that kernels copy boxes of.
    tensor_maps: tensor_map::TensorMaps,
    /// Of the weights that are converted to f16.
    narrowing: Narrowing,
    /// What will be known of them once all are loaded.
    narrowed: range::Narrowed,
    /// What updates of adapters have between their matrices: `[max_num_tokens, the largest rank]`.
    lora_inner: DeviceBuffer<f32>,
    /// Room for the norms of a matrix's rows.
    row_norms: DeviceBuffer<f32>,
    /// Of the matrices that were loaded, for measuring how fast they are read.
    loaded: Vec<Whereabouts>,
}

impl CudaOps {
    /// Operations on `device`, with matrices, and KV pages that are floats, of `dtype`.
    ///
    /// # Errors
    /// [`Error::Model`] if the heads do not fit each other or no attention kernel has this `head_dim`;
    /// [`Error::Memory`], [`Error::Device`] from the device; the latter also if cuBLAS is needed and not installed.
    pub fn new(device: &Rc<Device>, config: &OpsConfig, dtype: Dtype, choice: KernelChoice) -> Result<Self> {
        let &OpsConfig {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            ref rotation,
            ref experts,
            ref linear,
            max_model_len,
            ref limits,
        } = config;
        if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(Error::Model(format!(
                "{num_key_value_heads} key-value heads do not divide {num_attention_heads} attention heads"
            )));
        }
        if !attention::HEAD_DIMS.contains(&head_dim) {
            return Err(Error::Model(format!(
                "the GPU's attention kernels take heads of 32, 64, 128 or 256 values, this model's have {head_dim}: \
                 use --device cpu"
            )));
        }
        Ok(Self {
            device: device.clone(),
            cublas: open_cublas(device, &choice)?,
            choice,
            uploader: Uploader::new(device)?,
            rope: rope::RopeTable::new(device, rotation, head_dim, max_model_len)?,
            attention: attention::Workspace::new(
                device,
                limits,
                max_model_len,
                num_attention_heads,
                head_dim,
            )?,
            delta: match linear {
                None => None,
                Some(sizes) => Some(delta_rule::Workspace::new(device, sizes, limits)?),
            },
            experts: match experts {
                None => None,
                Some(experts) => Some(experts::Workspace::new(device, experts, limits)?),
            },
            host_experts: None,
            ranks: None,
            stage: None,
            sampler: sample::Sampler::new(device)?,
            vocab_size: 0,
            graphs: graph::Graphs::new(device),
            widths: Vec::new(),
            num_attention_heads,
            max_num_tokens: limits.max_num_tokens,
            dtype,
            bf16_halves: DeviceBuffer::zeroed(device, 1)?,
            decoded: DeviceBuffer::zeroed(device, 1)?,
            scratch: matmul::Scratch::default(),
            slices: units::Slices::new(device)?,
            tensor_maps: tensor_map::TensorMaps::default(),
            narrowing: Narrowing::new(device),
            narrowed: range::Narrowed::new(),
            lora_inner: DeviceBuffer::zeroed(device, 1)?,
            row_norms: DeviceBuffer::zeroed(device, 1)?,
            loaded: Vec::new(),
        })
    }

    /// The same operations, but for experts that stay in host memory: `offload` says which and computes them. `rows_at_once`, not 0, go
    /// there at once. Steps have a part on the host then, so that they are neither recorded nor queued ahead.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn with_host_experts(mut self, offload: Offload, rows_at_once: usize) -> Result<Self> {
        self.host_experts = Some(host_experts::HostPart::new(&self.device, offload, rows_at_once)?);
        Ok(self)
    }

    /// The same operations, of rank `rank` of `group`: those of all ranks are queued in the same order, each by a thread of its own. `config` is
    /// that of the rank, for steps within `limits`.
    ///
    /// # Errors
    /// As [`Ranks::join`].
    pub fn with_ranks(
        mut self,
        group: &Arc<Group>,
        rank: usize,
        config: &Config,
        limits: &BatchLimits,
    ) -> Result<Self> {
        self.ranks = Some(Ranks::join(&self.device, group, rank, config, limits)?);
        Ok(self)
    }

    /// The same operations, of the device that has the layers of stage `number` of `group`; rows have `hidden_size` values.
    ///
    /// # Errors
    /// As [`Stage::join`].
    pub fn with_stage(mut self, group: &Arc<Group>, number: usize, hidden_size: usize) -> Result<Self> {
        let shape = [self.max_num_tokens, hidden_size];
        self.stage = Some(Stage::join(&self.device, group, number, shape, self.choice.get(HAND_OVER))?);
        Ok(self)
    }

    /// The device that the operations are queued on.
    pub fn device(&self) -> &Rc<Device> {
        &self.device
    }

    /// Format of activations, matrices and KV pages that are floats.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Uses another choice of kernels from now on.
    ///
    /// # Errors
    /// [`Error::Device`] if cuBLAS is needed now and not installed.
    pub fn choose(&mut self, choice: KernelChoice) -> Result<()> {
        if self.cublas.is_none() {
            self.cublas = open_cublas(&self.device, &choice)?;
        }
        self.choice = choice;
        self.graphs.clear();
        Ok(())
    }

    /// Attention of `rows` of the batch: all, or those that need logits.
    fn attend(
        &mut self,
        batch: &CudaBatch,
        rows: batch::BatchRows,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Activation,
    ) -> Result<()> {
        let (workspace, num_attention_heads) = (&mut self.attention, self.num_attention_heads);
        let maps = &mut self.tensor_maps;
        let operands =
            attention::Attention { maps, batch, rows, layer, num_attention_heads, q, cache, workspace, out };
        attention::attention(&self.device, &self.choice, operands)
    }

    /// What matrix products use besides their operands, and what was chosen for them.
    fn products(&mut self) -> (matmul::Tools<'_>, &KernelChoice) {
        let Self { device, cublas, bf16_halves, decoded, scratch, slices, choice, .. } = self;
        (matmul::Tools { device, cublas: cublas.as_ref(), bf16_halves, decoded, scratch, slices }, choice)
    }
}

impl Types for CudaOps {
    type Tensor = Tensor;
    type Activation = Activation;
    type Weight = Weight;
    type Vector = DeviceBuffer<f32>;
    type KvCache = KvCache;
    type States = States;
    type Batch = CudaBatch;
}
