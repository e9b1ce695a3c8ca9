//! The kernel crate -> PTX, for the program to embed. Every later architecture runs that of sm_80.

use cuda_builder::{CudaBuilder, NvvmArch};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match CudaBuilder::new("..").arch(NvvmArch::Compute80).copy_to(out_dir.join("kernels.ptx")).build() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
