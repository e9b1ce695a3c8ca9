//! All pages are true: their links lead to files and headings that are there, the code that they take from a file is in it, and what
//! they say that a command prints is what it prints.
//!
//! A line before a block says what it is: `<!-- test: lines of FILE -->` or `<!-- test: output -->`, whose lines that begin with `$`
//! are commands. `UPDATE_PAGES=1 cargo test --release --test it pages` writes the outputs of now into the pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Characters of a line of output; a longer one is broken.
const WIDTH: usize = 118;

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

/// The text of a page, which is named from the repository's root.
pub fn text(page: &str) -> String {
    fs::read_to_string(repository().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The fenced blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut marker, mut open) = (None, None::<Block>);
    for line in text(page).lines() {
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
    assert!(open.is_none(), "{page}: a block is not closed");
    blocks
}

/// Every page of the repository, named from its root.
fn pages() -> Vec<String> {
    fn visit(folder: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            let is_made = ["target", "node_modules", "gpu-bundle"].contains(&name.as_str());
            if entry.file_type().unwrap().is_dir() {
                if !is_made && (!name.starts_with('.') || name == ".github") {
                    visit(&path, pages);
                }
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    let mut pages = Vec::new();
    visit(repository(), &mut pages);
    pages.sort();
    let from_root = |page: PathBuf| page.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
    pages.into_iter().map(from_root).collect()
}

/// A page without its fenced blocks, in which nothing is a link or a heading.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            prose += line;
            prose.push('\n');
        }
    }
    prose
}

/// GitHub's and mdbook's names for the headings of a page: the second of a name ends with `-1`.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for heading in prose(text).lines().filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        let name: String =
            heading.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect();
        let before = anchors.iter().filter(|other| **other == name).count();
        anchors.push(if before == 0 { name } else { format!("{name}-{before}") });
    }
    anchors
}

/// Where the links and pictures of a page lead, but for other servers.
fn links(text: &str) -> Vec<String> {
    // What stands between backquotes is code.
    let prose: String =
        prose(text).split('`').enumerate().map(|(i, part)| if i % 2 == 0 { part } else { "code" }).collect();
    let links = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let pictures = prose.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let named = links.chain(pictures).filter(|link| !link.contains("://") && !link.starts_with("mailto:"));
    named.map(str::to_owned).collect()
}

/// What is wrong with a link of a page, if something is.
fn fault(page: &str, link: &str) -> Option<String> {
    let (path, fragment) = link.split_once('#').map_or((link, None), |(path, of)| (path, Some(of)));
    let page = repository().join(page);
    let target = if path.is_empty() { page } else { page.parent()?.join(path) };
    if !target.exists() {
        return Some("leads nowhere".into());
    }
    let fragment = fragment?;
    let text = fs::read_to_string(&target).unwrap_or_default();
    let is_there = anchors(&text).iter().any(|anchor| anchor == fragment);
    (!is_there).then(|| "there is no heading of that name".into())
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for page in pages() {
        for link in links(&text(&page)) {
            if let Some(fault) = fault(&page, &link) {
                panic!("{page}: {link}: {fault}");
            }
            count += 1;
        }
    }
    assert!(count > 200, "{count} links were found");
}

#[test]
fn broken_links_are_noticed() {
    let page =
        "# A `b` c\n\n## Twice\n\n```sh\n# no heading [x](nowhere)\n```\n\n## Twice\n[x](a.md#b) `[y](c)`\n";
    assert_eq!(anchors(page), ["a-b-c", "twice", "twice-1"]);
    assert_eq!(links(page), ["a.md#b"]);
    assert_eq!(fault("README.md", "docs/nowhere.md").as_deref(), Some("leads nowhere"));
    assert!(fault("README.md", "docs/README.md#nothing").unwrap().contains("no heading"));
    assert_eq!(fault("docs/README.md", "../README.md#try-it"), None);
}

#[test]
fn the_book_has_every_page_of_docs_once() {
    let mut chapters = links(&text("docs/SUMMARY.md"));
    let count = chapters.len();
    chapters.sort();
    chapters.dedup();
    assert_eq!(chapters.len(), count, "a chapter is there twice");
    for page in pages() {
        let Some(name) = page.strip_prefix("docs/") else { continue };
        assert!(
            name == "SUMMARY.md" || chapters.iter().any(|chapter| chapter == name),
            "{page} is no chapter"
        );
    }
}

#[test]
fn lines_are_those_of_the_files() {
    let mut count = 0;
    for page in pages() {
        for block in blocks(&page) {
            let Some(file) = block.marker.as_deref().and_then(|marker| marker.strip_prefix("lines of "))
            else {
                continue;
            };
            let source = text(file);
            let mut lines = source.lines().map(str::trim);
            for line in block.code.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let is_there = lines.any(|found| found == line);
                assert!(is_there, "{page}: {file} has no line, or not in this order: {line}");
            }
            count += 1;
        }
    }
    assert!(count > 10, "{count} blocks were compared");
}

/// What a command of a page prints.
fn said(page: &str, command: &str) -> String {
    if let Some(name) = command.strip_prefix("cargo run --release -p example_kernels_steps -- ") {
        return example_kernels_steps::run(name).unwrap_or_else(|| panic!("{page}: there is no step {name}"));
    }
    assert!(command.starts_with("qernel "), "{page}: expected a step or qernel, found {command}");
    let folder = Path::new(env!("CARGO_BIN_EXE_qernel")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    let done = bash.args(["-c", command]).env("PATH", path).env_remove("QERNEL_MODEL").output().unwrap();
    assert!(done.status.success(), "{page}: {command}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// What a block of output says with that of now in place of what it was.
fn renewed(page: &str, code: &str) -> String {
    let mut renewed = String::new();
    for line in code.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            renewed += &format!("{line}\n");
            renewed.extend(said(page, command).lines().map(|line| folded(&without_addresses(line))));
        }
    }
    renewed
}

/// A text in lines of at most [`WIDTH`] characters.
fn folded(text: &str) -> String {
    let (mut folded, mut length) = (String::new(), 0);
    for word in text.split_whitespace() {
        let next = length + usize::from(length > 0) + word.chars().count();
        let breaks = length > 0 && next > WIDTH;
        folded += if breaks {
            "\n"
        } else if length > 0 {
            " "
        } else {
            ""
        };
        folded += word;
        length = if breaks { word.chars().count() } else { next };
    }
    folded + "\n"
}

/// A text in which no address of memory is left, for those differ from run to run.
fn without_addresses(text: &str) -> String {
    let word = |word: &str| if word.starts_with("0x") { "0x7f…".into() } else { word.to_owned() };
    text.split(' ').map(word).collect::<Vec<String>>().join(" ")
}

#[test]
fn outputs_are_what_the_steps_print() {
    let mut steps = 0;
    for page in pages() {
        let mut now = text(&page);
        for block in blocks(&page).iter().filter(|block| block.marker.as_deref() == Some("output")) {
            let renewed = renewed(&page, &block.code);
            now = now.replace(&block.code, &renewed);
            steps += renewed.lines().filter(|line| line.starts_with("$ cargo run")).count();
            if std::env::var_os("UPDATE_PAGES").is_none() {
                assert_eq!(block.code, renewed, "{page}: other than a step prints; see tests/it/pages.rs");
            }
        }
        if now != text(&page) {
            fs::write(repository().join(&page), now).unwrap();
        }
    }
    let there_are = example_kernels_steps::names().len();
    assert_eq!(steps, there_are, "expected pages to show every step once");
}
