//! `lab ptx`, `lab new`, `lab watch` and `lab model` through the real binary, where there is no GPU.

use assert_cmd::Command;
use predicates::prelude::*;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn lab(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null")
        .env_remove("RUST_LOG")
        .arg("lab")
        .args(args);
    command
}

fn output(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What of the repository a kernel is compiled from, in a folder of its own; with the tests, which `Cargo.toml` names.
fn copy_of_the_source() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["Cargo.toml", "Cargo.lock", "build.rs", "rustfmt.toml", "rust-toolchain.toml"] {
        fs::copy(repository().join(name), folder.path().join(name)).unwrap();
    }
    for name in ["gpu-kernels", "cuda", "engine", "examples", "tests"] {
        copy(&repository().join(name), &folder.path().join(name));
    }
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true if entry.file_name() == "target" => {}
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Every Rust file below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn ptx_shows_one_kernel_with_its_source_lines() {
    // Without the tools of CUDA, which may be installed.
    let mut command = lab(&["ptx", "rms_norm_bf16_vec4", "--arch", "sm_80"]);
    let text = output(command.current_dir(repository()).env("PATH", ""));
    assert!(text.starts_with("// rms_norm_bf16_vec4 for sm_80\n"));
    assert_eq!(text.matches(".entry").count(), 1);
    assert!(
        text.contains("// gpu-kernels/src/rms_norm.rs:") && text.contains("while column < hidden_size"),
        "{text}"
    );
    assert!(!text.contains(".loc"));
    let plain =
        output(lab(&["ptx", "rms_norm_bf16_vec4", "--no-source", "--arch", "sm_90a"]).env("PATH", ""));
    assert!(plain.contains(".target sm_90a") && !plain.contains("gpu-kernels/src"), "{plain}");
    let several = output(lab(&["ptx", "add_f32_*", "--no-source"]).env("PATH", ""));
    assert_eq!(several.matches(".entry").count(), 2);
}

#[test]
fn ptx_says_what_is_wrong() {
    let refused = |args: &[&str], says: &str| {
        lab(args).env("PATH", "").assert().code(2).stderr(predicate::str::contains(says));
    };
    refused(&["ptx", "rms_norm_f32_plane"], "rms_norm_f32_plain");
    refused(&["ptx", "rms_norm"], "name one");
    refused(&["ptx", "add_f32_plain", "--arch", "sm_75"], "sm_90a");
    refused(&["ptx", "add_f32_plain", "--sass"], "ptxas is not on PATH");
    lab(&["ptx", "add_f32_plain", "--ptx", "absent.ptx"]).assert().code(1);
}

#[test]
fn new_writes_a_variant_of_every_operation_once() {
    let folder = copy_of_the_source();
    for (op, variants) in qernel::cuda::kernels() {
        if !variants.contains(&"plain") {
            continue;
        }
        let mut command = lab(&["new", op, "v2"]);
        let said = output(command.current_dir(folder.path()));
        assert!(said.contains(&format!("lab check {op} --variant v2")), "{said}");
        let file = folder.path().join(said.split_whitespace().next().unwrap());
        let before = fs::read_to_string(&file).unwrap();
        assert!(before.contains("pub unsafe fn v2"), "{op}");
        command.assert().code(2).stderr(predicate::str::contains("already"));
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        // And a copy of the copy.
        output(lab(&["new", op, "v3", "--from", "v2"]).current_dir(folder.path().join("engine/cuda")));
    }
    for room in ["gpu-kernels/src", "engine/cuda"] {
        for file in rust_files(&folder.path().join(room)) {
            let text = fs::read_to_string(&file).unwrap();
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}

#[test]
fn new_needs_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = lab(&["new", "add", "v2"]);
    command.current_dir(folder.path()).assert().code(2).stderr(predicate::str::contains("not in a checkout"));
}

#[test]
fn watch_shows_a_compile_error_and_fails_and_passes_once_it_is_mended() {
    let folder = copy_of_the_source();
    // What the compiler keeps stays for the next run of this test.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab_watch");
    fs::create_dir_all(&kept).unwrap();
    std::os::unix::fs::symlink(&kept, folder.path().join("target")).unwrap();
    // What `lab new` writes compiles: an error is found in it, and without one there is none.
    output(lab(&["new", "add", "v2"]).current_dir(folder.path()));
    let path = folder.path().join("gpu-kernels/src/add.rs");
    let source = fs::read_to_string(&path).unwrap();
    let (before, new) =
        source.split_once("pub unsafe fn v2").expect("the copy stands behind the plain variant");
    assert!(new.contains("*delta.add(i)"), "{new}");
    let planted = new.replacen("*delta.add(i)", "*delta.add(planted)", 1);
    fs::write(&path, format!("{before}pub unsafe fn v2{planted}")).unwrap();
    let watch = || {
        let mut command = lab(&["watch", "add", "--variant", "plain", "--once", "--compile-only"]);
        command.current_dir(folder.path());
        command
    };
    let says = predicate::str::contains("do not compile")
        .and(predicate::str::contains("planted"))
        .and(predicate::str::contains("add.rs"));
    watch().assert().code(1).stdout(says);
    fs::write(&path, source).unwrap();
    watch().assert().success().stdout(predicate::str::contains("compiled in"));
    lab(&["watch", "add", "--variant", "fast"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("vec4, plain"));
}

#[test]
fn model_measures_the_embedded_model_on_the_cpu() {
    let quick =
        ["model", "--device", "cpu", "--prompt-tokens", "40", "-n", "4", "--repetitions", "2", "-b", "16"];
    let mut command = lab(&quick);
    let text = command.assert().success().stderr(predicate::str::contains("nothing to compare with"));
    let text = String::from_utf8(text.get_output().stdout.clone()).unwrap();
    for needed in ["decode tokens/s", "matmul", "attention", "untimed"] {
        assert!(text.contains(needed), "{needed} is not in\n{text}");
    }
    let kernels = lab(&quick).args(["--kernel", "rms_norm=plain"]).assert().success();
    kernels.stderr(predicate::str::contains("only --kernel matmul_blocks=exact chooses another"));
    let report: Value = serde_json::from_str(&output(lab(&quick).arg("--json"))).unwrap();
    assert_eq!(report["default"]["tokens"].as_array().unwrap().len(), 5);
    assert!(report["default"]["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["chosen"].is_null());
    let shares = report["default"]["decode"]["operations"].as_array().unwrap();
    let sum: f64 = shares.iter().map(|share| share["share"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9);
    lab(&["model", "--device", "cpu", "--prompt-tokens", "100000"]).assert().code(2);
    lab(&["model", "--kernel", "rms_norm=absent"]).assert().code(2);
}
