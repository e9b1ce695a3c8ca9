//! The sampler on the CPU: the reference of `gpu-kernels/src/sampler`.

pub use crate::sampler::host::{apply_penalties, argmax, keep_allowed, uniform};

use crate::sampler::host::{descending, top_k};
use crate::sampler::{NO_TOKEN, SamplingParams, SamplingRow};

/// Draws one token from the logits of one row, which it overwrites. Order: allowed tokens, penalties, top-k, top-p, min-p, temperature,
/// draw (see [`SamplingParams`]). Ties are kept, and arg-max chosen, in the order of token ids. [`NO_TOKEN`] if a logit of what may be
/// drawn is NaN or infinite, or all are -inf.
pub fn sample(logits: &mut [f32], row: &SamplingRow) -> u32 {
    if let Some(allowed) = &row.allowed {
        keep_allowed(logits, allowed);
    }
    apply_penalties(logits, &row.params, &row.counts);
    let numbers = logits.iter().all(|&logit| logit < f32::INFINITY);
    if !numbers || logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        return NO_TOKEN;
    }
    if row.params.is_greedy() {
        return argmax(logits);
    }
    let candidates = filter(logits, &row.params);
    draw(&candidates, row)
}

/// The candidates that top-k, top-p and min-p leave, as `(token, logit)`, largest logit first.
pub fn filter(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f32)> {
    let mut candidates: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| (id as u32, if logit.is_nan() { f32::NEG_INFINITY } else { logit }))
        .collect();
    top_k(&mut candidates, params.top_k);
    candidates.sort_unstable_by(descending);
    let max = candidates.first().map_or(0.0, |c| c.1);

    if params.top_p < 1.0 {
        let weights: Vec<f64> = candidates.iter().map(|c| f64::from(c.1 - max).exp()).collect();
        let target = weights.iter().sum::<f64>() * f64::from(params.top_p);
        let mut sum = 0.0;
        let reached = weights.iter().position(|weight| {
            sum += weight;
            sum >= target
        });
        candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
    }
    if params.min_p > 0.0 {
        // The likeliest token always stays.
        let threshold = max + params.min_p.ln();
        let kept = candidates.iter().take_while(|c| c.1 >= threshold).count();
        candidates.truncate(kept.max(1));
    }
    candidates
}

/// Draws in proportion to `exp(logit / temperature)`: the candidates in the order of their ids share `[0, 1)` and the
/// generator's number falls into one share.
fn draw(candidates: &[(u32, f32)], row: &SamplingRow) -> u32 {
    let Some(&(best, max)) = candidates.first() else { return 0 };
    let mut by_id: Vec<(u32, f64)> = candidates
        .iter()
        .map(|&(id, logit)| (id, f64::from((logit - max) / row.params.temperature).exp()))
        .collect();
    by_id.sort_unstable_by_key(|c| c.0);
    let total: f64 = by_id.iter().map(|c| c.1).sum();
    let target = uniform(row) * total;
    let mut sum = 0.0;
    by_id
        .iter()
        .find(|(_, weight)| {
            sum += weight;
            sum > target
        })
        .map_or(best, |c| c.0)
}
