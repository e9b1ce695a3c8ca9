//! A kernel crate compiled in parts, so that an edit compiles again only those that read the edited file.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, cache};

/// What [`CudaBuilder::part`](crate::CudaBuilder::part) was given.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub features: String,
    /// Beginnings of names, separated by commas.
    pub kernels: String,
}

/// The file beside a part's PTX that says what it was compiled from.
fn record(ptx: &Path) -> PathBuf {
    ptx.with_extension("inputs")
}

/// Whether `ptx` is what compiling with these `settings` would write again: it was, and every file read then is as it was.
pub(crate) fn is_fresh(ptx: &Path, settings: &str) -> bool {
    let Ok(record) = fs::read_to_string(record(ptx)) else { return false };
    let mut lines = record.lines();
    lines.next() == Some(settings)
        && ptx.is_file()
        && lines.clone().next().is_some()
        && lines.all(|line| {
            line.split_once(' ').is_some_and(|(hash, path)| hash_of(Path::new(path)).as_deref() == Some(hash))
        })
}

/// Says that `ptx` is no longer what its record tells, before it is compiled.
pub(crate) fn forget(ptx: &Path) -> Result<(), Error> {
    let path = record(ptx);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// Records what `ptx` was compiled from: the files in `dep_info`, which cargo wrote. Without it the part is compiled again next time.
pub(crate) fn remember(ptx: &Path, settings: &str, dep_info: &Path) -> Result<(), Error> {
    let Ok(dependencies) = fs::read_to_string(dep_info) else { return Ok(()) };
    let mut text = format!("{settings}\n");
    for path in files_in(&dependencies) {
        let Some(hash) = hash_of(Path::new(&path)) else { return Ok(()) };
        text.push_str(&format!("{hash} {path}\n"));
    }
    let path = record(ptx);
    fs::write(&path, text).map_err(Error::io("write", &path))
}

fn hash_of(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| cache::fingerprint([&text as &str]))
}

/// The files in `output: file file\ with\ spaces`.
fn files_in(dep_info: &str) -> Vec<String> {
    let list = dep_info.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, list)| list);
    let joined = list.replace("\\ ", "\0");
    joined.split_whitespace().map(|path| path.replace('\0', " ")).collect()
}

/// One module of several, each complete. Variables that are the same in each are one; other names may stand for something else in each.
///
/// # Errors
/// A message, if they are for different targets or have a kernel in common.
pub(crate) fn join(modules: &[String]) -> Result<String, String> {
    let mut out = String::with_capacity(modules.iter().map(String::len).sum());
    let mut header: Vec<&str> = Vec::new();
    // Names and what defines them, as the joined module has them; nothing for functions, of which none is like another.
    let mut taken: HashMap<String, &str> = HashMap::new();
    let mut files: Vec<&str> = Vec::new();
    let mut section = None;
    for (index, module) in modules.iter().enumerate() {
        let names = defined(module);
        let mut renamed: HashMap<&str, String> = HashMap::new();
        let mut repeated: HashSet<&str> = HashSet::new();
        for Defined { name, line, kind } in &names {
            match (taken.get(*name), kind) {
                (None, _) => {}
                (Some(_), Kind::Kernel) => return Err(format!("the kernel `{name}` is in two parts")),
                (Some(known), Kind::Variable) if known == line => {
                    repeated.insert(line);
                }
                (Some(_), _) => {
                    renamed.insert(name, format!("{name}_{index}"));
                }
            }
        }
        for Defined { name, line, kind } in names {
            let name = renamed.get(name).map_or(name, String::as_str);
            taken.insert(name.into(), if matches!(kind, Kind::Variable) { line } else { "" });
        }
        let numbers = file_numbers(module, &mut files);
        for line in module.lines() {
            let start = line.trim_start();
            if [".version ", ".target ", ".address_size "].iter().any(|word| start.starts_with(word)) {
                if index == 0 {
                    header.push(line);
                } else if header.contains(&line) {
                    continue;
                } else {
                    return Err(format!("`{line}` in one part, `{}` in another", header.join("`, `")));
                }
            }
            if start.starts_with(".section\t.debug_macinfo") {
                section = Some(line);
                continue;
            }
            if start.starts_with(".file\t") || repeated.contains(line) {
                continue;
            }
            match start.strip_prefix(".loc\t").and_then(|rest| rest.split_once(' ')) {
                Some((number, rest)) => {
                    let number = numbers.get(number).ok_or_else(|| format!("`{line}` names no file"))?;
                    out.push_str(&format!("\t.loc\t{number} {rest}"));
                }
                None if renamed.is_empty() => out.push_str(line),
                None => push_renamed(&mut out, line, &renamed),
            }
            out.push('\n');
        }
    }
    if let Some(line) = section {
        out.push_str(line);
        out.push('\n');
    }
    for (number, file) in files.iter().enumerate() {
        out.push_str(&format!("\t.file\t{} {file}\n", number + 1));
    }
    Ok(out)
}

/// The number in the joined module of each of a module's files.
fn file_numbers<'a>(module: &'a str, files: &mut Vec<&'a str>) -> HashMap<&'a str, usize> {
    let lines = module.lines().filter_map(|line| line.trim_start().strip_prefix(".file\t")?.split_once(' '));
    lines
        .map(|(number, file)| {
            let place = files.iter().position(|&known| known == file).unwrap_or_else(|| {
                files.push(file);
                files.len() - 1
            });
            (number, place + 1)
        })
        .collect()
}

#[derive(Clone, Copy)]
enum Kind {
    Kernel,
    Function,
    Variable,
}

struct Defined<'a> {
    name: &'a str,
    line: &'a str,
    kind: Kind,
}

/// What is defined, or declared for a launch to supply, outside of functions.
fn defined(module: &str) -> Vec<Defined<'_>> {
    let mut names = Vec::new();
    let mut lines = module.lines();
    while let Some(line) = lines.next() {
        if line == "{" {
            // A body, to the brace that stands alone.
            lines.by_ref().find(|&line| line == "}");
            continue;
        }
        let found = crate::ptx::entry_name(line)
            .map(|name| (name, Kind::Kernel))
            .or_else(|| Some((function_name(line)?, Kind::Function)))
            .or_else(|| Some((variable_name(line)?, Kind::Variable)));
        names.extend(found.map(|(name, kind)| Defined { name, line, kind }));
    }
    names
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$'
}

/// The name in `.visible .func (.param .b32 result) name(` and in `.func name`.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once(".func ")?;
    if before.contains("//") || before.contains(".extern") {
        return None;
    }
    let after = after.trim_start();
    let after = if after.starts_with('(') { after.split_once(')')?.1.trim_start() } else { after };
    let name = after.split(|c| !is_of_name(c)).next()?;
    (!name.is_empty()).then_some(name)
}

/// The name in `.shared .align 16 .b8 name[64];` and in `.visible .global .align 4 .b32 name = …`.
fn variable_name(line: &str) -> Option<&str> {
    let declaration = line.split(['=', '[', ';']).next()?.trim();
    let mut words = declaration.split_whitespace();
    let in_a_space = |word: &str| [".shared", ".global", ".const"].contains(&word);
    let is_variable = words.by_ref().take_while(|word| word.starts_with('.')).any(in_a_space);
    let name = declaration.rsplit(char::is_whitespace).next();
    name.filter(|_| is_variable)
}

/// `line` with other names for those in `renamed`.
fn push_renamed(out: &mut String, line: &str, renamed: &HashMap<&str, String>) {
    let mut rest = line;
    while let Some(start) = rest.find(is_of_name) {
        let length = rest[start..].find(|c| !is_of_name(c)).unwrap_or(rest.len() - start);
        let name = &rest[start..start + length];
        out.push_str(&rest[..start]);
        out.push_str(renamed.get(name).map_or(name, String::as_str));
        rest = &rest[start + length..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "\
.version 8.0
.target sm_90a
.address_size 64

\t// .globl\ta
.shared .align 16 .b8 shared_1[64];
.extern .shared .align 128 .b8 dynamic[];
.global .align 4 .b32 table[2] = {1, 2};
.visible .entry a(
)
{
\t.loc\t1 7 3
\tmov.b32 \t%r1, shared_1;
\tld.global.b32 \t%r2, [table+4];
}
\t.file\t1 \"/w/a.rs\"
";

    #[test]
    fn names_that_two_modules_give_stay_apart_and_files_are_numbered_once() {
        let second = "\
.version 8.0
.target sm_90a
.address_size 64

.shared .align 16 .b8 shared_1[128];
.extern .shared .align 128 .b8 dynamic[];
.func trap_1()
{
\ttrap;
}
.visible .entry b(
)
{
\t.loc\t1 9 1
\tmov.b32 \t%r1, shared_1;
\tmov.b32 \t%r1, shared_11;
\tcall.uni trap_1, ();
\t.loc\t2 7 3
}
\t.file\t1 \"/w/b.rs\"
\t.file\t2 \"/w/a.rs\"
";
        let joined = join(&[FIRST.into(), second.into()]).unwrap();
        let expected = "\
.version 8.0
.target sm_90a
.address_size 64

\t// .globl\ta
.shared .align 16 .b8 shared_1[64];
.extern .shared .align 128 .b8 dynamic[];
.global .align 4 .b32 table[2] = {1, 2};
.visible .entry a(
)
{
\t.loc\t1 7 3
\tmov.b32 \t%r1, shared_1;
\tld.global.b32 \t%r2, [table+4];
}

.shared .align 16 .b8 shared_1_1[128];
.func trap_1()
{
\ttrap;
}
.visible .entry b(
)
{
\t.loc\t2 9 1
\tmov.b32 \t%r1, shared_1_1;
\tmov.b32 \t%r1, shared_11;
\tcall.uni trap_1, ();
\t.loc\t1 7 3
}
\t.file\t1 \"/w/a.rs\"
\t.file\t2 \"/w/b.rs\"
";
        assert_eq!(joined, expected);
        assert_eq!(join(&[FIRST.into()]).unwrap(), FIRST);
    }

    #[test]
    fn parts_that_are_no_module_together_are_refused() {
        let refused = |second: String| join(&[FIRST.into(), second]).unwrap_err();
        assert_eq!(refused(FIRST.into()), "the kernel `a` is in two parts");
        let other = FIRST.replace("sm_90a", "sm_80").replace("entry a", "entry b");
        assert!(refused(other).contains("`.target sm_80` in one part"));
    }

    #[test]
    fn a_part_is_fresh_until_a_file_or_a_setting_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let source = path("a b.rs");
        fs::write(&source, "one").unwrap();
        fs::write(path("p.ptx"), "").unwrap();
        let escaped = source.display().to_string().replace(' ', "\\ ");
        fs::write(path("p.d"), format!("/out/p.ptx: {escaped}\n")).unwrap();
        let fresh = |settings| is_fresh(&path("p.ptx"), settings);
        assert!(!fresh("x"));
        remember(&path("p.ptx"), "x", &path("p.d")).unwrap();
        assert!(fresh("x") && !fresh("y"));
        fs::write(&source, "two").unwrap();
        assert!(!fresh("x"));
        fs::write(&source, "one").unwrap();
        assert!(fresh("x"));
        forget(&path("p.ptx")).unwrap();
        assert!(!fresh("x"));
    }
}
