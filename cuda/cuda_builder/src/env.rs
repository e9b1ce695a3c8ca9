//! The environment variables that the builder reads.

/// Path of the rustc that compiles the kernels; its sysroot must hold its own source. Set, it is the only candidate.
pub const RUSTC: &str = "CUDA_BUILDER_RUSTC";
/// `1` forbids the network: nothing is downloaded, neither by rustup nor from Debian.
pub const OFFLINE: &str = "CUDA_BUILDER_OFFLINE";
/// Folder for what is kept between builds; `$XDG_CACHE_HOME/cuda_builder` or `~/.cache/cuda_builder` if unset.
pub const CACHE: &str = "CUDA_BUILDER_CACHE";

/// Every variable whose change must run the build again.
pub(crate) const ALL: [&str; 3] = [RUSTC, OFFLINE, CACHE];
