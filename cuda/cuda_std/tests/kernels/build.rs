//! This very crate -> PTX, for the host's side of it to embed.

use std::{path::PathBuf, process::ExitCode};

use cuda_builder::{CudaBuilder, NvvmArch};

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "nvptx64") {
        return ExitCode::SUCCESS;
    }
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (arch, name) in [(NvvmArch::Compute80, "sm_80.ptx"), (NvvmArch::Compute90a, "sm_90a.ptx")] {
        if let Err(error) = CudaBuilder::new(".").arch(arch).copy_to(out_dir.join(name)).build() {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
