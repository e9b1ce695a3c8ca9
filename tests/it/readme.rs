//! README is true: its commands run, its Rust is in the repository, its links lead somewhere, and its lines are not long.
//!
//! A line before each block of commands says what this test does with it: `<!-- test: run -->`, or `<!-- test: not run, … -->`
//! with a reason.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// Pages that a stranger meets first.
const PAGES: [&str; 5] =
    ["README.md", "cuda/README.md", "docs/README.md", "benches/peers/README.md", "SECURITY.md"];

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A fenced block of a page.
pub struct Block {
    /// What stands after `test:` in the comment before it.
    pub marker: Option<String>,
    pub language: String,
    pub code: String,
}

/// The fenced blocks of README.
pub fn blocks() -> Vec<Block> {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let mut blocks = Vec::new();
    let (mut marker, mut open) = (None, None::<Block>);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.code += &format!("{line}\n"),
            (None, Some(language)) => {
                open = Some(Block { marker: marker.take(), language: language.into(), code: String::new() });
            }
            (None, None) => {
                let comment = line.strip_prefix("<!-- test: ").and_then(|rest| rest.strip_suffix(" -->"));
                marker = comment.map(str::to_owned);
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

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
    for block in blocks().iter().filter(|block| block.language == "sh") {
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
fn the_kernel_is_the_examples() {
    let marked: Vec<Block> = blocks()
        .into_iter()
        .filter(|b| b.marker.as_ref().is_some_and(|m| m.starts_with("lines of ")))
        .collect();
    assert_eq!(marked.len(), 1);
    let file = marked[0].marker.as_ref().unwrap().trim_start_matches("lines of ");
    let source = fs::read_to_string(repository().join(file)).unwrap();
    let mut lines = source.lines().map(str::trim);
    for line in marked[0].code.lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert!(lines.any(|found| found == line), "{file} has no line, or not in this order: {line}");
    }
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

/// GitHub's name for a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for page in PAGES {
        let text = fs::read_to_string(repository().join(page)).unwrap();
        let folder = repository().join(page).parent().unwrap().to_owned();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let pictures = text.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for link in links.chain(pictures) {
            if link.starts_with("http") {
                continue;
            }
            let (path, fragment) = link.split_once('#').map_or((link, None), |(path, of)| (path, Some(of)));
            let target = if path.is_empty() { repository().join(page) } else { folder.join(path) };
            assert!(target.exists(), "{page}: {link} leads nowhere");
            if let Some(fragment) = fragment {
                let text = fs::read_to_string(&target).unwrap();
                let found = text.lines().any(|line| line.starts_with('#') && anchor(line) == fragment);
                assert!(found, "{page}: {link}: no heading of that name");
            }
            count += 1;
        }
    }
    assert!(count > 30, "{count} links were found");
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
