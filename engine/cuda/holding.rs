//! Whether matrices in blocks stay so on the device, or are held as floats.

use super::variant::KernelChoice;
use crate::dtype::Dtype;
use crate::weights::{Matrix, Weights};

/// How matrices in blocks are held.
pub(super) const OP: &str = "quantised";
/// In as many bytes as the file has.
const PACKED: &str = "packed";
/// As a float matrix would be.
pub(super) const FLOATS: &str = "floats";
pub(super) const VARIANTS: [&str; 2] = [PACKED, FLOATS];

/// Values of all matrices of a model up to which they are held as floats if nobody chose: what a step of so small a model takes is not its bytes but what
/// lies between two kernels, and there float kernels are the faster ones (docs/quantised.md).
const MAX_VALUES: usize = 800 << 20;

/// Adds to `choice` how matrices in blocks are held, if it does not say so: as floats where the model is small and floats are f16.
pub fn choose_holding(choice: &mut KernelChoice, weights: &Weights, dtype: Dtype) {
    let values = weights.matrices().map(|matrix| matrix.rows.saturating_mul(matrix.cols));
    let values = values.fold(0, usize::saturating_add);
    let is_better = dtype == Dtype::F16 && values <= MAX_VALUES;
    if choice.get(OP).is_none() && is_better {
        choice.set(OP, FLOATS).expect("it is one of the variants");
    }
}

/// Whether a matrix is in blocks and to be held as floats; what has a scale of its own besides (NVFP4) is not.
pub(super) fn as_floats(choice: &KernelChoice, matrix: &Matrix) -> bool {
    choice.get(OP) == Some(FLOATS) && matrix.format.float().is_none() && matrix.scale == 1.0
}

/// Bytes of a matrix on the device, whose floats are of `dtype`.
pub(super) fn matrix_bytes(choice: &KernelChoice, matrix: &Matrix, dtype: Dtype) -> usize {
    match matrix.format.float() {
        None if !as_floats(choice, matrix) => matrix.data.len(),
        _ => matrix.rows * matrix.cols * dtype.size(),
    }
}
