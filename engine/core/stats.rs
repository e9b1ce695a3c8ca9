//! What a number of timings says, and whether two of them differ.

use serde::{Deserialize, Serialize};

/// Timings of one thing, summed up, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub median: f64,
    /// A tenth of the samples lie below.
    pub p10: f64,
    /// A tenth of the samples lie above.
    pub p90: f64,
    /// Bounds of the 99 % confidence interval of the median.
    pub low: f64,
    pub high: f64,
    pub samples: usize,
}

impl Stats {
    /// Of at least one sample.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        // How many of n samples lie below the median is binomial: the bounds are order statistics, whatever the
        // distribution (Conover, Practical Nonparametric Statistics, 3.2); 2.576 is the normal's 99.5th percentile.
        let reach = 2.576 * (n as f64).sqrt() / 2.0;
        let middle = (n as f64 - 1.0) / 2.0;
        Self {
            median: quantile(&sorted, 0.5),
            p10: quantile(&sorted, 0.1),
            p90: quantile(&sorted, 0.9),
            low: sorted[(middle - reach).floor().max(0.0) as usize],
            high: sorted[((middle + reach).ceil() as usize).min(n - 1)],
            samples: n,
        }
    }

    /// Half the width of the median's confidence interval, relative to the median.
    pub fn uncertainty(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
}

/// A quantile of sorted samples, between two of them in proportion.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// The arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle value, or the mean of the two; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { Stats::of(values).median }
}

/// Of a sample (divided by n - 1), as llama-bench has it; 0 of fewer than two values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// When enough has been sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StopRule {
    /// Fewer are never enough: below this the confidence interval is the whole range.
    pub min_samples: usize,
    pub max_samples: usize,
    /// [`Stats::uncertainty`] at which the median is stable.
    pub stable: f64,
    /// After so many seconds it ends, with at least three samples.
    pub seconds: f64,
}

impl Default for StopRule {
    fn default() -> Self {
        Self { min_samples: 30, max_samples: 1000, stable: 0.005, seconds: 1.0 }
    }
}

impl StopRule {
    /// Whether these samples, which took `elapsed` seconds, are enough.
    pub fn is_met(&self, samples: &[f64], elapsed: f64) -> bool {
        let n = samples.len();
        if n >= self.max_samples || (n >= 3 && elapsed >= self.seconds) {
            return true;
        }
        n >= self.min_samples && Stats::of(samples).uncertainty() <= self.stable
    }
}

/// How a time compares with an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Faster,
    Slower,
    /// They differ by less than 3 %, whatever the spread.
    Same,
    /// The spread is larger than the difference.
    Unclear,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faster => "FASTER",
            Self::Slower => "SLOWER",
            Self::Same => "SAME",
            Self::Unclear => "UNCLEAR",
        }
    }
}

/// What clocks and temperature change from run to run, on each side of a median: the confidence interval of one run knows
/// nothing of it.
const BETWEEN_RUNS: f64 = 0.01;

/// The share of the way to the 10th and to the 90th percentile that a median may move from run to run: where samples of one
/// run scatter, so do runs.
const OF_SPREAD: f64 = 0.5;

/// A smaller relative difference is none.
const SAME_WITHIN: f64 = 0.03;

/// Compares the time of `new` with that of `old`.
///
/// Each median has an interval: that of its confidence, but at least 1 % and half of the way to the 10th and the 90th percentile
/// on each side. The ratio of the medians lies between those of the bounds of their intervals. Where that range is on one side of 1, it is
/// FASTER or SLOWER; where it is inside of 1 ± 3 %, SAME; else UNCLEAR.
pub fn compare(new: &Stats, old: &Stats) -> Verdict {
    let bounds = |stats: &Stats| {
        let Stats { median, p10, p90, .. } = stats;
        let below = (median * BETWEEN_RUNS).max((median - p10) * OF_SPREAD);
        let above = (median * BETWEEN_RUNS).max((p90 - median) * OF_SPREAD);
        let (low, high) = (stats.low.min(median - below), stats.high.max(median + above));
        (low, high)
    };
    let ((new_low, new_high), (old_low, old_high)) = (bounds(new), bounds(old));
    let (low, high) = (new_low / old_high, new_high / old_low);
    if high < 1.0 {
        Verdict::Faster
    } else if low > 1.0 {
        Verdict::Slower
    } else if low > 1.0 - SAME_WITHIN && high < 1.0 + SAME_WITHIN {
        Verdict::Same
    } else {
        Verdict::Unclear
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Samples around `mean` with the relative standard deviation `spread`.
    fn samples(seed: u64, count: usize, mean: f64, spread: f64) -> Vec<f64> {
        Random::new(seed, "samples").take(count).map(|z| mean * (1.0 + spread * f64::from(z))).collect()
    }

    fn stats(seed: u64, mean: f64, spread: f64) -> Stats {
        Stats::of(&samples(seed, 100, mean, spread))
    }

    #[test]
    fn quantiles_of_known_samples() {
        let numbers: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        let stats = Stats::of(&numbers);
        assert_eq!((stats.median, stats.p10, stats.p90, stats.samples), (51.0, 11.0, 91.0, 101));
        // 50 ± 2.576 · √101 / 2, rounded outwards.
        assert_eq!((stats.low, stats.high), (38.0, 64.0));
        let one = Stats::of(&[2.0]);
        assert_eq!((one.median, one.low, one.high, one.uncertainty()), (2.0, 2.0, 2.0, 0.0));
        assert_eq!(Stats::of(&[1.0, 2.0]).median, 1.5);
    }

    #[test]
    fn an_outlier_moves_neither_median_nor_interval() {
        let mut numbers = samples(1, 100, 1.0, 0.001);
        let before = Stats::of(&numbers);
        numbers[17] = 50.0;
        let after = Stats::of(&numbers);
        assert!((after.median / before.median - 1.0).abs() < 1e-3 && after.high < 1.01);
    }

    #[test]
    fn the_interval_holds_the_true_median_nearly_always() {
        let holds = |seed| {
            let stats = stats(seed, 1.0, 0.05);
            stats.low <= 1.0 && 1.0 <= stats.high
        };
        let misses = (0..1000).filter(|&seed| !holds(seed)).count();
        assert!(misses <= 20, "{misses} of 1000 intervals of 99 %");
    }

    #[test]
    fn sampling_stops_when_the_median_is_stable_or_time_is_up() {
        let rule = StopRule::default();
        assert!(!rule.is_met(&samples(1, 20, 1.0, 0.0), 0.1), "too few to know");
        assert!(rule.is_met(&samples(1, 30, 1.0, 0.001), 0.1), "stable");
        assert!(!rule.is_met(&samples(1, 30, 1.0, 0.1), 0.1), "noisy");
        assert!(rule.is_met(&samples(1, 30, 1.0, 0.1), 1.5), "out of time");
        assert!(!rule.is_met(&samples(1, 2, 1.0, 0.1), 1.5), "at least three");
        assert!(rule.is_met(&samples(1, 1000, 1.0, 0.5), 0.5), "never more");
    }

    #[test]
    fn verdicts_respect_the_spread() {
        let old = stats(1, 1.0, 0.002);
        let verdict = |mean, spread| compare(&stats(2, mean, spread), &old);
        assert_eq!(verdict(0.9, 0.002), Verdict::Faster);
        assert_eq!(verdict(1.1, 0.002), Verdict::Slower);
        assert_eq!(verdict(1.002, 0.002), Verdict::Same);
        assert_eq!(verdict(1.0, 0.3), Verdict::Unclear, "too noisy to say that they are the same");
        assert_eq!(verdict(0.98, 0.3), Verdict::Unclear);
        assert_eq!(compare(&old, &old), Verdict::Same);
        // Many samples make the interval of a median narrow, but not the scatter from run to run.
        let noisy = |seed, mean| Stats::of(&samples(seed, 1000, mean, 0.1));
        assert_eq!(compare(&noisy(1, 0.95), &noisy(2, 1.0)), Verdict::Unclear);
        assert_eq!(compare(&noisy(1, 0.8), &noisy(2, 1.0)), Verdict::Faster);
    }

    #[test]
    fn faster_one_way_is_slower_the_other() {
        for seed in 0..50 {
            let (a, b) = (stats(seed, 1.0, 0.02), stats(seed + 100, 1.0 + 0.002 * seed as f64, 0.02));
            let expected = match compare(&a, &b) {
                Verdict::Faster => Verdict::Slower,
                Verdict::Slower => Verdict::Faster,
                same => same,
            };
            assert_eq!(compare(&b, &a), expected, "seed {seed}");
        }
    }

    #[test]
    fn statistics_of_few_values() {
        assert_eq!((mean(&[]), median(&[]), standard_deviation(&[3.0])), (0.0, 0.0, 0.0));
        assert_eq!(standard_deviation(&[1.0, 3.0]), 2f64.sqrt());
    }
}
