//! Checking kernels: every variant, dtype and shape against the reference in f64.

use super::case::{Case, Instance, Session, choose};
use super::cases;
use super::findings::Findings;
use super::kernels::operation;
use crate::cuda::{self, Device, Operation, is_ineligible};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use serde::Serialize;
use std::rc::Rc;

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// One operation; `None`: all.
    pub op: Option<String>,
    /// One variant; `None`: all.
    pub variant: Option<String>,
    /// One dtype; `None`: all.
    pub dtype: Option<Dtype>,
    /// Of the inputs.
    pub seed: u64,
    /// Leaves out cases of more [`Case::work`].
    pub max_work: Option<usize>,
}

/// What came out of a case with one variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseResult {
    pub op: &'static str,
    pub variant: &'static str,
    pub dtype: &'static str,
    pub shape: String,
    pub seed: u64,
    pub outcome: Outcome,
    /// Values compared.
    pub compared: usize,
    /// The worst error in units of its tolerance; null where it is infinite.
    pub worst_error: f64,
    /// The largest absolute error; null where it is infinite.
    pub absolute_error: f64,
    /// Which result the worst error is in, and at which index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_at: Option<(&'static str, usize)>,
    /// What is wrong, or why the variant did not compute it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How a case went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    Failed,
    /// The variant cannot compute this case, or needs what is not there.
    Skipped,
}

/// Runs the cases that `options` ask for, calls `each` with each result as it comes, and returns all.
///
/// # Errors
/// [`Error::Request`] for an operation or a variant that does not exist; [`Error::Memory`] and [`Error::Device`] where the
/// device cannot go on. A wrong kernel is a result, not an error.
pub fn check(
    session: &mut Session,
    options: &CheckOptions,
    each: &mut dyn FnMut(&CaseResult),
) -> Result<Vec<CaseResult>> {
    if let Some(op) = &options.op {
        cases::of(op)?;
    }
    let mut results = Vec::new();
    for cases in cases::ALL.iter().filter(|cases| options.op.as_deref().is_none_or(|op| op == cases.op)) {
        let op = operation(cases.op)?;
        let variants = match options.variant.as_deref() {
            Some(name) => vec![op.variant(name)?.name],
            None => op.variants.iter().map(|variant| variant.name).collect(),
        };
        for case in (cases.checks)() {
            let selected = options.dtype.is_none_or(|dtype| dtype == case.dtype)
                && options.max_work.is_none_or(|most| case.work <= most);
            if !selected {
                continue;
            }
            let mut instance = prepared(session, &case, options.seed)?;
            for &variant in &variants {
                let result = match &mut instance {
                    Ok(instance) => run(session, &op, variant, &case, &mut **instance, options.seed)?,
                    Err(why) => skipped(&op, variant, &case, options.seed, why.clone()),
                };
                each(&result);
                results.push(result);
            }
        }
    }
    if results.is_empty() {
        return Err(Error::Request(format!(
            "{} has no case of this dtype; the kernels of some operations are f32 alone",
            options.op.as_deref().unwrap_or("no operation")
        )));
    }
    Ok(results)
}

/// Checks one operation for a test: every case must pass, and every variant must compute some, but for the library's on an
/// emulated device, and those of repacked matrices on a device that repacks none.
///
/// # Errors
/// What is wrong, in words.
pub fn verify(
    device: &Rc<Device>,
    op: &str,
    seed: u64,
    max_work: Option<usize>,
) -> std::result::Result<Vec<CaseResult>, String> {
    let options = CheckOptions { op: Some(op.to_owned()), seed, max_work, ..CheckOptions::default() };
    let results = check(&mut Session::new(device), &options, &mut |_| {}).map_err(|e| e.to_string())?;
    let mut wrong: Vec<String> = results
        .iter()
        .filter(|result| result.outcome == Outcome::Failed)
        .map(|r| format!("{op}={} {} {}, seed {seed}: {}", r.variant, r.dtype, r.shape, r.notes.join("; ")))
        .collect();
    for variant in operation(op).map_err(|e| e.to_string())?.variants {
        let of_variant = || results.iter().filter(|result| result.variant == variant.name);
        let missing_library = variant.name == "cublas" && device.is_emulated();
        let missing_units = (["units", "halves", "wgmma"].contains(&variant.name) || op == "repack")
            && !device.has_bulk_copies();
        let may_be_missing = missing_library || missing_units;
        if of_variant().all(|result| result.outcome == Outcome::Skipped) && !may_be_missing {
            let why = of_variant().find_map(|result| result.notes.first()).map_or("", String::as_str);
            wrong.push(format!("{op}={} computed no case: {why}", variant.name));
        }
    }
    if wrong.is_empty() {
        return Ok(results);
    }
    const SHOWN: usize = 20;
    let more = wrong.len().saturating_sub(SHOWN);
    wrong.truncate(SHOWN);
    if more > 0 {
        wrong.push(format!("… and {more} more"));
    }
    Err(wrong.join("\n"))
}

/// A case on the device, or why the device cannot have it.
///
/// # Errors
/// Where the device cannot go on.
pub(super) fn prepared(
    session: &mut Session,
    case: &Case,
    seed: u64,
) -> Result<std::result::Result<Box<dyn Instance>, String>> {
    match (case.prepare)(session.ops(case.dtype, &case.config)?, seed) {
        Ok(instance) => Ok(Ok(instance)),
        Err(error) if is_ineligible(&error) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// The result of a case that was not computed.
pub(super) fn skipped(
    op: &Operation,
    variant: &'static str,
    case: &Case,
    seed: u64,
    why: String,
) -> CaseResult {
    CaseResult {
        op: op.name,
        variant,
        dtype: case.dtype.name(),
        shape: case.shape.clone(),
        seed,
        outcome: Outcome::Skipped,
        compared: 0,
        worst_error: 0.0,
        absolute_error: 0.0,
        worst_at: None,
        notes: vec![why],
    }
}

/// One case with one variant.
///
/// # Errors
/// Where the device cannot go on.
pub fn run(
    session: &mut Session,
    op: &Operation,
    variant: &'static str,
    case: &Case,
    instance: &mut dyn Instance,
    seed: u64,
) -> Result<CaseResult> {
    let ops = session.ops(case.dtype, &case.config)?;
    let left_out = |why: &Error| skipped(op, variant, case, seed, why.to_string());
    // A library that is not installed leaves its variant out.
    if let Err(error) = ops.choose(choose(op.name, variant)?) {
        return Ok(left_out(&error));
    }
    let mut findings = Findings::default();
    let outcome = instance
        .reset(ops)
        .and_then(|()| instance.launch(ops))
        .and_then(|()| instance.compare(ops, variant, &mut findings));
    match outcome {
        Ok(()) => {}
        Err(error) if is_ineligible(&error) => return Ok(left_out(&error)),
        // An operation's word on its own results, or an emulator's on a kernel. A device that faulted fails here.
        Err(error @ (Error::Request(_) | Error::Device(_))) => {
            // With the case that it came in: nothing more can be run on it.
            session.device().synchronize().map_err(|fault| {
                Error::Device(format!(
                    "{}={variant} {} {}, seed {seed}: {fault}",
                    op.name, case.dtype, case.shape
                ))
            })?;
            findings.failures.push(error.to_string());
        }
        Err(error) => return Err(error),
    }
    Ok(CaseResult {
        outcome: if findings.passed() { Outcome::Passed } else { Outcome::Failed },
        compared: findings.compared,
        worst_error: findings.worst.as_ref().map_or(0.0, |worst| worst.ratio),
        absolute_error: findings.absolute,
        worst_at: findings.worst.map(|worst| (worst.of, worst.index)),
        notes: findings.failures,
        ..skipped(op, variant, case, seed, String::new())
    })
}

/// All results of one variant in one dtype.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub op: &'static str,
    pub variant: &'static str,
    pub dtype: &'static str,
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// The result with the worst error.
    pub worst: Option<CaseResult>,
    /// The largest absolute error of all.
    pub absolute_error: f64,
}

/// The results by operation, variant and dtype, in the order in which they came.
pub fn summarise(results: &[CaseResult]) -> Vec<Summary> {
    let mut all: Vec<Summary> = Vec::new();
    for result in results {
        let key = (result.op, result.variant, result.dtype);
        let place = all.iter().position(|summary| (summary.op, summary.variant, summary.dtype) == key);
        let place = place.unwrap_or_else(|| {
            let (op, variant, dtype) = key;
            let (passed, failed, skipped, worst, absolute_error) = (0, 0, 0, None, 0.0);
            all.push(Summary { op, variant, dtype, passed, failed, skipped, worst, absolute_error });
            all.len() - 1
        });
        let summary = &mut all[place];
        match result.outcome {
            Outcome::Passed => summary.passed += 1,
            Outcome::Failed => summary.failed += 1,
            Outcome::Skipped => {
                summary.skipped += 1;
                continue;
            }
        }
        summary.absolute_error = summary.absolute_error.max(result.absolute_error);
        let rank = |result: &CaseResult| (result.outcome == Outcome::Failed, result.worst_error);
        if summary.worst.as_ref().is_none_or(|worst| rank(result) > rank(worst)) {
            summary.worst = Some(result.clone());
        }
    }
    all.sort_by_key(|summary| (summary.op, preference(summary)));
    all
}

/// The place of a variant in its table, then that of its dtype.
fn preference(summary: &Summary) -> (usize, usize) {
    let variants = cuda::operations().into_iter().find(|op| op.name == summary.op);
    let place = variants.and_then(|op| op.variants.iter().position(|v| v.name == summary.variant));
    let dtype = Dtype::ALL.iter().position(|dtype| dtype.name() == summary.dtype);
    (place.unwrap_or(usize::MAX), dtype.unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(variant: &'static str, outcome: Outcome, worst_error: f64) -> CaseResult {
        CaseResult {
            op: "rms_norm",
            variant,
            dtype: "bf16",
            shape: format!("{worst_error}"),
            seed: 1,
            outcome,
            compared: 3,
            worst_error,
            absolute_error: worst_error / 10.0,
            worst_at: Some(("out", 2)),
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_summary_has_the_worst_case_and_failures_before_large_errors() {
        let results = [
            result("plain", Outcome::Passed, 0.5),
            result("vec4", Outcome::Skipped, 0.0),
            result("plain", Outcome::Failed, 0.25),
            result("plain", Outcome::Passed, 0.75),
        ];
        let all = summarise(&results);
        let names: Vec<_> = all.iter().map(|summary| summary.variant).collect();
        assert_eq!(names, ["vec4", "plain"], "in order of preference");
        assert_eq!((all[0].skipped, &all[0].worst), (1, &None));
        assert_eq!((all[1].passed, all[1].failed), (2, 1));
        assert_eq!(all[1].worst.as_ref().unwrap().worst_error, 0.25);
        assert_eq!(all[1].absolute_error, 0.075);
    }
}
