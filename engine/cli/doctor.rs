//! `qernel doctor`: what this machine has, what is missing and how to get it.

use super::output::Output;
use crate::cuda;
use crate::error::Result;

/// Report the driver, devices, libraries and the device compiler: what was found, what is missing, how to get it
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One thing that was looked for.
#[derive(Debug, serde::Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// What was found, or why not.
    found: String,
    /// How to get it, where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn found(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, found: found.into(), advice: None }
    }

    fn missing(name: &str, why: impl Into<String>, advice: &str) -> Self {
        Self { name: name.to_owned(), ok: false, found: why.into(), advice: Some(advice.to_owned()) }
    }
}

/// Runs the command. A machine without a GPU is not an error: the CPU computes there.
pub fn run(args: DoctorArgs) -> Result<()> {
    let checks: Vec<Check> =
        [processor(), driver_and_devices(), cublas(), device_compiler()].into_iter().flatten().collect();
    let mut out = Output::stdout();
    if args.json {
        return out.json(&checks);
    }
    for check in checks {
        let mark = if check.ok { "found  " } else { "missing" };
        out.line(&format!(
            "{mark}  {:<16}  {}",
            check.name,
            check.found.replace('\n', "\n                           ")
        ))?;
        if let Some(advice) = check.advice {
            out.line(&format!("                           -> {advice}"))?;
        }
    }
    Ok(())
}

fn processor() -> Vec<Check> {
    let threads = rayon::current_num_threads();
    let isa = crate::cpu::simd::Isa::best().name();
    vec![Check::found("CPU", format!("{threads} threads, {isa}"))]
}

fn driver_and_devices() -> Vec<Check> {
    let devices = match cuda::probe() {
        Ok(devices) => devices,
        Err(error) => {
            return vec![Check::missing(
                "GPU",
                error.to_string(),
                "install NVIDIA's driver (Debian: nvidia-driver in non-free; version 525 or newer); until then the CPU computes",
            )];
        }
    };
    let mut checks = Vec::new();
    if let Some(first) = devices.first() {
        let (major, minor) = first.driver_version;
        checks.push(Check::found("driver", format!("CUDA {major}.{minor}")));
    }
    for info in devices {
        let name = format!("cuda:{}", info.ordinal);
        let (major, minor) = info.compute_capability;
        let found = format!(
            "{}, compute capability {major}.{minor}, {} multiprocessors, {:.1} GiB",
            info.name,
            info.multiprocessors,
            info.total_memory as f64 / f64::from(1 << 30)
        );
        checks.push(match info.target() {
            Ok(target) => Check::found(&name, format!("{found}; runs the {target} kernels")),
            Err(error) => {
                Check::missing(&name, format!("{found}: {error}"), "use another device or --device cpu")
            }
        });
    }
    checks
}

fn cublas() -> Vec<Check> {
    vec![match cuda::library_version() {
        Ok(version) => Check::found("cuBLAS", version),
        Err(why) => Check::missing("cuBLAS", why.to_string(), "needed by the GPU only"),
    }]
}

/// Needed to build the project, not to run it: a program without the laboratory does not know how it is built.
#[cfg(not(feature = "lab"))]
fn device_compiler() -> Vec<Check> {
    Vec::new()
}

/// Needed to build the project, not to run it.
#[cfg(feature = "lab")]
fn device_compiler() -> Vec<Check> {
    let findings = cuda_builder::toolchain::probe();
    let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    vec![if findings.iter().any(|finding| finding.result.is_ok()) {
        Check::found("device compiler", text)
    } else {
        Check::missing(
            "device compiler",
            text,
            "needed only to build qernel: rustup component add rust-src, or let the build download one",
        )
    }]
}
