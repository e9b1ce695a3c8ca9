//! What was measured of a model.

use crate::stats::Stats;
use serde::Serialize;

/// Everything that was measured. All tokens are of one sequence.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub device: String,
    pub prompt_tokens: usize,
    pub decode_tokens: usize,
    pub repetitions: usize,
    /// With the variants that are compared with: the default ones if nothing else was asked for.
    pub default: Measured,
    /// With the ones asked for; `None` where none was.
    pub chosen: Option<Measured>,
    pub agreement: Option<Agreement>,
}

/// One choice of kernels.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds of a whole prefill, over the repetitions.
    pub prefill_s: Stats,
    /// Seconds of a decode step: the mean of each repetition, over the repetitions.
    pub decode_step_s: Stats,
    pub prefill_tokens_per_s: f64,
    pub decode_tokens_per_s: f64,
    /// Where the time of a prefill goes.
    pub prefill: Shares,
    /// Where the time of a decode step goes.
    pub decode: Shares,
    /// The tokens that were generated.
    pub tokens: Vec<u32>,
}

/// Time by operation. Timing each call costs something itself, so the sum is not the time of an untimed run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// Seconds on the host's clock while each operation was timed.
    pub timed_s: f64,
    /// Largest first.
    pub operations: Vec<Share>,
}

/// All calls of an operation in one prefill or one decode step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    pub op: &'static str,
    pub calls: f64,
    pub seconds: f64,
    /// Of the sum over all operations.
    pub share: f64,
}

/// How alike the answers of two choices are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Positions that were compared.
    pub positions: usize,
    /// Kullback-Leibler divergence of the chosen variants' distribution from the default's, in nats, over the positions.
    pub kl_mean: f64,
    pub kl_max: f64,
    /// Where the largest one is.
    pub kl_max_at: usize,
    /// Share of positions whose likeliest token is the same.
    pub same_argmax: f64,
    /// Tokens that two greedy continuations begin with in common.
    pub common_prefix: usize,
}
