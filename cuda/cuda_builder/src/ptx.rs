//! What is done to the compiler's PTX: unresolved functions are refused, launch bounds are written in.

use std::{collections::BTreeMap, path::Path};

use crate::Error;

/// The comment by which `#[kernel(max_threads = …, min_blocks = …)]` reaches the builder:
/// `// launch_bounds <entry> <max_threads> <min_blocks or 0>`.
const LAUNCH_BOUNDS: &str = "// launch_bounds ";

/// A module that can be loaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub text: String,
    /// Names of the kernels, in the order of the text.
    pub entries: Vec<String>,
}

/// What is wrong with a module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Unresolved(Vec<String>),
    Malformed(String),
}

impl Problem {
    pub fn in_file(self, ptx: &Path) -> Error {
        match self {
            Problem::Unresolved(functions) => Error::Unresolved { ptx: ptx.into(), functions },
            Problem::Malformed(problem) => Error::Ptx { ptx: ptx.into(), problem },
        }
    }
}

/// Threads a block and blocks a multiprocessor that a kernel promises or asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    max_threads: u32,
    /// 0: not stated.
    min_blocks: u32,
}

/// Checks `text` and writes the launch bounds into the headers of its entries.
pub(crate) fn finish(text: &str) -> Result<Module, Problem> {
    let unresolved = unresolved_functions(text);
    if !unresolved.is_empty() {
        return Err(Problem::Unresolved(unresolved));
    }
    let mut bounds = launch_bounds(text)?;
    let mut out = String::with_capacity(text.len() + 64 * bounds.len());
    let mut entries = Vec::new();
    // Some: the header of this entry has been seen and its body has not begun.
    let mut header: Option<Bounds> = None;
    for line in text.lines() {
        if let Some(name) = entry_name(line) {
            header = bounds.remove(name);
            entries.push(name.to_string());
        }
        if line.trim_start().starts_with('{')
            && let Some(Bounds { max_threads, min_blocks }) = header.take()
        {
            out.push_str(&format!(".maxntid {max_threads}\n"));
            if min_blocks > 0 {
                out.push_str(&format!(".minnctapersm {min_blocks}\n"));
            }
        }
        out.push_str(line);
        out.push('\n');
    }
    if let Some(name) = bounds.keys().next() {
        return Err(Problem::Malformed(format!(
            "launch bounds for `{name}`, which is no kernel of this module"
        )));
    }
    Ok(Module { text: out, entries })
}

/// The name in `.visible .entry name(`.
fn entry_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once(".entry ")?;
    if before.contains("//") {
        return None;
    }
    Some(after.split(['(', ' ']).next().unwrap_or(after).trim_end())
}

fn launch_bounds(text: &str) -> Result<BTreeMap<&str, Bounds>, Problem> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix(LAUNCH_BOUNDS) else { continue };
        let mut words = rest.split_whitespace();
        let name = words.next();
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
        let (Some(name), Some(max_threads), Some(min_blocks)) = (name, number(), number()) else {
            return Err(Problem::Malformed(format!(
                "expected `{LAUNCH_BOUNDS}<entry> <max_threads> <min_blocks>`, found `{line}`"
            )));
        };
        if !(1..=1024).contains(&max_threads) {
            return Err(Problem::Malformed(format!(
                "`{name}` asks for blocks of {max_threads} threads; a block has 1 to 1024"
            )));
        }
        let bounds = Bounds { max_threads, min_blocks };
        if all.insert(name, bounds).is_some_and(|previous| previous != bounds) {
            return Err(Problem::Malformed(format!("two different launch bounds for `{name}`")));
        }
    }
    Ok(all)
}

/// Functions that the module declares and does not define. `.extern .shared` is not one: the launch supplies it.
fn unresolved_functions(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let mut names = Vec::new();
    while let Some(line) = lines.next() {
        let Some(mut declaration) = line.trim_start().strip_prefix(".extern .func").map(str::trim_start)
        else {
            continue;
        };
        // `.extern .func (.param .b32 result) name`, or the name alone, on this line or the next.
        if declaration.starts_with('(') {
            declaration = declaration.split_once(')').map_or("", |(_, after)| after.trim_start());
        }
        if declaration.is_empty() {
            declaration = lines.next().unwrap_or_default().trim_start();
        }
        let name = declaration.split(|c: char| "( ;\t".contains(c)).next().unwrap_or_default();
        // `vprintf` and its like are the driver's own.
        if !DRIVER_FUNCTIONS.contains(&name) {
            names.push(name.to_string());
        }
    }
    names
}

/// Functions that every driver defines when it loads a module (CUDA C++ Programming Guide, "System calls").
const DRIVER_FUNCTIONS: [&str; 4] = ["vprintf", "malloc", "free", "__assertfail"];
