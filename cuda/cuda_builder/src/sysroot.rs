//! `core` for the device, built once per compiler, architecture and flags.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, NvvmArch, TARGET, cache, process, toolchain::Toolchain};

/// The crate that rustc asks for beside `core`. It is empty: what little of it a kernel could need (128-bit division,
/// say) is refused as an unresolved function.
const COMPILER_BUILTINS: &str = "\
#![feature(compiler_builtins, no_core)]
#![allow(internal_features)]
#![compiler_builtins]
#![no_core]
";

/// Flags of every device crate, `core` included.
pub(crate) fn flags(arch: NvvmArch, fma_contraction: bool) -> Vec<String> {
    let mut flags = vec![
        format!("-Ctarget-cpu={}", arch.target_cpu()),
        format!("-Ctarget-feature=+{}", arch.ptx_feature()),
        "-Cpanic=abort".into(),
        "-Cembed-bitcode=yes".into(),
        // The pass copies barriers into both arms of a branch (rust-lang/rust#137086), which deadlocks or races.
        "-Zmir-enable-passes=-JumpThreading".into(),
    ];
    if fma_contraction {
        flags.push("-Cllvm-args=-nvptx-fma-level=2 -unroll-threshold=1700".into());
    }
    flags
}

/// A sysroot with `core` for `arch`, from the cache or built now (20 s on one core).
pub(crate) fn build(
    cache: &Path,
    toolchain: &Toolchain,
    arch: NvvmArch,
    flags: &[String],
) -> Result<PathBuf, Error> {
    let library = toolchain.library.to_string_lossy();
    let parts = [&toolchain.identity as &str, &library, COMPILER_BUILTINS];
    let fingerprint = cache::fingerprint(parts.into_iter().chain(flags.iter().map(String::as_str)));
    let name = format!("sysroots/{}-{fingerprint}", arch.target_cpu());
    cache::entry(cache, &name, |folder| compile(folder, toolchain, arch, flags))
}

fn compile(folder: &Path, toolchain: &Toolchain, arch: NvvmArch, flags: &[String]) -> Result<(), Error> {
    let lib = folder.join("lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&lib).map_err(Error::io("create the folder", &lib))?;
    let stub = folder.join("compiler_builtins.rs");
    fs::write(&stub, COMPILER_BUILTINS).map_err(Error::io("write", &stub))?;
    let core = lib.join("libcore.rlib");
    let rustc = |name: &str, source: &Path, output: &Path| {
        let mut command = toolchain.command(&toolchain.rustc);
        command.env("RUSTC_BOOTSTRAP", "1").args(["--target", TARGET, "--edition", "2024"]);
        command.args(["--crate-type", "rlib", "-Copt-level=3", "--cap-lints", "allow", "--crate-name", name]);
        command.args(flags).arg("-o").arg(output).arg(source);
        command
    };
    let mut stub_command = rustc("compiler_builtins", &stub, &lib.join("libcompiler_builtins.rlib"));
    let mut core_command = rustc("core", &toolchain.library.join("core/src/lib.rs"), &core);
    for command in [&mut core_command, stub_command.arg("--sysroot").arg(folder)] {
        let output = process::output(command)?;
        if !output.status.success() {
            return Err(Error::Core {
                rustc: toolchain.rustc.clone(),
                arch: arch.target_cpu().into(),
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
    }
    Ok(())
}
