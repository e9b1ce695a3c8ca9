//! The second half of the experts that rows go to, and their weighted sum.

use super::experts::{ROWS_AT_ONCE, Scratch, by_expert};
use super::kernels::MatmulKernels;
use super::matmul::matmul;
use super::tensor::Tensor;
use crate::error::Result;
use crate::weights::Matrix;

const OP: &str = "experts_out";

/// `out[i] += Σ_j weight(i, j) * (inner[i, j] · downᵀ)` of the first `n` rows, rows of one expert at once, experts in the order of their
/// numbers: `[n, count * intermediate_size] -> [n, hidden_size]`. `chosen` is `[n, 2 * count]`: numbers of experts, then weights;
/// `down` has a matrix `[hidden_size, intermediate_size]` for each expert.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub(super) fn experts_out(
    kernels: MatmulKernels,
    n: usize,
    inner: &Tensor,
    chosen: &Tensor,
    down: &[Matrix],
    scratch: &mut Scratch,
    out: &mut Tensor,
) -> Result<()> {
    let count = chosen.cols() / 2;
    let (cols, width) = (out.cols(), inner.cols() / count.max(1));
    inner.expect(OP, "inner", n, count * width)?;
    out.expect(OP, "out", n, cols)?;
    let places = by_expert(OP, n, chosen, down.len())?;
    let (products, [rows, _]) = scratch.rooms(cols, width)?;
    let of_experts = places.chunk_by(|a, b| a.expert == b.expert);
    for places in of_experts.flat_map(|places| places.chunks(ROWS_AT_ONCE)) {
        for (place, to) in places.iter().zip(rows.values_mut().chunks_exact_mut(width.max(1))) {
            to.copy_from_slice(&inner.row(place.row)[place.rank * width..][..width]);
        }
        matmul(kernels, places.len(), rows, &down[places[0].expert], products)?;
        for (i, place) in places.iter().enumerate() {
            let row = out.row_mut(place.row).iter_mut().zip(products.row(i));
            row.for_each(|(out, product)| *out += place.weight * product);
        }
    }
    Ok(())
}
