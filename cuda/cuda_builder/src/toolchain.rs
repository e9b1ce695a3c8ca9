//! Finding a compiler for the kernels: a rustc and the source of its own `core`.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, cache, env, fetch, process};

/// The oldest rustc whose `core` and NVPTX backend the kernels are written for.
pub const MINIMUM: (u32, u32) = (1, 95);

/// A compiler that can make PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler itself (not a rustup proxy).
    pub rustc: PathBuf,
    /// What `rustc --version` answers.
    pub version: String,
    /// The folder that holds `core/src/lib.rs`.
    pub library: PathBuf,
    /// Folders for `LD_LIBRARY_PATH`, so that the compiler loads its own libraries and no others.
    pub library_path: Vec<PathBuf>,
    /// All of `rustc -vV`: two compilers with the same text are the same compiler.
    pub(crate) identity: String,
}

impl Toolchain {
    /// `program` with the environment that this toolchain needs.
    pub(crate) fn command(&self, program: &Path) -> Command {
        command(program, &self.library_path)
    }
}

/// Where a device toolchain may come from, in the order of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The variable [`env::RUSTC`].
    Variable,
    /// The toolchain that cargo runs with.
    Cargo,
    /// The system's compiler, outside rustup.
    System,
    /// A pair of Debian packages that an earlier build unpacked into the cache folder.
    Cache,
    /// `rustup component add rust-src`.
    Rustup,
    /// A download of Debian's matched pair `rustc-web` and `rust-web-src`.
    Debian,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Variable => "environment variable CUDA_BUILDER_RUSTC",
            Place::Cargo => "cargo's own toolchain",
            Place::System => "system compiler",
            Place::Cache => "downloaded earlier",
            Place::Rustup => "rustup component add rust-src",
            Place::Debian => "Debian packages rustc-web and rust-web-src",
        })
    }
}

/// One step of the search and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub place: Place,
    /// The toolchain, or why there is none.
    pub result: Result<Toolchain, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(toolchain) => {
                write!(f, "{}: {} at {}", self.place, toolchain.version, toolchain.rustc.display())
            }
            Err(reason) => write!(f, "{}: {reason}", self.place),
        }
    }
}

/// Where the search looks, so that tests can point it at folders of their own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    pub variable: Option<PathBuf>,
    pub cargo: Option<PathBuf>,
    pub system: Vec<PathBuf>,
    pub cache: Option<PathBuf>,
}

impl Search {
    pub fn from_environment() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Search {
            variable: path(env::RUSTC),
            // Cargo tells its build scripts which compiler it uses; elsewhere the first one on the path is the one it would.
            cargo: Some(path("RUSTC").unwrap_or_else(|| PathBuf::from("rustc"))),
            system: vec!["/usr/bin/rustc".into(), "/usr/local/bin/rustc".into()],
            cache: cache::folder(),
        }
    }

    /// Looks in every place that needs no download and stops at the first toolchain.
    pub fn local(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(rustc) = &self.variable {
            // Whoever names a compiler wants that one or an error, not another one silently.
            findings.push(Finding { place: Place::Variable, result: inspect(rustc) });
            return findings;
        }
        findings.push(Finding { place: Place::Variable, result: Err("not set".into()) });
        if let Some(rustc) = &self.cargo {
            findings.push(Finding { place: Place::Cargo, result: inspect(rustc) });
        }
        for rustc in &self.system {
            if found(&findings) {
                return findings;
            }
            findings.push(Finding { place: Place::System, result: inspect(rustc) });
        }
        if let Some(cache) = self.cache.as_ref().filter(|_| !found(&findings)) {
            let result = match fetch::unpacked(cache) {
                Some(root) => inspect(&root.join("usr/bin/rustc")),
                None => Err(format!("nothing in {}", cache.display())),
            };
            findings.push(Finding { place: Place::Cache, result });
        }
        findings
    }
}

/// Whether the last step of a search found a toolchain.
fn found(findings: &[Finding]) -> bool {
    findings.last().is_some_and(|finding| finding.result.is_ok())
}

/// What a build would find here without downloading anything: each place in the order of the search, up to and
/// including the first that has a toolchain. For a diagnosis such as `qernel doctor`.
pub fn probe() -> Vec<Finding> {
    Search::from_environment().local()
}

/// A device toolchain: the first one found, or else one fetched into `cache`, unless [`env::OFFLINE`] forbids it.
pub(crate) fn find_or_fetch(search: &Search, cache: &Path) -> Result<Toolchain, Error> {
    let mut findings = search.local();
    let offline = std::env::var_os(env::OFFLINE).is_some_and(|value| !value.is_empty() && value != "0");
    if !found(&findings) && search.variable.is_none() {
        for place in [Place::Rustup, Place::Debian] {
            let result = match place {
                _ if offline => Err(format!("not tried, because {} is set", env::OFFLINE)),
                Place::Rustup => fetch::rust_src(search.cargo.as_deref()),
                _ => fetch::debian(cache),
            };
            let result = result.and_then(|rustc| inspect(&rustc));
            findings.push(Finding { place, result });
            if found(&findings) {
                break;
            }
        }
    }
    match findings.pop() {
        Some(Finding { result: Ok(toolchain), .. }) => Ok(toolchain),
        last => {
            findings.extend(last);
            Err(Error::NoToolchain { findings })
        }
    }
}

fn command(program: &Path, library_path: &[PathBuf]) -> Command {
    let mut command = Command::new(program);
    if !library_path.is_empty() {
        let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let all = library_path.iter().cloned().chain(std::env::split_paths(&inherited));
        if let Ok(joined) = std::env::join_paths(all) {
            command.env("LD_LIBRARY_PATH", joined);
        }
    }
    command
}

/// Asks a compiler for its version and sysroot and looks for its source there.
pub(crate) fn inspect(rustc: &Path) -> Result<Toolchain, String> {
    if rustc.components().count() > 1 && !rustc.is_file() {
        return Err(format!("there is no {}", rustc.display()));
    }
    let identity = process::stdout(command(rustc, &library_folders(rustc)).arg("-vV"))?;
    let version = identity.lines().next().unwrap_or_default().to_string();
    match parse_version(&version) {
        None => return Err(format!("{} calls itself `{version}`, which is no rustc", rustc.display())),
        Some(number) if number < MINIMUM => {
            let (major, minor) = MINIMUM;
            return Err(format!("{} is {version}; {major}.{minor} or later is needed", rustc.display()));
        }
        Some(_) => {}
    }
    let sysroot = sysroot(rustc)?;
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if !library.join("core/src/lib.rs").is_file() {
        return Err(format!("{version} has no source in {}", library.display()));
    }
    // A rustup proxy resolves differently in another folder or environment; the compiler behind it does not.
    let direct = sysroot.join("bin/rustc");
    let rustc = if direct.is_file() { direct } else { rustc.to_path_buf() };
    let library_path = library_folders(&rustc);
    Ok(Toolchain { rustc, version, library, library_path, identity })
}

/// Where `rustc` keeps its libraries and, with luck, its source.
pub(crate) fn sysroot(rustc: &Path) -> Result<PathBuf, String> {
    let mut command = command(rustc, &library_folders(rustc));
    process::stdout(command.args(["--print", "sysroot"])).map(|path| PathBuf::from(path.trim()))
}

/// `(major, minor)` of `rustc 1.96.0 (…)`.
fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("rustc ")?.split(['.', ' ', '-']).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The folders beside `bin/rustc` that hold its own shared libraries: `lib`, or Debian's `lib/<machine>-linux-gnu`.
///
/// They are named even where the compiler would find them by itself: cargo puts the libraries of its own toolchain in
/// front for build scripts, and a compiler of the same version would load those and take their sysroot for its own.
fn library_folders(rustc: &Path) -> Vec<PathBuf> {
    let Some(lib) = rustc.parent().and_then(Path::parent).map(|prefix| prefix.join("lib")) else {
        return Vec::new();
    };
    let machine = lib.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let holds_compiler = |folder: &PathBuf| {
        std::fs::read_dir(folder).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("librustc_driver"))
        })
    };
    if [&machine, &lib].into_iter().any(holds_compiler) {
        [machine, lib].into_iter().filter(|folder| folder.is_dir()).collect()
    } else {
        Vec::new()
    }
}
