//! The inner cargo run: a kernel crate and its dependencies, for the device.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use crate::{Error, NvvmArch, TARGET, cache, parts::Part, process, toolchain::Toolchain};

/// A profile of the builder's own: what the workspace says of `release`, and there of single packages, is for host code.
const PROFILE: &str = "cuda";

/// What one run of the inner cargo needs.
pub(crate) struct Compilation<'a> {
    pub toolchain: &'a Toolchain,
    pub sysroot: &'a Path,
    pub manifest: &'a Path,
    pub arch: NvvmArch,
    pub flags: &'a [String],
    pub line_info: bool,
    /// Beginnings of names, separated by commas.
    pub left_out: &'a str,
    /// The kernels of a part alone, by the beginnings of their names, with some of the crate's features.
    pub part: Option<&'a Part>,
    pub target_dir: &'a Path,
    pub build_args: &'a [String],
}

impl Compilation<'_> {
    /// Compiles the crate and leaves its PTX, complete and not yet post-processed, in `ptx`; what cargo said.
    pub fn run(&self, ptx: &Path) -> Result<String, Error> {
        let mut cargo = self.cargo("rustc");
        cargo.args(["--lib", "--crate-type", "cdylib", "--profile", PROFILE, "--target", TARGET]);
        cargo.arg("--target-dir").arg(self.target_dir);
        // Directives only: ptxas refuses the DWARF sections that rustc writes for `line-tables-only`.
        let debug = if self.line_info { "line-directives-only" } else { "none" };
        for setting in [
            "inherits=\"dev\"".into(),
            format!("debug=\"{debug}\""),
            "strip=\"none\"".into(),
            "opt-level=3".into(),
            "lto=\"fat\"".into(),
            "codegen-units=1".into(),
            "panic=\"abort\"".into(),
            "debug-assertions=false".into(),
            "overflow-checks=false".into(),
            "incremental=false".into(),
        ] {
            cargo.arg("--config").arg(format!("profile.{PROFILE}.{setting}"));
        }
        cargo.args(self.build_args);
        if let Some(part) = self.part {
            cargo.arg("--no-default-features").arg(format!("--features={}", part.features));
        }
        // A linker that does nothing: LTO leaves one complete module, and its assembly is what is wanted.
        cargo.args(["--", "-Clinker=true"]);
        if self.part.is_some() || !self.left_out.is_empty() {
            // What only a kernel of another part uses.
            cargo.arg("-Adead_code").arg("-Aunused_imports");
        }
        let mut emit = OsString::from("--emit=link=ignored,asm=");
        emit.push(ptx);
        cargo.arg(emit);
        let output = process::output(&mut cargo)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() && ptx.is_file() {
            return Ok(said);
        }
        Err(Error::Kernels {
            manifest: self.manifest.to_path_buf(),
            arch: self.arch.target_cpu().into(),
            output: said,
        })
    }

    /// The kernel crate and what it depends on, with their features, as `cargo tree` prints it.
    pub fn tree(&self) -> Result<String, String> {
        let mut cargo = self.cargo("tree");
        cargo.args([
            "--target",
            TARGET,
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}|{f}",
        ]);
        process::stdout(&mut cargo)
    }

    /// The folders of the kernel crate and of every crate in `tree` that it reaches by a path, macros included.
    pub fn local_packages(&self, tree: Option<&str>) -> Vec<PathBuf> {
        match tree {
            Some(tree) => local_folders(tree),
            None => self.manifest.parent().map(Path::to_path_buf).into_iter().collect(),
        }
    }

    /// The file in which cargo lists every source that the last run read, of crates by a path too.
    pub fn dep_info(&self, tree: &str) -> PathBuf {
        let name = tree.split_whitespace().next().unwrap_or_default().replace('-', "_");
        self.target_dir.join(TARGET).join(PROFILE).join(name).with_extension("d")
    }

    /// What decides about the PTX beside the sources, in a word.
    pub fn settings(&self, tree: &str) -> String {
        let (arch, line_info) = (self.arch.target_cpu(), self.line_info.to_string());
        let part = self.part.map_or("", |part| &part.features);
        let kernels = self.part.map_or("", |part| &part.kernels);
        let identity = self.toolchain.identity.as_str();
        let fixed =
            [env!("CARGO_PKG_VERSION"), identity, arch, &line_info, self.left_out, part, kernels, tree];
        let others = self.flags.iter().chain(self.build_args).map(String::as_str);
        cache::fingerprint(fixed.into_iter().chain(others))
    }

    fn cargo(&self, subcommand: &str) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = self.toolchain.command(Path::new(&cargo));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(belongs_to_outer_build) {
                command.env_remove(name);
            }
        }
        let mut rustflags = self.flags.to_vec();
        rustflags.push(format!("--sysroot={}", self.sysroot.display()));
        command
            .env("RUSTC", &self.toolchain.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            // Read by `#[kernel]`.
            .env("CUDA_BUILDER_LEAVE_OUT", self.left_out)
            .env("CUDA_BUILDER_ONLY", self.part.map_or("", |part| &part.kernels))
            // Empty means none, also where a configuration file names one.
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
            .arg(subcommand)
            .arg("--manifest-path")
            .arg(self.manifest);
        command
    }
}

/// Shows each of rustc's warnings once in a line of the outer cargo, which hides what a build script prints.
pub(crate) fn forward_warnings(said: &str) {
    static SHOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for warning in warnings(said) {
        if !shown.contains(&warning) {
            println!("cargo:warning={warning}");
            shown.insert(warning);
        }
    }
}

/// `message (file:line:column)` of each warning that has a place.
fn warnings(said: &str) -> Vec<String> {
    let lines: Vec<&str> = said.lines().collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let message = pair[0].strip_prefix("warning: ")?;
        let place = pair[1].trim_start().strip_prefix("--> ")?;
        Some(format!("{message} ({place})"))
    });
    pairs.collect()
}

/// Whether a variable describes the build that the build script is part of, and would mislead another one.
///
/// Kept are the settings of the user and the machine: where cargo's home is, how to reach the network, the jobserver.
fn belongs_to_outer_build(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_INSTALL_ROOT"].contains(&name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"]
            .iter()
            .any(|kept| name.starts_with(kept));
    let cargo = ["CARGO", "RUSTFLAGS", "RUSTC", "RUSTDOC", "CLIPPY_", "DEP_"];
    let script = ["TARGET", "HOST", "NUM_JOBS", "OPT_LEVEL", "PROFILE", "DEBUG", "OUT_DIR", "SYSROOT"];
    !kept && (cargo.iter().any(|prefix| name.starts_with(prefix)) || script.contains(&name))
}

/// The folders in lines such as `gpu-kernels v0.1.0 (/path)|features` and `macros v0.1.0 (proc-macro) (/path)|features (*)`.
fn local_folders(tree: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = tree
        .lines()
        .filter_map(|line| {
            let (package, _) = line.rsplit_once('|')?;
            let start = package.find(" (/")? + 2;
            let end = start + package[start..].rfind(')')?;
            Some(PathBuf::from(&package[start..end]))
        })
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_crates_are_found_in_the_dependency_tree() {
        let tree = "\
gpu-kernels v0.1.0 (/w/gpu kernels)|attention,default
cuda_std v0.1.0 (/w/cuda/cuda_std)|
half v2.7.1|std
cuda_std_macros v0.1.0 (proc-macro) (/w/cuda/cuda_std_macros)|
syn v2.0.0|default
cuda_std v0.1.0 (/w/cuda/cuda_std)| (*)
";
        let expected = ["/w/cuda/cuda_std", "/w/cuda/cuda_std_macros", "/w/gpu kernels"].map(PathBuf::from);
        assert_eq!(local_folders(tree), expected);
    }

    #[test]
    fn warnings_are_cut_to_a_line_each() {
        let said = "\
   Compiling gpu-kernels v0.1.0 (/w/gpu-kernels)
warning: unused variable: `x`
  --> gpu-kernels/src/lib.rs:7:9
   |
7  |     let x = 1;
   |         ^ help: if this is intentional, prefix it with an underscore: `_x`

warning: `gpu-kernels` (lib) generated 1 warning
";
        assert_eq!(warnings(said), ["unused variable: `x` (gpu-kernels/src/lib.rs:7:9)"]);
    }

    #[test]
    fn the_outer_build_does_not_leak_into_the_inner_one() {
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "RUSTC_WORKSPACE_WRAPPER",
            "CLIPPY_ARGS",
            "CARGO_FEATURE_GPU_TESTS",
            "OUT_DIR",
            "TARGET",
        ] {
            assert!(belongs_to_outer_build(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_HTTP_PROXY", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "PATH"]
        {
            assert!(!belongs_to_outer_build(name), "{name}");
        }
    }
}
