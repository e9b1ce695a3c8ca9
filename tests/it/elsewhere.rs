//! The library in another Cargo project: by path, without a patch table, and without CUDA.

use crate::pages::{blocks, repository};
use std::fs;
use std::process::Command;

/// The names of the crates that the library is made of with these features.
fn crates(features: &[&str]) -> Vec<String> {
    let tree = Command::new(env!("CARGO"))
        .current_dir(repository())
        .args(["tree", "--locked", "--offline", "-p", "qernel", "-e", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}", "--no-default-features"])
        .args(features.iter().flat_map(|feature| ["--features", feature]))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_library_alone_has_nothing_of_cuda_of_http_or_of_a_command_line() {
    let without = |crates: &[String], names: &[&str]| {
        assert!(crates.iter().any(|name| name == "qernel-core"), "{crates:?}");
        for name in names {
            assert!(!crates.iter().any(|found| found == name), "{name} is among {crates:?}");
        }
    };
    let cuda =
        ["cust", "cust_raw", "find_cuda_helper", "cudarc", "gpu-kernels", "cuda_builder", "qernel-ptx"];
    without(&crates(&[]), &cuda);
    without(&crates(&[]), &["axum", "tokio", "clap", "syn_v1", "indicatif"]);
    let server = crates(&["server"]);
    without(&server, &cuda);
    assert!(server.iter().any(|name| name == "axum"), "{server:?}");
    assert!(crates(&["cuda"]).iter().any(|name| name == "cust"));
}

/// The block of README in this language that says something.
fn block(language: &str, says: &str) -> String {
    let found =
        blocks("README.md").into_iter().find(|block| block.language == language && block.code.contains(says));
    found.unwrap_or_else(|| panic!("README has no block in {language} with {says}")).code
}

/// The project of README's section on the library, built and run.
#[test]
#[ignore = "compiles the library for another project: a minute or two; .ci/run does it"]
fn another_project_builds_the_library_and_runs_it() {
    let project = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| fs::write(project.path().join(path), text).unwrap();
    let dependencies = block("toml", "default-features = false");
    let dependencies = dependencies.replace("\"../qernel\"", &format!("{:?}", repository()));
    assert!(!dependencies.contains("[patch"), "{dependencies}");
    let package = "[package]\nname = \"elsewhere\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n";
    write("Cargo.toml", &format!("{package}{dependencies}"));
    // The versions that are here already, so that nothing is asked of a network.
    fs::copy(repository().join("Cargo.lock"), project.path().join("Cargo.lock")).unwrap();
    fs::create_dir(project.path().join("src")).unwrap();
    write("src/main.rs", &block("rust", "use qernel::Model"));
    let run = Command::new(env!("CARGO"))
        .current_dir(project.path())
        .args(["run", "--release", "--quiet"])
        .env("CARGO_TARGET_DIR", repository().join("target/elsewhere"))
        // As on a machine where nobody has said where CUDA is.
        .env_remove("CUDA_LIBRARY_PATH")
        .env_remove("CUDA_PATH")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let text = String::from_utf8(run.stdout).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
}
