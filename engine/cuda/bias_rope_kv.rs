//! Biases, norms of heads, rotation and the pages of K and V: what is between the product of Q, K and V and attention.

use super::batch::{CudaBatch, expect_bound};
use super::device::{Dependent, Device};
use super::launch::{Launch, always, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::quantise_kv;
use super::rope::RopeTable;
use super::tensor::{KvCache, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use crate::ops::parts::QkNorm;
use cuda_std::launch::{DevicePtr, Kernels, LaunchConfig};
use gpu_kernels::bias_rope_kv::*;

pub(super) const OP: &str = "bias_rope_kv";

// The layout is stated in `kv_cache.rs` and compiled into the kernels.
const _: () = assert!(gpu_kernels::PAGE_SIZE as usize == PAGE_SIZE);

/// What the kernels take for `rows` rows, with pages of `dtype`.
pub(super) struct Case {
    dtype: Dtype,
    rows: u32,
    arguments: BiasRopeKvArgs,
}

/// A grid of `[rows, blocks]` with `threads` threads a row, in blocks of nearly the same size.
fn threads_of_rows(rows: u32, threads: u32) -> LaunchConfig {
    let blocks = threads.div_ceil(MAX_BLOCK_SIZE).max(1);
    let block = threads.div_ceil(blocks).next_multiple_of(32).clamp(32, MAX_BLOCK_SIZE);
    LaunchConfig { grid: [rows, threads.div_ceil(block), 1], block: [block, 1, 1], shared_bytes: 0 }
}

/// # Safety
/// The case is one for the kernel, whose threads take `pairs` pairs.
unsafe fn launch_pairs(
    device: &Device,
    case: &Case,
    kernels: &Kernels<BiasRopeKvArgs>,
    pairs: u32,
) -> Result<()> {
    let BiasRopeKvArgs { num_attention_heads, num_key_value_heads, head_dim, .. } = case.arguments;
    let heads = num_attention_heads + 2 * num_key_value_heads;
    let config = threads_of_rows(case.rows, heads * (head_dim / 2 / pairs));
    // SAFETY: a row of blocks for each row, a thread for each group of pairs; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[case.dtype.name().into()], &config, case.arguments) }
}

variants! { Case, Launch<Case>;
    "vec4" [vec4]: groups_of_4 => |device, case| unsafe { launch_pairs(device, case, vec4(), 4) };
    "plain" [plain]: always => |device, case| unsafe { launch_pairs(device, case, plain(), 1) };
}

fn groups_of_4(case: &Case) -> Result<(), &'static str> {
    let BiasRopeKvArgs { head_dim, q_norm, .. } = case.arguments;
    if !head_dim.is_multiple_of(8) {
        return Err("head_dim is not a multiple of 8");
    }
    // Lanes that share a head add its squares by shuffles.
    let lanes = head_dim / 8;
    let is_in_a_warp = lanes.is_power_of_two() && lanes <= 32;
    if q_norm.as_raw() == 0 || is_in_a_warp {
        Ok(())
    } else {
        Err("heads that are normed are no half warp's")
    }
}

/// The operands of [`bias_rope_kv`].
pub(super) struct BiasRopeKv<'a> {
    pub batch: &'a CudaBatch,
    pub table: &'a RopeTable,
    pub layer: usize,
    pub qkv: &'a Tensor,
    /// Of Q, K and V.
    pub bias: [Option<&'a DeviceBuffer<f32>>; 3],
    /// Of the heads of Q and K.
    pub norm: Option<&'a QkNorm<DeviceBuffer<f32>>>,
    pub q: &'a mut Tensor,
    pub cache: &'a mut KvCache,
}

/// [`crate::ops::Ops::bias_rope_kv`]
pub(super) fn bias_rope_kv(device: &Device, choice: &KernelChoice, operands: BiasRopeKv) -> Result<()> {
    let BiasRopeKv { batch, table, layer, qkv, bias, norm, q, cache } = operands;
    let (n, layout) = (batch.shape.num_tokens, cache.layout);
    let (q_size, kv_size) = (q.cols, layout.num_key_value_heads * layout.head_dim);
    q.expect(OP, "q", n, q_size)?;
    qkv.expect(OP, "qkv", n, q_size + 2 * kv_size)?;
    if layout.head_dim != table.head_dim || !q_size.is_multiple_of(table.head_dim) {
        return Err(Error::Request(format!(
            "{OP}: q has {q_size} columns and K heads of {}, which are no heads of {}",
            layout.head_dim, table.head_dim
        )));
    }
    let biases = [("q", bias[0], q_size), ("k", bias[1], kv_size), ("v", bias[2], kv_size)];
    for (name, bias, size) in biases {
        bias.map_or(Ok(()), |bias| expect_vector(OP, name, bias, size))?;
    }
    for (name, weight) in norm.iter().flat_map(|norm| [("q norm", &norm.q), ("k norm", &norm.k)]) {
        expect_vector(OP, name, weight, table.head_dim)?;
    }
    expect_bound(OP, "position", batch.shape.position_bound, table.num_positions)?;
    expect_bound(OP, "slot", batch.shape.slot_bound, layout.num_pages * PAGE_SIZE)?;
    let to = cache.target(OP, layer, n, batch.slots(), Dtype::F32)?;
    if n == 0 {
        return Ok(());
    }
    let [q_bias, k_bias, v_bias] =
        biases.map(|(_, bias, _)| bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr));
    let arguments = BiasRopeKvArgs {
        num_attention_heads: dimension(OP, q_size / table.head_dim)?,
        num_key_value_heads: dimension(OP, layout.num_key_value_heads)?,
        head_dim: dimension(OP, table.head_dim)?,
        positions: batch.positions(),
        slots: to.slots,
        cos: table.cos.ptr(),
        sin: table.sin.ptr(),
        qkv: qkv.ptr(),
        q_bias,
        k_bias,
        v_bias,
        q_norm: norm.map_or(DevicePtr::from_raw(0), |norm| norm.q.ptr()),
        k_norm: norm.map_or(DevicePtr::from_raw(0), |norm| norm.k.ptr()),
        eps: norm.map_or(0.0, |norm| norm.eps),
        q: q.ptr_mut(),
        k_pages: to.k,
        v_pages: to.v,
    };
    let case = Case { dtype: to.dtype, rows: dimension(OP, n)?, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: shapes, positions and slots were checked; q and the pages are borrowed alone. Two rows with the same slot would
    // race for its value, which is wrong but stays inside the page.
    unsafe { (variant.launch)(device, &case)? };
    quantise_kv::leave(batch, layer, &to, cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_threads_in_blocks_of_nearly_the_same_size() {
        for (threads, blocks, block) in [(144, 1, 160), (576, 3, 192), (36 * 64, 9, 256), (1, 1, 32)] {
            let config = threads_of_rows(5, threads);
            assert_eq!((config.grid, config.block), ([5, blocks, 1], [block, 1, 1]), "{threads} threads");
        }
    }
}
