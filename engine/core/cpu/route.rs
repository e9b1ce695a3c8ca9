//! Which experts a row goes to, and with what weights.
//!
//! Source: Shazeer et al., Outrageously Large Neural Networks (2017), as Qwen2-MoE and Qwen3-MoE have it.

use super::team;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::ops::parts::Router;

const OP: &str = "route";

/// For each of the first `n` rows of `x` `[n, hidden_size]` the experts of the largest `softmax(x · weightᵀ)`, of equal ones the first:
/// to `chosen` `[n, 2 * num_experts_per_tok]` go their numbers, ascending, and then their weights. Computed in f64.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub fn route(n: usize, x: &Tensor, router: &Router<Vec<f32>>, chosen: &mut Tensor) -> Result<()> {
    let &Router { ref weight, num_experts, num_experts_per_tok: count, .. } = router;
    let cols = x.cols();
    x.expect(OP, "x", n, cols)?;
    chosen.expect(OP, "chosen", n, 2 * count)?;
    if cols == 0 || weight.len() != num_experts * cols || !(1..=num_experts).contains(&count) {
        return Err(Error::Request(format!(
            "{OP}: {count} of {num_experts} experts by {} weights for {cols} columns",
            weight.len()
        )));
    }
    let row = |i: usize, chosen: &mut [f32]| choose(x.row(i), router, chosen);
    match chosen.first_mut(n) {
        one if n == 1 => row(0, one),
        rows => team::for_each_chunk(rows, 2 * count, row),
    }
    Ok(())
}

fn choose(x: &[f32], router: &Router<Vec<f32>>, chosen: &mut [f32]) {
    let count = router.num_experts_per_tok;
    let logits = router.weight.chunks_exact(x.len()).map(|weight| dot(x, weight));
    let mut shares: Vec<f64> = logits.collect();
    let max = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    shares.iter_mut().for_each(|share| *share = (*share - max).exp());
    let sum: f64 = shares.iter().sum();

    let mut experts: Vec<usize> = (0..shares.len()).collect();
    experts.sort_unstable_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
    experts.truncate(count);
    let total: f64 = experts.iter().map(|&expert| shares[expert]).sum();
    // Each row adds its experts in one order, whichever of them comes first.
    experts.sort_unstable();
    let whole = if router.renormalise { total } else { sum };
    let (numbers, weights) = chosen.split_at_mut(count);
    for ((number, weight), &expert) in numbers.iter_mut().zip(weights).zip(&experts) {
        *number = expert as f32;
        *weight = (shares[expert] / whole) as f32;
    }
}

/// `Σ a[i] * b[i]` in f64, in eight sums, then those in order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(x: &[f32], weight: Vec<f32>, count: usize, renormalise: bool) -> Vec<f32> {
        let num_experts = weight.len() / x.len();
        let mut rows = Tensor::new(1, x.len()).unwrap();
        rows.values_mut().copy_from_slice(x);
        let mut out = Tensor::new(1, 2 * count).unwrap();
        let router = Router { weight, num_experts, num_experts_per_tok: count, renormalise };
        route(1, &rows, &router, &mut out).unwrap();
        out.values().to_vec()
    }

    #[test]
    fn the_likeliest_are_chosen_and_stand_in_the_order_of_their_numbers() {
        // Logits ln 1, ln 4, ln 2, ln 1: probabilities 1/8, 4/8, 2/8, 1/8.
        let logits = || [1f32, 4.0, 2.0, 1.0].map(f32::ln).to_vec();
        let close = |found: Vec<f32>, expected: &[f32]| {
            let all = found.len() == expected.len();
            assert!(all && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6), "{found:?}");
        };
        close(chosen(&[1.0], logits(), 2, false), &[1.0, 2.0, 0.5, 0.25]);
        close(chosen(&[1.0], logits(), 2, true), &[1.0, 2.0, 2.0 / 3.0, 1.0 / 3.0]);
        // Of equals the first.
        close(chosen(&[1.0], logits(), 3, false), &[0.0, 1.0, 2.0, 0.125, 0.5, 0.25]);
    }

    #[test]
    fn what_is_no_number_goes_to_experts_that_exist() {
        let found = chosen(&[f32::NAN, 1.0], vec![1.0; 10], 2, true);
        assert_eq!(found[..2], [0.0, 1.0]);
        assert!(found[2..].iter().all(|weight| weight.is_nan()));
    }
}
