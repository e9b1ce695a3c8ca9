//! gpu-kernels -> PTX for two architectures, packed for this crate to embed; nothing else.

#[path = "engine/ptx/delta.rs"]
mod delta;

use cuda_builder::{CudaBuilder, NvvmArch, for_sm_80, without_line_info};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

/// Of zstd, up to 22: 19 would make it a tenth smaller in ten times the time.
const LEVEL: i32 = 12;
/// How far back repetitions are looked for: all of a text, 32 MiB.
const WINDOW_LOG: u32 = 25;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=../../build.rs");
    println!("cargo:rerun-if-changed=delta.rs");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match compile() {
        Ok([first, second]) => {
            pack(&out_dir, &first, &second);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The PTX for sm_80, which every later device runs, and for Hopper alone, with source lines for `lab ptx`. The kernels are compiled
/// once, for Hopper: their instructions are the same for both, but for those that only Hopper has.
fn compile() -> Result<[String; 2], String> {
    let builder = CudaBuilder::new("../../gpu-kernels").arch(NvvmArch::Compute90a).generate_line_info(true);
    // Most of the compiler's time in four parts of about a fifth each (features: gpu-kernels/Cargo.toml).
    let builder = builder
        .part(&["attention"], &["attention_"])
        .part(&["experts"], &["experts_"])
        .part(&[], &["matmul_add_", "norm_gate_up_", "norm_matmul_", "norm_qkv_rope_"])
        .part(&["matmul"], &["matmul_"]);
    let file = builder.build().map_err(|error| error.to_string())?;
    let hopper = fs::read_to_string(file.path).expect("the builder wrote it");
    Ok([for_sm_80(&hopper)?, hopper])
}

/// Writes the files that `lib.rs` embeds.
fn pack(out_dir: &Path, first: &str, second: &str) {
    let plain = [first, second].map(without_line_info);
    let write = |name: &str, text: &str| {
        let path = out_dir.join(name);
        let packed = compress(text.as_bytes()).and_then(|packed| fs::write(&path, packed));
        packed.unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
    };
    write("first.zst", &plain[0]);
    write("second.zst", &delta::encode(&plain[0], &plain[1]));
    write("first.lines.zst", &delta::encode(&plain[0], first));
    write("second.lines.zst", &delta::encode(&plain[1], second));
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::bulk::Compressor::new(LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.compress(bytes)
}
