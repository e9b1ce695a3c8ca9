//! gpu-kernels -> PTX for each architecture, packed for this crate to embed; nothing else.

#[path = "engine/ptx/delta.rs"]
mod delta;

use cuda_builder::{CudaBuilder, Error, NvvmArch, without_line_info};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io, thread};

/// PTX of the first runs on every later device; the second has what only Hopper can do.
const ARCHITECTURES: [NvvmArch; 2] = [NvvmArch::Compute80, NvvmArch::Compute90a];

/// Of zstd, up to 22: 19 would make it a tenth smaller in ten times the time.
const LEVEL: i32 = 12;
/// How far back repetitions are looked for: all of a text, 16 MiB.
const WINDOW_LOG: u32 = 24;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=../../build.rs");
    println!("cargo:rerun-if-changed=delta.rs");
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    match compile(&out_dir) {
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

/// The PTX of each architecture, with source lines for `lab ptx`.
fn compile(out_dir: &Path) -> Result<[String; 2], Error> {
    let build = |arch: NvvmArch| {
        let ptx = out_dir.join(format!("gpu-kernels.{}.ptx", arch.target_cpu()));
        CudaBuilder::new("../../gpu-kernels").arch(arch).generate_line_info(true).copy_to(&ptx).build()?;
        Ok(fs::read_to_string(ptx).expect("the builder wrote it"))
    };
    // Side by side: each is one long link-time optimisation on one core.
    let [first, second] = ARCHITECTURES;
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| build(first));
        let second = build(second);
        (first.join().expect("the builder does not panic"), second)
    });
    Ok([first?, second?])
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
