//! Picks the next token from one row of logits.

use crate::sampler::SamplingRow;

/// The arg-max of `logits`, the lowest token of equal ones; a NaN is never chosen.
pub fn sample(logits: &mut [f32], _row: &SamplingRow) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, token);
        }
    }
    best.1 as u32
}
