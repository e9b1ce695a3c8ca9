//! A stored run beside this one: of `qernel bench`, of the scripts in `benches/peers/` or of llama-bench.

use super::plan;
use super::row::Row;
use crate::error::{Error, Result};
use crate::stats::{mean, median, standard_deviation};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is read of a stored row.
#[derive(Clone, Debug, Deserialize)]
pub struct Stored {
    #[serde(default)]
    test: Option<String>,
    #[serde(default)]
    engine: Option<String>,
    #[serde(default)]
    build_number: Option<serde_json::Value>,
    #[serde(default)]
    model_n_params: Option<u64>,
    #[serde(default)]
    n_prompt: usize,
    #[serde(default)]
    n_gen: usize,
    #[serde(default)]
    n_depth: usize,
    #[serde(default = "one")]
    n_parallel: usize,
    #[serde(default)]
    avg_ts: Option<f64>,
    #[serde(default)]
    stddev_ts: f64,
    #[serde(default)]
    samples_ts: Vec<f64>,
}

fn one() -> usize {
    1
}

/// The fields of [`Comparison`].
pub const COMPARISON: [&str; 5] =
    ["compare_engine", "compare_ts", "compare_stddev_ts", "compare_ratio", "compare_ratio_stddev"];

/// A row's speed over that of a stored row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub compare_engine: String,
    /// Median where the stored row has samples, else mean.
    pub compare_ts: f64,
    pub compare_stddev_ts: f64,
    /// This run's median over `compare_ts`: above 1, this run is faster.
    pub compare_ratio: f64,
    /// Standard deviation of the ratio, from those of both.
    pub compare_ratio_stddev: f64,
}

impl Stored {
    /// llama-bench stores no name.
    fn name(&self) -> String {
        let named = || plan::name(self.n_prompt, self.n_gen, self.n_depth, self.n_parallel);
        self.test.clone().unwrap_or_else(named)
    }

    fn engine(&self) -> String {
        // llama-bench stores no engine, and a build number that is one.
        let unnamed = match &self.build_number {
            Some(number) if number.is_number() => "llama-bench",
            _ => "stored",
        };
        self.engine.clone().unwrap_or_else(|| unnamed.to_owned())
    }

    /// Whether both rows are of models of the same size, as far as is known.
    fn is_of_size(&self, n_params: u64) -> bool {
        self.model_n_params.is_none_or(|stored| stored.abs_diff(n_params) <= n_params / 50)
    }

    /// Sets this row beside `row`.
    fn beside(&self, row: &Row) -> Option<Comparison> {
        let (speed, stddev) = if self.samples_ts.is_empty() {
            (self.avg_ts?, self.stddev_ts)
        } else {
            (median(&self.samples_ts), standard_deviation(&self.samples_ts))
        };
        if !(speed > 0.0 && speed.is_finite()) {
            return None;
        }
        let ratio = row.median_ts / speed;
        let relative = (row.stddev_ts / mean(&row.samples_ts)).hypot(stddev / speed);
        Some(Comparison {
            compare_engine: self.engine(),
            compare_ts: speed,
            compare_stddev_ts: stddev,
            compare_ratio: ratio,
            compare_ratio_stddev: ratio * relative,
        })
    }
}

/// Reads the rows of a file: an array, or a row a line. Rows of tests that failed have no `avg_ts` and count as absent.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Request`] if it holds no rows.
pub fn read(path: &Path) -> Result<Vec<Stored>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
    let rows: Result<Vec<Stored>, _> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(&text),
        false => text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect(),
    };
    let expected = "expected what `-o json` or `-o jsonl` prints";
    match rows {
        Ok(rows) if rows.is_empty() => {
            Err(Error::Request(format!("{}: {expected}, found no row", path.display())))
        }
        Ok(rows) => Ok(rows),
        Err(error) => Err(Error::Request(format!("{}: {expected}: {error}", path.display()))),
    }
}

/// The comparison with the newest stored row of the same test and size of model, if there is one.
pub fn find(stored: &[Stored], row: &Row) -> Option<Comparison> {
    let same = |stored: &&Stored| stored.name() == row.test && stored.is_of_size(row.facts.model_n_params);
    stored.iter().rev().filter(same).find_map(|stored| stored.beside(row))
}

#[cfg(test)]
mod tests {
    use super::super::plan::Test;
    use super::super::row::tests::row;
    use super::*;

    fn stored(json: serde_json::Value) -> Vec<Stored> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_newest_row_of_the_same_test_and_size_counts() {
        let test = Test { n_prompt: 0, n_gen: 4, n_depth: 0, n_parallel: 1 };
        let row = row(&test, &[0.01, 0.01]);
        assert_eq!((row.median_ts, row.test.as_str()), (400.0, "tg4"));
        let rows = stored(serde_json::json!([
            {"test": "tg4", "engine": "a", "avg_ts": 100.0, "stddev_ts": 10.0, "model_n_params": 494_032_768},
            {"test": "tg4", "engine": "b", "samples_ts": [200.0, 200.0, 290.0], "avg_ts": 230.0},
            {"test": "tg4", "engine": "c", "avg_ts": 300.0, "model_n_params": 7_000_000_000u64},
            {"test": "tg4", "engine": "failed", "error": "out of memory"},
            {"test": "tg4 b8", "engine": "d", "avg_ts": 300.0},
        ]));
        let found = find(&rows, &row).unwrap();
        assert_eq!((found.compare_engine.as_str(), found.compare_ts, found.compare_ratio), ("b", 200.0, 2.0));
        let first = find(&rows[..1], &row).unwrap();
        assert_eq!(first.compare_ratio, 4.0);
        assert!((first.compare_ratio_stddev - 0.4).abs() < 1e-12);
        assert_eq!(find(&rows[2..], &row), None);
    }

    #[test]
    fn rows_of_llama_bench_have_no_name() {
        let rows = stored(serde_json::json!([
            {"build_commit": "x", "build_number": 6000, "n_prompt": 0, "n_gen": 4, "n_depth": 16, "avg_ts": 1.0}
        ]));
        assert_eq!((rows[0].name(), rows[0].engine()), ("tg4 @ d16".into(), "llama-bench".into()));
    }
}
