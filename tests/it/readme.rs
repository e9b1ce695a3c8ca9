//! README is true: its commands run, and its lines are not long.
//!
//! A line before each block of commands says what this test does with it: `<!-- test: run -->`, or `<!-- test: not run, … -->`
//! with a reason.

use crate::pages::{blocks, repository};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

/// Pages that a stranger meets first.
const PAGES: [&str; 8] = [
    "README.md",
    "cuda/README.md",
    "docs/README.md",
    "docs/kernels.md",
    "docs/comparison.md",
    "docs/token.md",
    "benches/peers/README.md",
    "SECURITY.md",
];

/// Runs what a block says as somebody types it, with this build's program and a port that is free.
fn run(code: &str) {
    let folder = tempfile::tempdir().unwrap();
    symlink(env!("CARGO_BIN_EXE_qernel"), folder.path().join("qernel")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let code = (code.replace("cargo run --release -- ", "qernel "))
        .replace("8080", &port)
        .replace("qernel serve", &format!("qernel serve --port {port}"))
        .replace("cargo run --release --", &format!("{} run --release --locked --quiet --", env!("CARGO")));
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{code}");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let done = Command::new("bash")
        .args(["-c", &script])
        .current_dir(repository())
        .env("PATH", path)
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{}\n{code}\n{said}\n{wrong}", done.status);
    assert!(!said.trim().is_empty(), "nothing was printed by\n{code}");
}

#[test]
fn commands_run() {
    let mut count = 0;
    for block in blocks("README.md").iter().filter(|block| block.language == "sh") {
        let marker = block.marker.as_deref();
        match marker {
            Some("run") => run(&block.code),
            Some(reason) if reason.starts_with("not run, for ") => continue,
            _ => panic!("expected a line `<!-- test: … -->` before, found {marker:?}:\n{}", block.code),
        }
        count += 1;
    }
    assert!(count >= 4, "{count} blocks were run");
}

#[test]
fn lines_are_not_long() {
    for page in PAGES {
        let text = fs::read_to_string(repository().join(page)).unwrap();
        for (i, line) in text.lines().enumerate() {
            // A table's row cannot be broken, but README's are short all the same.
            if line.starts_with('|') && page != "README.md" {
                continue;
            }
            let length = line.chars().count();
            assert!(length <= 120, "{page}:{}: {length} characters, at most 120", i + 1);
        }
    }
}

/// The newest section of the changelog is of this version, and the program says so.
#[test]
fn the_version_is_the_changelogs() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = fs::read_to_string(repository().join("CHANGELOG.md")).unwrap();
    let newest = changelog.lines().find_map(|line| line.strip_prefix("## [")).unwrap();
    assert_eq!(newest.split(']').next(), Some(version));
    let said = Command::new(env!("CARGO_BIN_EXE_qernel")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), format!("qernel {version}\n"));
}
