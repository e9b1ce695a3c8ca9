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
    pub offline: bool,
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
            offline: path(env::OFFLINE).is_some_and(|value| value != Path::new("0")),
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
            if last(&findings).is_some() {
                return findings;
            }
            findings.push(Finding { place: Place::System, result: inspect(rustc) });
        }
        if let Some(cache) = self.cache.as_ref().filter(|_| last(&findings).is_none()) {
            let result = match fetch::unpacked(cache) {
                Some(root) => inspect(&root.join("usr/bin/rustc")),
                None => Err(format!("nothing in {}", cache.display())),
            };
            findings.push(Finding { place: Place::Cache, result });
        }
        findings
    }
}

/// What a build would find here without downloading anything: each place in the order of the search, up to and
/// including the first that has a toolchain. For a diagnosis such as `qernel doctor`.
pub fn probe() -> Vec<Finding> {
    Search::from_environment().local()
}

/// A device toolchain: the first one found, or else one fetched into the search's cache folder.
pub(crate) fn find_or_fetch(search: &Search) -> Result<Toolchain, Error> {
    if let Some(toolchain) = last(&search.local()) {
        return Ok(toolchain.clone());
    }
    // One download serves every build that waits for it: whoever comes second finds it in the second look.
    let _lock = search.cache.as_deref().map(|cache| cache::lock(&cache.join("toolchain"))).transpose()?;
    let mut findings = search.local();
    if search.variable.is_none() {
        for place in [Place::Rustup, Place::Debian] {
            if last(&findings).is_some() {
                break;
            }
            let fetched = match (place, &search.cache) {
                _ if search.offline => Err(format!("not tried, because {} is set", env::OFFLINE)),
                (Place::Rustup, _) => fetch::rust_src(search.cargo.as_deref()),
                (_, Some(cache)) => fetch::debian(cache),
                (_, None) => Err(format!("no folder to unpack into: neither {} nor HOME is set", env::CACHE)),
            };
            findings.push(Finding { place, result: fetched.and_then(|rustc| inspect(&rustc)) });
        }
    }
    last(&findings).cloned().ok_or(Error::NoToolchain { findings })
}

/// The toolchain that a search ended with.
fn last(findings: &[Finding]) -> Option<&Toolchain> {
    findings.last().and_then(|finding| finding.result.as_ref().ok())
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
pub(crate) fn parse_version(version: &str) -> Option<(u32, u32)> {
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

#[cfg(all(test, unix))]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::*;

    /// One test at a time: a script that is being written while another test forks is "busy" and does not start.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A folder with a `bin/rustc` that answers as one of `version` does, with or without its source.
    fn fake(root: &Path, version: &str, source: bool) -> PathBuf {
        let rustc = root.join("bin/rustc");
        fs::create_dir_all(root.join("bin")).unwrap();
        let sysroot = root.display();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = -vV ]; then echo 'rustc {version} (fake)'; else echo '{sysroot}'; fi\n"
        );
        fs::write(&rustc, script).unwrap();
        fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
        if source {
            let core = root.join("lib/rustlib/src/rust/library/core/src");
            fs::create_dir_all(&core).unwrap();
            fs::write(core.join("lib.rs"), "").unwrap();
        }
        rustc
    }

    fn places(findings: &[Finding]) -> Vec<(Place, bool)> {
        findings.iter().map(|finding| (finding.place, finding.result.is_ok())).collect()
    }

    #[test]
    fn the_first_place_with_a_compiler_and_its_source_wins() {
        use Place::{Cache, Cargo, System, Variable};
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_path_buf();
        let whole = fake(&root.join("whole"), "1.96.0", true);
        let cache = root.join("cache");
        fake(&cache.join("toolchains/debian/usr"), "1.97.0", true);
        let mut search = Search {
            variable: None,
            cargo: Some(fake(&root.join("bare"), "1.95.0", false)),
            system: vec![root.join("absent/rustc")],
            cache: Some(cache),
            offline: true,
        };

        let findings = search.local();
        assert_eq!(places(&findings), [(Variable, false), (Cargo, false), (System, false), (Cache, true)]);
        assert!(findings[1].to_string().contains("rustc 1.95.0 (fake) has no source in"), "{}", findings[1]);
        assert!(findings[2].to_string().contains("there is no "), "{}", findings[2]);
        assert_eq!(find_or_fetch(&search).unwrap().version, "rustc 1.97.0 (fake)");

        search.system.push(whole.clone());
        assert_eq!(find_or_fetch(&search).unwrap().rustc, whole);

        search.cargo = Some(fake(&root.join("cargo"), "1.98.0-nightly", true));
        assert_eq!(places(&search.local()), [(Variable, false), (Cargo, true)]);

        search.variable = Some(whole);
        assert_eq!(places(&search.local()), [(Variable, true)]);
    }

    #[test]
    fn a_named_compiler_is_taken_or_refused_and_never_replaced() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_path_buf();
        let search = Search {
            variable: Some(fake(&root.join("old"), "1.63.0", true)),
            cargo: Some(fake(&root.join("new"), "1.96.0", true)),
            cache: Some(root),
            ..Search::default()
        };
        let error = find_or_fetch(&search).unwrap_err().to_string();
        assert!(error.contains("is rustc 1.63.0 (fake); 1.95 or later is needed"), "{error}");
        assert!(!error.contains("1.96.0"), "{error}");
    }

    #[test]
    fn nothing_found_and_no_network_allowed_is_one_error_that_says_what_to_type() {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_path_buf();
        let search =
            Search { cargo: Some(root.join("rustc")), cache: Some(root), offline: true, ..Search::default() };
        let error = find_or_fetch(&search).unwrap_err().to_string();
        for expected in [
            "no compiler for the GPU kernels",
            "rustup component add rust-src: not tried, because CUDA_BUILDER_OFFLINE is set",
            "Debian packages rustc-web and rust-web-src: not tried, because CUDA_BUILDER_OFFLINE is set",
            "\n    rustup component add rust-src\n",
            "CUDA_BUILDER_RUSTC=/path/to/bin/rustc",
        ] {
            assert!(error.contains(expected), "`{expected}` is not in:\n{error}");
        }
    }

    #[test]
    fn versions_are_read() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)";
        assert_eq!(parse_version(debian), Some((1, 96)));
        assert_eq!(parse_version("rustc 1.98.0-nightly (abc 2026-07-01)"), Some((1, 98)));
        assert_eq!(parse_version("gcc 12.2"), None);
    }
}
