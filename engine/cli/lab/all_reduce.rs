//! `lab check all_reduce` and `lab bench all_reduce`: the sum over ranks, each on a device of its own.

use super::table::Table;
use crate::cli::output::Output;
use crate::error::{Error, Result};
use crate::lab::all_reduce::{Exchange, OP, SIZES};
use crate::lab::device::LabDevice;
use crate::load::{DeviceChoice, devices};
use crate::stats::Stats;
use std::process::ExitCode;

/// Ranks where nobody says how many.
pub(super) const RANKS: usize = 2;

/// Refuses options that are for kernels.
///
/// # Errors
/// [`Error::Request`] if a variant was asked for.
pub(super) fn expect_no_variant(variant: Option<&str>) -> Result<()> {
    match variant {
        None => Ok(()),
        Some(name) => Err(Error::Request(format!(
            "{OP} has no variant {name}: it is taken by the size; the variants are those of add_ranks"
        ))),
    }
}

/// Checks the exchanges of `ranks` ranks on the devices from `device` on, and times those of GPUs.
///
/// # Errors
/// As [`Exchange::run`].
pub(super) fn run(device: LabDevice, ranks: usize, seed: u64, json: bool) -> Result<ExitCode> {
    let first = match device {
        LabDevice::Emulated => DeviceChoice::Emulated,
        LabDevice::Auto if crate::cuda::probe().is_err() => DeviceChoice::Emulated,
        LabDevice::Auto => DeviceChoice::Cuda(None),
        LabDevice::Cuda(ordinal) => DeviceChoice::Cuda(ordinal),
    };
    let of_choice = |choice| match choice {
        DeviceChoice::Cuda(ordinal) => LabDevice::Cuda(ordinal),
        _ => LabDevice::Emulated,
    };
    let chosen = devices(OP, first, Some(ranks))?;
    let devices: Vec<LabDevice> = chosen.iter().copied().map(of_choice).collect();
    // What chunks do shows with the smallest sum of a prompt.
    let most = if devices.contains(&LabDevice::Emulated) { SIZES[4] } else { SIZES[6] };
    let exchanges: Vec<Exchange> = SIZES
        .into_iter()
        .filter(|&bytes| bytes <= most)
        .map(|bytes| Exchange::run(&devices, bytes, seed))
        .collect::<Result<_>>()?;
    let mut out = Output::stdout();
    if json {
        out.json(&exchanges)?;
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<_> = chosen.iter().map(ToString::to_string).collect();
    out.line(&format!("{OP} over {}, seed {seed}", names.join(", ")))?;
    let mut table = Table::new(&["bytes", "µs", "±", "GB/s a link", "NCCL, µs", "±", "<"]);
    let us = |seconds: f64| format!("{:.2}", seconds * 1e6);
    let spread = |stats: &Stats| us((stats.p90 - stats.p10) / 2.0);
    for Exchange { ranks, bytes, seconds, nccl_seconds } in &exchanges {
        // What a rank sends to all others.
        let rate = |stats: &Stats| format!("{:.2}", (bytes * (ranks - 1)) as f64 / stats.median / 1e9);
        let cell =
            |stats: &Option<Stats>, of: &dyn Fn(&Stats) -> String| stats.as_ref().map(of).unwrap_or_default();
        let median = |stats: &Stats| us(stats.median);
        table.row(vec![
            bytes.to_string(),
            cell(seconds, &median),
            cell(seconds, &spread),
            cell(seconds, &rate),
            cell(nccl_seconds, &median),
            cell(nccl_seconds, &spread),
            "the same bits on all".into(),
        ]);
    }
    out.text(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}
