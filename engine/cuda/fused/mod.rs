//! A decoder layer in few kernels, for batches of few rows (`gpu-kernels/src/fused`): on tensor cores where the weights are
//! f16 (`mma`), otherwise by groups of lanes (`lanes`).

mod matmul_add;
mod norm_gate_up;
mod norm_matmul;
mod norm_qkv_rope;

pub(super) use matmul_add::matmul_add;
pub(super) use norm_gate_up::norm_gate_up;
pub(super) use norm_matmul::norm_matmul;
pub(super) use norm_qkv_rope::norm_qkv_rope;

use super::device::Device;
use super::variant::Operation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::LaunchConfig;
use gpu_kernels::fused::WORD;
use gpu_kernels::fused::mma::{
    MAX_DEPTH, MAX_NORM_WARPS, norm_shared_bytes, num_rounds, num_warps, stream_bytes,
};

/// The most rows that the fused kernels take.
pub const MAX_ROWS: usize = gpu_kernels::fused::MAX_ROWS as usize;

/// How a layer is computed: `fused`, or `separate` operations.
pub(super) const OP: &str = "layer";
pub(super) const FUSED: &str = "fused";
pub(super) const VARIANTS: [&str; 2] = [FUSED, "separate"];

/// The most shared memory that staged rows may take: two blocks of such size fit on a multiprocessor.
pub(super) const MAX_STAGE_BYTES: u32 = 100 << 10;

/// The operations of this module, in the order of their names.
pub(super) fn operations() -> [Operation; 4] {
    [
        Operation::of(matmul_add::OP, &matmul_add::VARIANTS),
        Operation::of(norm_gate_up::OP, &norm_gate_up::VARIANTS),
        Operation::single("norm_matmul", &["norm_matmul_*_one", "norm_matmul_*_few"]),
        Operation::of(norm_qkv_rope::OP, &norm_qkv_rope::VARIANTS),
    ]
}

/// Whether the kernels take `n` rows of a model with these widths.
pub(super) fn is_eligible(n: usize, dtype: Dtype, widths: &[usize]) -> bool {
    let fits = |&width: &usize| {
        width.is_multiple_of(WORD as usize) && n * width * 4 <= MAX_STAGE_BYTES as usize && width > 0
    };
    (1..=MAX_ROWS).contains(&n) && dtype != Dtype::F32 && widths.iter().all(fits)
}

/// Calls the kernel of the dtype for one row or for few.
macro_rules! by_rows {
    ($n:expr, $dtype:expr, $f16_one:path, $bf16_one:path, $f16_few:path, $bf16_few:path, ($($argument:expr),* $(,)?)) => {
        match ($n, $dtype) {
            (1, $crate::dtype::Dtype::F16) => $f16_one($($argument),*),
            (1, _) => $bf16_one($($argument),*),
            (_, $crate::dtype::Dtype::F16) => $f16_few($($argument),*),
            _ => $bf16_few($($argument),*),
        }
    };
}
use by_rows;

/// Refuses what the kernels do not take.
fn expect_eligible(op: &str, n: usize, dtype: Dtype, width: usize) -> Result<()> {
    if is_eligible(n, dtype, &[width]) {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{op}: the fused kernels take 1 to {MAX_ROWS} rows of f16 or bf16 weights with multiples of {WORD} columns, not {n} \
         rows of {dtype} with {width}"
    )))
}

/// A grid of as many blocks as there is work for, but no more than the device runs at a time.
fn persistent(
    device: &Device,
    work: u32,
    blocks_per_multiprocessor: u32,
    block: u32,
    shared_bytes: u32,
) -> LaunchConfig {
    let resident = device.info().multiprocessors * blocks_per_multiprocessor;
    LaunchConfig { grid: [work.clamp(1, resident), 1, 1], block: [block, 1, 1], shared_bytes }
}

/// For [`Variant`](super::variant::Variant)s on tensor cores.
fn f16_only(dtype: Dtype) -> Result<(), &'static str> {
    if dtype == Dtype::F16 { Ok(()) } else { Err("the weights are not f16") }
}

/// The most shared memory of a block whose weights go through it: with it, what comes after still fits beside it.
const MAX_STREAM_BYTES: u32 = 150 << 10;

/// The grid of a kernel that streams `tiles` tiles of rows of weights, and how many parts of them a block has under way: as many as
/// there are, or fit.
fn stream(device: &Device, tiles: u32, rounds: u32, warps: u32, shared_bytes: u32) -> (LaunchConfig, u32) {
    let blocks = tiles.clamp(1, device.info().multiprocessors.max(1));
    let parts = tiles.div_ceil(blocks).saturating_mul(rounds);
    let room = MAX_STREAM_BYTES.saturating_sub(shared_bytes) / stream_bytes(warps, 1);
    let depth = parts.min(room).clamp(1, MAX_DEPTH);
    let shared_bytes = stream_bytes(warps, depth) + shared_bytes;
    (LaunchConfig { grid: [blocks, 1, 1], block: [32 * warps, 1, 1], shared_bytes }, depth)
}

/// [`stream`] for rows of `cols` columns that `n` normed rows are multiplied with.
fn norm_stream(device: &Device, tiles: u32, cols: u32, n: u32) -> (LaunchConfig, u32) {
    let warps = num_warps(cols, MAX_NORM_WARPS);
    let rounds = num_rounds(cols, warps);
    stream(device, tiles, rounds, warps, norm_shared_bytes(warps, rounds, rows_of_kernel(n)))
}

/// The same with a block for each tile.
fn tile_a_block(tiles: u32, cols: u32, n: u32) -> (LaunchConfig, u32) {
    let warps = num_warps(cols, MAX_NORM_WARPS);
    let rounds = num_rounds(cols, warps);
    let depth = rounds.min(MAX_DEPTH);
    let shared_bytes = stream_bytes(warps, depth) + norm_shared_bytes(warps, rounds, rows_of_kernel(n));
    (LaunchConfig { grid: [tiles.max(1), 1, 1], block: [32 * warps, 1, 1], shared_bytes }, depth)
}

/// Rows that the kernel for `n` rows has room for.
fn rows_of_kernel(n: u32) -> u32 {
    if n == 1 { 1 } else { gpu_kernels::fused::MAX_ROWS }
}
