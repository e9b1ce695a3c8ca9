//! The operations, each handed to the file that computes it.

use super::{CudaOps, StepKey};
use crate::batch::{self, CudaBatch};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::KvLayout;
use crate::memory::DeviceBuffer;
use crate::ops::parts::{
    AttentionIn, Experts, LayerNorm, Linear, MlpIn, Norm, NormMatmul, QkNorm, RmsNorm, Up,
};
use crate::ops::{Ops, Rows, Stacked, Work};
use crate::tensor::{self, Activation, KvCache, Tensor};
use crate::units::UnitMatrix;
use crate::weight::{Run, Values, Weight};
use crate::weights::Matrix;
use crate::{
    add_bias, add_positions, bias_rope_kv, cublas, embed, fused, gate_rows, gated_matmul, gather_rows, graph,
    layer_norm, matmul, precise_dtype, quantise_kv, read_bandwidth, rms_norm,
};
use qernel_core::batch::{Batch, BatchLimits};
use qernel_core::sampler::SamplingRow;

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
            if room > self.bf16_halves.len() {
                self.bf16_halves = DeviceBuffer::zeroed(&self.device, room)?;
            }
        }
        Activation::new(&self.device, dtype, rows, cols)
    }

    fn new_product(&mut self, rows: usize, cols: usize) -> Result<Activation> {
        // Room for what a product without cuBLAS writes.
        Activation::new(&self.device, Dtype::F32, rows, cols)
    }

    fn new_kv_cache(&mut self, layout: &KvLayout) -> Result<KvCache> {
        let formats = layout.formats;
        if [formats.k, formats.v].iter().any(|format| format.float().is_some_and(|dtype| dtype != self.dtype))
        {
            return Err(Error::Request(format!(
                "KV pages must be {}, the format of the weights, or q8_0, not {formats}",
                self.dtype
            )));
        }
        KvCache::new(&self.device, layout, self.max_num_tokens)
    }

    fn new_batch(&mut self, limits: &BatchLimits) -> Result<CudaBatch> {
        CudaBatch::new(&self.device, limits)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        crate::holding::matrix_bytes(&self.choice, matrix, self.dtype)
    }

    fn load_matrix(&mut self, matrix: &Matrix) -> Result<Weight> {
        self.load_one(matrix)
    }

    fn load_stacked(&mut self, matrices: &[Matrix], apart: usize) -> Result<Stacked<Weight>> {
        self.load_several(matrices, apart)
    }

    fn finish_loading(&mut self) -> Result<()> {
        self.settle_scales()
    }

    fn bound_attention(&mut self, name: &str, part: &AttentionIn<Weight, DeviceBuffer<f32>>) -> Result<()> {
        self.bound_qkv(name, part)
    }

    fn bound_mlp(&mut self, name: &str, part: &MlpIn<Weight, DeviceBuffer<f32>>) -> Result<()> {
        self.bound_gate_up(name, part)
    }

    fn bound_experts(&mut self, name: &str, part: &Experts<Weight, DeviceBuffer<f32>>) -> Result<()> {
        self.bound_mixture(name, part)
    }

    fn bound_norm(&mut self, name: &str, norm: &Norm<DeviceBuffer<f32>>) -> Result<()> {
        self.bound_norm_output(name, norm)
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<DeviceBuffer<f32>> {
        DeviceBuffer::from_slice(&self.device, values)
    }

    fn upload(&mut self, host: &Batch, batch: &mut CudaBatch) -> Result<()> {
        // Graphs read what was there before something grew.
        if batch.upload(host)? {
            self.graphs.clear();
        }
        if self.rope.grow(&self.device, batch.shape.position_bound)? {
            self.graphs.clear();
        }
        Ok(())
    }

    fn embed(&mut self, batch: &CudaBatch, table: &Weight, out: &mut Tensor) -> Result<()> {
        embed::embed(&self.device, batch, self.sampler.last_tokens(), table, out)
    }

    fn add_positions(&mut self, batch: &CudaBatch, table: &DeviceBuffer<f32>, x: &mut Tensor) -> Result<()> {
        add_positions::add_positions(&self.device, batch, table, x)
    }

    fn layer_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &LayerNorm<DeviceBuffer<f32>>,
        out: &mut Activation,
    ) -> Result<()> {
        layer_norm::layer_norm(&self.device, &self.choice, n, x, norm, out)
    }

    fn add_bias(&mut self, n: usize, bias: &DeviceBuffer<f32>, x: &mut Tensor) -> Result<()> {
        add_bias::add_bias(&self.device, n, bias, x)
    }

    fn matmul_add_ranks(
        &mut self,
        rows: Rows<CudaBatch>,
        x: &Activation,
        weight: &Weight,
        part: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        self.add_products_of_ranks(rows, x, weight, part, out)
    }

    fn bias_gelu(
        &mut self,
        n: usize,
        projection: &Linear<Weight, DeviceBuffer<f32>>,
        x: &Activation,
        out: &mut Activation,
    ) -> Result<()> {
        let scales = projection.weight.scales();
        let [product, gated] = scales.map_or([1.0; 2], |scales| [scales.product.get(), scales.gated.get()]);
        out.scale = gated;
        self.scaled_bias_gelu(n, x, projection.bias.as_ref(), [product, 1.0 / gated], out)
    }

    fn rms_norm(
        &mut self,
        n: usize,
        x: &Tensor,
        norm: &RmsNorm<DeviceBuffer<f32>>,
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
        if weight.units(true).is_some() && self.is_step_of_parts(rows) {
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
        matmul::matmul_rounded(tools, choice, n, x, weight, true, out)
    }

    fn bias_rope_kv(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        qkv: &Tensor,
        bias: [Option<&DeviceBuffer<f32>>; 3],
        norm: Option<&QkNorm<DeviceBuffer<f32>>>,
        q: &mut Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let operands =
            bias_rope_kv::BiasRopeKv { batch, table: &self.rope, layer, qkv, bias, norm, q, cache };
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

    fn attention_of_logit_rows(
        &mut self,
        batch: &CudaBatch,
        layer: usize,
        q: &Tensor,
        cache: &KvCache,
        out: &mut Activation,
    ) -> Result<()> {
        let rows = batch.only_logit_rows();
        if rows.split.num_rows != batch.shape.num_logits {
            return Err(Error::Request(
                "attention: the rows that need logits must be some, and the last of their sequences"
                    .to_owned(),
            ));
        }
        self.attend(batch, rows, layer, q, cache, out)
    }

    fn store_rows(&mut self, cache: &mut KvCache) -> Result<()> {
        quantise_kv::store(&self.device, &self.choice, cache)
    }

    fn silu_mul(
        &mut self,
        n: usize,
        weights: &Stacked<Weight>,
        gate_up: &Activation,
        out: &mut Activation,
    ) -> Result<()> {
        let (scales, gated) = Self::swiglu_scales(weights);
        out.scale = gated;
        self.scaled_silu_mul(n, gate_up, scales, out)
    }

    fn gate_rows(
        &mut self,
        n: usize,
        x: &Activation,
        gate: &DeviceBuffer<f32>,
        rows: &mut Activation,
    ) -> Result<()> {
        gate_rows::gate_rows(&self.device, n, x, gate, rows)
    }

    fn gather_rows(&mut self, batch: &CudaBatch, x: &Tensor, out: &mut Tensor) -> Result<()> {
        gather_rows::gather_rows(&self.device, batch, x, out)
    }

    fn warm_up(&mut self, most: usize) -> Result<()> {
        let Some(cublas) = &self.cublas else { return Ok(()) };
        let mut n = 1;
        while n <= most {
            n = cublas::rounded_rows(n).min(most);
            cublas.warm_up(n)?;
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
        let AttentionIn { norm: Norm::Rms(norm), qkv, bias, qk_norm: None, gate: None, .. } = part else {
            return Ok(false);
        };
        let [q_proj, k_proj, v_proj] = &qkv.matrices[..] else { return Ok(false) };
        let weights = [q_proj, k_proj, v_proj];
        let takes = match weights.map(|weight| weight.units(false)) {
            [Some(q), Some(k), Some(v)] => {
                fused::QkvWeights::are_known(q, k, v) && self.takes_units(fused::norm_qkv_rope::OP, q, rows)
            }
            _ => weights.iter().all(|weight| weight.is_plain()) && self.is_fused(rows, x.cols),
        };
        if !takes {
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
        let MlpIn { norm: Norm::Rms(norm), up: Up::Gated(gate_up), .. } = part else { return Ok(false) };
        let [gate, up] = &gate_up.matrices[..] else { return Ok(false) };
        let takes = match (gate.units(true), up.units(true)) {
            (Some(gate), Some(up)) => {
                fused::GateUp::are_side_by_side(gate, up)
                    && self.takes_units(fused::norm_gate_up::OP, gate, rows)
            }
            _ => gate.float().is_some() && up.float().is_some() && self.is_fused(rows, x.cols),
        };
        if !takes {
            return Ok(false);
        }
        self.fused_norm_gate_up(rows.n, x, norm, [gate, up], out)?;
        Ok(true)
    }

    fn gated_matmul(
        &mut self,
        n: usize,
        x: &Activation,
        weights: &Stacked<Weight>,
        out: &mut Activation,
    ) -> Result<bool> {
        let [gate, up] = &weights.matrices[..] else { return Ok(false) };
        let takes = gate.float().is_some_and(|gate| gated_matmul::suits(&self.device, n, gate))
            && up.float().is_some()
            && x.dtype == Dtype::F16
            && out.dtype == Dtype::F16
            && self.is_wanted(&gated_matmul::REPLACED);
        Ok(takes && self.fused_gated_matmul(n, x, weights, out)?)
    }

    fn norm_matmul(
        &mut self,
        rows: Rows<CudaBatch>,
        part: &NormMatmul<Weight, DeviceBuffer<f32>>,
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<bool> {
        let NormMatmul { norm: Norm::Rms(norm), weight } = part else { return Ok(false) };
        let takes = |run: &Run| match run.values {
            Values::Units(UnitMatrix { units, .. }) => {
                fused::norm_matmul::are_in_order(*units, run.rows)
                    && self.takes_units(fused::norm_matmul::OP, *units, rows)
            }
            Values::Float(_) => self.is_fused(rows, x.cols),
            Values::Blocks(_) => false,
        };
        let runs = weight.runs(|scales| scales.stored.get());
        if !runs.iter().all(|run| run.scale == 1.0 && takes(run)) {
            return Ok(false);
        }
        fused::norm_matmul(&self.device, &self.choice, rows.n, x, norm, weight, &runs, out)?;
        Ok(true)
    }

    fn prepare_sampling(&mut self, logits: &Tensor, rows: &[SamplingRow]) -> Result<()> {
        self.vocab_size = logits.cols();
        self.sampler.prepare(&self.choice, logits, rows)
    }

    fn queue_sampling(&mut self, logits: &mut Tensor) -> Result<()> {
        self.sampler.queue(&self.choice, logits)
    }

    fn copy_tokens_to_host(&mut self) -> Result<()> {
        self.sampler.fetch()
    }

    fn take_tokens(&mut self) -> Result<Vec<u32>> {
        let tokens = self.sampler.take(self.vocab_size)?;
        self.expect_all_ranks()?;
        Ok(tokens)
    }

    fn discard_tokens(&mut self) {
        self.sampler.discard();
    }

    fn runs_ahead(&self) -> bool {
        let is_alone = self.host_experts.is_none() && self.stage.is_none();
        is_alone && self.choice.get(graph::OP).is_none_or(|name| name == graph::AHEAD)
    }

    fn run_step(
        &mut self,
        batch: &CudaBatch,
        work: Work,
        step: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let replays =
            self.choice.get(graph::OP).is_none_or(|name| [graph::AHEAD, graph::GRAPH].contains(&name));
        let is_recordable = replays && self.host_experts.is_none() && !self.device.is_emulated();
        let bucket = batch.bucket().filter(|_| is_recordable && !batch.has_adapters());
        let Some(bucket) = bucket else { return step(self) };
        let draw = bucket.has_logits().then(|| self.sampler.shape());
        let key = StepKey { work, batch: bucket, draw, generation: self.sampler.generation() };
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
        let values = x.data.read(0, n * x.cols())?;
        self.expect_all_ranks()?;
        Ok(values)
    }

    fn read_row(&mut self, row: usize, x: &Tensor) -> Result<Vec<f32>> {
        x.expect("read_row", "x", row + 1, x.cols())?;
        x.data.read(row * x.cols(), x.cols())
    }

    fn device_name(&self) -> String {
        let info = self.device.info();
        let mut name = info.name.clone();
        if !self.device.is_emulated() {
            name = format!("{name} (cuda:{})", info.ordinal);
        }
        self.host_experts.as_ref().map_or(name.clone(), |host| format!("{name}, {}", host.name()))
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        // A step that reads two memories has no ceiling by one of them.
        if self.device.is_emulated() || self.host_experts.is_some() {
            return Ok(None);
        }
        read_bandwidth::read_bandwidth_of(&self.device, &self.loaded).map(Some)
    }
}
