//! The norms of the heads of Q and K.

use super::device::{Dependent, Device};
use super::launch::{Launch, always, dimension, expect_vector, launch};
use super::memory::DeviceBuffer;
use super::tensor::Tensor;
use super::variant::{KernelChoice, select, variants};
use crate::error::Result;
use crate::ops::parts::QkNorm;
use cuda_std::launch::{DevicePtr, Kernels, LaunchConfig};
use gpu_kernels::qk_norm::{BLOCK_SIZE, QkNormArgs, plain};

pub(super) const OP: &str = "qk_norm";

/// What the kernels take for `rows` rows.
pub(super) struct Case {
    rows: u32,
    arguments: QkNormArgs,
}

variants! { Case, Launch<Case>;
    "plain" [plain]: always => |device, case| unsafe { launch_heads(device, case, plain()) };
}

/// # Safety
/// The case is whole.
unsafe fn launch_heads(device: &Device, case: &Case, kernels: &Kernels<QkNormArgs>) -> Result<()> {
    let grid = [case.rows, case.arguments.q_heads + case.arguments.k_heads, 1];
    let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
    // SAFETY: a block for each head of each row; the caller vouches for the case.
    unsafe { launch(&Dependent(device), kernels, &[], &config, case.arguments) }
}

/// [`crate::ops::Ops::qk_norm`]
pub(super) fn qk_norm(
    device: &Device,
    choice: &KernelChoice,
    n: usize,
    [q_heads, k_heads]: [usize; 2],
    norm: &QkNorm<DeviceBuffer<f32>>,
    bias: [Option<&DeviceBuffer<f32>>; 2],
    qkv: &mut Tensor,
) -> Result<()> {
    let head_dim = norm.q.len();
    qkv.expect(OP, "qkv", n, (q_heads + 2 * k_heads) * head_dim)?;
    expect_vector(OP, "k", &norm.k, head_dim)?;
    for (name, bias, heads) in [("q", bias[0], q_heads), ("k", bias[1], k_heads)] {
        bias.map_or(Ok(()), |bias| expect_vector(OP, name, bias, heads * head_dim))?;
    }
    if n == 0 || head_dim == 0 {
        return Ok(());
    }
    let [q_bias, k_bias] = bias.map(|bias| bias.map_or(DevicePtr::from_raw(0), DeviceBuffer::ptr));
    let arguments = QkNormArgs {
        q_heads: dimension(OP, q_heads)?,
        k_heads: dimension(OP, k_heads)?,
        head_dim: dimension(OP, head_dim)?,
        qkv: qkv.ptr_mut(),
        q_weight: norm.q.ptr(),
        k_weight: norm.k.ptr(),
        q_bias,
        k_bias,
        eps: norm.eps,
    };
    let case = Case { rows: dimension(OP, n)?, arguments };
    let variant = select(OP, VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; qkv is borrowed alone.
    unsafe { (variant.launch)(device, &case) }
}
