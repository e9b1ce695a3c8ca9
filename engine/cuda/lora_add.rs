//! What adapters add to products.

use super::device::Device;
use super::launch::{dimension, elements_of_rows, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::{Activation, elements};
use super::variant::Operation;
use crate::error::{Error, Result};
use crate::ops::lora::Update;
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use gpu_kernels::lora_add::{BLOCK_SIZE, LoraAddArgs, ShrinkArgs, plain, shrink};

pub(super) const OP: &str = "lora_add";

/// Blocks of a grid's second dimension at most.
const MAX_RANK: usize = (1 << 16) - 1;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[shrink().instances(), plain().instances()])
}

/// Where sums go: f32 `[n or more, cols]`, which nothing else uses.
pub(super) struct Out {
    pub start: DevicePtrMut<f32>,
    pub cols: usize,
}

/// [`crate::ops::lora::LoraOps::lora_add`], to sums that were divided by `divisor`; `scales` are those of the `n` rows, `inner` is room for
/// what is between the matrices.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit, [`Error::Device`].
#[allow(clippy::too_many_arguments, reason = "the operation has these operands")]
pub(super) fn lora_add(
    device: &Device,
    inner: &mut DeviceBuffer<f32>,
    scales: DevicePtr<f32>,
    n: usize,
    x: &Activation,
    update: &Update<DeviceBuffer<f32>>,
    divisor: f32,
    out: Out,
) -> Result<()> {
    let &Update { first, out_features, in_features, rank, scale, ref a, ref b, .. } = update;
    x.expect(OP, "x", x.dtype, n, in_features)?;
    expect_vector(OP, "a", a, elements(rank, in_features)?)?;
    expect_vector(OP, "b", b, elements(out_features, rank)?)?;
    let end = first.saturating_add(out_features);
    if rank > MAX_RANK || end > out.cols || elements(n, rank)? > inner.len() {
        return Err(Error::Request(format!(
            "{OP}: {n} rows of rank {rank} (at most {MAX_RANK}, with room for {} values) to the columns {first} to {end} of {}",
            inner.len(),
            out.cols
        )));
    }
    if n == 0 || rank == 0 || out_features == 0 {
        return Ok(());
    }
    let rows = dimension(OP, n)?;
    let arguments = ShrinkArgs {
        in_features: dimension(OP, in_features)?,
        rank: dimension(OP, rank)?,
        factor: scale * x.scale / divisor,
        scales,
        x: x.ptr().cast(),
        a: a.ptr(),
        inner: inner.ptr_mut(),
    };
    let config = LaunchConfig { grid: [rows, arguments.rank, 1], block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a block for each row and value; the shapes were checked, `scales` are those of `n` rows; `inner` is borrowed alone.
    unsafe { launch(device, shrink(), &[x.dtype.name().into()], &config, arguments)? };
    let arguments = LoraAddArgs {
        rank: dimension(OP, rank)?,
        out_features: dimension(OP, out_features)?,
        cols: dimension(OP, out.cols)?,
        first: dimension(OP, first)?,
        scales,
        b: b.ptr(),
        inner: inner.ptr(),
        out: out.start,
    };
    let config = elements_of_rows(rows, arguments.out_features, BLOCK_SIZE);
    // SAFETY: a row of blocks for each row; as above, and the caller gives `out` to nothing else.
    unsafe { launch(device, plain(), &[], &config, arguments) }
}
