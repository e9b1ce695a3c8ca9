//! The first half of the experts that rows go to: `silu(x · gateᵀ) * (x · upᵀ)`.

use super::exp::silu;
use super::experts::{by_expert, of_experts, with_scratch};
use super::kernels::MatmulKernels;
use super::matmul::matmul;
use super::tensor::{OutPtr, Tensor};
use crate::error::{Error, Result};
use crate::weights::Matrix;
use rayon::prelude::*;

const OP: &str = "experts_in";

/// For each of the first `n` rows and each of its experts, experts side by side and rows of one at once: `[n, hidden_size] -> [n, count *
/// intermediate_size]`. `chosen` is `[n, 2 * count]`: numbers of experts, then weights; `gate` and `up` have a matrix
/// `[intermediate_size, hidden_size]` for each expert.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub(super) fn experts_in(
    kernels: MatmulKernels,
    n: usize,
    x: &Tensor,
    chosen: &Tensor,
    [gate, up]: [&[Matrix]; 2],
    inner: &mut Tensor,
) -> Result<()> {
    let count = chosen.cols() / 2;
    let (cols, width) = (x.cols(), inner.cols() / count.max(1));
    x.expect(OP, "x", n, cols)?;
    inner.expect(OP, "inner", n, count * width)?;
    if gate.len() != up.len() {
        return Err(Error::Request(format!("{OP}: {} gates and {} experts", gate.len(), up.len())));
    }
    let places = by_expert(OP, n, chosen, gate.len())?;
    let stride = inner.cols();
    let out = OutPtr(inner.values_mut().as_mut_ptr());
    of_experts(&places).into_par_iter().try_for_each(|places| {
        let expert = places[0].expert;
        with_scratch(|scratch| {
            let (rows, [gates, ups]) = scratch.rooms(cols, width)?;
            for (place, to) in places.iter().zip(rows.values_mut().chunks_exact_mut(cols.max(1))) {
                to.copy_from_slice(x.row(place.row));
            }
            matmul(kernels, places.len(), rows, &gate[expert], gates)?;
            matmul(kernels, places.len(), rows, &up[expert], ups)?;
            for (i, place) in places.iter().enumerate() {
                // SAFETY: `inner` has these rows, and each place is one of a row's `count`.
                let out = unsafe { out.values(place.row * stride + place.rank * width, width) };
                for ((out, gate), up) in out.iter_mut().zip(gates.row(i)).zip(ups.row(i)) {
                    *out = silu(*gate) * up;
                }
            }
            Ok(())
        })
    })
}
