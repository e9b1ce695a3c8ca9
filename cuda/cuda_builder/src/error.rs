//! Why PTX could not be made, in words that say what to do.

use std::{fmt, io, path::PathBuf};

use crate::toolchain::Finding;

/// What can go wrong between a kernel crate and its PTX.
#[derive(Debug)]
pub enum Error {
    /// No compiler with its own `core` source was found, and none could be fetched.
    NoToolchain { findings: Vec<Finding> },
    /// The kernel crate has no `Cargo.toml` where [`crate::CudaBuilder::new`] was told to look.
    NoKernelCrate { manifest: PathBuf },
    /// Neither cargo nor [`crate::CudaBuilder::out_dir`] said where to work.
    NoOutDir,
    /// `core` does not compile with the device toolchain.
    Core { rustc: PathBuf, arch: String, output: String },
    /// The kernel crate does not compile; `output` is cargo's and rustc's own text.
    Kernels { manifest: PathBuf, arch: String, output: String },
    /// The PTX calls functions that nothing defines, so no driver could load it.
    Unresolved { ptx: PathBuf, functions: Vec<String> },
    /// A `// launch_bounds` line or an entry's header is not what the builder understands.
    Ptx { ptx: PathBuf, problem: String },
    /// A command could not be started.
    Command { command: String, source: io::Error },
    /// A file or folder could not be read or written.
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoToolchain { findings } => {
                writeln!(
                    f,
                    "no compiler for the GPU kernels: it takes a rustc and the source of its own `core`."
                )?;
                writeln!(f, "Looked for, in this order:")?;
                for finding in findings {
                    writeln!(f, "  - {finding}")?;
                }
                writeln!(f, "Type one of these, then build again:")?;
                writeln!(f, "    rustup component add rust-src")?;
                writeln!(
                    f,
                    "    {}=/path/to/bin/rustc   (one whose sysroot has lib/rustlib/src/rust/library)",
                    crate::env::RUSTC
                )
            }
            Error::NoKernelCrate { manifest } => write!(
                f,
                "there is no kernel crate at {}: CudaBuilder::new takes the crate's folder, relative to the package \
                 whose build script runs",
                manifest.display()
            ),
            Error::NoOutDir => {
                write!(
                    f,
                    "OUT_DIR is not set: outside of a build script, say where to work with CudaBuilder::out_dir"
                )
            }
            Error::Core { rustc, arch, output } => {
                write!(f, "{} could not compile its own `core` for {arch}:\n{output}", rustc.display())
            }
            Error::Kernels { manifest, arch, output } => {
                write!(f, "{} does not compile for {arch}:\n\n{output}", manifest.display())
            }
            Error::Unresolved { ptx, functions } => {
                writeln!(f, "{} calls functions that nothing defines:", ptx.display())?;
                for function in functions {
                    writeln!(f, "  - {function}")?;
                }
                write!(
                    f,
                    "A driver cannot load such a module. Usual causes: an `extern` declaration without a definition, \
                     a misspelt LLVM intrinsic (an unknown `llvm.nvvm.…` becomes a plain call), or a `core` operation \
                     that needs a runtime library (128-bit division, f32 functions such as `sin` or `pow`): use the \
                     ones of cuda_std"
                )
            }
            Error::Ptx { ptx, problem } => write!(f, "{}: {problem}", ptx.display()),
            Error::Command { command, source } => write!(f, "could not start `{command}`: {source}"),
            Error::Io { what, path, source } => write!(f, "could not {what} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Command { source, .. } | Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Error> for String {
    fn from(error: Error) -> String {
        error.to_string()
    }
}
