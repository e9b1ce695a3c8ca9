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
use gpu_kernels::fused::mma::{MAX_DEPTH, batch, norm_shared_bytes, num_rounds, num_warps, stream_bytes};

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

/// The most shared memory of a block whose weights go through it: with it, the next kernel's still fit beside it.
const MAX_STREAM_BYTES: u32 = 148 << 10;

/// The shape of a launch that streams tiles of rows of weights.
struct StreamShape {
    tiles: u32,
    blocks: u32,
    warps: u32,
    rounds: u32,
}

impl StreamShape {
    /// `tiles` tiles of rows of `cols` columns, by blocks of at most `max_warps` warps: one a multiprocessor.
    fn new(device: &Device, tiles: u32, cols: u32, max_warps: u32) -> Self {
        let warps = num_warps(cols, max_warps);
        let blocks = tiles.clamp(1, device.info().multiprocessors.max(1));
        Self { tiles, blocks, warps, rounds: num_rounds(cols, warps) }
    }

    /// The launch, where a block needs `shared_bytes` besides, and how many parts it has in shared memory: as many as there are, or
    /// fit.
    fn config(&self, shared_bytes: u32) -> (LaunchConfig, u32) {
        let parts = self.tiles.div_ceil(self.blocks).saturating_mul(self.rounds);
        let room = MAX_STREAM_BYTES.saturating_sub(shared_bytes) / stream_bytes(self.warps, 1);
        let depth = parts.min(room).clamp(1, MAX_DEPTH);
        let shared_bytes = stream_bytes(self.warps, depth) + shared_bytes;
        (LaunchConfig { grid: [self.blocks, 1, 1], block: [32 * self.warps, 1, 1], shared_bytes }, depth)
    }

    /// The launch for `n` rows that are normed.
    fn normed(&self, n: u32) -> (LaunchConfig, u32) {
        let batch = batch(self.tiles, self.blocks);
        self.config(norm_shared_bytes(self.warps, self.rounds, rows_of_kernel(n), batch))
    }
}

/// Rows that the kernel for `n` rows has room for.
fn rows_of_kernel(n: u32) -> u32 {
    if n == 1 { 1 } else { gpu_kernels::fused::MAX_ROWS }
}
