//! The convolution before linear attention.

use super::batch::CudaBatch;
use super::device::{Dependent, Device};
use super::launch::{Launch, always, dimension, elements_of_rows, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{States, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::error::Result;
use crate::ops::hybrid::CausalConv;
use cuda_std::launch::Kernels;
use gpu_kernels::causal_conv::{
    BLOCK_SIZE, CausalConvArgs, STRIP_ROWS, STRIP_TAPS, keep, plain, rows, strips,
};

pub(super) const OP: &str = "causal_conv";

/// What the kernels take.
pub(super) struct Case {
    num_tokens: u32,
    num_sequences: u32,
    /// Whether a sequence has more than one row.
    has_multiple: bool,
    arguments: CausalConvArgs,
}

variants! { Case, Launch<Case>;
    "strips" [strips, keep]: whole_groups => |device, case| unsafe {
        let strips_of_rows = case.num_tokens.div_ceil(STRIP_ROWS);
        let config = elements_of_rows(strips_of_rows, case.arguments.channels / 4, BLOCK_SIZE);
        launch(&Dependent(device), strips(), &[], &config, case.arguments)?;
        launch_rows(device, case, keep(), case.num_sequences)
    };
    "rows" [rows, keep]: several_rows => |device, case| unsafe {
        launch_rows(device, case, rows(), case.num_tokens)?;
        launch_rows(device, case, keep(), case.num_sequences)
    };
    "plain" [plain]: always => |device, case| unsafe { launch_rows(device, case, plain(), case.num_sequences) };
}

fn several_rows(case: &Case) -> Result<(), &'static str> {
    if case.has_multiple { Ok(()) } else { Err("every sequence has one row") }
}

/// Four taps, and channels, columns and slots in groups of four.
fn whole_groups(case: &Case) -> Result<(), &'static str> {
    several_rows(case)?;
    let CausalConvArgs { channels, taps, cols, slot_values, .. } = case.arguments;
    if taps != STRIP_TAPS {
        Err("it takes four taps")
    } else if [channels, cols, slot_values].iter().all(|count| count.is_multiple_of(4)) {
        Ok(())
    } else {
        Err("channels, columns or slots are no multiples of 4")
    }
}

/// # Safety
/// The case is whole and one for the kernel, whose grid has so many rows.
unsafe fn launch_rows(
    device: &Device,
    case: &Case,
    kernels: &Kernels<CausalConvArgs>,
    count: u32,
) -> Result<()> {
    let config = elements_of_rows(count, case.arguments.channels, BLOCK_SIZE);
    // SAFETY: a row of blocks for each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[], &config, case.arguments) }
}

/// [`crate::ops::hybrid::HybridOps::causal_conv`]
#[allow(clippy::too_many_arguments)] // The operation has these operands.
pub(super) fn causal_conv(
    device: &Device,
    choice: &KernelChoice,
    batch: &CudaBatch,
    layer: usize,
    conv: &CausalConv<DeviceBuffer<f32>>,
    x: &Tensor,
    states: &mut States,
    out: &mut Tensor,
) -> Result<()> {
    let (sizes, shape) = (&conv.sizes, &batch.shape);
    let (n, channels, taps) = (shape.num_tokens, sizes.channels(), sizes.linear_conv_kernel_dim);
    let values = sizes.slot_values();
    x.expect(OP, "x", n, x.cols.max(channels))?;
    out.expect(OP, "out", n, channels)?;
    expect_vector(OP, "weight", &conv.weight, channels * taps)?;
    let states = states.layer_mut(OP, layer, shape.state_slot_bound, values)?;
    if n == 0 || channels == 0 {
        return Ok(());
    }
    let arguments = CausalConvArgs {
        num_tokens: dimension(OP, n)?,
        channels: dimension(OP, channels)?,
        taps: dimension(OP, taps)?,
        cols: dimension(OP, x.cols)?,
        positions: batch.positions(),
        sequence_of_token: batch.sequence_of_token(),
        query_start: batch.query_start(),
        state_slots: batch.state_slots(),
        x: x.ptr(),
        weight: conv.weight.ptr(),
        states,
        slot_values: dimension(OP, values)?,
        out: out.ptr_mut(),
    };
    let case = Case {
        num_tokens: arguments.num_tokens,
        num_sequences: dimension(OP, shape.num_sequences)?,
        has_multiple: shape.rows.has_multiple,
        arguments,
    };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: shapes and slots were checked, the batch's arrays against each other when they went up; out and the slots are borrowed alone.
    // Two sequences with one slot would race for its values, which is wrong but stays inside the slot.
    unsafe { (variant.launch)(device, &case) }
}
