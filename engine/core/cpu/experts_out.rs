//! The second half of the experts that rows go to, and their weighted sum.

use super::experts::{Place, by_expert, of_experts, room, with_scratch};
use super::kernels::MatmulKernels;
use super::matmul::matmul;
use super::tensor::{OutPtr, Tensor};
use crate::error::Result;
use crate::weights::Matrix;
use rayon::prelude::*;

const OP: &str = "experts_out";

/// Products that are kept until they are added up, at most: some megabytes.
const PRODUCTS_AT_ONCE: usize = 1024;

/// `out[i] += Σ_j weight(i, j) * (inner[i, j] · downᵀ)` of the first `n` rows, experts side by side, rows of one at once, added up in the
/// order of their numbers: `[n, count * intermediate_size] -> [n, hidden_size]`. `chosen` is `[n, 2 * count]`: numbers of experts, then weights;
/// `down` has a matrix `[hidden_size, intermediate_size]` for each expert. `products` are kept from call
/// to call.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub(super) fn experts_out(
    kernels: MatmulKernels,
    n: usize,
    inner: &Tensor,
    chosen: &Tensor,
    down: &[Matrix],
    products: &mut Option<Tensor>,
    out: &mut Tensor,
) -> Result<()> {
    let count = chosen.cols() / 2;
    let (cols, width) = (out.cols(), inner.cols() / count.max(1));
    inner.expect(OP, "inner", n, count * width)?;
    out.expect(OP, "out", n, cols)?;
    let places = by_expert(OP, n, chosen, down.len())?;
    // Each row adds its experts in their order, some experts at a time.
    let mut left = &of_experts(&places)[..];
    while !left.is_empty() {
        let mut num_places = 0;
        let fits = |places: &&&[Place]| {
            num_places += places.len();
            num_places <= PRODUCTS_AT_ONCE
        };
        let (now, later) = left.split_at(left.iter().take_while(fits).count());
        left = later;
        let count = now.iter().map(|places| places.len()).sum();
        let products = room(products, PRODUCTS_AT_ONCE.min(places.len()), cols)?;
        multiply(kernels, inner, width, now, down, products)?;
        let products = products.first(count).chunks_exact(cols.max(1));
        for (place, product) in now.iter().copied().flatten().zip(products) {
            let row = out.row_mut(place.row).iter_mut().zip(product);
            row.for_each(|(out, product)| *out += place.weight * product);
        }
    }
    Ok(())
}

/// `products[p] = inner[row, rank] · downᵀ` of each place, in their order.
fn multiply(
    kernels: MatmulKernels,
    inner: &Tensor,
    width: usize,
    places: &[&[Place]],
    down: &[Matrix],
    products: &mut Tensor,
) -> Result<()> {
    let cols = products.cols();
    let out = OutPtr(products.values_mut().as_mut_ptr());
    let mut end = 0;
    let firsts: Vec<usize> = places
        .iter()
        .map(|places| {
            end += places.len();
            end - places.len()
        })
        .collect();
    places.par_iter().zip(firsts).try_for_each(|(places, first)| {
        with_scratch(|scratch| {
            let (made, [rows, _]) = scratch.rooms(cols, width)?;
            for (place, to) in places.iter().zip(rows.values_mut().chunks_exact_mut(width.max(1))) {
                to.copy_from_slice(&inner.row(place.row)[place.rank * width..][..width]);
            }
            matmul(kernels, places.len(), rows, &down[places[0].expert], made)?;
            // SAFETY: there is room for the product of every place, and they are counted one by one.
            unsafe { out.values(first * cols, places.len() * cols) }
                .copy_from_slice(made.first(places.len()));
            Ok(())
        })
    })
}
