//! From the start of a program to its first token.
//!
//! The bench starts itself anew for it, with the same model options, and
//! opens its [model](crate::load::LoadedModel) as `generate` does. The clock runs from before the process is created, so that `exec` and the dynamic linker
//! count; both processes read the system's clock.

use crate::error::{Error, Result};
use crate::load::LoadTimes;
use crate::stats::{mean, median, standard_deviation};
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Prompt tokens before the first token.
pub const PROMPT_TOKENS: usize = 16;

/// The names of [`StartUp::parts`], in order.
pub const PARTS: [&str; 6] = ["process", "file", "device", "weights", "memory", "first token"];

/// What the parts are, for people.
pub const PARTS_MEAN: &str = "process: until main runs; file: opened, its header read; device: opened, its kernels loaded; \
    weights: brought to it; memory: KV pages, buffers, and the vocabulary where that takes longer; first token: prefill of 16";

/// One start, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartUp {
    /// Each of [`PARTS`], which follow one another.
    pub parts: [f64; PARTS.len()],
    /// When the vocabulary was read, by another thread while the weights went up.
    pub vocabulary: f64,
}

impl StartUp {
    /// From the start of the process to the first token.
    pub fn total(&self) -> f64 {
        self.parts.iter().sum()
    }
}

/// Starts of one model, summed up, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub first_token_avg_ms: f64,
    pub first_token_stddev_ms: f64,
    pub first_token_median_ms: f64,
    /// Medians of each of [`PARTS`].
    pub first_token_parts_ms: [f64; PARTS.len()],
    pub vocabulary_ms: f64,
}

impl Summary {
    /// `None` without a start.
    pub fn of(starts: &[StartUp]) -> Option<Self> {
        if starts.is_empty() {
            return None;
        }
        let ms = |of: &dyn Fn(&StartUp) -> f64| -> Vec<f64> {
            starts.iter().map(|start| of(start) * 1e3).collect()
        };
        let totals = ms(&StartUp::total);
        Some(Self {
            first_token_avg_ms: mean(&totals),
            first_token_stddev_ms: standard_deviation(&totals),
            first_token_median_ms: median(&totals),
            first_token_parts_ms: std::array::from_fn(|i| median(&ms(&|start| start.parts[i]))),
            vocabulary_ms: median(&ms(&|start| start.vocabulary)),
        })
    }
}

/// Starts this program again with the same arguments and the hidden option `--first-token`, and returns what it prints.
///
/// # Errors
/// [`Error::Io`] if it cannot be started, [`Error::Device`] with its last words if it fails.
pub fn measure() -> Result<StartUp> {
    let program = std::env::current_exe().map_err(|error| Error::io("the path of this program", error))?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::null());
    command.arg("--first-token").arg(since_epoch().as_nanos().to_string());
    // This program has loaded what `--hf-repo` names.
    command.env("HF_HUB_OFFLINE", "1");
    let output = command.output().map_err(|error| Error::io(&program, error))?;
    let words = String::from_utf8_lossy(&output.stderr);
    let failed = |what: &str| {
        let last = words.lines().last().unwrap_or("it said nothing");
        Error::Device(format!("measuring the start-up: the second process {what}: {last}"))
    };
    if !output.status.success() {
        return Err(failed("failed"));
    }
    serde_json::from_slice(&output.stdout).map_err(|_| failed("printed no timings"))
}

/// Now, by the system's clock.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The other side of [`measure`]: the moments of this process, whose first token has just come.
///
/// `started` is when the process was created, in nanoseconds by the system's clock, and `main` when its command began.
pub fn of_this_process(started: u64, main: Instant, times: &LoadTimes) -> StartUp {
    let now = Instant::now();
    let since_start = since_epoch().saturating_sub(Duration::from_nanos(started));
    let before_main = since_start.saturating_sub(now.duration_since(main));
    let moments = [main, times.file, times.device, times.weights, times.ready, now];
    let mut parts = [before_main.as_secs_f64(); PARTS.len()];
    for (part, pair) in parts[1..].iter_mut().zip(moments.windows(2)) {
        *part = pair[1].saturating_duration_since(pair[0]).as_secs_f64();
    }
    let vocabulary = before_main + times.vocabulary.saturating_duration_since(main);
    StartUp { parts, vocabulary: vocabulary.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_time_since_the_process_was_created() {
        let started = since_epoch() - Duration::from_millis(100);
        let main = Instant::now() - Duration::from_millis(60);
        let at = |ms| main + Duration::from_millis(ms);
        let times =
            LoadTimes { file: at(5), device: at(15), weights: at(35), ready: at(40), vocabulary: at(20) };
        let start = of_this_process(started.as_nanos() as u64, main, &times);
        for (part, expected) in start.parts.iter().zip([0.04, 0.005, 0.01, 0.02, 0.005, 0.02]) {
            assert!((part - expected).abs() < 0.005, "{start:?}");
        }
        assert!((start.total() - 0.1).abs() < 0.005 && (start.vocabulary - 0.06).abs() < 0.005);

        let summary = Summary::of(&[start.clone(), start]).unwrap();
        assert!((summary.first_token_median_ms - 100.0).abs() < 5.0 && summary.first_token_stddev_ms < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }
}
