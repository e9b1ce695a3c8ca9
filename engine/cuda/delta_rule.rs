//! The gated delta rule.

use super::batch::CudaBatch;
use super::device::{Dependent, Device};
use super::launch::{Launch, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{States, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::error::Result;
use crate::ops::hybrid::{Columns, DeltaRule, ValueHeads};
use cuda_std::launch::{Kernels, LaunchConfig};
use gpu_kernels::delta_rule::*;

pub(super) const OP: &str = "delta_rule";

/// What the kernels take.
pub(super) struct Case {
    num_sequences: u32,
    arguments: DeltaRuleArgs,
}

variants! { Case, Launch<Case>;
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

/// The operands of [`delta_rule`].
pub(super) struct Operands<'a> {
    pub batch: &'a CudaBatch,
    pub layer: usize,
    pub rule: &'a DeltaRule<DeviceBuffer<f32>>,
    pub mixed: &'a Tensor,
    pub qkv: &'a Tensor,
    pub states: &'a mut States,
    pub out: &'a mut Tensor,
}

/// [`crate::ops::hybrid::HybridOps::delta_rule`]
pub(super) fn delta_rule(device: &Device, choice: &KernelChoice, operands: Operands) -> Result<()> {
    let Operands { batch, layer, rule, mixed, qkv, states, out } = operands;
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
    };
    let case = Case { num_sequences: dimension(OP, shape.num_sequences)?, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: shapes and slots were checked, the batch's arrays against each other when they went up; out and the slots are borrowed alone.
    // Two sequences with one slot would race for its values, which is wrong but stays inside the slot.
    unsafe { (variant.launch)(device, &case) }
}
