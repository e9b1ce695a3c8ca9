//! Products with weights: cuBLAS, or kernels whose results do not depend on the other rows of the batch.

use super::cublas::Cublas;
use super::device::Device;
use super::launch::{always, by_dtype, dimension};
use super::tensor::{Activation, Tensor, Weight};
use super::variant::{KernelChoice, Variant, select};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use gpu_kernels::matmul::{
    BLOCK_THREADS, ROWS_PER_WARP, WARPS_PER_BLOCK, matmul_bf16_gemv, matmul_bf16_plain, matmul_f16_gemv,
    matmul_f16_plain, matmul_f32_gemv, matmul_f32_plain,
};

pub(super) const OP: &str = "matmul";

/// The variant that goes through the library.
pub(super) const CUBLAS: &str = "cublas";

/// x `[n, cols]` and weight `[rows, cols]` of `dtype`, out f32 `[n, rows]`; out overlaps neither.
pub(super) struct Case {
    dtype: Dtype,
    n: usize,
    rows: usize,
    cols: usize,
    x: DevicePtr<u8>,
    weight: DevicePtr<u8>,
    out: DevicePtrMut<f32>,
}

type Launch = unsafe fn(&Device, Option<&Cublas>, &Case) -> Result<()>;

pub(super) const VARIANTS: [Variant<Case, Launch>; 3] = [
    Variant {
        name: CUBLAS,
        eligible: always,
        launch: |_, cublas, case| {
            let Some(cublas) = cublas else {
                return Err(Error::Device("cuBLAS was not opened: --kernel chose another matmul".into()));
            };
            let &Case { dtype, n, rows, cols, x, weight, out } = case;
            // SAFETY: the case's ranges have these sizes.
            unsafe { cublas.matmul(dtype, n, rows, cols, x, weight, out) }
        },
    },
    Variant {
        name: "gemv",
        eligible: |case| {
            if (case.cols * case.dtype.size()).is_multiple_of(16) {
                Ok(())
            } else {
                Err("a row is not a multiple of 16 bytes")
            }
        },
        // SAFETY: rows are aligned to 16 bytes, since buffers are and a row is a multiple of that.
        launch: |device, _, case| unsafe {
            let (config, [n, rows, cols]) = config(case)?;
            let &Case { x, weight, out, .. } = case;
            by_dtype!(
                case.dtype,
                matmul_f32_gemv,
                matmul_f16_gemv,
                matmul_bf16_gemv,
                (device, &config, n, rows, cols, x.cast(), weight.cast(), out)
            )
        },
    },
    Variant {
        name: "plain",
        eligible: always,
        // SAFETY: the grid covers all rows; the case's ranges have the sizes that the kernel needs.
        launch: |device, _, case| unsafe {
            let (config, [n, rows, cols]) = config(case)?;
            let &Case { x, weight, out, .. } = case;
            by_dtype!(
                case.dtype,
                matmul_f32_plain,
                matmul_f16_plain,
                matmul_bf16_plain,
                (device, &config, n, rows, cols, x.cast(), weight.cast(), out)
            )
        },
    },
];

/// The grid of the Rust kernels, and `[n, rows, cols]` as they take them.
fn config(case: &Case) -> Result<(LaunchConfig, [u32; 3])> {
    let (n, rows, cols) = (dimension(OP, case.n)?, dimension(OP, case.rows)?, dimension(OP, case.cols)?);
    let grid = [rows.div_ceil(WARPS_PER_BLOCK), n.div_ceil(ROWS_PER_WARP), 1];
    Ok((LaunchConfig { grid, block: [BLOCK_THREADS, 1, 1], shared_bytes: 0 }, [n, rows, cols]))
}

/// `out = x · weightᵀ`: `[n, in_features] -> [n, out_features]`.
///
/// cuBLAS picks another algorithm for another `n`, so a row's last bits may differ alone and in a batch; the variants
/// `gemv` and `plain` give the same bits always (`--kernel matmul=gemv`).
pub(super) fn matmul(
    device: &Device,
    cublas: Option<&Cublas>,
    choice: &KernelChoice,
    n: usize,
    x: &Activation,
    weight: &Weight,
    out: &mut Tensor,
) -> Result<()> {
    let &Activation { dtype, rows, cols, .. } = &weight.0;
    x.expect(OP, "x", dtype, n, cols)?;
    out.expect(OP, "out", n, rows)?;
    if n == 0 || rows == 0 {
        return Ok(());
    }
    let case = Case { dtype, n, rows, cols, x: x.ptr(), weight: weight.0.ptr(), out: out.ptr_mut() };
    let variant = select(OP, &VARIANTS, &case, choice.get(OP))?;
    // SAFETY: the shapes were checked; `out` is borrowed alone.
    unsafe { (variant.launch)(device, cublas, &case) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_is_preferred_and_gemv_needs_whole_vectors() {
        let (x, weight, out) = (DevicePtr::from_raw(0), DevicePtr::from_raw(0), DevicePtrMut::from_raw(0));
        let mut case = Case { dtype: Dtype::F16, n: 3, rows: 5, cols: 24, x, weight, out };
        assert_eq!(select(OP, &VARIANTS, &case, None).unwrap().name, CUBLAS);
        assert_eq!(select(OP, &VARIANTS, &case, Some("gemv")).unwrap().name, "gemv");
        case.cols = 20;
        assert!(select(OP, &VARIANTS, &case, Some("gemv")).is_err());
        let (config, dimensions) = config(&case).unwrap();
        assert_eq!((config.grid, dimensions), ([1, 1, 1], [3, 5, 20]));
    }
}
