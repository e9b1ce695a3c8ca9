//! A decoder layer in few kernels, for batches of few rows (`gpu-kernels/src/fused`): on tensor cores where the weights are
//! f16 (`mma`), otherwise by groups of lanes (`lanes`).

pub(super) mod matmul_add;
pub(super) mod norm_gate_up;
pub(super) mod norm_matmul;
pub(super) mod norm_qkv_rope;

pub(super) use matmul_add::matmul_add;
pub(super) use norm_gate_up::{GateUp, norm_gate_up};
pub(super) use norm_matmul::norm_matmul;
pub(super) use norm_qkv_rope::{Qkv, QkvWeights, norm_qkv_rope};

use super::device::Device;
use super::units::{self, Units};
use super::variant::KernelChoice;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use cuda_std::launch::{Kernels, LaunchConfig, Value};
use gpu_kernels::fused::mma::{
    self, MAX_DEPTH, MAX_NORM_WARPS, MIN_WARPS_OF_EIGHT, batch, norm_shared_bytes, num_rounds, num_warps,
    stream_bytes,
};
use gpu_kernels::fused::{WORD, stage_bytes};

/// The most rows that the fused kernels take: those on tensor cores.
const MAX_ROWS: usize = mma::MAX_ROWS as usize;
/// The most rows that all of them take.
const FEW_ROWS: usize = gpu_kernels::fused::MAX_ROWS as usize;

/// How a layer is computed: `fused`, or `separate` operations.
pub(super) const OP: &str = "layer";
pub(super) const FUSED: &str = "fused";
pub(super) const VARIANTS: [&str; 2] = [FUSED, "separate"];

/// The most shared memory that staged rows may take: two blocks of such size fit on a multiprocessor.
pub(super) const MAX_STAGE_BYTES: u32 = 100 << 10;

/// Whether the kernels take `n` rows of a model with these widths, of which `hidden_size` is normed.
pub(super) fn is_eligible(
    choice: &KernelChoice,
    n: usize,
    dtype: Dtype,
    hidden_size: usize,
    widths: &[usize],
) -> bool {
    let takes = |op, cols: usize, mma_fits: Fits| {
        let (Ok(n), Ok(cols)) = (u32::try_from(n), u32::try_from(cols)) else { return false };
        let mma = dtype == Dtype::F16 && mma_fits(n, cols).is_ok();
        let lanes = lanes_fit(n, cols).is_ok();
        match choice.get(op) {
            None => mma || lanes,
            Some(MMA) => mma,
            Some(_) => lanes,
        }
    };
    (1..=max_rows(dtype)).contains(&n)
        && dtype != Dtype::F32
        && widths.iter().all(|width| width.is_multiple_of(WORD as usize) && *width > 0)
        && takes(norm_qkv_rope::OP, hidden_size, norm_fits)
        && takes(norm_gate_up::OP, hidden_size, norm_fits)
        && takes(norm_matmul::OP, hidden_size, |_, cols| norm_fits(mma::MAX_ROWS, cols))
        && widths.iter().all(|&width| takes(matmul_add::OP, width, |_, _| Ok(())))
}

/// Whether kernels take that many rows of that many values.
type Fits = fn(u32, u32) -> Result<(), &'static str>;

/// The most rows that there are kernels for, with weights of `dtype`.
pub fn max_rows(dtype: Dtype) -> usize {
    if dtype == Dtype::F16 { MAX_ROWS } else { FEW_ROWS }
}

/// The variants on tensor cores.
const MMA: &str = "mma";
/// Those of weights in units.
const UNITS: &str = "units";

/// Whether `n` rows of `cols` values can be staged by lanes.
fn lanes_fit(n: u32, cols: u32) -> Result<(), &'static str> {
    if n as usize > FEW_ROWS {
        Err("it takes at most 4 rows")
    } else if stage_bytes(n, cols) > MAX_STAGE_BYTES {
        Err("the rows do not fit into shared memory")
    } else {
        Ok(())
    }
}

/// Whether `n` rows of `cols` values can be normed on tensor cores: their parts must fit into shared memory beside weights.
fn norm_fits(n: u32, cols: u32) -> Result<(), &'static str> {
    let (warps, rows) = (num_warps(cols, MAX_NORM_WARPS), rows_of_kernel(n));
    let bytes = norm_shared_bytes(warps, num_rounds(cols, warps), rows, mma::MAX_BATCH);
    if rows == mma::MAX_ROWS && warps < MIN_WARPS_OF_EIGHT {
        Err("rows are too short for more than four of them")
    } else if stream_bytes(warps, 1).saturating_add(bytes) > MAX_BLOCK_BYTES {
        Err("the rows do not fit into shared memory")
    } else {
        Ok(())
    }
}

/// Refuses what the kernels do not take.
fn expect_eligible(op: &str, n: usize, dtype: Dtype, width: usize) -> Result<()> {
    let words = width.is_multiple_of(WORD as usize) && width > 0;
    if (1..=max_rows(dtype)).contains(&n) && dtype != Dtype::F32 && words {
        return Ok(());
    }
    Err(Error::Request(format!(
        "{op}: the fused kernels take 1 to {FEW_ROWS} rows of bf16 weights, 1 to {MAX_ROWS} of f16, with multiples of {WORD} \
         columns, not {n} rows of {dtype} with {width}"
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

/// For [`Variant`](super::variant::Variant)s whose weights are floats.
fn floats_only(units: Option<Units>) -> Result<(), &'static str> {
    if units.is_none() { Ok(()) } else { Err("the weights were repacked") }
}

/// For those whose weights are units.
fn units_only(units: Option<Units>) -> Result<(), &'static str> {
    if units.is_some() { Ok(()) } else { Err("the weights are not in units") }
}

/// Of kernels for units of one format and those for two the ones that take these, `n` rows of inputs, and which of them.
fn of_formats<A>(
    [of_one, of_two]: [&'static Kernels<A>; 2],
    [format, last]: [MatrixFormat; 2],
    n: u32,
) -> (&'static Kernels<A>, Vec<Value>) {
    if format == last {
        (of_one, units::values(&[format], n))
    } else {
        (of_two, units::values(&[format, last], n))
    }
}

/// Whether the kernels of weights in units are to be taken for `n` rows.
pub(super) fn takes_units(choice: &KernelChoice, op: &str, n: usize) -> bool {
    (1..=MAX_ROWS).contains(&n) && choice.get(op).is_none_or(|name| name == UNITS)
}

/// For [`Variant`](super::variant::Variant)s on tensor cores.
fn f16_only(dtype: Dtype) -> Result<(), &'static str> {
    if dtype == Dtype::F16 { Ok(()) } else { Err("the weights are not f16") }
}

/// The most shared memory of a block: devices of compute capability 8.0 have 163 KiB.
const MAX_BLOCK_BYTES: u32 = 160 << 10;

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

/// What the kernel for `n` rows was made for, where weights and others have these formats.
fn values(formats: &[Dtype], n: u32) -> Vec<Value> {
    let formats = formats.iter().map(|&format| Value::from(format.name()));
    formats.chain([Value::from(rows_of_kernel(n))]).collect()
}

/// Rows that the kernel for `n` rows has room for.
fn rows_of_kernel(n: u32) -> u32 {
    match n {
        1 => 1,
        2..=gpu_kernels::fused::MAX_ROWS => gpu_kernels::fused::MAX_ROWS,
        _ => mma::MAX_ROWS,
    }
}
