//! Whole kernel crates, from source to PTX, with the device toolchain that a build would use.

use std::{fs, path::Path};

use cuda_builder::{CudaBuilder, Error, NvvmArch, PtxFile};

/// What a kernel crate has without `cuda_std`.
const HEAD: &str = r#"
#![no_std]
#![feature(abi_ptx, asm_experimental_arch)]
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    unsafe { core::arch::asm!("trap;", options(noreturn)) }
}
"#;

/// Writes a package and compiles it; `dependencies` are lines of its manifest.
fn build(folder: &Path, dependencies: &str, body: &str, arch: NvvmArch) -> Result<PtxFile, Error> {
    package(&folder.join("kernels"), "kernels", dependencies, &format!("{HEAD}{body}"));
    CudaBuilder::new(folder.join("kernels"))
        .arch(arch)
        .out_dir(folder.join("out"))
        .copy_to(folder.join("kernels.ptx"))
        .build()
}

fn package(folder: &Path, name: &str, dependencies: &str, source: &str) {
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\n{dependencies}"
    );
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/lib.rs"), source).unwrap();
}

#[test]
fn a_kernel_becomes_complete_ptx_with_its_launch_bounds() {
    let folder = tempfile::tempdir().unwrap();
    package(
        &folder.path().join("helper"),
        "helper",
        "",
        "#![no_std]\n#[inline(never)]\npub fn axpy(a: f32, x: f32, y: f32) -> f32 { a * x + y }\n",
    );
    let body = r#"
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn axpy_f32_plain(i: usize, a: f32, x: &[f32; 64], y: &mut [f32; 64]) {
    y[i] = helper::axpy(a, x[i], y[i]);
}
core::arch::global_asm!("// launch_bounds axpy_f32_plain 128 2");
"#;
    for arch in [NvvmArch::Compute80, NvvmArch::Compute90a] {
        let file = build(folder.path(), "helper = { path = \"../helper\" }\n", body, arch)
            .unwrap_or_else(|error| panic!("{error}"));
        let ptx = fs::read_to_string(&file.path).unwrap();
        assert_eq!(file.entries, ["axpy_f32_plain"]);
        for expected in [
            &format!(".target {}", arch.target_cpu()) as &str,
            "\n.maxntid 128\n.minnctapersm 2\n{",
            // Fused, and the index check's panic is a trap in the same module.
            "fma.rn.f32",
            "trap;",
        ] {
            assert!(ptx.contains(expected), "`{expected}` is not in\n{ptx}");
        }
        assert!(!ptx.contains(".extern"), "{ptx}");
    }
}

#[test]
fn a_broken_kernel_shows_what_rustc_says() {
    let folder = tempfile::tempdir().unwrap();
    let body =
        "#[unsafe(no_mangle)]\npub extern \"ptx-kernel\" fn broken(x: f32) {\n    let _ = x + missing;\n}\n";
    let error = build(folder.path(), "", body, NvvmArch::Compute80).unwrap_err().to_string();
    for expected in
        ["does not compile for sm_80", "cannot find value `missing`", "src/lib.rs:", "let _ = x + missing;"]
    {
        assert!(error.contains(expected), "`{expected}` is not in\n{error}");
    }
}

#[test]
fn a_call_to_nowhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let body = r#"
unsafe extern "C" { fn nowhere(x: f32) -> f32; }
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn lost(x: f32, y: &mut f32) {
    *y = unsafe { nowhere(x) };
}
"#;
    let error = build(folder.path(), "", body, NvvmArch::Compute80).unwrap_err();
    let Error::Unresolved { functions, .. } = &error else { panic!("{error}") };
    assert_eq!(functions, &["nowhere"]);
}

#[test]
fn a_folder_without_a_crate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = CudaBuilder::new(folder.path().join("absent"))
        .out_dir(folder.path())
        .build()
        .unwrap_err()
        .to_string();
    assert!(error.contains("there is no kernel crate at") && error.contains("absent/Cargo.toml"), "{error}");
}

#[test]
fn a_part_is_compiled_again_only_when_what_it_reads_has_changed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("kernels");
    let body = "#[cfg(feature = \"scale\")] mod scale;\n#[cfg(feature = \"shift\")] mod shift;\n";
    let features = "[features]\ndefault = [\"shift\"]\nscale = []\nshift = []\n";
    package(&root, "kernels", features, &format!("{HEAD}{body}"));
    let kernel = |name: &str, line: &str| {
        let text = format!(
            "#[unsafe(no_mangle)]\npub unsafe extern \"ptx-kernel\" fn {name}_f32(x: &mut f32) {{\n    {line}\n}}\n"
        );
        fs::write(root.join("src").join(name).with_extension("rs"), text).unwrap();
    };
    let build = || {
        let builder = CudaBuilder::new(&root).arch(NvvmArch::Compute80).out_dir(folder.path().join("out"));
        let file = builder.part(&["scale"], &["scale_"]).build().unwrap_or_else(|error| panic!("{error}"));
        let part = file.path.with_file_name("kernels.0.ptx");
        let written = fs::metadata(part).unwrap().modified().unwrap();
        (file.entries, fs::read_to_string(file.path).unwrap(), written)
    };
    kernel("scale", "*x *= 2.0;");
    kernel("shift", "*x += 1.0;");
    let (entries, first, written) = build();
    assert_eq!(entries, ["scale_f32", "shift_f32"]);
    assert_eq!(first.matches(".target sm_80").count(), 1);

    kernel("shift", "*x = -*x;");
    let (_, second, written_again) = build();
    assert_eq!(written_again, written);
    assert!(second.contains("neg.f32") && !first.contains("neg.f32"), "{second}");

    kernel("scale", "*x *= *x;");
    let (_, third, written_again) = build();
    assert!(written_again > written);
    assert_ne!(third, second);
}
