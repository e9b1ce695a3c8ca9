//! Timing kernels: checked first, then launched many times with a cold and with a warm L2 cache.

use super::case::{Case, Instance, SMALL_WORK, Session, Workload, choose, plain_config};
use super::cases;
use super::check::{CaseResult, CheckOptions, Outcome, check, prepared, run, skipped};
use super::kernels::operation;
use super::run::{Ceilings, LeftOut, Run, Timing, VERSION};
use super::{cases::matmul, device};
use crate::cuda::{self, CudaOps, Memory, Timer};
use crate::error::{Error, Result};
use crate::stats::{Stats, StopRule};
use std::time::Instant;

/// What to time.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// One operation; `None`: all.
    pub op: Option<String>,
    /// One variant; `None`: all.
    pub variant: Option<String>,
    /// Cases whose shape has this text in it; `None`: all.
    pub shape: Option<String>,
    pub workload: Workload,
    /// Of the inputs.
    pub seed: u64,
    /// For each of the two times of a variant in a shape.
    pub rule: StopRule,
}

/// Bytes read between cold launches, at least; more where that is not twice the L2 cache.
const COLD_BYTES: usize = 256 << 20;

/// Launches that are queued before the first is waited for.
const LAPS: usize = 16;

/// What launches in a row should take together, in seconds: far above the resolution of the device's clock, 0.5 µs.
const WARM_SECONDS: f64 = 200e-6;

/// Launches in a row at most: the driver's queue takes about a thousand before it makes the host wait.
const MAX_IN_A_ROW: usize = 200;

/// Times what `options` ask for; `progress` is told what is done next.
///
/// # Errors
/// [`Error::Request`] for an operation or a variant that does not exist; [`Error::Device`] on an emulated device, which has
/// no time; [`Error::Memory`] and [`Error::Device`] where the device cannot go on. A wrong kernel is left out of the timings
/// and is named in the run.
pub fn bench(session: &mut Session, options: &BenchOptions, progress: &mut dyn FnMut(&str)) -> Result<Run> {
    if session.device().is_emulated() {
        return Err(nothing_to_time());
    }
    let mut selected = Vec::new();
    for cases in cases::ALL.iter().filter(|cases| options.op.as_deref().is_none_or(|op| op == cases.op)) {
        let op = operation(cases.op)?;
        if let Some(name) = &options.variant {
            op.variant(name)?;
        }
        selected.push((op, cases));
    }
    if selected.is_empty() {
        cases::of(options.op.as_deref().unwrap_or_default())?;
    }
    progress("measuring the device's ceilings");
    let mut stand = Stand::new(session)?;
    let info = session.device().info().clone();
    let (major, minor) = info.compute_capability;
    let mut run = Run {
        version: VERSION,
        device: device::describe(session.device()),
        platform: format!(
            "compute capability {major}.{minor}, {}, driver of CUDA {}.{}",
            info.target()?,
            info.driver_version.0,
            info.driver_version.1
        ),
        date: jiff::Zoned::now().timestamp().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        model: options.workload.config.name.clone(),
        seed: options.seed,
        ceilings: ceilings(session, options, &mut stand)?,
        timings: Vec::new(),
        left_out: Vec::new(),
    };
    for (op, cases) in selected {
        progress(&format!("checking {}", op.name));
        let wrong = wrong_variants(session, options, op.name)?;
        let is_selected = |case: &Case| options.shape.as_deref().is_none_or(|text| case.shape.contains(text));
        for case in (cases.timings)(&options.workload).into_iter().filter(is_selected) {
            let mut instance = match prepared(session, &case, options.seed)? {
                Ok(instance) => instance,
                Err(why) => {
                    let asked =
                        |v: &&cuda::VariantInfo| options.variant.as_deref().is_none_or(|name| name == v.name);
                    let results = op
                        .variants
                        .iter()
                        .filter(asked)
                        .map(|v| skipped(&op, v.name, &case, options.seed, why.clone()));
                    run.left_out.extend(results.map(LeftOut::from));
                    continue;
                }
            };
            let usual = instance.default_variant();
            let mut first = true;
            for variant in &op.variants {
                progress(&format!("timing {}={} {} {}", op.name, variant.name, case.dtype, case.shape));
                let is_wrong =
                    wrong.iter().find(|w| (w.variant, w.dtype) == (variant.name, case.dtype.name()));
                let result = match is_wrong {
                    Some(result) => result.clone(),
                    None => self::run(session, &op, variant.name, &case, &mut *instance, options.seed)?,
                };
                let eligible = result.outcome != Outcome::Skipped;
                let default = usual.map_or(first && eligible, |usual| usual == variant.name);
                first &= !eligible;
                if options.variant.as_deref().is_some_and(|name| name != variant.name) {
                    continue;
                }
                if result.outcome != Outcome::Passed {
                    run.left_out.push(result.into());
                    continue;
                }
                let ops = session.ops(case.dtype, &case.config)?;
                ops.choose(choose(op.name, variant.name)?)?;
                let cold = stand.cold(ops, &mut *instance, &options.rule)?;
                let warm = stand.warm(ops, &mut *instance, cold.median, &options.rule)?;
                let mut timing = timing(&run.ceilings, &case, cold, warm);
                (timing.op, timing.variant, timing.default) = (op.name.into(), variant.name.into(), default);
                timing.worst_error = result.worst_error;
                run.timings.push(timing);
            }
        }
    }
    Ok(run)
}

/// The error of a machine without a GPU.
pub fn nothing_to_time() -> Error {
    Error::Device(
        "there is no GPU, so there is nothing to time; `qernel lab check <op> --device emulated` checks kernels without \
         one"
        .into(),
    )
}

/// The first wrong result of each variant and dtype in the small cases of its table.
fn wrong_variants(session: &mut Session, options: &BenchOptions, op: &str) -> Result<Vec<CaseResult>> {
    let options = CheckOptions {
        op: Some(op.into()),
        variant: options.variant.clone(),
        dtype: None,
        seed: options.seed,
        max_work: Some(SMALL_WORK),
    };
    let mut results = check(session, &options, &mut |_| {})?;
    results.retain(|result| result.outcome == Outcome::Failed);
    Ok(results)
}

/// A timing without a name.
fn timing(ceilings: &Ceilings, case: &Case, cold: Stats, warm: Stats) -> Timing {
    let (bound_s, bound) = ceilings.bound(&case.cost, case.dtype.name());
    Timing {
        op: String::new(),
        variant: String::new(),
        dtype: case.dtype.name().into(),
        shape: case.shape.clone(),
        default: false,
        cold,
        warm,
        bytes: case.cost.bytes,
        flops: case.cost.flops,
        gb_per_s: case.cost.bytes / cold.median / 1e9,
        tflop_per_s: case.cost.flops / cold.median / 1e12,
        bound_s,
        bound,
        ceiling_percent: bound_s / cold.median * 100.0,
        worst_error: 0.0,
        baseline: None,
    }
}

/// Bandwidth, the rate of a large product where cuBLAS is installed, and the time of nothing.
fn ceilings(session: &mut Session, options: &BenchOptions, stand: &mut Stand) -> Result<Ceilings> {
    let bytes_per_s = cuda::read_bandwidth(session.device())?;
    let dtype = options.workload.dtype;
    let case = matmul::largest(dtype);
    let ops = session.ops(dtype, &plain_config())?;
    let flops_per_s = match ops.choose(choose("matmul", "cublas")?) {
        Ok(()) => {
            let mut instance = (case.prepare)(ops, options.seed)?;
            Some(case.cost.flops / stand.fastest(ops, &mut *instance)?)
        }
        Err(error) => {
            tracing::warn!("no ceiling for arithmetic: {error}");
            None
        }
    };
    let empty_s = stand.empty()?;
    Ok(Ceilings { bytes_per_s, flops_per_s, dtype: dtype.name().into(), empty_s })
}

/// A timer, and memory to read between launches.
struct Stand {
    timer: Timer,
    memory: Memory,
    /// Seconds that reading the memory takes.
    read_s: f64,
}

impl Stand {
    fn new(session: &Session) -> Result<Self> {
        let timer = Timer::new(session.device(), LAPS)?;
        let memory = Memory::new(session.device(), COLD_BYTES)?;
        let mut stand = Self { timer, memory, read_s: f64::INFINITY };
        for _ in 0..LAPS {
            stand.timer.start(0)?;
            stand.memory.read()?;
            stand.timer.stop(0)?;
            stand.read_s = stand.read_s.min(stand.timer.seconds(0)?);
        }
        Ok(stand)
    }

    /// Launches with nothing of the operands in the L2 cache.
    fn cold(&mut self, ops: &mut CudaOps, instance: &mut dyn Instance, rule: &StopRule) -> Result<Stats> {
        let repeats = instance.repeats();
        let laps = if repeats { LAPS } else { 1 };
        self.wake(ops, instance)?;
        let (begin, mut samples) = (Instant::now(), Vec::new());
        while !rule.is_met(&samples, begin.elapsed().as_secs_f64()) {
            for lap in 0..laps {
                if !repeats {
                    instance.reset(ops)?;
                }
                // Reading takes longer than the host needs to queue what follows, so the launch itself is not timed.
                self.memory.read()?;
                self.timer.start(lap)?;
                instance.launch(ops)?;
                self.timer.stop(lap)?;
            }
            for lap in 0..laps {
                samples.push(self.timer.seconds(lap)?);
            }
        }
        Ok(Stats::of(&samples))
    }

    /// Launches in a row, after which the operands are in the L2 cache if they fit.
    fn warm(
        &mut self,
        ops: &mut CudaOps,
        instance: &mut dyn Instance,
        expected_s: f64,
        rule: &StopRule,
    ) -> Result<Stats> {
        let repeats = instance.repeats();
        let in_a_row = if repeats { (WARM_SECONDS / expected_s) as usize } else { 1 };
        let in_a_row = in_a_row.clamp(1, MAX_IN_A_ROW);
        self.wake(ops, instance)?;
        let reads = if repeats { self.runway(ops, instance, in_a_row)? } else { 0 };
        let (begin, mut samples) = (Instant::now(), Vec::new());
        while !rule.is_met(&samples, begin.elapsed().as_secs_f64()) {
            if repeats {
                for _ in 0..reads {
                    self.memory.read()?;
                }
                for _ in 0..3 {
                    instance.launch(ops)?;
                }
            } else {
                instance.reset(ops)?;
            }
            self.timer.start(0)?;
            for _ in 0..in_a_row {
                instance.launch(ops)?;
            }
            self.timer.stop(0)?;
            samples.push(self.timer.seconds(0)? / in_a_row as f64);
        }
        Ok(Stats::of(&samples))
    }

    /// How often the memory must be read for the device to be busy while the host queues so many launches: a kernel that is
    /// shorter than its launch would be timed at the host's pace otherwise.
    fn runway(&mut self, ops: &mut CudaOps, instance: &mut dyn Instance, launches: usize) -> Result<usize> {
        let begin = Instant::now();
        for _ in 0..launches + 3 {
            instance.launch(ops)?;
        }
        let host_s = begin.elapsed().as_secs_f64();
        ops.device().synchronize()?;
        Ok(((1.5 * host_s / self.read_s).ceil() as usize).clamp(1, 64))
    }

    /// The shortest of some launches in a row, in seconds.
    fn fastest(&mut self, ops: &mut CudaOps, instance: &mut dyn Instance) -> Result<f64> {
        self.wake(ops, instance)?;
        let mut fastest = f64::INFINITY;
        for lap in 0..LAPS {
            self.timer.start(lap)?;
            instance.launch(ops)?;
            self.timer.stop(lap)?;
        }
        for lap in 0..LAPS {
            fastest = fastest.min(self.timer.seconds(lap)?);
        }
        Ok(fastest)
    }

    /// The time between two events with nothing between.
    fn empty(&mut self) -> Result<f64> {
        self.memory.read()?;
        for lap in 0..LAPS {
            self.timer.start(lap)?;
            self.timer.stop(lap)?;
        }
        let laps: Result<Vec<f64>> = (0..LAPS).map(|lap| self.timer.seconds(lap)).collect();
        Ok(Stats::of(&laps?).median)
    }

    /// Brings the clocks up and the kernels to the device; none of it is timed.
    fn wake(&mut self, ops: &mut CudaOps, instance: &mut dyn Instance) -> Result<()> {
        const AWAKE_SECONDS: f64 = 10e-3;
        instance.reset(ops)?;
        instance.launch(ops)?;
        for _ in 0..((AWAKE_SECONDS / self.read_s) as usize).clamp(1, 500) {
            self.memory.read()?;
        }
        Ok(())
    }
}
