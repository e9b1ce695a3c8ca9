//! The gated activation of the MLP.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, dimension, elements_of_rows, launch};
use super::tensor::Activation;
use super::variant::{KernelChoice, select, variants};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::Kernels;
use gpu_kernels::silu_mul::*;

pub(super) const OP: &str = "silu_mul";

/// What the kernels take for `rows` rows, in formats that there is a kernel for: of out, and of gate_up.
pub(super) struct Case {
    formats: [Dtype; 2],
    rows: u32,
    arguments: SiluMulArgs,
}

/// # Safety
/// The case is one for the kernel, which takes `values` at a time.
unsafe fn launch_groups(
    device: &Device,
    case: &Case,
    kernels: &Kernels<SiluMulArgs>,
    values: u32,
) -> Result<()> {
    let config = elements_of_rows(case.rows, case.arguments.intermediate_size / values, BLOCK_SIZE);
    let formats = case.formats.map(|dtype| dtype.name().into());
    // SAFETY: one row of blocks for each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &formats, &config, case.arguments) }
}

variants! { Case, Launch<Case>;
    "vec8" [vec8]: groups_of_8 => |device, case| unsafe { launch_groups(device, case, vec8(), 8) };
    "plain" [plain]: always => |device, case| unsafe { launch_groups(device, case, plain(), 1) };
}

fn groups_of_8(case: &Case) -> Result<(), &'static str> {
    let is_multiple = case.arguments.intermediate_size.is_multiple_of(8);
    if is_multiple { Ok(()) } else { Err("intermediate_size is not a multiple of 8") }
}

/// `out = silu(gate_scale * gate) * (up_scale * up)`, each row of `gate_up` being `[gate; up]`: `[n, intermediate_size]`.
pub(super) fn silu_mul(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    gate_up: &Activation,
    [gate_scale, up_scale]: [f32; 2],
    out: &mut Activation,
) -> Result<()> {
    let formats = [out.dtype, gate_up.dtype];
    if plain().get(&formats.map(|dtype| dtype.name().into())).is_none() {
        let [to, from] = formats;
        return Err(Error::Request(format!("{OP}: there is no kernel from {from} to {to}")));
    }
    gate_up.expect(OP, "gate_up", gate_up.dtype, n, 2 * out.cols)?;
    out.expect(OP, "out", out.dtype, n, out.cols)?;
    let (rows, intermediate_size) = (dimension(OP, n)?, dimension(OP, out.cols)?);
    let (gate_up, out) = (gate_up.ptr(), out.ptr_mut());
    let arguments = SiluMulArgs { intermediate_size, gate_scale, up_scale, gate_up, out };
    let case = Case { formats, rows, arguments };
    if rows == 0 || intermediate_size == 0 {
        return Ok(());
    }
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: both have `n` rows, checked above; `out` is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
