//! gpu-kernels -> PTX for each architecture, embedded by this crate; nothing else.

use std::{path::PathBuf, process::ExitCode, thread};

use cuda_builder::{CudaBuilder, NvvmArch};

/// PTX of the first runs on every later device; the second has what only Hopper can do.
const ARCHITECTURES: [NvvmArch; 2] = [NvvmArch::Compute80, NvvmArch::Compute90a];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let build = &|arch: NvvmArch| {
        let ptx = out_dir.join(format!("gpu-kernels.{}.ptx", arch.target_cpu()));
        // With source lines, for `lab ptx`; they are taken out of what is run.
        CudaBuilder::new("../../gpu-kernels").arch(arch).generate_line_info(true).copy_to(ptx).build()
    };
    // Side by side: each is one long link-time optimisation on one core.
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            ARCHITECTURES.map(|arch| scope.spawn(move || build(arch))).into_iter().collect();
        threads.into_iter().map(|thread| thread.join().expect("the builder does not panic")).collect()
    });
    match results.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
