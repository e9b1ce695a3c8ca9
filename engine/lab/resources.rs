//! Registers, memory and occupancy of kernels: from the driver where there is a GPU, from `ptxas` where that is installed.

use super::kernels::{self, Kernel};
use crate::cuda::{self, Device, Resources};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// Threads of a block that are assumed where a kernel states no number: what the launch wrappers use for simple kernels.
const USUAL_BLOCK: u32 = 256;

/// Warps that a multiprocessor of compute capability 8.0 or 9.0 holds at a time.
const MAX_WARPS: u32 = 64;

/// What is known of a kernel on one target.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Facts {
    /// `sm_80` or `sm_90a`.
    pub target: &'static str,
    /// `driver` or `ptxas`.
    pub source: &'static str,
    #[serde(flatten)]
    pub resources: Resources,
    /// Share of the warps that a multiprocessor can hold.
    pub occupancy: f64,
}

/// Where facts come from on this machine.
pub struct Source {
    device: Option<Device>,
    /// What `ptxas` said, by target and kernel.
    ptxas: BTreeMap<(&'static str, String), Compiled>,
    /// Whether `ptxas` ran.
    has_ptxas: bool,
    blocks: BTreeMap<(&'static str, String), u32>,
}

/// What `ptxas -v` says of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Compiled {
    pub registers: u32,
    pub shared_bytes: u32,
    pub stack_bytes: u32,
    pub spill_bytes: u32,
}

impl Source {
    /// Opens the first GPU, and asks `ptxas` about the targets that it does not run.
    pub fn find() -> Self {
        let device = cuda::probe().ok().and_then(|_| Device::open(None, qernel_ptx::ptx).ok());
        let target = device.as_ref().and_then(|device| device.info().target().ok());
        let mut source = Self { device, ptxas: BTreeMap::new(), has_ptxas: false, blocks: BTreeMap::new() };
        for name in qernel_ptx::TARGETS {
            let ptx = qernel_ptx::ptx(name).unwrap_or_default();
            source.blocks.extend(max_threads(ptx).map(|(kernel, threads)| ((name, kernel), threads)));
            if target == Some(name) {
                continue;
            }
            if let Some(log) = ptxas(name, ptx) {
                source.has_ptxas = true;
                source.ptxas.extend(compiled(&log).map(|(kernel, compiled)| ((name, kernel), compiled)));
            }
        }
        source
    }

    /// Why facts are missing, `None` where none is.
    pub fn missing(&self) -> Option<&'static str> {
        match (&self.device, self.has_ptxas) {
            (None, false) => Some("unknown: no driver or ptxas"),
            (Some(_), false) => Some("unknown for the other targets: no ptxas"),
            _ => None,
        }
    }

    /// Threads of a block that `kernel` is compiled for, `None` where it does not say.
    pub fn max_threads(&self, kernel: &str, target: &'static str) -> Option<u32> {
        self.blocks.get(&(target, kernel.to_owned())).copied()
    }

    /// What is known of `kernel`, for each of its targets of which something is.
    pub fn facts(&self, kernel: &Kernel) -> Vec<Facts> {
        kernel.targets.iter().filter_map(|target| self.facts_for(&kernel.name, target)).collect()
    }

    fn facts_for(&self, kernel: &str, target: &'static str) -> Option<Facts> {
        let key = (target, kernel.to_owned());
        let max_threads = self.max_threads(kernel, target);
        let threads = max_threads.unwrap_or(USUAL_BLOCK);
        let device = self.device.as_ref().filter(|device| device.info().target().ok() == Some(target));
        let (source, resources) = match (device, self.ptxas.get(&key)) {
            (Some(device), _) => ("driver", device.resources(kernel, threads).ok()?),
            (None, Some(compiled)) => ("ptxas", compiled.resources(target, threads)),
            (None, None) => return None,
        };
        let warps = resources.blocks_per_multiprocessor * threads.div_ceil(32);
        let occupancy = f64::from(warps) / f64::from(MAX_WARPS);
        Some(Facts { target, source, resources, occupancy })
    }
}

impl Compiled {
    /// With the blocks that fit on a multiprocessor, worked out as NVIDIA's occupancy calculator does for compute
    /// capabilities 8.0 and 9.0.
    fn resources(&self, target: &str, threads: u32) -> Resources {
        const REGISTERS: u32 = 65_536;
        const REGISTER_UNIT: u32 = 256;
        const MAX_BLOCKS: u32 = 32;
        const SHARED_UNIT: u32 = 128;
        // What the system takes of every block's shared memory.
        const SHARED_RESERVED: u32 = 1024;
        let shared_total = if target == "sm_80" { 164 << 10 } else { 228 << 10 };

        let warps = threads.div_ceil(32).max(1);
        let by_warps = MAX_WARPS / warps;
        // Registers are given to warps in units, on four partitions.
        let registers_of_warp = (self.registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let by_registers = REGISTERS / 4 / registers_of_warp * 4 / warps;
        let shared = (self.shared_bytes + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
        let by_shared = shared_total / shared;
        Resources {
            registers: self.registers,
            shared_bytes: self.shared_bytes,
            local_bytes: self.stack_bytes,
            spill_bytes: Some(self.spill_bytes),
            blocks_per_multiprocessor: by_warps.min(by_registers).min(by_shared).min(MAX_BLOCKS),
        }
    }
}

/// What `ptxas -v` says of a module, `None` where it is not installed or fails.
fn ptxas(target: &str, ptx: &str) -> Option<String> {
    let mut child = Command::new("ptxas")
        .args(["-v", &format!("-arch={target}"), "--output-file", "/dev/null", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // Another thread writes, since `ptxas` may speak before it has read all.
    let mut stdin = child.stdin.take()?;
    let input = ptx.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().ok()?;
    writer.join().ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The kernels of a log of `ptxas -v`.
pub(super) fn compiled(log: &str) -> impl Iterator<Item = (String, Compiled)> {
    log.split("Compiling entry function '").skip(1).filter_map(|part| {
        let (name, rest) = part.split_once('\'')?;
        let number_before = |what: &str| -> u32 {
            let digits = |text: &str| text.rsplit([' ', ',', '\n']).next().and_then(|word| word.parse().ok());
            rest.split_once(what).and_then(|(before, _)| digits(before)).unwrap_or(0)
        };
        let compiled = Compiled {
            registers: number_before(" registers"),
            shared_bytes: number_before(" bytes smem"),
            stack_bytes: number_before(" bytes stack frame"),
            spill_bytes: number_before(" bytes spill stores"),
        };
        Some((name.to_owned(), compiled))
    })
}

/// The kernels of a module that state the threads of their blocks.
fn max_threads(ptx: &str) -> impl Iterator<Item = (String, u32)> {
    ptx.split(".entry ").skip(1).filter_map(|entry| {
        let (header, _) = entry.split_once("{\n").unwrap_or((entry, ""));
        let name = kernels::entry_name(header)?;
        let (_, threads) = header.split_once(".maxntid ")?;
        let threads = threads.split([',', '\n', ' ']).next()?.trim().parse().ok()?;
        Some((name.to_owned(), threads))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_ptxas_is_understood() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'matmul_bf16_gemv' for 'sm_90a'
ptxas info    : Function properties for matmul_bf16_gemv
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Compiling entry function 'argmax_f32_plain' for 'sm_90a'
ptxas info    : Function properties for argmax_f32_plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 15 registers, used 1 barriers, 256 bytes smem
";
        let kernels: BTreeMap<_, _> = compiled(log).collect();
        let gemv = Compiled { registers: 40, shared_bytes: 0, stack_bytes: 16, spill_bytes: 12 };
        assert_eq!(kernels["matmul_bf16_gemv"], gemv);
        assert_eq!(kernels["argmax_f32_plain"].shared_bytes, 256);
    }

    #[test]
    fn occupancy_follows_the_scarcest_resource() {
        let blocks = |registers, shared_bytes, threads, target| {
            Compiled { registers, shared_bytes, ..Compiled::default() }
                .resources(target, threads)
                .blocks_per_multiprocessor
        };
        // As NVIDIA's calculator: 2048 threads, 64 Ki registers, 32 blocks, 164 or 228 KiB with 1 KiB a block reserved.
        assert_eq!(blocks(32, 0, 256, "sm_80"), 8);
        assert_eq!(blocks(40, 0, 256, "sm_90a"), 6);
        assert_eq!(blocks(128, 0, 128, "sm_90a"), 4);
        assert_eq!(blocks(16, 0, 32, "sm_80"), 32);
        assert_eq!(blocks(32, 48 << 10, 128, "sm_80"), 3);
        assert_eq!(blocks(32, 48 << 10, 128, "sm_90a"), 4);
        assert_eq!(blocks(255, 0, 1024, "sm_90a"), 0);
    }

    #[test]
    fn kernels_that_state_their_blocks_are_found_in_the_ptx() {
        for target in qernel_ptx::TARGETS {
            let stated: BTreeMap<_, _> = max_threads(qernel_ptx::ptx(target).unwrap()).collect();
            assert_eq!(stated.get("matmul_bf16_gemv"), Some(&256));
            assert_eq!(stated.get("argmax_f32_plain"), Some(&1024));
            assert_eq!(stated.get("add_f32_plain"), None);
        }
    }
}
