//! The last kernel of greedy rows, of which there are variants: the sampler's cases with such rows.

use super::sample;
use crate::lab::case::{Case, Cases};

pub const CASES: Cases = Cases {
    op: "argmax",
    checks: || greedy(sample::checks()),
    timings: |workload| greedy(sample::timings(workload)),
};

/// The cases with greedy rows.
fn greedy(cases: Vec<Case>) -> Vec<Case> {
    let is_greedy =
        |case: &Case| ["greedy", "mixed", "penalties", "masked"].iter().any(|name| case.shape.contains(name));
    cases.into_iter().filter(is_greedy).collect()
}
