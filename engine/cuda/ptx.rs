//! PTX modules as text: what stands at their top level, and a module of some of the kernels alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A PTX module, split at its top level.
pub struct Module<'a> {
    /// `.version`, `.target`, `.address_size`.
    header: Vec<&'a str>,
    items: Vec<Item<'a>>,
    /// Where the items of a name are: a function may be declared before it is defined.
    by_name: HashMap<&'a str, Vec<usize>>,
    /// Paths of the `.file` directives by their numbers.
    files: BTreeMap<u32, &'a str>,
}

/// A kernel, a function or a variable.
struct Item<'a> {
    name: &'a str,
    is_entry: bool,
    text: &'a str,
}

impl<'a> Module<'a> {
    /// Splits the text of a module, as LLVM and nvcc write it: what is at the top level begins its line.
    pub fn parse(text: &'a str) -> Self {
        let mut module =
            Self { header: Vec::new(), items: Vec::new(), by_name: HashMap::new(), files: BTreeMap::new() };
        let mut rest = text;
        while let Some(line) = first_line(rest) {
            let start = line.trim_start();
            let mut length = line.len();
            if let Some((number, path)) = file(start) {
                module.files.insert(number, path);
            } else if [".version", ".target", ".address_size"].iter().any(|word| start.starts_with(word)) {
                module.header.push(line.trim_end());
            } else if start.starts_with(".section") {
                // Debugging data, up to its closing brace.
                length = end_of_line(rest, |line| line.ends_with('}'));
            } else if line.starts_with('.') {
                let is_function = words(line).any(|word| word == ".entry" || word == ".func");
                // A function's body ends with a brace on a line of its own; what has no body ends with a semicolon.
                let mut has_body = false;
                length = end_of_line(rest, |line| {
                    has_body |= is_function && line.trim_start().starts_with('{');
                    if has_body { line == "}" } else { line.ends_with(';') }
                });
                let text = &rest[..length];
                let name = if is_function { function_name(text) } else { variable_name(line) };
                module.by_name.entry(name).or_default().push(module.items.len());
                module.items.push(Item { name, is_entry: words(line).any(|word| word == ".entry"), text });
            }
            rest = &rest[length..];
        }
        module
    }

    /// Names of the kernels, in order.
    pub fn entries(&self) -> impl Iterator<Item = &'a str> {
        self.items.iter().filter(|item| item.is_entry).map(|item| item.name)
    }

    /// The kernel whose text is the shortest.
    pub fn shortest_entry(&self) -> Option<&'a str> {
        let entries = self.items.iter().filter(|item| item.is_entry);
        entries.min_by_key(|item| item.text.len()).map(|item| item.name)
    }

    /// A module of the kernels for which `keep` is true, the functions they call and the variables they use.
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> String {
        let mut out = self.header_text();
        let mut last_file = 0;
        for text in self.texts(keep) {
            out.push('\n');
            out.push_str(text);
            if !self.files.is_empty() {
                let files = text.lines().filter_map(location).map(|(file, _)| file);
                last_file = files.max().unwrap_or(0).max(last_file);
            }
        }
        // All files before the last that is named: nvdisasm crashes where numbers are missing.
        for (number, path) in self.files.range(..=last_file) {
            out.push_str(&format!("\t.file\t{number} \"{path}\"\n"));
        }
        out
    }

    /// The lines before everything else.
    pub fn header_text(&self) -> String {
        self.header.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The texts of the kernels for which `keep` is true and of all that they name, directly or not, in order.
    pub fn texts(&self, keep: impl Fn(&str) -> bool) -> impl Iterator<Item = &'a str> {
        let mut open: Vec<usize> =
            (0..self.items.len()).filter(|&i| self.items[i].is_entry && keep(self.items[i].name)).collect();
        let mut kept = BTreeSet::new();
        while let Some(index) = open.pop() {
            if kept.insert(index) {
                open.extend(
                    words(self.items[index].text).filter_map(|name| self.by_name.get(name)).flatten(),
                );
            }
        }
        kept.into_iter().map(|index| self.items[index].text)
    }

    /// The path of a number in [`location`].
    pub fn file(&self, number: u32) -> Option<&'a str> {
        self.files.get(&number).copied()
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
}

/// File and line of `.loc 1 103 0`.
pub fn location(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.trim_start().strip_prefix(".loc")?.split_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// With its line break, if it has one.
fn first_line(text: &str) -> Option<&str> {
    text.split_inclusive('\n').next()
}

/// Bytes up to the end of the first line for which `is_last` is true, else of all; it sees lines without what is blank at their end.
fn end_of_line(text: &str, mut is_last: impl FnMut(&str) -> bool) -> usize {
    let mut length = 0;
    for line in text.split_inclusive('\n') {
        length += line.len();
        if is_last(line.trim_end()) {
            break;
        }
    }
    length
}

/// Identifiers and directives of a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "_$%.".contains(c))).filter(|word| !word.is_empty())
}

/// The name before the parameters: `.func (.param .b32 result) name(`, on one line or several.
fn function_name(text: &str) -> &str {
    // What follows the word that makes it a function, and after it the result in parentheses, if any.
    let mut after_keyword = false;
    let mut in_result = false;
    for word in text.split_inclusive([' ', '\t', '\n', '(', ')', ',']) {
        let bare = word.trim_end_matches([' ', '\t', '\r', '\n', '(', ')', ',', ';']);
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
}
