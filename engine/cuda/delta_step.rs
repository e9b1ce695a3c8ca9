//! A decode step of linear attention between its products, in one kernel.

use super::batch::CudaBatch;
use super::device::{Dependent, Device};
use super::launch::{dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, States, Tensor};
use super::variant::Operation;
use super::weight::Weight;
use crate::config::LinearSizes;
use crate::error::{Error, Result};
use crate::ops::hybrid::{Columns, DeltaNet, ValueHeads};
use cuda_std::launch::LaunchConfig;
use gpu_kernels::delta_step::{BLOCK_SIZE, DeltaStepArgs, HEAD_DIM, TAPS, heads};

pub(super) const OP: &str = "delta_step";

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[heads().instances()])
}

/// Whether there is a kernel for layers of these sizes.
pub(super) fn takes(sizes: &LinearSizes) -> bool {
    let heads = [sizes.linear_key_head_dim, sizes.linear_value_head_dim];
    heads == [HEAD_DIM as usize; 2] && sizes.linear_conv_kernel_dim == TAPS as usize
}

/// What [`delta_step`] changes.
pub(super) struct Targets<'a> {
    pub states: &'a mut States,
    /// A zero for each head of K of each sequence.
    pub counters: &'a mut DeviceBuffer<u32>,
    pub out: &'a mut Activation,
}

/// What is between the two products of a layer, for sequences of one row: `out = norm(rule(conv(mixed))) * silu(z)`, multiplied with `scale`.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit or a sequence has more rows, [`Error::Device`].
pub(super) fn delta_step(
    device: &Device,
    batch: &CudaBatch,
    layer: usize,
    part: &DeltaNet<Weight, DeviceBuffer<f32>>,
    mixed: &Tensor,
    scale: f32,
    Targets { states, counters, out }: Targets,
) -> Result<()> {
    let (sizes, shape, of) = (&part.rule.sizes, &batch.shape, Columns::of(&part.rule.sizes));
    let (n, heads_of_v, dtype) = (shape.num_tokens, sizes.linear_num_value_heads, out.dtype);
    let values = sizes.slot_values();
    if !takes(sizes) || shape.rows.has_multiple {
        return Err(Error::Request(format!(
            "{OP}: takes heads of {HEAD_DIM} values, a convolution of {TAPS} taps, and one row a sequence"
        )));
    }
    mixed.expect(OP, "mixed", n, of.cols)?;
    out.expect(OP, "out", dtype, n, sizes.value_size())?;
    expect_vector(OP, "conv", &part.conv.weight, sizes.channels() * sizes.linear_conv_kernel_dim)?;
    expect_vector(OP, "decay", &part.rule.decay, heads_of_v)?;
    expect_vector(OP, "dt_bias", &part.rule.dt_bias, heads_of_v)?;
    expect_vector(OP, "norm", &part.head_norm.weight, sizes.linear_value_head_dim)?;
    if counters.len() < shape.num_sequences * sizes.linear_num_key_heads {
        return Err(Error::Request(format!("{OP}: there is no room for {} sequences", shape.num_sequences)));
    }
    let states = states.layer_mut(OP, layer, shape.state_slot_bound, values)?;
    if n == 0 || heads_of_v == 0 {
        return Ok(());
    }
    let arguments = DeltaStepArgs {
        key_heads: dimension(OP, sizes.linear_num_key_heads)?,
        value_heads: dimension(OP, heads_of_v)?,
        tiled: u32::from(part.rule.value_heads == ValueHeads::Tiled),
        eps: part.rule.eps,
        positions: batch.positions(),
        query_start: batch.query_start(),
        state_slots: batch.state_slots(),
        mixed: mixed.ptr(),
        cols: dimension(OP, of.cols)?,
        z: dimension(OP, of.z)?,
        beta: dimension(OP, of.beta)?,
        alpha: dimension(OP, of.alpha)?,
        conv_weight: part.conv.weight.ptr(),
        decay: part.rule.decay.ptr(),
        dt_bias: part.rule.dt_bias.ptr(),
        states,
        slot_values: dimension(OP, values)?,
        first_value: dimension(OP, sizes.conv_state())?,
        norm: part.head_norm.weight.ptr(),
        norm_eps: part.head_norm.eps,
        out_scale: scale,
        counters: counters.ptr_mut(),
        out: out.ptr_mut(),
    };
    let grid = [arguments.value_heads, dimension(OP, shape.num_sequences)?, 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a block for each head of each sequence; shapes and slots were checked, the batch's arrays against each other when they went up; the slots, the
    // counters and out are borrowed alone.
    unsafe { launch(&Dependent(device), heads(), &[dtype.name().into()], &config, arguments) }
}
