//! `qernel doctor`: what this machine has, what is missing and how to get it, and what makes runs slow.

mod gpu;
mod host;
mod report;

use super::config;
use super::output::Output;
use crate::cuda;
use crate::error::Result;
use std::path::Path;

/// Report the driver, devices, libraries and the device compiler, and what makes runs slow: what was found, what is missing, how to get it
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print what an issue needs: versions, findings, limits and options that are set, without names of users, hosts, folders or files
    #[arg(long, conflicts_with = "json")]
    report: bool,
}

/// How a thing is that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Found,
    Missing,
    /// It is there, and makes runs slower than they could be.
    Slow,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Missing => "missing",
            Self::Slow => "slow",
        }
    }
}

/// One thing that was looked for.
#[derive(Debug, serde::Serialize)]
struct Check {
    name: String,
    ok: bool,
    state: State,
    /// What was found, or why not.
    found: String,
    /// How to get it, where it is missing, or faster, where it is slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn found(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, state: State::Found, found: found.into(), advice: None }
    }

    fn missing(name: &str, why: impl Into<String>, advice: &str) -> Self {
        Self { ok: false, state: State::Missing, advice: Some(advice.to_owned()), ..Self::found(name, why) }
    }

    fn slow(name: &str, found: impl Into<String>, advice: &str) -> Self {
        Self { ok: false, state: State::Slow, advice: Some(advice.to_owned()), ..Self::found(name, found) }
    }
}

/// Runs the command; `file` is the file of options that was named. A machine without a GPU is not an error: the CPU computes there.
pub fn run(args: DoctorArgs, file: Option<&Path>) -> Result<()> {
    let root = Path::new("/");
    let checks = [processor(), host::readings(root), driver_and_devices(root), cublas(), device_compiler()];
    let checks: Vec<Check> = checks.into_iter().flatten().collect();
    let mut out = Output::stdout();
    if args.report {
        return out.text(&report::report(root, &checks, &config::set_without_texts(file)?));
    }
    if args.json {
        return out.json(&checks);
    }
    for check in checks {
        out.line(&format!(
            "{:<7}  {:<16}  {}",
            check.state.word(),
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

fn driver_and_devices(root: &Path) -> Vec<Check> {
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
        if let Ok(address) = cuda::pci_address(info.ordinal) {
            checks.extend(gpu::link(root, &name, &address));
            checks.extend(cuda::condition(&address).map_or_else(
                |error| vec![Check::missing(&name, error.to_string(), "power and clocks are not known")],
                |condition| gpu::condition(&name, &condition),
            ));
        }
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    /// A root folder with these files.
    pub fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }
}
