//! The engine's operations ([`CudaOps`]) on an NVIDIA GPU: Rust kernels, and cuBLAS for the large matrix products.
//!
//! One file an operation: it checks every precondition of its kernels and holds the only `unsafe` launch of them.
//! Where an operation has several kernels, its file has a table of [`Variant`]s; `--kernel op=variant` picks one.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod add;
mod add_bias;
mod add_positions;
mod add_ranks;
mod argmax;
mod attention;
mod batch;
mod bias_gelu;
mod bias_rope_kv;
mod causal_conv;
mod convert;
mod cublas;
mod cuda_ops;
mod decode;
mod delta_rule;
mod delta_step;
mod device;
mod device_info;
mod driver;
mod embed;
mod emulated;
mod experts;
mod experts_in;
mod experts_out;
mod fused;
mod gate_rows;
mod gated_matmul;
mod gated_norm;
mod gather_ranks;
mod gather_rows;
mod gpu;
mod graph;
mod holding;
mod host_experts;
mod kv_cache;
mod launch;
mod layer_norm;
mod lora_add;
mod matmul;
mod memory;
mod nccl;
mod norm_route;
mod nvml;
pub mod ptx;
mod quantise_kv;
mod ranks;
mod read_bandwidth;
mod resources;
mod rms_norm;
mod rope;
mod route;
mod row_norms;
mod sample;
mod sigmoid_mul;
mod silu_mul;
mod sort_experts;
mod tensor;
mod tensor_map;
mod timer;
mod units;
mod variant;
mod weight;

// The rooms of the core, under the names that they have there.
use qernel_core::{config, dtype, error, formats, kv_format, kv_layout, ops, weights};

pub use batch::CudaBatch;
pub use convert::{Narrowing, convert, f16_scale, split_to_bf16};
pub use cublas::{Cublas, Product, WORKSPACE_BYTES, library_version, preload as preload_cublas};
pub use cuda_ops::CudaOps;
pub use device::{Device, PTX_FILE, Ptx, pci_address, probe};
pub use device_info::DeviceInfo;
pub use fused::max_rows as fused_max_rows;
pub use fused::norm_qkv_rope::takes_units as fused_takes_units;
pub use graph::Graph;
pub use holding::choose_holding;
pub use host_experts::host_experts_bytes;
pub use kv_cache::staging_bytes;
pub use matmul::preferred_matmul;
pub use memory::{DeviceBuffer, PinnedBuffer, Plain, Uploader};
pub use nccl::{Nccl, NcclId};
pub use nvml::{Condition, condition};
pub use ranks::{Group, Ranks, Room, Stage, ranks_bytes};
pub use read_bandwidth::{Memory, read_bandwidth};
pub use resources::Resources;
pub use tensor::{Activation, KvCache, States, Tensor, encode};
pub use timer::Timer;
pub use units::unit_cols;
pub use variant::{
    ALIASES, KernelChoice, Operation, Variant, VariantInfo, ineligible, is_ineligible, operation_name,
};
pub use weight::Weight;

use crate::config::Config;
use crate::dtype::Dtype;
use crate::ops::OpsConfig;
use crate::weights::Weights;
use qernel_core::batch::BatchLimits;
use std::collections::HashSet;

/// Calls a macro with the name of every operation that has kernels: what is there for each of them (the table of the program, cases of
/// the laboratory, tests) comes from this one list.
#[macro_export]
macro_rules! for_each_operation {
    ($call:ident) => {
        $call! {
            add add_bias add_positions add_ranks argmax attention bias_gelu bias_rope_kv causal_conv convert decode delta_rule delta_step
            embed experts_in experts_out gate_rows gated_matmul gated_norm gather_ranks gather_rows layer_norm lora_add matmul matmul_add matmul_blocks
            norm_gate_up norm_matmul norm_qkv_rope norm_route quantise_kv read_bandwidth repack rms_norm route row_norms
            sample sigmoid_mul silu_mul sort_experts
        }
    };
}

/// Every operation that has kernels, and the choices between ways to put them together, in the order of their names.
pub fn operations() -> Vec<Operation> {
    use fused::{matmul_add, norm_gate_up, norm_matmul, norm_qkv_rope};
    use matmul::blocks as matmul_blocks;
    use units as repack;
    macro_rules! table {
        ($($op:ident)*) => { vec![$($op::operation()),*] };
    }
    let mut operations = for_each_operation!(table);
    operations.push(Operation::choice(fused::OP, &fused::VARIANTS));
    operations.push(Operation::choice(graph::OP, &graph::VARIANTS));
    operations.push(Operation::choice(holding::OP, &holding::VARIANTS));
    operations.push(Operation::choice(ranks::HAND_OVER, &ranks::HAND_OVER_VARIANTS));
    operations.sort_by_key(|operation| operation.name);
    operations
}

/// Every operation that has kernels to choose from, with the names of its variants in order of preference.
pub fn kernels() -> Vec<(&'static str, Vec<&'static str>)> {
    let names = |op: &Operation| op.variants.iter().map(|variant| variant.name).collect();
    operations().iter().filter(|op| op.selectable).map(|op| (op.name, names(op))).collect()
}

/// The format of most of a model's matrix elements. Its matrix products, activations and KV pages have it on the GPU too, but
/// where that is bf16 and whoever loads it prefers f16.
pub fn compute_dtype(weights: &Weights) -> Dtype {
    let elements = |dtype: Option<Dtype>| {
        let matrices = weights.matrices().filter(|matrix| matrix.format.float() == dtype);
        matrices.map(|matrix| matrix.rows * matrix.cols).sum::<usize>()
    };
    let most = Dtype::ALL.into_iter().max_by_key(|&dtype| elements(Some(dtype))).unwrap_or(Dtype::F32);
    if elements(None) > elements(Some(most)) { Dtype::F16 } else { most }
}

/// Bytes of all weights once they are on the GPU: float matrices in `dtype`, others as the file has them, or as `choice` says, and room to
/// decode some rows of them, vectors in f32; but for those that stay `on_host`.
pub fn weight_bytes(
    weights: &Weights,
    dtype: Dtype,
    choice: &KernelChoice,
    on_host: &HashSet<String>,
) -> usize {
    let here = || weights.matrices().filter(|matrix| !on_host.contains(&matrix.name));
    let matrices: usize = here().map(|matrix| holding::matrix_bytes(choice, matrix, dtype)).sum();
    let in_blocks = here().filter(|matrix| matrix.format.float().is_none());
    // Stacked matrices are decoded at once: three at most.
    let values = in_blocks.map(|matrix| (3 * matrix.rows).saturating_mul(matrix.cols)).max().unwrap_or(0);
    matmul::blocks::decoded_bytes(values, dtype)
        + matrices
        + weights.vectors().map(size_of_val).sum::<usize>()
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
    let OpsConfig { num_attention_heads, head_dim, max_model_len, limits, experts, linear, .. } = config;
    WORKSPACE_BYTES
        + experts.as_ref().map_or(0, |experts| experts::Workspace::bytes(experts, limits))
        + linear.as_ref().map_or(0, |sizes| delta_rule::Workspace::bytes(sizes, limits))
        + MARGIN
        + attention::Workspace::bytes(limits, *max_model_len, *num_attention_heads, *head_dim)
        + sample::workspace_bytes(limits)
}

/// Bytes of the largest f32 activation split into two parts of bf16, which products with matrices of `dtype` need.
pub fn split_bytes(config: &Config, limits: &BatchLimits, dtype: Dtype) -> usize {
    if precise_dtype(dtype) == dtype {
        return 0;
    }
    let of_linear = config.linear.map_or(0, |sizes| sizes.value_size());
    let widest = config.dense_size().max(config.hidden_size).max(of_linear);
    limits.max_num_tokens.max(limits.max_num_logits).saturating_mul(widest).saturating_mul(4)
}
