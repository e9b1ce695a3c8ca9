//! What is printed of a test: llama-bench's fields under its names, and ours.

use super::compare::Comparison;
use super::measure::Sample;
use super::plan::Test;
use super::start_up;
use crate::load::DecodeBytes;
use crate::stats::{Stats, mean, median, standard_deviation};
use serde::Serialize;

/// What is the same for all rows of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub engine: &'static str,
    pub build_number: &'static str,
    pub cpu_info: String,
    /// Empty where the CPU computes.
    pub gpu_info: String,
    pub backends: &'static str,
    pub model_filename: String,
    pub model_type: String,
    /// Bytes of all tensors.
    pub model_size: u64,
    pub model_n_params: u64,
    /// Rows of a step; llama-bench knows a logical and a physical size, which are one here.
    pub n_batch: usize,
    pub n_ubatch: usize,
    pub n_threads: usize,
    pub type_k: &'static str,
    pub type_v: &'static str,
    /// Kernel variants that were asked for.
    pub kernel: String,
    /// How tokens are drawn.
    pub sampling: String,
    /// What is timed besides the forward pass.
    pub included: &'static str,
    /// Bytes a second, measured in this run before the tests; an emulated device has none.
    pub read_bandwidth: Option<f64>,
    /// Weights that a decode step reads.
    #[serde(skip)]
    pub decode_bytes: DecodeBytes,
    /// K and V of one position of one sequence in all layers, in bytes.
    #[serde(skip)]
    pub kv_bytes_per_position: usize,
    #[serde(flatten)]
    pub start_up: Option<start_up::Summary>,
}

/// A test's results.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub facts: Facts,
    pub test: String,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
    pub n_parallel: usize,
    /// UTC
    pub test_time: String,
    pub avg_ns: u64,
    pub stddev_ns: u64,
    /// Tokens a second of all sequences together.
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub median_ns: u64,
    pub median_ts: f64,
    /// Median of all steps of all repetitions, in microseconds; of a prompt, steps are its chunks.
    pub step_us: f64,
    /// A tenth of the steps are faster.
    pub step_us_p10: f64,
    /// A tenth of the steps are slower.
    pub step_us_p90: f64,
    /// Of the median repetition.
    pub us_per_token: f64,
    /// What of a step's time the engine takes around the model: on average over a repetition, the median of those.
    pub engine_us_per_step: f64,
    /// Weights, and K and V of all sequences, that a decode step reads on average; `null` for tests with a prompt.
    pub bytes_per_step: Option<u64>,
    pub bytes_per_token: Option<u64>,
    /// What a step takes at `read_bandwidth`.
    pub floor_us: Option<f64>,
    /// `floor_us` over the mean step of the median repetition.
    pub bandwidth_percent: Option<f64>,
    /// The share of drafted tokens that stayed, of all repetitions; none where nothing was drafted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<f64>,
    /// Tokens of a sequence that a decode step made on average, where some were drafted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<f64>,
    /// How many times as fast the test is as without drafts in the same run, by medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_up: Option<f64>,
    pub samples_ns: Vec<u64>,
    pub samples_ts: Vec<f64>,
    #[serde(flatten)]
    pub comparison: Option<Comparison>,
}

impl Row {
    /// Sums up the repetitions of a test.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(facts: &Facts, test: &Test, samples: &[Sample]) -> Self {
        let seconds: Vec<f64> = samples.iter().map(|sample| sample.seconds).collect();
        let ns: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e9).collect();
        let num_tokens = test.num_tokens() as f64;
        let ts: Vec<f64> = seconds.iter().map(|seconds| num_tokens / seconds).collect();
        let steps: Vec<f64> = samples.iter().flat_map(|sample| &sample.steps).copied().collect();
        let step = Stats::of(&steps);
        let engine: Vec<f64> =
            samples.iter().map(|sample| sample.engine_seconds * 1e6 / sample.steps.len() as f64).collect();
        let bytes_per_step = test.is_decode().then(|| {
            let kv = test.n_parallel as f64 * test.mean_kv_len() * facts.kv_bytes_per_position as f64;
            facts.decode_bytes.of(test.n_parallel) + kv.round() as u64
        });
        let floor_us =
            bytes_per_step.zip(facts.read_bandwidth).map(|(bytes, rate)| bytes as f64 / rate * 1e6);
        let [drafted, accepted] =
            [0, 1].map(|i| samples.iter().map(|sample| sample.drafts[i]).sum::<usize>());
        let mean_step_us = median(&seconds) * 1e6 / test.n_gen.max(1) as f64;
        Self {
            facts: facts.clone(),
            test: test.to_string(),
            n_prompt: test.n_prompt,
            n_gen: test.n_gen,
            n_depth: test.n_depth,
            n_parallel: test.n_parallel,
            test_time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            avg_ns: mean(&ns).round() as u64,
            stddev_ns: standard_deviation(&ns).round() as u64,
            avg_ts: mean(&ts),
            stddev_ts: standard_deviation(&ts),
            median_ns: median(&ns).round() as u64,
            median_ts: median(&ts),
            step_us: step.median * 1e6,
            step_us_p10: step.p10 * 1e6,
            step_us_p90: step.p90 * 1e6,
            us_per_token: median(&seconds) * 1e6 / num_tokens,
            engine_us_per_step: median(&engine),
            bytes_per_step,
            bytes_per_token: bytes_per_step.map(|bytes| bytes / test.n_parallel as u64),
            floor_us,
            bandwidth_percent: floor_us.map(|floor| 100.0 * floor / mean_step_us),
            acceptance: (drafted > 0).then(|| accepted as f64 / drafted as f64),
            tokens_per_step: (drafted > 0).then(|| {
                let made = test.n_gen * samples.len();
                made as f64 / steps.len().max(1) as f64
            }),
            speed_up: None,
            samples_ns: ns.iter().map(|ns| ns.round() as u64).collect(),
            samples_ts: ts,
            comparison: None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn facts() -> Facts {
        Facts {
            engine: "qernel",
            build_number: "0",
            cpu_info: "a CPU".into(),
            gpu_info: String::new(),
            backends: "CPU",
            model_filename: "m.gguf".into(),
            model_type: "m f16".into(),
            model_size: 3 << 29,
            model_n_params: 494_000_000,
            n_batch: 512,
            n_ubatch: 512,
            n_threads: 2,
            type_k: "f32",
            type_v: "f32",
            kernel: String::new(),
            sampling: "greedy".into(),
            included: "sampling, detokenisation",
            read_bandwidth: Some(1e9),
            decode_bytes: DecodeBytes { always: 600_000, experts: 1_600_000, idle_share: 0.75 },
            kv_bytes_per_position: 100,
            start_up: None,
        }
    }

    pub fn row(test: &Test, seconds: &[f64]) -> Row {
        let samples: Vec<Sample> = seconds
            .iter()
            .map(|&seconds| Sample {
                seconds,
                steps: vec![seconds / 4.0; 4],
                engine_seconds: seconds / 100.0,
                drafts: [8, 6],
            })
            .collect();
        Row::new(&facts(), test, &samples)
    }

    #[test]
    fn a_row_sums_up_its_samples() {
        let test = Test { n_prompt: 0, n_gen: 4, n_depth: 100, n_parallel: 2 };
        let row = row(&test, &[0.01, 0.02, 0.03]);
        assert_eq!((row.avg_ns, row.median_ns, row.stddev_ns), (20_000_000, 20_000_000, 10_000_000));
        assert_eq!(row.samples_ns, [10_000_000, 20_000_000, 30_000_000]);
        // Eight tokens: 800, 400 and 267 a second.
        assert!((row.median_ts - 400.0).abs() < 1e-9 && (row.avg_ts - 488.889).abs() < 1e-3);
        assert!((row.step_us - 5000.0).abs() < 1e-9 && (row.us_per_token - 2500.0).abs() < 1e-9);
        // Steps read 101 to 104 positions of two sequences, and the experts that either goes to: 1 - 0.75² of them.
        assert_eq!(row.bytes_per_step, Some(600_000 + 700_000 + 2 * 10_250));
        assert_eq!(row.bytes_per_token, Some(660_250));
        assert!((row.floor_us.unwrap() - 1320.5).abs() < 1e-9);
        assert!((row.bandwidth_percent.unwrap() - 26.41).abs() < 1e-9);
        assert!((row.engine_us_per_step - 50.0).abs() < 1e-9);
        assert_eq!(row.acceptance, Some(0.75));
    }
}
