//! [`Ops`] on the CPU: the reference that GPU kernels are compared with, and the engine of a machine without a GPU.
//!
//! Everything is f32 but for cached K and V, and for what products with matrices in blocks read, which is eight bits where it is asked
//! for ([`MatmulBlocks`]). Weights stay in the file's format where they are, in the memory map, and are widened as they are read. Each operation is one file. Every reduction has an order that depends on its own length alone, never on
//! the batch, on the number of threads or on the processor's vector width: see [`simd`] and [`matmul`].

pub mod add_bias;
pub mod add_positions;
pub mod attention;
pub mod bias_gelu;
pub mod bias_rope_kv;
pub mod causal_conv;
pub mod delta_rule;
pub mod embed;
mod exp;
mod experts;
mod experts_in;
mod experts_out;
pub mod gate_rows;
pub mod gated_norm;
pub mod gather_rows;
pub mod host_experts;
mod hybrid;
mod int8;
pub mod kernels;
pub mod kv;
pub mod layer_norm;
pub mod lora_add;
pub mod matmul;
mod read_bandwidth;
pub mod rms_norm;
pub mod route;
pub mod sample;
pub mod sigmoid_mul;
pub mod silu_mul;
pub mod simd;
pub mod states;
mod team;
pub mod tensor;

use crate::batch::{Batch, BatchLimits};
use crate::error::{Error, Result};
use crate::kv_layout::KvLayout;
use crate::ops::experts::ExpertOps;
use crate::ops::parts::{LayerNorm, Linear, QkNorm, RmsNorm, Router};
use crate::ops::ranks::RankOps;
use crate::ops::{Ops, OpsConfig, Rows, Stacked, Types};
use crate::rope::RopeTable;
use crate::sampler::SamplingRow;
use crate::weights::Matrix;
use kernels::{MatmulBlocks, MatmulKernels};
use kv::KvCache;
use simd::Isa;
use tensor::Tensor;

/// Is told of every product: the matrix, which it is of how many experts' (or 0 of 1), and rows `[n, cols]` that it is multiplied with.
pub type Observer = Box<dyn FnMut(&Matrix, [usize; 2], &[f32])>;

/// The decoder's operations on all cores (`RAYON_NUM_THREADS` limits them).
pub struct CpuOps {
    isa: Isa,
    blocks: MatmulBlocks,
    config: OpsConfig,
    /// Of the positions that came so far.
    angles: RopeTable,
    /// What [`Ops::read_bandwidth`] reads.
    weights: Vec<bytes::Bytes>,
    /// For the next draw.
    sampling: Vec<SamplingRow>,
    /// Of the last draw.
    sampled: Vec<u32>,
    /// Of experts.
    products: Option<Tensor>,
    observer: Option<Observer>,
}

impl CpuOps {
    /// The same operations, of which `observer` is told.
    pub fn observed_by(self, observer: Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Tells of products of the first `n` rows of `x`.
    fn observe(&mut self, n: usize, x: &Tensor, weight: &Weight) {
        if let Some(observer) = &mut self.observer
            && n <= x.rows()
        {
            weight.0.iter().for_each(|matrix| observer(matrix, [0, 1], x.first(n)));
        }
    }

    /// Tells of products of the first `n` rows with the matrices of their experts; `inputs` gives what those of a row's `j`th are.
    fn observe_experts<'a>(
        &mut self,
        n: usize,
        chosen: &Tensor,
        weights: &[&Weight],
        inputs: impl Fn(usize, usize) -> Option<&'a [f32]>,
    ) {
        let Some(observer) = &mut self.observer else { return };
        for row in 0..n.min(chosen.rows()) {
            let (numbers, _) = chosen.row(row).split_at(chosen.cols() / 2);
            for (j, &number) in numbers.iter().enumerate() {
                for Weight(matrices) in weights {
                    if let (Some(matrix), Some(x)) = (matrices.get(number as usize), inputs(row, j)) {
                        observer(matrix, [number as usize, matrices.len()], x);
                    }
                }
            }
        }
    }

    /// Operations with the best instructions that this processor has, all exact: [`CpuOps::with_blocks`] takes the faster products.
    ///
    /// # Errors
    /// As [`CpuOps::with_isa`].
    pub fn new(config: &OpsConfig) -> Result<Self> {
        Self::with_isa(config, Isa::best())
    }

    /// Operations with the instructions `isa`, for tests.
    ///
    /// # Errors
    /// [`Error::Model`] if the heads do not fit each other.
    pub fn with_isa(config: &OpsConfig, isa: Isa) -> Result<Self> {
        let OpsConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = *config;
        if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(Error::Model(format!(
                "{num_key_value_heads} key-value heads do not divide {num_attention_heads} attention heads"
            )));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::Model(format!("head_dim must be even and positive, it is {head_dim}")));
        }
        Ok(Self {
            isa,
            blocks: MatmulBlocks::Exact,
            config: config.clone(),
            angles: RopeTable::new(&config.rotation, head_dim),
            weights: Vec::new(),
            sampling: Vec::new(),
            sampled: Vec::new(),
            products: None,
            observer: None,
        })
    }
}

impl CpuOps {
    /// The same with products of matrices in blocks computed so.
    pub fn with_blocks(self, blocks: MatmulBlocks) -> Self {
        Self { blocks, ..self }
    }

    fn kernels(&self) -> MatmulKernels {
        MatmulKernels { isa: self.isa, blocks: self.blocks }
    }
}

/// Positions that the table of angles grows by: some tens of kilobytes.
const POSITIONS_AT_A_TIME: usize = 256;

/// Matrices of the file one below the other, `[sum of the rows, cols]`; most are one, those of experts one each.
#[derive(Clone, Debug)]
pub struct Weight(Vec<Matrix>);

impl Types for CpuOps {
    type Tensor = Tensor;
    type Activation = Tensor;
    type Weight = Weight;
    type Vector = Vec<f32>;
    type KvCache = KvCache;
    type States = states::States;
    type Batch = Batch;
}

impl Ops for CpuOps {
    fn new_tensor(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(rows, cols)
    }

    fn new_activation(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(rows, cols)
    }

    fn new_precise_activation(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(rows, cols)
    }

    fn new_product(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(rows, cols)
    }

    fn new_kv_cache(&mut self, layout: &KvLayout) -> Result<KvCache> {
        KvCache::new(layout)
    }

    fn new_batch(&mut self, _limits: &BatchLimits) -> Result<Batch> {
        Ok(Batch::default())
    }

    fn load_matrix(&mut self, matrix: &Matrix) -> Result<Weight> {
        matrix.row_bytes()?;
        self.weights.push(matrix.data.clone());
        Ok(Weight(vec![matrix.clone()]))
    }

    fn load_stacked(&mut self, matrices: &[Matrix], _apart: usize) -> Result<Stacked<Weight>> {
        let each = matrices.iter().map(|matrix| self.load_matrix(matrix)).collect::<Result<Vec<_>>>()?;
        let whole = Weight(each.iter().flat_map(|weight| weight.0.iter().cloned()).collect());
        Ok(Stacked { whole, matrices: each })
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn upload(&mut self, host: &Batch, batch: &mut Batch) -> Result<()> {
        batch.clone_from(host);
        Ok(())
    }

    fn embed(&mut self, batch: &Batch, table: &Weight, out: &mut Tensor) -> Result<()> {
        let [table] = &table.0[..] else {
            return Err(Error::Request("embed: the table is one matrix, not several".into()));
        };
        embed::embed(self.isa, &batch.tokens, table, out)
    }

    fn add_positions(&mut self, batch: &Batch, table: &Vec<f32>, x: &mut Tensor) -> Result<()> {
        add_positions::add_positions(&batch.positions, table, x)
    }

    fn rms_norm(&mut self, n: usize, x: &Tensor, norm: &RmsNorm<Vec<f32>>, out: &mut Tensor) -> Result<()> {
        rms_norm::rms_norm(n, x, &norm.weight, norm.eps, out)
    }

    fn layer_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &LayerNorm<Vec<f32>>,
        out: &mut Tensor,
    ) -> Result<()> {
        layer_norm::layer_norm(n, x, norm, out)
    }

    fn matmul(&mut self, n: usize, x: &Tensor, weight: &Weight, out: &mut Tensor) -> Result<()> {
        self.observe(n, x, weight);
        matmul::matmul_stacked(self.kernels(), n, x, &weight.0, false, out)
    }

    fn matmul_add(&mut self, rows: Rows<Batch>, x: &Tensor, weight: &Weight, out: &mut Tensor) -> Result<()> {
        self.observe(rows.n, x, weight);
        matmul::matmul_stacked(self.kernels(), rows.n, x, &weight.0, true, out)
    }

    fn add_bias(&mut self, n: usize, bias: &Vec<f32>, x: &mut Tensor) -> Result<()> {
        add_bias::add_bias(n, bias, x)
    }

    fn matmul_rounded(&mut self, n: usize, x: &Tensor, weight: &Weight, out: &mut Tensor) -> Result<()> {
        self.matmul(n, x, weight, out)
    }

    fn bias_rope_kv(
        &mut self,
        batch: &Batch,
        layer: usize,
        qkv: &Tensor,
        bias: [Option<&Vec<f32>>; 3],
        norm: Option<&QkNorm<Vec<f32>>>,
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let positions = batch.positions.iter().max().map_or(0, |&position| position as usize + 1);
        if positions > self.angles.num_positions() {
            let room = positions.next_multiple_of(POSITIONS_AT_A_TIME);
            self.angles.grow(room.min(self.config.max_model_len).max(positions))?;
        }
        bias_rope_kv::bias_rope_kv(batch, layer, &self.angles, qkv, bias, norm, q, cache)
    }

    fn attention(
        &mut self,
        batch: &Batch,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Tensor,
    ) -> Result<()> {
        attention::attention(self.isa, batch, layer, self.config.num_attention_heads, q, cache, out)
    }

    fn attention_of_logit_rows(
        &mut self,
        batch: &Batch,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Tensor,
    ) -> Result<()> {
        self.attention(&batch.only_logit_rows(), layer, q, cache, out)
    }

    fn silu_mul(&mut self, n: usize, _: &Stacked<Weight>, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
        silu_mul::silu_mul(n, gate_up, out)
    }

    fn bias_gelu(
        &mut self,
        n: usize,
        projection: &Linear<Weight, Vec<f32>>,
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        bias_gelu::bias_gelu(n, x, projection.bias.as_ref(), out)
    }

    fn gate_rows(&mut self, n: usize, x: &Tensor, gate: &Vec<f32>, rows: &mut Tensor) -> Result<()> {
        gate_rows::gate_rows(n, x, gate, rows)
    }

    fn gather_rows(&mut self, batch: &Batch, x: &Tensor, out: &mut Tensor) -> Result<()> {
        gather_rows::gather_rows(&batch.logit_rows, x, out)
    }

    fn prepare_sampling(&mut self, logits: &Tensor, rows: &[SamplingRow]) -> Result<()> {
        let vocab_size = logits.cols();
        logits.expect("sample", "logits", rows.len(), vocab_size)?;
        if vocab_size == 0 {
            return Err(Error::Request("sample: the vocabulary is empty".into()));
        }
        self.sampling = rows.to_vec();
        Ok(())
    }

    fn queue_sampling(&mut self, logits: &mut Tensor) -> Result<()> {
        let (rows, vocab_size) = (&self.sampling, logits.cols().max(1));
        logits.expect("sample", "logits", rows.len(), vocab_size)?;
        let mut draws: Vec<_> = logits
            .first_mut(rows.len())
            .chunks_mut(vocab_size)
            .zip(rows)
            .map(|(logits, row)| (logits, row, 0))
            .collect();
        team::for_each_chunk(&mut draws, 1, |_, draws| {
            draws.iter_mut().for_each(|(logits, row, token)| *token = sample::sample(logits, row));
        });
        self.sampled = draws.into_iter().map(|(_, _, token)| token).collect();
        Ok(())
    }

    fn take_tokens(&mut self) -> Result<Vec<u32>> {
        Ok(std::mem::take(&mut self.sampled))
    }

    fn read(&mut self, n: usize, x: &Tensor) -> Result<Vec<f32>> {
        x.expect("read", "x", n, x.cols())?;
        Ok(x.first(n).to_vec())
    }

    fn read_row(&mut self, row: usize, x: &Tensor) -> Result<Vec<f32>> {
        x.expect("read_row", "x", row + 1, x.cols())?;
        Ok(x.first(row + 1)[row * x.cols()..].to_vec())
    }

    fn device_name(&self) -> String {
        device_name(self.isa)
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        Ok(read_bandwidth::read_bandwidth(self.isa, &self.weights))
    }
}

impl RankOps for CpuOps {}

impl ExpertOps for CpuOps {
    fn load_experts(&mut self, matrix: &Matrix, num_experts: usize) -> Result<Weight> {
        let matrices = matrix.of_experts(num_experts)?;
        self.weights.push(matrix.data.clone());
        Ok(Weight(matrices))
    }

    fn route(&mut self, n: usize, x: &Tensor, router: &Router<Vec<f32>>, chosen: &mut Tensor) -> Result<()> {
        route::route(n, x, router, chosen)
    }

    fn experts_in(
        &mut self,
        n: usize,
        x: &Tensor,
        chosen: &Tensor,
        gate_up: [&Weight; 2],
        inner: &mut Tensor,
    ) -> Result<()> {
        self.observe_experts(n, chosen, &gate_up, |row, _| (row < x.rows()).then(|| x.row(row)));
        let gate_up = gate_up.map(|weight| &weight.0[..]);
        experts_in::experts_in(self.kernels(), n, x, chosen, gate_up, inner)
    }

    fn experts_out(
        &mut self,
        n: usize,
        inner: &Tensor,
        chosen: &Tensor,
        down: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        let width = inner.cols() / (chosen.cols() / 2).max(1);
        let of = |row: usize, j: usize| (row < inner.rows()).then(|| &inner.row(row)[j * width..][..width]);
        self.observe_experts(n, chosen, &[down], of);
        experts_out::experts_out(self.kernels(), n, inner, chosen, &down.0, &mut self.products, out)
    }
}

/// What computes, for people.
fn device_name(isa: Isa) -> String {
    format!("CPU ({} threads, {})", rayon::current_num_threads(), isa.name())
}

/// Calls `f` with the index and the values of each row, on all cores where the rows together are worth waking them.
fn for_each_row(rows: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    /// Below this many values one core is done before another has started.
    const WORTH_WAKING: usize = 1 << 15;
    if cols == 0 {
        return;
    }
    if rows.len() < WORTH_WAKING {
        rows.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| f(i, row));
    } else {
        team::for_each_chunk(rows, cols, f);
    }
}

/// Refuses an index that is not below `limit`.
fn expect_below(op: &str, what: &str, indices: &[u32], limit: usize) -> Result<()> {
    match indices.iter().find(|&&index| index as usize >= limit) {
        Some(index) => Err(Error::Request(format!("{op}: {what} {index} must be below {limit}"))),
        None => Ok(()),
    }
}
