//! The activation of an MLP without a gate.

use cuda_std::prelude::*;

#[device]
use crate::{
    grid::{offset, row_and_column},
    vector::Saturate,
};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `out[i, c] = out_scale * gelu(x_scale * x[i, c] + bias[c])` with `gelu(v) = v / 2 * (1 + tanh(√(2 / π) (v + 0.044715 v³)))` (Hendrycks and Gimpel 2016,
/// "Gaussian error linear units": the approximation that GPT-2 was trained with).
#[kernel_args]
pub struct BiasGelu<E, X> {
    pub cols: u32,
    /// What values of x are multiplied with before the bias is added.
    pub x_scale: f32,
    /// What results are multiplied with.
    pub out_scale: f32,
    /// X `[num_rows, cols]`
    pub x: *const X,
    /// f32 `[cols]`, or null.
    pub bias: *const f32,
    /// E `[num_rows, cols]`, computed in f32 and rounded once, no f16 to infinity
    pub out: *mut E,
}

/// Grid `[num_rows, ceil(cols / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread an element. As `1 + tanh(u) = 2 /
/// (1 + e^-2u)` it is one exponential; where that overflows, the quotient is a zero as it should be. Where the product before
/// rounded to `X`, what it left infinite counts as the largest number.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`BiasGelu`] and do not overlap.
#[kernel(
    (E, X) = [(f32, f32), (f16, f16), f16_f32: (f16, f32), bf16_f32: (bf16, f32)],
    name = "bias_gelu_{E}_plain",
)]
pub unsafe fn plain<E: Saturate, X: Saturate>(a: BiasGelu<E, X>) {
    /// `2 √(2 / π)`
    const SLOPE: f32 = core::f32::consts::FRAC_2_SQRT_PI * core::f32::consts::SQRT_2;
    const CUBIC: f32 = 0.044_715;
    let BiasGelu { cols, x_scale, out_scale, x, bias, out } = a;
    let Some((row, column)) = row_and_column(cols) else { return };
    // SAFETY: the grid has one row of blocks a row, columns stay below `cols`.
    unsafe {
        let at = offset(row, cols, column);
        let mut value = X::saturate((*x.add(at)).to_f32()) * x_scale;
        if !bias.is_null() {
            value += *bias.add(column as usize);
        }
        let twice = SLOPE * value * (1.0 + CUBIC * value * value);
        *out.add(at) = E::round(value / (1.0 + (-twice).exp()) * out_scale);
    }
}
