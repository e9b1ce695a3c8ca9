//! One kernel out of a PTX module, with what it needs, and with its source lines.

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A PTX module, split at its top level.
pub struct Module<'a> {
    /// `.version`, `.target`, `.address_size`.
    header: Vec<&'a str>,
    items: Vec<Item<'a>>,
    /// Paths of the `.file` directives by their numbers.
    files: BTreeMap<u32, &'a str>,
}

/// A kernel, a function or a variable.
struct Item<'a> {
    name: &'a str,
    is_entry: bool,
    lines: Vec<&'a str>,
}

impl<'a> Module<'a> {
    /// Splits the text of a module, as LLVM and nvcc write it: what is at the top level begins its line.
    pub fn parse(text: &'a str) -> Self {
        let mut module = Self { header: Vec::new(), items: Vec::new(), files: BTreeMap::new() };
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let start = line.trim_start();
            if let Some((number, path)) = file(start) {
                module.files.insert(number, path);
            } else if [".version", ".target", ".address_size"].iter().any(|word| start.starts_with(word)) {
                module.header.push(line);
            } else if start.starts_with(".section") {
                // Debugging data, up to its closing brace.
                let mut rest = Some(line);
                while rest.is_some_and(|line| !line.trim_end().ends_with('}')) {
                    rest = lines.next();
                }
            } else if line.starts_with('.') {
                let is_function = words(line).any(|word| word == ".entry" || word == ".func");
                let mut item = vec![line];
                // A function's body ends with a brace on a line of its own; what has no body ends with a semicolon.
                let mut has_body = false;
                while let Some(last) = item.last().map(|line| line.trim_end()) {
                    has_body |= is_function && last.trim_start().starts_with('{');
                    if (has_body && last == "}") || (!has_body && last.ends_with(';')) {
                        break;
                    }
                    let Some(line) = lines.next() else { break };
                    item.push(line);
                }
                let is_entry = words(line).any(|word| word == ".entry");
                let name = if is_function { function_name(&item) } else { variable_name(line) };
                module.items.push(Item { name, is_entry, lines: item });
            }
        }
        module
    }

    /// Names of the kernels, in order.
    pub fn entries(&self) -> impl Iterator<Item = &'a str> {
        self.items.iter().filter(|item| item.is_entry).map(|item| item.name)
    }

    /// A module of the kernels for which `keep` is true, the functions they call and the variables they use.
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> String {
        let kept = self.reachable(keep);
        let mut out: String = self.header.iter().map(|line| format!("{line}\n")).collect();
        for &index in &kept {
            out.push('\n');
            for line in &self.items[index].lines {
                out.push_str(line);
                out.push('\n');
            }
        }
        // All files before the last that is named: nvdisasm crashes where numbers are missing.
        let lines = kept.iter().flat_map(|&index| &self.items[index].lines);
        let last = lines.filter_map(|line| location(line)).map(|(file, _)| file).max().unwrap_or(0);
        for (number, path) in self.files.range(..=last) {
            out.push_str(&format!("\t.file\t{number} \"{path}\"\n"));
        }
        out
    }

    /// [`Module::only`] of one kernel, to be read: a comment with the source line above the instructions that come from
    /// it, `sources` supplying the text.
    pub fn annotated(&self, kernel: &str, sources: &mut Sources) -> String {
        let kept = self.reachable(|name| name == kernel);
        let mut out: String = self.header.iter().map(|line| format!("{line}\n")).collect();
        for index in kept {
            out.push('\n');
            let mut shown = None;
            for line in &self.items[index].lines {
                if let Some((file, number)) = location(line) {
                    // Line 0 is code of no line.
                    if number > 0
                        && shown.replace((file, number)) != Some((file, number))
                        && let Some(path) = self.files.get(&file)
                    {
                        out.push_str(&format!("\t// {}\n", sources.line(path, number)));
                    }
                } else if !["$L__tmp", "$L__func_"].iter().any(|label| line.starts_with(label)) {
                    out.push_str(line);
                    out.push('\n');
                }
            }
        }
        out
    }

    /// The architecture of `.target`.
    pub fn target(&self) -> Option<&'a str> {
        let line = self.header.iter().find_map(|line| line.trim_start().strip_prefix(".target"))?;
        line.split([',', ' ', '\t']).find(|word| !word.is_empty())
    }

    /// Whether instructions have source lines.
    pub fn has_lines(&self) -> bool {
        !self.files.is_empty()
    }

    /// Indices of the kept kernels and of all that their texts name, directly or not, in order.
    fn reachable(&self, keep: impl Fn(&str) -> bool) -> BTreeSet<usize> {
        // A function may be declared before it is defined.
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, item) in self.items.iter().enumerate() {
            by_name.entry(item.name).or_default().push(index);
        }
        let mut open: Vec<usize> =
            (0..self.items.len()).filter(|&i| self.items[i].is_entry && keep(self.items[i].name)).collect();
        let mut kept = BTreeSet::new();
        while let Some(index) = open.pop() {
            if kept.insert(index) {
                let names = self.items[index].lines.iter().flat_map(|line| words(line));
                open.extend(names.filter_map(|name| by_name.get(name)).flatten());
            }
        }
        kept
    }
}

/// Identifiers and directives of a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || "_$%.".contains(c))).filter(|word| !word.is_empty())
}

/// The name before the parameters: `.func (.param .b32 result) name(`, on one line or several.
fn function_name<'a>(lines: &[&'a str]) -> &'a str {
    // What follows the word that makes it a function, and after it the result in parentheses, if any.
    let mut after_keyword = false;
    let mut in_result = false;
    for line in lines {
        for word in line.split_inclusive([' ', '\t', '(', ')', ',']) {
            let bare = word.trim_end_matches([' ', '\t', '(', ')', ',', ';']);
            if !after_keyword {
                after_keyword = bare == ".entry" || bare == ".func";
                in_result = after_keyword && word.ends_with('(');
            } else if in_result {
                in_result = !word.ends_with(')');
            } else if bare.is_empty() {
                in_result = word.ends_with('(');
            } else {
                return bare;
            }
        }
    }
    ""
}

/// `name` in `.shared .align 16 .b8 name[64];` and `.global .b32 name = 1;`.
fn variable_name(line: &str) -> &str {
    let declared = line.split(['=', '[', ';', '{']).next().unwrap_or(line);
    words(declared).last().unwrap_or("")
}

/// `.file 1 "path"`
fn file(line: &str) -> Option<(u32, &str)> {
    let (number, path) = line.strip_prefix(".file")?.trim_start().split_once(char::is_whitespace)?;
    Some((number.parse().ok()?, path.trim().trim_start_matches('"').split('"').next()?))
}

/// File and line of `.loc 1 103 0`.
fn location(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.trim_start().strip_prefix(".loc")?.split_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Source files as they are on this machine, for showing lines of them.
pub struct Sources {
    /// Where the sources of this build were.
    built_in: PathBuf,
    /// Where they are now.
    root: PathBuf,
    files: HashMap<String, Option<Vec<String>>>,
    /// Files that were found and are newer than the program.
    changed: BTreeSet<String>,
    built_at: Option<std::time::SystemTime>,
}

impl Sources {
    /// Sources of the checkout in `root`; paths below the folder that this program was built in are looked for there.
    /// Files that have changed since `built_at` are remembered.
    pub fn new(root: Option<&Path>, built_at: Option<std::time::SystemTime>) -> Self {
        let built_in = lab::source::built_in().to_owned();
        let root = root.map_or_else(|| built_in.clone(), Path::to_path_buf);
        Self { built_in, root, files: HashMap::new(), changed: BTreeSet::new(), built_at }
    }

    /// `gpu-kernels/src/add.rs:17  the text`, without the text where the file is not here.
    pub fn line(&mut self, path: &str, number: u32) -> String {
        let short = self.short(path);
        let text = self.text(path, number).map(str::trim).unwrap_or_default().to_owned();
        format!("{short}:{number}  {text}").trim_end().to_owned()
    }

    /// Files whose lines were shown although they are newer than the program, which may have had other ones.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.changed.iter().map(String::as_str)
    }

    /// The path below the repository, or below the toolchain's library.
    fn short(&self, path: &str) -> String {
        if let Ok(inside) = Path::new(path).strip_prefix(&self.built_in) {
            return inside.display().to_string();
        }
        path.rsplit_once("/library/").map_or(path, |(_, inside)| inside).to_owned()
    }

    fn text(&mut self, path: &str, number: u32) -> Option<&str> {
        let (built_in, root) = (&self.built_in, &self.root);
        let file = self.files.entry(path.to_owned()).or_insert_with(|| {
            let inside = Path::new(path).strip_prefix(built_in).ok();
            let place = inside.map_or_else(|| PathBuf::from(path), |inside| root.join(inside));
            let text = std::fs::read_to_string(&place).ok()?;
            let modified = std::fs::metadata(&place).and_then(|data| data.modified()).ok();
            if let (Some(inside), Some(modified), Some(built_at)) = (inside, modified, self.built_at)
                && modified > built_at
            {
                self.changed.insert(inside.display().to_string());
            }
            Some(text.lines().map(str::to_owned).collect())
        });
        file.as_ref()?.get((number as usize).checked_sub(1)?).map(String::as_str)
    }
}

/// The kernels that `pattern` means: the one of that name, else those that match it where it has a `*` or a `?`, else the
/// only one that begins with it.
///
/// # Errors
/// [`Error::Request`] that lists the candidates, or names that look alike.
pub fn find<'a>(names: &[&'a str], pattern: &str) -> Result<Vec<&'a str>> {
    if let Some(&name) = names.iter().find(|&&name| name == pattern) {
        return Ok(vec![name]);
    }
    let is_glob = pattern.contains(['*', '?']);
    let found: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| if is_glob { glob(pattern, name) } else { name.starts_with(pattern) })
        .collect();
    match found.len() {
        0 => {
            let mut near: Vec<_> =
                names.iter().map(|name| (strsim::jaro_winkler(pattern, name), name)).collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0));
            let near: Vec<_> = near.iter().take(5).map(|(_, name)| **name).collect();
            Err(Error::Request(format!(
                "there is no kernel {pattern:?}; the nearest names are {}",
                near.join(", ")
            )))
        }
        1 => Ok(found),
        _ if is_glob => Ok(found),
        _ => Err(Error::Request(format!(
            "{pattern:?} is the beginning of {} kernels; name one, or write {pattern}* for all of them: {}",
            found.len(),
            found.join(", ")
        ))),
    }
}

/// Whether `name` is `pattern`, with `*` for any text and `?` for any character.
fn glob(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(|at| glob(rest, &name[at..]))
        }
        (Some(p), Some(n)) if p == '?' || p == n => glob(&pattern[p.len_utf8()..], &name[n.len_utf8()..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
.version 8.0
.target sm_80
.address_size 64

.shared .align 16 .b8 used[64];
.shared .align 16 .b8 unused[64];
.global .align 4 .b32 table = 7;
.func gone_wrong
()
.noreturn;
.func gone_wrong()
{
\ttrap;
}
.func  (.param .b32 result) helper(
\t.param .b32 x
)
{
\tld.global.b32 %r1, [table];
\tret;
}
.visible .entry a_kernel(
\t.param .u64 p
)
.maxntid 64
{
\t.loc\t1 2 0
\tmov.b32 %r1, used;
$L__tmp0:
\t.loc\t1 2 9
\tcall.uni (r), helper, (x);
\tcall.uni gone_wrong, ();
\tret;
}
.visible .entry b_kernel()
{
\tret;
}
\t.file\t1 \"/somewhere/kernel.rs\"
\t.section\t.debug_macinfo\t{\t}
";

    #[test]
    fn a_kernel_comes_with_what_it_names_and_nothing_else() {
        let module = Module::parse(MODULE);
        assert_eq!(module.entries().collect::<Vec<_>>(), ["a_kernel", "b_kernel"]);
        let a = module.only(|name| name == "a_kernel");
        for needed in [
            ".target sm_80",
            "used[64]",
            "table = 7",
            "helper(",
            ".noreturn;",
            "trap;",
            ".maxntid 64",
            "kernel.rs",
        ] {
            assert!(a.contains(needed), "{needed} is missing in\n{a}");
        }
        assert!(!a.contains("unused") && !a.contains("b_kernel"), "{a}");
        let b = module.only(|name| name == "b_kernel");
        assert!(!b.contains("used") && !b.contains("helper") && !b.contains(".file"), "{b}");
    }

    #[test]
    fn source_lines_stand_above_their_instructions_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel.rs");
        std::fs::write(&path, "first\n    second();\n").unwrap();
        let text = MODULE.replace("/somewhere/kernel.rs", path.to_str().unwrap());
        let annotated = Module::parse(&text).annotated("a_kernel", &mut Sources::new(None, None));
        let comment = format!("\t// {}:2  second();\n", path.display());
        assert_eq!(annotated.matches(&comment).count(), 1, "{annotated}");
        assert!(!annotated.contains(".loc") && !annotated.contains("$L__tmp"), "{annotated}");
    }

    #[test]
    fn every_embedded_kernel_can_be_taken_out() {
        for target in qernel_ptx::TARGETS {
            let text = qernel_ptx::ptx_with_lines(target).unwrap();
            let module = Module::parse(text);
            let names: Vec<_> = module.entries().collect();
            assert_eq!(names, crate::lab::kernels::entries(text).collect::<Vec<_>>());
            assert!(module.has_lines());
            for name in &names {
                let one = module.only(|other| other == *name);
                let one = Module::parse(&one);
                assert_eq!(one.entries().collect::<Vec<_>>(), [*name]);
            }
        }
        let module = Module::parse(qernel_ptx::ptx_with_lines("sm_80").unwrap());
        let text = module.annotated("rms_norm_bf16_vec4", &mut Sources::new(None, None));
        assert!(text.contains("// gpu-kernels/src/rms_norm.rs:"), "{text}");
        assert!(text.contains("while column < hidden_size {"), "the source is shown");
        assert!(text.contains(".shared .align") && text.contains("ld.param"), "{text}");
    }

    #[test]
    fn what_is_run_has_no_lines_and_the_same_instructions() {
        for target in qernel_ptx::TARGETS {
            let (run, shown) =
                (qernel_ptx::ptx(target).unwrap(), qernel_ptx::ptx_with_lines(target).unwrap());
            assert!(!run.contains("\t.loc\t") && shown.contains("\t.loc\t"));
            let instructions =
                |text: &str| text.lines().filter(|line| line.trim_end().ends_with(';')).count();
            assert_eq!(instructions(run), instructions(shown));
        }
    }

    #[test]
    fn kernels_are_found_by_name_prefix_and_glob() {
        let names = ["add_f32_plain", "add_f32_vec4", "rms_norm_f32_plain"];
        assert_eq!(find(&names, "add_f32_plain").unwrap(), ["add_f32_plain"]);
        assert_eq!(find(&names, "rms").unwrap(), ["rms_norm_f32_plain"]);
        assert_eq!(find(&names, "add*").unwrap(), ["add_f32_plain", "add_f32_vec4"]);
        assert_eq!(find(&names, "*vec?").unwrap(), ["add_f32_vec4"]);
        let error = |pattern| find(&names, pattern).unwrap_err().to_string();
        assert!(error("add").contains("2 kernels"), "{}", error("add"));
        assert!(error("rms_norm_f23_plain").contains("rms_norm_f32_plain"));
        assert!(error("x*").contains("nearest"));
    }
}
