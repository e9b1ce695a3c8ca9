//! The gated delta rule: row by row, or where a prompt has many rows in chunks.

use super::batch::CudaBatch;
use super::device::{Dependent, Device};
use super::launch::{Launch, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{States, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::config::LinearSizes;
use crate::error::Result;
use crate::ops::hybrid::{Columns, DeltaRule, ValueHeads};
use cuda_std::launch::{DevicePtrMut, Kernels, LaunchConfig};
use gpu_kernels::delta_rule::chunks::{self, CHUNK_VALUES, MIN_ROWS, max_chunks, prepare, scan};
use gpu_kernels::delta_rule::*;
use qernel_core::batch::BatchLimits;
use std::rc::Rc;

pub(super) const OP: &str = "delta_rule";

/// What the kernels take.
pub(super) struct Case {
    num_sequences: u32,
    /// Whether a sequence may have enough rows for chunks.
    is_long: bool,
    /// The most chunks, and how many there is room for.
    chunks: [usize; 2],
    arguments: DeltaRuleArgs,
}

variants! { Case, Launch<Case>;
    "chunks" [prepare, scan, registers]: fits_in_chunks => launch_chunks;
    "registers" [registers]: fits_in_registers => |device, case| unsafe { launch_warps(device, case, registers()) };
    "plain" [plain]: fits_in_a_block => |device, case| unsafe { launch_block(device, case, plain()) };
}

fn fits_in_registers(case: &Case) -> Result<(), &'static str> {
    if !matches!(case.arguments.key_dim, 32 | 64 | 128) {
        return Err("heads of K are not of 32, 64 or 128 values");
    }
    match case.arguments.value_dim.is_multiple_of(WARPS * WARP_COLUMNS) {
        true => Ok(()),
        false => Err("heads of V are no multiple of 32 values"),
    }
}

/// Heads as published models have them, and room for what kernels leave for each other.
fn fits_in_chunks(case: &Case) -> Result<(), &'static str> {
    let DeltaRuleArgs { key_dim, value_dim, .. } = case.arguments;
    takes_chunks(key_dim as usize, value_dim as usize)?;
    let [needed, room] = case.chunks;
    if needed <= room { Ok(()) } else { Err("there is no room for so many chunks") }
}

fn takes_chunks(key_dim: usize, value_dim: usize) -> Result<(), &'static str> {
    if key_dim != chunks::KEY_DIM as usize {
        Err("heads of K are not of 128 values")
    } else if value_dim == 0 || !value_dim.is_multiple_of(32) {
        Err("heads of V are no multiple of 32 values")
    } else {
        Ok(())
    }
}

fn fits_in_a_block(case: &Case) -> Result<(), &'static str> {
    if case.arguments.key_dim > MAX_KEY_DIM {
        return Err("heads of K have more than 256 values");
    }
    if case.arguments.value_dim > MAX_VALUE_DIM {
        Err("heads of V have more than 1024 values")
    } else {
        Ok(())
    }
}

/// Long sequences in chunks, the others row by row.
///
/// # Safety
/// The case is whole and fits in chunks.
unsafe fn launch_chunks(device: &Device, case: &Case) -> Result<()> {
    let DeltaRuleArgs { value_heads, value_dim, .. } = case.arguments;
    let max_rows = if case.is_long { MIN_ROWS - 1 } else { u32::MAX };
    let of_rows = Case { arguments: DeltaRuleArgs { max_rows, ..case.arguments }, ..*case };
    if !case.is_long {
        // SAFETY: the caller vouches for the case, whose heads registers take.
        return unsafe { launch_warps(device, &of_rows, registers()) };
    }
    let of_chunks = LaunchConfig {
        grid: [value_heads, dimension(OP, case.chunks[0])?, 1],
        block: [chunks::BLOCK_SIZE, 1, 1],
        shared_bytes: chunks::PREPARE_SHARED_BYTES,
    };
    // Wide blocks read K and Q less often, where there are enough of them.
    let wide = value_heads * value_dim / 32 * case.num_sequences;
    let cols = if 4 * wide >= 3 * device.info().multiprocessors { 32 } else { 16 };
    let of_columns = LaunchConfig {
        grid: [value_heads * value_dim / cols, case.num_sequences, 1],
        block: [chunks::SCAN_BLOCK_SIZE, 1, 1],
        shared_bytes: chunks::scan_shared_bytes(cols),
    };
    // SAFETY: a block for each chunk and head, then one for each group of columns of each sequence, on the same stream; the caller vouches for the case.
    unsafe {
        launch(&Dependent(device), prepare(), &["f32".into()], &of_chunks, case.arguments)?;
        launch(&Dependent(device), scan(), &["f32".into(), cols.into()], &of_columns, case.arguments)?;
        launch_warps(device, &of_rows, registers())
    }
}

/// # Safety
/// The case is whole and fits in registers.
unsafe fn launch_warps(device: &Device, case: &Case, kernels: &Kernels<DeltaRuleArgs>) -> Result<()> {
    let DeltaRuleArgs { value_heads, value_dim, key_dim, .. } = case.arguments;
    let blocks = value_heads * (value_dim / (WARPS * WARP_COLUMNS));
    let grid = [blocks, case.num_sequences, 1];
    let config = LaunchConfig { grid, block: [32 * WARPS, 1, 1], shared_bytes: 0 };
    let values = ["f32".into(), key_dim.into()];
    // SAFETY: a warp for each group of columns of each sequence; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &values, &config, case.arguments) }
}

/// # Safety
/// The case is whole and fits in a block.
unsafe fn launch_block(device: &Device, case: &Case, kernels: &Kernels<DeltaRuleArgs>) -> Result<()> {
    let DeltaRuleArgs { value_heads, value_dim, .. } = case.arguments;
    let grid = [value_heads, case.num_sequences, 1];
    let block = [value_dim.next_multiple_of(32), 1, 1];
    let config = LaunchConfig { grid, block, shared_bytes: 0 };
    // SAFETY: a block for each head of each sequence; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[], &config, case.arguments) }
}

/// Room for what the kernels of chunks leave for each other.
pub(super) struct Workspace {
    scratch: DeviceBuffer<f32>,
    chunks: usize,
    /// A zero for each head of K of each sequence, for [`delta_step`](super::delta_step).
    pub counters: DeviceBuffer<u32>,
}

impl Workspace {
    /// The chunks of the largest step, and values for all; none where heads are not those of chunks.
    fn room(sizes: &LinearSizes, limits: &BatchLimits) -> [usize; 2] {
        let chunks = match takes_chunks(sizes.linear_key_head_dim, sizes.linear_value_head_dim) {
            Ok(()) => max_chunks(limits.max_num_tokens, limits.max_num_sequences),
            Err(_) => 0,
        };
        let of_chunk = sizes.linear_num_value_heads.saturating_mul(CHUNK_VALUES as usize);
        [chunks, chunks.saturating_mul(of_chunk)]
    }

    /// Room for batches within `limits`.
    ///
    /// # Errors
    /// [`Error::Memory`] from the device.
    pub fn new(device: &Rc<Device>, sizes: &LinearSizes, limits: &BatchLimits) -> Result<Self> {
        let [chunks, values] = Self::room(sizes, limits);
        let counters = limits.max_num_sequences.saturating_mul(sizes.linear_num_key_heads);
        Ok(Self {
            scratch: DeviceBuffer::zeroed(device, values.max(1))?,
            chunks,
            counters: DeviceBuffer::zeroed(device, counters.max(1))?,
        })
    }

    /// Bytes that [`Workspace::new`] takes.
    pub fn bytes(sizes: &LinearSizes, limits: &BatchLimits) -> usize {
        let counters = limits.max_num_sequences.saturating_mul(sizes.linear_num_key_heads);
        Self::room(sizes, limits)[1].saturating_add(counters).saturating_mul(4)
    }
}

/// The operands of [`delta_rule`].
pub(super) struct Operands<'a> {
    pub batch: &'a CudaBatch,
    pub layer: usize,
    pub rule: &'a DeltaRule<DeviceBuffer<f32>>,
    pub mixed: &'a Tensor,
    pub qkv: &'a Tensor,
    pub states: &'a mut States,
    pub workspace: Option<&'a mut Workspace>,
    pub out: &'a mut Tensor,
}

/// [`crate::ops::hybrid::HybridOps::delta_rule`]
pub(super) fn delta_rule(device: &Device, choice: &KernelChoice, operands: Operands) -> Result<()> {
    let Operands { batch, layer, rule, mixed, qkv, states, workspace, out } = operands;
    let (sizes, shape, columns) = (&rule.sizes, &batch.shape, Columns::of(&rule.sizes));
    let (n, heads) = (shape.num_tokens, sizes.linear_num_value_heads);
    let values = sizes.slot_values();
    mixed.expect(OP, "mixed", n, columns.cols)?;
    qkv.expect(OP, "qkv", n, sizes.channels())?;
    out.expect(OP, "out", n, sizes.value_size())?;
    expect_vector(OP, "decay", &rule.decay, heads)?;
    expect_vector(OP, "dt_bias", &rule.dt_bias, heads)?;
    let states = states.layer_mut(OP, layer, shape.state_slot_bound, values)?;
    if n == 0 || sizes.recurrent_state() == 0 {
        return Ok(());
    }
    let arguments = DeltaRuleArgs {
        key_heads: dimension(OP, sizes.linear_num_key_heads)?,
        value_heads: dimension(OP, heads)?,
        key_dim: dimension(OP, sizes.linear_key_head_dim)?,
        value_dim: dimension(OP, sizes.linear_value_head_dim)?,
        tiled: u32::from(rule.value_heads == ValueHeads::Tiled),
        eps: rule.eps,
        positions: batch.positions(),
        query_start: batch.query_start(),
        state_slots: batch.state_slots(),
        qkv: qkv.ptr(),
        mixed: mixed.ptr(),
        cols: dimension(OP, columns.cols)?,
        beta: dimension(OP, columns.beta)?,
        alpha: dimension(OP, columns.alpha)?,
        decay: rule.decay.ptr(),
        dt_bias: rule.dt_bias.ptr(),
        states,
        slot_values: dimension(OP, values)?,
        first_value: dimension(OP, sizes.conv_state())?,
        out: out.ptr_mut(),
        num_sequences: dimension(OP, shape.num_sequences)?,
        max_rows: u32::MAX,
        scratch: DevicePtrMut::from_raw(0),
    };
    let (room, scratch) = match workspace {
        Some(Workspace { scratch, chunks, .. }) => (*chunks, scratch.ptr_mut()),
        None => (0, arguments.scratch),
    };
    let case = Case {
        num_sequences: arguments.num_sequences,
        is_long: shape.rows.has_multiple && n >= MIN_ROWS as usize,
        chunks: [max_chunks(n, shape.num_sequences), room],
        arguments: DeltaRuleArgs { scratch, ..arguments },
    };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: shapes and slots were checked, the batch's arrays against each other when they went up; out and the slots are borrowed alone.
    // Two sequences with one slot would race for its values, which is wrong but stays inside the slot.
    unsafe { (variant.launch)(device, &case) }
}
