//! How long it took, and how far that is from what the memory allows.

use crate::engine::{Timings, Usage};
use crate::load::LoadStats;
use crate::model::Runner;
use serde::Serialize;
use std::fmt;

/// Timings of one request. Decode at batch 1 reads every weight once per token, so the bandwidth that was reached, as a
/// share of the one measured on this device, says how much faster it could be.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Where it ran.
    pub device: String,
    /// Opening the file and bringing the weights to the device, in seconds.
    pub load_s: f64,
    pub prompt_tokens: usize,
    pub prefill_s: f64,
    pub prefill_tokens_per_s: f64,
    /// Tokens that decode steps made: all but the first, which prefill gives.
    pub decode_tokens: usize,
    pub decode_s: f64,
    pub decode_tokens_per_s: f64,
    /// Where tokens are drafted: how many were, and which share of them stayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<f64>,
    /// Tokens that a decode step made on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_step: Option<f64>,
    /// Weights and cached K and V that one decode step reads, at the mean length of this request's steps.
    pub bytes_per_token: u64,
    /// Rate at which the device reads the weights where they are, measured at the end of this run, in bytes per second; `None` for an
    /// emulated one.
    pub measured_bandwidth: Option<f64>,
    /// `bytes_per_token * decode_tokens_per_s / measured_bandwidth`
    pub bandwidth_share: Option<f64>,
}

/// Bytes a second at which the device reads the weights. What was timed is there: that it cannot be compared is no reason to fail.
pub fn read_bandwidth(runner: &mut dyn Runner) -> Option<f64> {
    runner.read_bandwidth().unwrap_or_else(|error| {
        tracing::warn!("the read bandwidth was not measured: {error}");
        None
    })
}

impl Summary {
    /// Sums up a request; measures the device's read bandwidth, which takes a few hundredths of a second.
    pub fn new(stats: &LoadStats, runner: &mut dyn Runner, usage: &Usage, timings: &Timings) -> Self {
        let per_second =
            |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let layout = runner.kv_layout();
        let kv_bytes_per_position = layout.page_bytes() / crate::kv_layout::PAGE_SIZE;
        let mean_kv_len = usage.prompt_tokens + usage.completion_tokens / 2;
        let bytes_per_token =
            (stats.decode_bytes.of(1) as usize + kv_bytes_per_position * mean_kv_len) as u64;
        let decode_tokens_per_s = per_second(timings.decode_tokens, timings.decode_seconds);
        let measured_bandwidth = read_bandwidth(runner);
        Self {
            device: runner.device_name(),
            load_s: stats.load_s,
            prompt_tokens: usage.prompt_tokens,
            prefill_s: timings.prefill_seconds,
            prefill_tokens_per_s: per_second(timings.prefill_tokens, timings.prefill_seconds),
            decode_tokens: timings.decode_tokens,
            decode_s: timings.decode_seconds,
            decode_tokens_per_s,
            draft_tokens: timings.acceptance().map(|_| timings.draft_tokens),
            acceptance: timings.acceptance(),
            decode_tokens_per_step: timings.decode_tokens_per_step(),
            bytes_per_token,
            measured_bandwidth,
            bandwidth_share: measured_bandwidth
                .map(|measured| bytes_per_token as f64 * decode_tokens_per_s / measured),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device   {}", self.device)?;
        writeln!(f, "load     {:.3} s", self.load_s)?;
        writeln!(
            f,
            "prefill  {} tokens in {:.3} s, {:.1} tokens/s",
            self.prompt_tokens, self.prefill_s, self.prefill_tokens_per_s
        )?;
        writeln!(
            f,
            "decode   {} tokens in {:.3} s, {:.1} tokens/s",
            self.decode_tokens, self.decode_s, self.decode_tokens_per_s
        )?;
        if let (Some(count), Some(acceptance), Some(per_step)) =
            (self.draft_tokens, self.acceptance, self.decode_tokens_per_step)
        {
            let percent = 100.0 * acceptance;
            writeln!(
                f,
                "drafts   {count} tokens, {percent:.1}% of them accepted, {per_step:.2} tokens a step"
            )?;
        }
        write!(f, "memory   {:.1} MB a token", self.bytes_per_token as f64 / 1e6)?;
        if let (Some(share), Some(measured)) = (self.bandwidth_share, self.measured_bandwidth) {
            write!(f, ", {:.1}% of the {:.1} GB/s measured", 100.0 * share, measured / 1e9)?;
        }
        Ok(())
    }
}
