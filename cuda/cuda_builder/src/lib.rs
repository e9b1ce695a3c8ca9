//! Compiles a kernel crate to PTX with rustc's own `nvptx64-nvidia-cuda` target.
//!
//! The interface is Rust-CUDA's `cuda_builder`; the way is another one, see docs/rust-cuda.md. In a build script:
//!
//! ```no_run
//! use cuda_builder::{CudaBuilder, NvvmArch};
//!
//! let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
//! CudaBuilder::new("gpu-kernels").arch(NvvmArch::Compute80).copy_to(out.join("kernels.ptx")).build()?;
//! # Ok::<(), cuda_builder::Error>(())
//! ```
//!
//! It finds a compiler ([`toolchain`]), builds `core` for the device once, compiles the crate, refuses PTX that no
//! driver could load, and writes the launch bounds into it. No CUDA toolkit is needed.

mod arch;
mod cache;
mod compile;
mod earlier;
pub mod env;
mod error;
mod fetch;
mod parts;
mod process;
mod ptx;
mod sysroot;
pub mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use arch::NvvmArch;
pub use cache::folder as cache_folder;
pub use earlier::for_sm_80;
pub use error::Error;
pub use ptx::without_line_info;

/// rustc's name of the device.
const TARGET: &str = "nvptx64-nvidia-cuda";

/// What [`CudaBuilder::build`] made.
#[derive(Clone, Debug)]
pub struct PtxFile {
    /// Where the PTX lies: the path given to [`CudaBuilder::copy_to`], or one below `OUT_DIR`.
    pub path: PathBuf,
    pub arch: NvvmArch,
    /// The kernels in it, in the order of the file.
    pub entries: Vec<String>,
}

/// Compiles one kernel crate for one architecture.
#[derive(Clone, Debug)]
pub struct CudaBuilder {
    kernel_crate: PathBuf,
    arch: NvvmArch,
    copy_to: Option<PathBuf>,
    out_dir: Option<PathBuf>,
    fma_contraction: bool,
    line_info: bool,
    left_out: String,
    build_args: Vec<String>,
    parts: Vec<parts::Part>,
}

impl CudaBuilder {
    /// For the crate in the folder `kernel_crate`, relative to the package whose build script runs.
    pub fn new(kernel_crate: impl AsRef<Path>) -> Self {
        CudaBuilder {
            kernel_crate: kernel_crate.as_ref().to_path_buf(),
            arch: NvvmArch::Compute80,
            copy_to: None,
            out_dir: None,
            fma_contraction: true,
            line_info: false,
            left_out: String::new(),
            build_args: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// The architecture to compile for; `Compute80` if not called.
    pub fn arch(mut self, arch: NvvmArch) -> Self {
        self.arch = arch;
        self
    }

    /// Where to put the PTX, for `include_str!`.
    pub fn copy_to(mut self, path: impl AsRef<Path>) -> Self {
        self.copy_to = Some(path.as_ref().to_path_buf());
        self
    }

    /// Where to work; cargo's `OUT_DIR` if not called. For use outside of build scripts: no `cargo:` lines are printed.
    pub fn out_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.out_dir = Some(path.as_ref().to_path_buf());
        self
    }

    /// Whether `a * b + c` becomes one fused operation; on if not called, as nvcc does.
    pub fn fma_contraction(mut self, fuse: bool) -> Self {
        self.fma_contraction = fuse;
        self
    }

    /// Whether the PTX maps instructions to source lines (`.loc`), for profilers and people; off if not called.
    ///
    /// The instructions stay the same, but ptxas schedules some kernels differently where it finds lines:
    /// [`without_line_info`] gives the module as it is without.
    pub fn generate_line_info(mut self, line_info: bool) -> Self {
        self.line_info = line_info;
        self
    }

    /// Leaves out kernels whose names begin with one of `prefixes`, which saves their share of the time; for a loop of
    /// edits of other kernels. Builds that leave out others must have an [`out_dir`](Self::out_dir) of their own: cargo
    /// does not compile again when only this changes.
    pub fn leave_out(mut self, prefixes: &[impl AsRef<str>]) -> Self {
        self.left_out = prefixes.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(",");
        self
    }

    /// Compiles the kernels whose names begin with one of `kernels`, and those of no part before, by themselves: with those of
    /// the crate's features that are named here instead of its default ones, and only when a source that is read with these, or a
    /// setting, has changed since the last build into this `OUT_DIR`. A feature that switches a module on keeps edits of it away
    /// from the parts that do without. What no part has is compiled with the default features.
    pub fn part(mut self, features: &[&str], kernels: &[&str]) -> Self {
        self.parts.push(parts::Part { features: features.join(","), kernels: kernels.join(",") });
        self
    }

    /// Further arguments for the cargo that compiles the kernel crate, such as `--features=wide`.
    pub fn build_args(mut self, args: &[impl AsRef<str>]) -> Self {
        self.build_args.extend(args.iter().map(|arg| arg.as_ref().to_string()));
        self
    }

    /// Compiles the crate. In a build script it reads cargo's variables and prints `cargo:` lines.
    pub fn build(self) -> Result<PtxFile, Error> {
        let in_build_script = self.out_dir.is_none();
        if in_build_script {
            for variable in env::ALL {
                println!("cargo:rerun-if-env-changed={variable}");
            }
        }
        let manifest = self.kernel_crate.join("Cargo.toml");
        let manifest = manifest.canonicalize().map_err(|_| Error::NoKernelCrate { manifest })?;
        let from_cargo = || std::env::var_os("OUT_DIR").map(PathBuf::from);
        let out_dir = self.out_dir.or_else(from_cargo).ok_or(Error::NoOutDir)?;
        let cache = cache::writable(&out_dir)?;
        let search =
            toolchain::Search { cache: Some(cache.clone()), ..toolchain::Search::from_environment() };
        let toolchain = toolchain::find_or_fetch(&search)?;
        let flags = sysroot::flags(self.arch, self.fma_contraction);
        let sysroot = sysroot::build(&cache, &toolchain, self.arch, &flags)?;

        let work = out_dir.join("cuda_builder").join(self.arch.target_cpu());
        fs::create_dir_all(&work).map_err(Error::io("create the folder", &work))?;
        let target_dir = work.join("target");
        let whole = compile::Compilation {
            toolchain: &toolchain,
            sysroot: &sysroot,
            manifest: &manifest,
            arch: self.arch,
            flags: &flags,
            line_info: self.line_info,
            left_out: &self.left_out,
            part: None,
            target_dir: &target_dir,
            build_args: &self.build_args,
        };
        let tree = whole.tree().ok();
        if in_build_script {
            for folder in whole.local_packages(tree.as_deref()) {
                rerun_if_changed(&folder);
            }
        }
        let mut modules = Vec::new();
        // Kernels of the parts before, which the next one leaves out.
        let mut left_out = self.left_out.clone();
        for (index, part) in self.parts.iter().map(Some).chain([None]).enumerate() {
            let compilation = compile::Compilation { part, left_out: &left_out, ..whole };
            let raw = work.join(format!("kernels.{index}.ptx"));
            // Kernels in one piece are compiled whenever this runs: cargo runs a build script when there is a reason to.
            let settings =
                tree.as_deref().filter(|_| !self.parts.is_empty()).map(|tree| compilation.settings(tree));
            if !settings.as_deref().is_some_and(|settings| parts::is_fresh(&raw, settings)) {
                parts::forget(&raw)?;
                let warnings = compilation.run(&raw)?;
                if in_build_script {
                    compile::forward_warnings(&warnings);
                }
                if let (Some(settings), Some(tree)) = (settings, &tree) {
                    parts::remember(&raw, &settings, &compilation.dep_info(tree))?;
                }
            }
            modules.push(fs::read_to_string(&raw).map_err(Error::io("read", &raw))?);
            if let Some(part) = part {
                left_out = [left_out.as_str(), &part.kernels].join(",");
            }
        }
        let raw = work.join("kernels.ptx");
        let text = match <[String; 1]>::try_from(modules) {
            Ok([text]) => text,
            Err(modules) => {
                parts::join(&modules).map_err(|problem| Error::Ptx { ptx: raw.clone(), problem })?
            }
        };
        fs::write(&raw, &text).map_err(Error::io("write", &raw))?;
        let module = ptx::finish(&text).map_err(|error| error.in_file(&raw))?;
        let path = self.copy_to.unwrap_or_else(|| work.join("kernels.finished.ptx"));
        fs::write(&path, module.text).map_err(Error::io("write", &path))?;
        Ok(PtxFile { path, arch: self.arch, entries: module.entries })
    }
}

/// Tells cargo to run the build script again when a source file of the package in `folder` changes.
fn rerun_if_changed(folder: &Path) {
    // Its own `target` and its tests are no input.
    for name in ["Cargo.toml", "build.rs", "src"] {
        let path = folder.join(name);
        if path.exists() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
}
