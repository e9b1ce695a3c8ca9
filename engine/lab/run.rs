//! A run of `lab bench`, as it is stored: what `--json` prints, `--baseline` and `lab report` read.

use super::case::Cost;
use super::check::{CaseResult, Outcome};
use crate::error::{Error, Result};
use crate::stats::{Stats, Verdict, compare};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;

/// Changes when a field changes its meaning.
pub const VERSION: u32 = 1;

/// All timings of one run on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// For people: name and number of the device.
    pub device: String,
    /// Compute capability and driver, for people.
    pub platform: String,
    /// When it began, RFC 3339.
    pub date: String,
    /// The model whose shapes were timed.
    pub model: String,
    /// Of the inputs.
    pub seed: u64,
    pub ceilings: Ceilings,
    pub timings: Vec<Timing>,
    /// Variants that were not timed, with the reason.
    pub left_out: Vec<LeftOut>,
}

/// What this device reaches at best, measured in the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes a second that a kernel which only reads gets from the device's memory.
    pub bytes_per_s: f64,
    /// Operations a second of cuBLAS's product of 4096 x 8192 x 8192 in the format of the weights; `None` where cuBLAS is
    /// not installed.
    pub flops_per_s: Option<f64>,
    /// That format.
    pub dtype: Format,
    /// Seconds between two events with nothing between them: part of every cold time.
    pub empty_s: f64,
}

/// A number format by its name, `f32`, `f16` or `bf16`.
pub type Format = String;

/// One variant in one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    pub op: String,
    pub variant: String,
    pub dtype: Format,
    pub shape: String,
    /// Whether the engine takes it where nothing is asked for.
    pub default: bool,
    /// Of each launch, after other memory was read through the L2 cache.
    pub cold: Stats,
    /// Of one of many launches in a row.
    pub warm: Stats,
    /// What the operation must read and write at least.
    pub bytes: f64,
    /// What it must compute at least; a multiply-add counts as two.
    pub flops: f64,
    /// Gigabytes a second of the cold median.
    pub gb_per_s: f64,
    /// Tera-operations a second of the cold median.
    pub tflop_per_s: f64,
    /// Seconds that the ceilings allow.
    pub bound_s: f64,
    /// Which ceiling that is.
    pub bound: Bound,
    /// `bound_s` over the cold median, in per cent.
    pub ceiling_percent: f64,
    /// The worst error of the check before, in units of its tolerance.
    pub worst_error: f64,
    /// Against the same timing of `--baseline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Comparison>,
}

/// What limits an operation at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    Memory,
    Compute,
}

impl Bound {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        }
    }
}

/// A timing beside that of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub cold: Change,
    pub warm: Change,
}

/// A time beside an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The earlier median.
    pub median: f64,
    /// The new median over the earlier one.
    pub ratio: f64,
    pub verdict: Verdict,
}

impl Change {
    fn of(new: &Stats, old: &Stats) -> Self {
        Self { median: old.median, ratio: new.median / old.median, verdict: compare(new, old) }
    }
}

/// A variant that was not timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    pub op: String,
    pub variant: String,
    pub dtype: Format,
    pub shape: String,
    /// Its results are wrong; else it cannot compute the case, or something is not installed.
    pub wrong: bool,
    pub why: String,
}

impl From<CaseResult> for LeftOut {
    fn from(result: CaseResult) -> Self {
        Self {
            op: result.op.into(),
            variant: result.variant.into(),
            dtype: result.dtype.into(),
            shape: result.shape,
            wrong: result.outcome != Outcome::Skipped,
            why: result.notes.join("; "),
        }
    }
}

impl Ceilings {
    /// Seconds that something of that cost takes at best, and why not less. Arithmetic counts where it is in the format
    /// that the ceiling was measured in.
    pub fn bound(&self, cost: &Cost, dtype: &str) -> (f64, Bound) {
        let memory = cost.bytes / self.bytes_per_s;
        let compute = match self.flops_per_s {
            Some(rate) if dtype == self.dtype => cost.flops / rate,
            _ => 0.0,
        };
        if compute > memory { (compute, Bound::Compute) } else { (memory, Bound::Memory) }
    }
}

impl Timing {
    /// What names it in every run.
    pub fn key(&self) -> (&str, &str, &str, &str) {
        (&self.op, &self.variant, &self.dtype, &self.shape)
    }
}

impl Run {
    /// Reads a file that `lab bench --json` wrote.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Request`] if it is no run or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let wrong = |why: String| {
            Error::Request(format!("{}: expected what `lab bench --json` prints: {why}", path.display()))
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if version != VERSION {
            return Err(wrong(format!("found version {version}, this program reads {VERSION}: bench again")));
        }
        serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
    }

    /// Compares every timing with the same one of an earlier run; those that it has not stay as they are.
    pub fn compare_with(&mut self, earlier: &Self) {
        for timing in &mut self.timings {
            let before = earlier.timings.iter().find(|before| before.key() == timing.key());
            timing.baseline = before.map(|before| Comparison {
                cold: Change::of(&timing.cold, &before.cold),
                warm: Change::of(&timing.warm, &before.warm),
            });
        }
    }

    /// The operations of the timings, in their order.
    pub fn ops(&self) -> Vec<&str> {
        let mut ops = Vec::new();
        for timing in &self.timings {
            if !ops.contains(&timing.op.as_str()) {
                ops.push(&timing.op);
            }
        }
        ops
    }

    /// The shapes of an operation, each with its timings, in their order.
    pub fn shapes_of(&self, op: &str) -> Vec<Vec<&Timing>> {
        let mut shapes: Vec<Vec<&Timing>> = Vec::new();
        for timing in self.timings.iter().filter(|timing| timing.op == op) {
            let same = |other: &&Timing| (&other.shape, &other.dtype) == (&timing.shape, &timing.dtype);
            match shapes.iter_mut().find(|shape| shape.first().is_some_and(same)) {
                Some(shape) => shape.push(timing),
                None => shapes.push(vec![timing]),
            }
        }
        shapes
    }

    /// The time of `timing` over that of the shape's fastest variant, cold.
    pub fn times_fastest(&self, timing: &Timing) -> f64 {
        let medians = self.of_shape(timing).map(|other| other.cold.median);
        timing.cold.median / medians.fold(f64::INFINITY, f64::min)
    }

    /// The time of `timing` over that of cuBLAS in the same shape, cold; `None` where cuBLAS does not do it.
    pub fn times_cublas(&self, timing: &Timing) -> Option<f64> {
        let cublas = self.of_shape(timing).find(|other| other.variant == "cublas")?;
        Some(timing.cold.median / cublas.cold.median)
    }

    fn of_shape<'a>(&'a self, timing: &'a Timing) -> impl Iterator<Item = &'a Timing> {
        let key = |t: &'a Timing| (&t.op, &t.shape, &t.dtype);
        self.timings.iter().filter(move |other| key(other) == key(timing))
    }

    /// The timings as comma-separated values, times in microseconds.
    pub fn to_csv(&self) -> String {
        let mut csv = "op,variant,dtype,shape,default,cold_us,cold_p10_us,cold_p90_us,warm_us,warm_p10_us,warm_p90_us,\
                       bytes,flops,gb_per_s,tflop_per_s,bound,bound_us,ceiling_percent,times_fastest,times_cublas,\
                       baseline_ratio,verdict\n"
            .to_owned();
        let us = |seconds: f64| format!("{:.3}", seconds * 1e6);
        for t in &self.timings {
            let baseline = t.baseline.map(|b| (format!("{:.4}", b.cold.ratio), b.cold.verdict.name()));
            let (ratio, verdict) = baseline.unwrap_or_default();
            let cells = [
                t.op.clone(),
                t.variant.clone(),
                t.dtype.clone(),
                format!("\"{}\"", t.shape.replace('"', "\"\"")),
                t.default.to_string(),
                us(t.cold.median),
                us(t.cold.p10),
                us(t.cold.p90),
                us(t.warm.median),
                us(t.warm.p10),
                us(t.warm.p90),
                format!("{:.0}", t.bytes),
                format!("{:.0}", t.flops),
                format!("{:.2}", t.gb_per_s),
                format!("{:.4}", t.tflop_per_s),
                t.bound.name().to_owned(),
                us(t.bound_s),
                format!("{:.2}", t.ceiling_percent),
                format!("{:.4}", self.times_fastest(t)),
                self.times_cublas(t).map_or(String::new(), |times| format!("{times:.4}")),
                ratio,
                verdict.to_owned(),
            ];
            writeln!(csv, "{}", cells.join(",")).expect("strings take everything");
        }
        csv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceilings() -> Ceilings {
        Ceilings { bytes_per_s: 4e12, flops_per_s: Some(8e14), dtype: "bf16".into(), empty_s: 1e-6 }
    }

    #[test]
    fn the_slower_of_the_two_ceilings_is_the_bound() {
        let cost = Cost { bytes: 4e6, flops: 1e6 };
        assert_eq!(ceilings().bound(&cost, "bf16"), (1e-6, Bound::Memory));
        let cost = Cost { bytes: 4e6, flops: 8e9 };
        assert_eq!(ceilings().bound(&cost, "bf16"), (1e-5, Bound::Compute));
        assert_eq!(ceilings().bound(&cost, "f32").1, Bound::Memory, "measured in another format");
    }
}
