//! [`Ops`] on an NVIDIA GPU: Rust kernels, and cuBLAS for the large matrix products.
//!
//! One file an operation: it checks every precondition of its kernels and holds the only `unsafe` launch of them.
//! Where an operation has several kernels, its file has a table of [`Variant`]s; `--kernel op=variant` picks one.

mod add;
mod add_bias;
mod argmax;
mod attention;
mod bandwidth;
mod batch;
mod bias_rope_kv;
mod convert;
mod cublas;
mod device;
mod driver;
mod embed;
mod emulated;
mod fused;
mod gather_rows;
mod gpu;
mod graph;
mod launch;
mod matmul;
mod memory;
mod resources;
mod rms_norm;
mod rope;
mod sampler;
mod silu_mul;
mod tensor;
mod timer;
mod variant;
mod write_kv;

pub use bandwidth::{Memory, read_bandwidth};
pub use batch::CudaBatch;
pub use convert::{F16Range, convert, split_to_bf16};
pub use cublas::{Cublas, Product, WORKSPACE_BYTES, library_version, preload as preload_cublas};
pub use device::{Device, DeviceInfo, PTX_FILE, PTX_TARGETS, probe, ptx, ptx_with_lines};
pub use fused::max_rows as fused_max_rows;
pub use matmul::preferred_matmul;
pub use memory::{DeviceBuffer, PinnedBuffer, Plain, Uploader};
pub use resources::Resources;
pub use tensor::{Activation, KvCache, Tensor, Weight, encode};
pub use timer::Timer;
pub use variant::{
    ALIASES, KernelChoice, Operation, Variant, VariantInfo, is_ineligible, kernel_dtype, operation_name,
};

use crate::batch::{Batch, BatchLimits};
use crate::config::Config;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_cache::KvLayout;
use crate::model::OpsConfig;
use crate::ops::{Ops, Qkv, QkvBias, Stacked};
use crate::sampler::SamplingRow;
use crate::weights::{Matrix, Weights};
use std::rc::Rc;

/// Every operation that has kernels, in the order of their names.
pub fn operations() -> Vec<Operation> {
    let mut operations = vec![
        Operation::of(add::OP, &add::VARIANTS),
        Operation::single("add_bias", &[]),
        Operation::of(rms_norm::FUSED, &rms_norm::FUSED_VARIANTS),
        Operation::of(argmax::OP, &argmax::VARIANTS),
        Operation::of(attention::OP, &attention::VARIANTS),
        Operation::of(bias_rope_kv::OP, &bias_rope_kv::VARIANTS),
        Operation::single(
            "convert",
            &["convert_*_plain", "narrow_*_plain", "narrow_*_vec8", "split_*_plain"],
        ),
        Operation::single("embed", &[]),
        Operation::single("gather_rows", &[]),
        Operation::choice(fused::OP, &fused::VARIANTS),
        Operation::of(matmul::OP, &matmul::VARIANTS),
        Operation::single("read_bandwidth", &[]),
        Operation::of(rms_norm::OP, &rms_norm::VARIANTS),
        Operation::single("rope", &[]),
        Operation::of(sampler::OP, &sampler::VARIANTS),
        Operation::of(silu_mul::OP, &silu_mul::VARIANTS),
        Operation::choice(graph::OP, &graph::VARIANTS),
        Operation::single("write_kv", &[]),
    ];
    operations.extend(fused::operations());
    operations.sort_by_key(|operation| operation.name);
    operations
}

/// Every operation that has kernels to choose from, with the names of its variants in order of preference.
pub fn kernels() -> Vec<(&'static str, Vec<&'static str>)> {
    let names = |op: &Operation| op.variants.iter().map(|variant| variant.name).collect();
    operations().iter().filter(|op| op.selectable).map(|op| (op.name, names(op))).collect()
}

/// The format of most of a model's matrix elements. Its matrix products, activations and KV pages have it on the GPU too, but
/// where that is bf16: see [`crate::model::open::DtypeChoice`].
pub fn compute_dtype(weights: &Weights) -> Dtype {
    let mut elements = [0usize; Dtype::ALL.len()];
    for matrix in weights.matrices() {
        if let Some(slot) = Dtype::ALL.iter().position(|&dtype| dtype == matrix.dtype) {
            elements[slot] += matrix.rows * matrix.cols;
        }
    }
    let most = (0..elements.len()).max_by_key(|&i| elements[i]).unwrap_or(0);
    Dtype::ALL[most]
}

/// Bytes of all weights once they are on the GPU: matrices in `dtype`, vectors in f32.
pub fn weight_bytes(weights: &Weights, dtype: Dtype) -> usize {
    let matrices: usize = weights.matrices().map(|matrix| matrix.rows * matrix.cols * dtype.size()).sum();
    matrices + weights.vectors().map(size_of_val).sum::<usize>()
}

/// The format of what norms and SwiGLU hand to matrix products. bf16 keeps 8 bits: rounding these inputs to it causes about
/// two thirds of the error of a bf16 model's logits (docs/precision.md), so they stay f32 there.
pub fn precise_dtype(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Bf16 { Dtype::F32 } else { dtype }
}

/// Bytes that the GPU takes for itself besides weights, pages and the work buffers of the model: cuBLAS's workspace,
/// the splits of attention, what several blocks find of a row of logits, a margin for what the driver allocates on first use of each kernel.
pub fn device_workspace_bytes(config: &OpsConfig) -> usize {
    const MARGIN: usize = 64 << 20;
    let OpsConfig { num_attention_heads, head_dim, max_model_len, limits, .. } = config;
    WORKSPACE_BYTES
        + MARGIN
        + attention::Workspace::bytes(limits, *max_model_len, *num_attention_heads, *head_dim)
        + sampler::workspace_bytes(limits)
}

/// Bytes of the largest f32 activation split into two parts of bf16, which products with matrices of `dtype` need.
pub fn split_bytes(config: &Config, limits: &BatchLimits, dtype: Dtype) -> usize {
    if precise_dtype(dtype) == dtype {
        return 0;
    }
    let widest = config.intermediate_size.max(config.hidden_size);
    limits.max_num_tokens.max(limits.max_num_logits).saturating_mul(widest).saturating_mul(4)
}

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
    let needed = choice.get(matmul::OP).is_none_or(|name| name == matmul::CUBLAS);
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
    /// Of matrices, KV pages and what attention writes.
    dtype: Dtype,
    /// For [`matmul::Tools`]; grown with every activation that may need it.
    parts: DeviceBuffer<u16>,
    scratch: matmul::Scratch,
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
            rope_theta,
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
            rope: rope::RopeTable::new(device, rope_theta, head_dim, max_model_len)?,
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
            dtype,
            parts: DeviceBuffer::zeroed(device, 1)?,
            scratch: matmul::Scratch::default(),
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

    /// What matrix products use besides their operands, and what was chosen for them.
    fn products(&mut self) -> (matmul::Tools<'_>, &KernelChoice) {
        let Self { device, cublas, parts, scratch, choice, .. } = self;
        (matmul::Tools { device, cublas: cublas.as_ref(), parts, scratch }, choice)
    }

    /// Queues bringing a matrix to `target`, which has as many values of `self.dtype`.
    fn load(&mut self, matrix: &Matrix, target: &mut DeviceBuffer<u8>) -> Result<()> {
        let &Matrix { ref name, dtype, rows, cols, ref data } = matrix;
        if !self.widths.contains(&cols) {
            self.widths.push(cols);
        }
        let count = tensor::elements(rows, cols)?;
        if tensor::elements(count, dtype.size())? != data.len() {
            return Err(Error::Model(format!(
                "{name}: [{rows}, {cols}] of {dtype} takes {} bytes, it has {}",
                count * dtype.size(),
                data.len()
            )));
        }
        if dtype == self.dtype {
            return self.uploader.upload(data, target);
        }
        tracing::debug!("{name} is converted from {dtype} to {}", self.dtype);
        if (dtype, self.dtype) == (Dtype::Bf16, Dtype::F16) {
            self.uploader.upload(data, target)?;
            return self.range.narrow_in_place(&self.device, count, target);
        }
        let mut raw = DeviceBuffer::zeroed(&self.device, data.len())?;
        self.uploader.upload(data, &mut raw)?;
        match self.dtype {
            Dtype::F16 => self.range.narrow(&self.device, count, dtype, &raw, target),
            to => convert(&self.device, count, dtype, &raw, to, target),
        }
    }
}

impl Ops for CudaOps {
    type Tensor = Tensor;
    type Activation = Activation;
    type Weight = Weight;
    type Vector = DeviceBuffer<f32>;
    type KvCache = KvCache;
    type Batch = CudaBatch;

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
        let mut weight = Activation::new(&self.device, self.dtype, matrix.rows, matrix.cols)?;
        self.load(matrix, &mut weight.data)?;
        Ok(Weight(weight))
    }

    fn load_stacked(&mut self, matrices: &[&Matrix]) -> Result<Stacked<Weight>> {
        let cols = matrices.first().map_or(0, |matrix| matrix.cols);
        if let Some(other) = matrices.iter().find(|matrix| matrix.cols != cols) {
            return Err(Error::Model(format!(
                "{}: expected {cols} columns, found {}",
                other.name, other.cols
            )));
        }
        let rows = matrices.iter().map(|matrix| matrix.rows).sum();
        let whole = Activation::new(&self.device, self.dtype, rows, cols)?;
        let mut parts = Vec::new();
        let mut end = 0;
        for matrix in matrices {
            let bytes = tensor::elements(matrix.rows, cols)? * self.dtype.size();
            // SAFETY: the parts do not overlap, and nothing writes weights after this.
            let mut data = unsafe { whole.data.part(end, bytes)? };
            end += bytes;
            self.load(matrix, &mut data)?;
            parts.push(Weight(Activation { data, dtype: self.dtype, rows: matrix.rows, cols }));
        }
        Ok(Stacked { whole: Weight(whole), parts })
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
        weight: &DeviceBuffer<f32>,
        eps: f32,
        out: &mut Activation,
    ) -> Result<()> {
        rms_norm::rms_norm(&self.device, &self.choice, n, x, weight, eps, out)
    }

    fn add_rms_norm(
        &mut self,
        n: usize,
        x: &mut Tensor,
        delta: &Tensor,
        weight: &DeviceBuffer<f32>,
        eps: f32,
        out: &mut Activation,
    ) -> Result<()> {
        let operands = rms_norm::AddRmsNorm { x, delta, weight, eps, out };
        rms_norm::add_rms_norm(&self.device, &self.choice, n, operands)
    }

    fn matmul(&mut self, n: usize, x: &Activation, weight: &Weight, out: &mut Tensor) -> Result<()> {
        let (tools, choice) = self.products();
        matmul::matmul(tools, choice, n, x, weight, out)
    }

    fn matmul_accumulate(
        &mut self,
        n: usize,
        x: &Activation,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        let (tools, choice) = self.products();
        matmul::matmul_accumulate(tools, choice, n, x, weight, out)?;
        if std::mem::take(&mut self.scratch.has_moved) {
            self.graphs.clear();
        }
        Ok(())
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

    fn add_bias(&mut self, n: usize, x: &mut Tensor, bias: &DeviceBuffer<f32>) -> Result<()> {
        add_bias::add_bias(&self.device, n, x, bias)
    }

    fn rope(&mut self, batch: &CudaBatch, x: &mut Tensor, num_heads: usize) -> Result<()> {
        rope::rope(&self.device, batch, &self.rope, num_heads, x)
    }

    fn write_kv(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        write_kv::write_kv(&self.device, batch, layer, k, v, cache)
    }

    fn bias_rope_kv(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        qkv: &Tensor,
        bias: &QkvBias<DeviceBuffer<f32>>,
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
        let (workspace, num_attention_heads) = (&mut self.attention, self.num_attention_heads);
        let rows = batch.rows();
        let operands =
            attention::Attention { batch, rows, layer, num_attention_heads, q, cache, workspace, out };
        attention::attention(&self.device, &self.choice, operands)
    }

    fn attention_of_wanted(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Activation,
    ) -> Result<()> {
        let (workspace, num_attention_heads) = (&mut self.attention, self.num_attention_heads);
        let rows = batch.wanted_rows();
        if rows.split.num_rows != batch.shape.num_logits {
            return Err(Error::Request(
                "attention: the rows whose logits are wanted must be some, and the last of their sequences"
                    .to_owned(),
            ));
        }
        let operands =
            attention::Attention { batch, rows, layer, num_attention_heads, q, cache, workspace, out };
        attention::attention(&self.device, &self.choice, operands)
    }

    fn silu_mul(&mut self, n: usize, gate_up: &Activation, out: &mut Activation) -> Result<()> {
        silu_mul::silu_mul(&self.device, &self.choice, n, gate_up, out)
    }

    fn add(&mut self, n: usize, x: &mut Tensor, delta: &Tensor) -> Result<()> {
        add::add(&self.device, &self.choice, n, x, delta)
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

    fn is_fused(&self, batch: &CudaBatch, hidden_size: usize) -> bool {
        // Every row its sequence's only one: a decode step.
        let (n, single) = (batch.shape.num_tokens, !batch.shape.rows.has_multiple);
        let chosen = self.choice.get(fused::OP).is_none_or(|name| name == fused::FUSED);
        let replaced = [matmul::OP, rms_norm::OP, rms_norm::FUSED, silu_mul::OP, bias_rope_kv::OP, add::OP];
        let separate = replaced.iter().any(|op| self.choice.get(op).is_some());
        chosen
            && !separate
            && single
            && fused::is_eligible(&self.choice, n, self.dtype, hidden_size, &self.widths)
    }

    fn norm_qkv_rope(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        x: &Tensor,
        weights: &Qkv<Weight, DeviceBuffer<f32>>,
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        fused::norm_qkv_rope(&self.device, &self.choice, batch, &self.rope, layer, x, weights, q, cache)
    }

    fn matmul_add(&mut self, n: usize, x: &Activation, weight: &Weight, out: &mut Tensor) -> Result<()> {
        fused::matmul_add(&self.device, &self.choice, n, x, weight, out)
    }

    fn norm_gate_up(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &DeviceBuffer<f32>,
        eps: f32,
        gate: &Weight,
        up: &Weight,
        out: &mut Activation,
    ) -> Result<()> {
        fused::norm_gate_up(&self.device, &self.choice, n, x, norm, eps, gate, up, out)
    }

    fn norm_matmul(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &DeviceBuffer<f32>,
        eps: f32,
        weight: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        fused::norm_matmul(&self.device, &self.choice, n, x, norm, eps, weight, out)
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
