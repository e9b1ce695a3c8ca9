//! [`Ops`] on an NVIDIA GPU: which of its files computes what, and what they share.

mod direct;
mod load;

use crate::batch::{self, CudaBatch};
use crate::convert::F16Range;
use crate::cublas::{self, Cublas};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::KvLayout;
use crate::memory::{DeviceBuffer, Uploader};
use crate::ops::parts::{AttentionIn, Head, MlpIn, Norm, QkNorm};
use crate::ops::{Ops, OpsConfig, Rows, Stacked, Types};
use crate::tensor::{self, Activation, KvCache, Tensor, Weight};
use crate::variant::KernelChoice;
use crate::weights::Matrix;
use crate::{
    attention, bandwidth, bias_rope_kv, embed, fused, gather_rows, graph, matmul, precise_dtype, qk_norm,
    rms_norm, rope, sampler, silu_mul, units,
};
use qernel_core::batch::{Batch, BatchLimits};
use qernel_core::sampler::SamplingRow;
use std::rc::Rc;

/// Everything that the launches of a step depend on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct StepKey {
    batch: batch::Bucket,
    /// `None` where nothing is drawn.
    draw: Option<sampler::DrawShape>,
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
    sampler: sampler::Sampler,
    /// Columns of the logits of the last draw.
    vocab_size: usize,
    graphs: graph::Graphs<StepKey>,
    /// Columns of the matrices that were loaded, each once.
    widths: Vec<usize>,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    /// Of matrices, KV pages and what attention writes.
    dtype: Dtype,
    /// For [`matmul::Tools`]; grown with every activation that may need it.
    parts: DeviceBuffer<u16>,
    /// Likewise; grown with every matrix in blocks.
    decoded: DeviceBuffer<u8>,
    scratch: matmul::Scratch,
    slices: units::Slices,
    /// Of the weights that were converted to f16.
    range: F16Range,
}

impl CudaOps {
    /// Operations on `device`, with matrices and KV pages of `dtype`.
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
            max_model_len,
            ref limits,
        } = config;
        if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(Error::Model(format!(
                "{num_key_value_heads} key-value heads do not divide {num_attention_heads} attention heads"
            )));
        }
        if !matches!(head_dim, 64 | 128) {
            return Err(Error::Model(format!(
                "the GPU's attention kernels take heads of 64 or 128 values, this model's have {head_dim}: use \
                 --device cpu"
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
            sampler: sampler::Sampler::new(device)?,
            vocab_size: 0,
            graphs: graph::Graphs::new(device),
            widths: Vec::new(),
            num_attention_heads,
            num_key_value_heads,
            dtype,
            parts: DeviceBuffer::zeroed(device, 1)?,
            decoded: DeviceBuffer::zeroed(device, 1)?,
            scratch: matmul::Scratch::default(),
            slices: units::Slices::new(device)?,
            range: F16Range::new(device)?,
        })
    }

    /// The device that the operations are queued on.
    pub fn device(&self) -> &Rc<Device> {
        &self.device
    }

    /// Format of activations, matrices and KV pages.
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

    /// Attention of `rows` of the batch: all, or those whose logits are wanted.
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
        let operands =
            attention::Attention { batch, rows, layer, num_attention_heads, q, cache, workspace, out };
        attention::attention(&self.device, &self.choice, operands)
    }

    /// What matrix products use besides their operands, and what was chosen for them.
    fn products(&mut self) -> (matmul::Tools<'_>, &KernelChoice) {
        let Self { device, cublas, parts, decoded, scratch, slices, choice, .. } = self;
        (matmul::Tools { device, cublas: cublas.as_ref(), parts, decoded, scratch, slices }, choice)
    }
}

impl Types for CudaOps {
    type Tensor = Tensor;
    type Activation = Activation;
    type Weight = Weight;
    type Vector = DeviceBuffer<f32>;
    type KvCache = KvCache;
    type Batch = CudaBatch;
}

impl Ops for CudaOps {
    fn new_tensor(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(&self.device, rows, cols)
    }

    fn new_activation(&mut self, rows: usize, cols: usize) -> Result<Activation> {
        Activation::new(&self.device, self.dtype, rows, cols)
    }

    fn new_precise_activation(&mut self, rows: usize, cols: usize) -> Result<Activation> {
        let dtype = precise_dtype(self.dtype);
        if dtype != self.dtype {
            let room = 2 * tensor::elements(rows, cols)?.next_multiple_of(8);
            if room > self.parts.len() {
                self.parts = DeviceBuffer::zeroed(&self.device, room)?;
            }
        }
        Activation::new(&self.device, dtype, rows, cols)
    }

    fn new_product(&mut self, rows: usize, cols: usize) -> Result<Activation> {
        // Room for what a product without cuBLAS writes.
        Activation::new(&self.device, Dtype::F32, rows, cols)
    }

    fn new_kv_cache(&mut self, layout: &KvLayout) -> Result<KvCache> {
        if layout.dtype != self.dtype {
            return Err(Error::Request(format!(
                "KV pages must be {}, the format of the weights, not {}",
                self.dtype, layout.dtype
            )));
        }
        KvCache::new(&self.device, layout)
    }

    fn new_batch(&mut self, limits: &BatchLimits) -> Result<CudaBatch> {
        CudaBatch::new(&self.device, limits)
    }

    fn load_matrix(&mut self, matrix: &Matrix) -> Result<Weight> {
        self.load_one(matrix)
    }

    fn load_stacked(&mut self, matrices: &[Matrix], apart: usize) -> Result<Stacked<Weight>> {
        self.load_several(matrices, apart)
    }

    fn finish_loading(&mut self) -> Result<()> {
        match self.range.beyond()? {
            None => Ok(()),
            Some(magnitude) => Err(Error::Range(format!(
                "a weight of magnitude {magnitude:e} is beyond the range of f16, 65504: use --dtype bf16"
            ))),
        }
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<DeviceBuffer<f32>> {
        DeviceBuffer::from_slice(&self.device, values)
    }

    fn upload(&mut self, host: &Batch, batch: &mut CudaBatch) -> Result<()> {
        batch.upload(host)
    }

    fn embed(&mut self, batch: &CudaBatch, table: &Weight, out: &mut Tensor) -> Result<()> {
        embed::embed(&self.device, batch, self.sampler.last_drawn(), table, out)
    }

    fn rms_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &Norm<DeviceBuffer<f32>>,
        out: &mut Activation,
    ) -> Result<()> {
        rms_norm::rms_norm(&self.device, &self.choice, n, x, &norm.weight, norm.eps, out)
    }

    fn matmul(&mut self, n: usize, x: &Activation, weight: &Weight, out: &mut Tensor) -> Result<()> {
        let (tools, choice) = self.products();
        matmul::matmul(tools, choice, n, x, weight, out)
    }

    fn matmul_add(
        &mut self,
        rows: Rows<CudaBatch>,
        x: &Activation,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        if weight.float().is_some() && self.is_fused(rows, out.cols) {
            return self.fused_matmul_add(rows.n, x, weight, out);
        }
        if weight.units().is_some() && self.is_step_of_parts(rows) {
            return self.matmul_accumulate(rows.n, x, weight, out);
        }
        self.matmul_accumulate(rows.padded, x, weight, out)
    }

    fn matmul_rounded(
        &mut self,
        n: usize,
        x: &Activation,
        weight: &Weight,
        out: &mut Activation,
    ) -> Result<()> {
        let (tools, choice) = self.products();
        matmul::matmul_rounded(tools, choice, n, x, weight, out)
    }

    fn qk_norm(
        &mut self,
        n: usize,
        qkv: &mut Tensor,
        norm: &QkNorm<DeviceBuffer<f32>>,
        bias: [Option<&DeviceBuffer<f32>>; 2],
    ) -> Result<()> {
        let heads = [self.num_attention_heads, self.num_key_value_heads];
        qk_norm::qk_norm(&self.device, &self.choice, n, heads, norm, bias, qkv)
    }

    fn bias_rope_kv(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        qkv: &Tensor,
        bias: [Option<&DeviceBuffer<f32>>; 3],
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let operands = bias_rope_kv::BiasRopeKv { batch, table: &self.rope, layer, qkv, bias, q, cache };
        bias_rope_kv::bias_rope_kv(&self.device, &self.choice, operands)
    }

    fn attention(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Activation,
    ) -> Result<()> {
        self.attend(batch, batch.rows(), layer, q, cache, out)
    }

    fn attention_of_wanted(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Activation,
    ) -> Result<()> {
        let rows = batch.wanted_rows();
        if rows.split.num_rows != batch.shape.num_logits {
            return Err(Error::Request(
                "attention: the rows whose logits are wanted must be some, and the last of their sequences"
                    .to_owned(),
            ));
        }
        self.attend(batch, rows, layer, q, cache, out)
    }

    fn silu_mul(&mut self, n: usize, gate_up: &Activation, out: &mut Activation) -> Result<()> {
        silu_mul::silu_mul(&self.device, &self.choice, n, gate_up, out)
    }

    fn gather_rows(&mut self, batch: &CudaBatch, x: &Tensor, out: &mut Tensor) -> Result<()> {
        gather_rows::gather_rows(&self.device, batch, x, out)
    }

    fn rehearse(&mut self, most: usize) -> Result<()> {
        let Some(cublas) = &self.cublas else { return Ok(()) };
        let mut n = 1;
        while n <= most {
            n = cublas::rounded_rows(n).min(most);
            cublas.rehearse(n)?;
            n += 1;
        }
        Ok(())
    }

    fn product_rows(&self, n: usize) -> usize {
        if self.cublas.is_some() { cublas::rounded_rows(n) } else { n }
    }

    fn norm_qkv_rope(
        &mut self,
        rows: Rows<CudaBatch>,
        layer: usize,
        part: &AttentionIn<Weight, DeviceBuffer<f32>>,
        x: &Tensor,
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<bool> {
        let AttentionIn { norm, qkv, bias, qk_norm } = part;
        let [q_proj, k_proj, v_proj] = &qkv.parts[..] else { return Ok(false) };
        let weights = [q_proj, k_proj, v_proj];
        let takes = match weights.map(Weight::units) {
            [Some(q), Some(k), Some(v)] => {
                fused::QkvWeights::are_known(q, k, v) && self.takes_units(fused::norm_qkv_rope::OP, q, rows)
            }
            _ => weights.iter().all(|weight| weight.float().is_some()) && self.is_fused(rows, x.cols),
        };
        if qk_norm.is_some() || !takes {
            return Ok(false);
        }
        let biases = bias.each_ref().map(Option::as_ref);
        self.fused_norm_qkv_rope(rows.batch, layer, x, norm, weights, biases, q, cache)?;
        Ok(true)
    }

    fn norm_gate_up(
        &mut self,
        rows: Rows<CudaBatch>,
        part: &MlpIn<Weight, DeviceBuffer<f32>>,
        x: &Tensor,
        out: &mut Activation,
    ) -> Result<bool> {
        let takes = match (part.gate_up.whole.units(), &part.gate_up.parts[..]) {
            (Some(units), _) => self.takes_units(fused::norm_gate_up::OP, units, rows),
            (None, [gate, up]) => {
                gate.float().is_some() && up.float().is_some() && self.is_fused(rows, x.cols)
            }
            _ => false,
        };
        if !takes {
            return Ok(false);
        }
        self.fused_norm_gate_up(rows.n, x, &part.norm, &part.gate_up, out)?;
        Ok(true)
    }

    fn norm_matmul(
        &mut self,
        rows: Rows<CudaBatch>,
        part: &Head<Weight, DeviceBuffer<f32>>,
        x: &Tensor,
        logits: &mut Tensor,
    ) -> Result<bool> {
        let takes = match part.weight.units() {
            Some(units) => self.takes_units(fused::norm_matmul::OP, units, rows),
            None => part.weight.float().is_some() && self.is_fused(rows, x.cols),
        };
        if !takes {
            return Ok(false);
        }
        self.fused_norm_matmul(rows.n, x, part.norm, part.weight, logits)?;
        Ok(true)
    }

    fn prepare_sampling(&mut self, logits: &Tensor, rows: &[SamplingRow]) -> Result<()> {
        self.vocab_size = logits.cols();
        self.sampler.prepare(&self.choice, logits, rows)
    }

    fn draw(&mut self, logits: &mut Tensor) -> Result<()> {
        self.sampler.draw(&self.choice, logits)
    }

    fn fetch_drawn(&mut self) -> Result<()> {
        self.sampler.fetch()
    }

    fn drawn(&mut self) -> Result<Vec<u32>> {
        self.sampler.drawn(self.vocab_size)
    }

    fn forget_drawn(&mut self) {
        self.sampler.forget();
    }

    fn runs_ahead(&self) -> bool {
        self.choice.get(graph::OP).is_none_or(|name| name == graph::AHEAD)
    }

    fn run_step(&mut self, batch: &CudaBatch, step: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let replays =
            self.choice.get(graph::OP).is_none_or(|name| [graph::AHEAD, graph::GRAPH].contains(&name));
        let bucket = batch.bucket().filter(|_| replays && !self.device.is_emulated());
        let Some(bucket) = bucket else { return step(self) };
        let draw = bucket.has_logits().then(|| self.sampler.shape());
        let key = StepKey { batch: bucket, draw, generation: self.sampler.generation() };
        if self.graphs.launch(&key)? {
            return Ok(());
        }
        let record_at = match key.batch.kind() {
            batch::StepKind::Decode => graph::RECORD_DECODE_AT,
            batch::StepKind::Prefill => graph::RECORD_PREFILL_AT,
            batch::StepKind::Mixed => return step(self),
        };
        if self.graphs.count(&key) < record_at {
            return step(self);
        }
        self.graphs.begin()?;
        let recorded = step(self);
        match self.graphs.end(key.clone(), recorded) {
            Ok(()) => self.graphs.launch(&key).map(drop),
            // A graph takes memory that nobody planned for; without it the step is only slower.
            Err(Error::Memory(why)) => {
                tracing::warn!("a step is not recorded as a graph: {why}");
                step(self)
            }
            Err(error) => Err(error),
        }
    }

    fn num_replays(&self) -> u64 {
        self.graphs.num_launches()
    }

    fn read(&mut self, n: usize, x: &Tensor) -> Result<Vec<f32>> {
        x.expect("read", "x", n, x.cols())?;
        x.data.read(0, n * x.cols())
    }

    fn read_row(&mut self, row: usize, x: &Tensor) -> Result<Vec<f32>> {
        x.expect("read_row", "x", row + 1, x.cols())?;
        x.data.read(row * x.cols(), x.cols())
    }

    fn device_name(&self) -> String {
        let info = self.device.info();
        if self.device.is_emulated() {
            return info.name.clone();
        }
        format!("{} (cuda:{})", info.name, info.ordinal)
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        if self.device.is_emulated() {
            return Ok(None);
        }
        bandwidth::read_bandwidth(&self.device).map(Some)
    }
}
