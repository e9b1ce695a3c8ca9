//! What is done to the compiler's PTX: unresolved functions are refused, launch bounds are written in.

use std::{collections::BTreeMap, path::Path};

use crate::Error;

/// The comment by which `#[kernel(max_threads = …, min_blocks = …)]` reaches the builder:
/// `// launch_bounds <entry> <max_threads> <min_blocks or 0>`.
pub(crate) const LAUNCH_BOUNDS: &str = "// launch_bounds ";

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

/// `ptx` as it is compiled without [line information](crate::CudaBuilder::generate_line_info): no `.file`, `.loc`, nor
/// the labels and the empty debug section that come with them.
///
/// A module is run without: where ptxas finds lines it schedules some kernels differently.
pub fn without_line_info(ptx: &str) -> String {
    const LEFT_OUT: [&str; 5] = [".loc\t", ".file\t", ".section\t.debug_macinfo", "$L__tmp", "$L__func_"];
    let stays = |line: &&str| !LEFT_OUT.iter().any(|start| line.trim_start().starts_with(start));
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines().filter(stays) {
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The name in `.visible .entry name(`.
pub(crate) fn entry_name(line: &str) -> Option<&str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
.version 8.6
.target sm_80
.address_size 64

.extern .shared .align 128 .b8 dyn_smem[];
// launch_bounds scale_f32_plain 256 2
// launch_bounds copy_f32_plain 1024 0

.visible .entry scale_f32_plain(
\t.param .u32 scale_f32_plain_param_0
)
{
\tret;
}
.visible .entry copy_f32_plain()
{
\tret;
}
.visible .entry other()
{
\tret;
}
";

    #[test]
    fn line_information_is_taken_out_and_nothing_else() {
        let with = "\
.target sm_80
.visible .entry a(
)
{
\t.reg .b32 \t%r<2>;
$L__func_begin0:
\t.loc\t1 103 0
\tld.param.b32 \t%r1, [a_param_0];
$L__tmp7:
\t.loc\t2 17 13
$L__BB0_2:
\tret;
$L__tmp8:
$L__func_end0:
}
\t.file\t1 \"/w/src/lib.rs\"
\t.section\t.debug_macinfo\t{\t}
";
        let without = "\
.target sm_80
.visible .entry a(
)
{
\t.reg .b32 \t%r<2>;
\tld.param.b32 \t%r1, [a_param_0];
$L__BB0_2:
\tret;
}
";
        assert_eq!(without_line_info(with), without);
        assert_eq!(without_line_info(without), without);
    }

    #[test]
    fn launch_bounds_go_into_the_header_of_their_entry() {
        let module = finish(MODULE).unwrap();
        assert_eq!(module.entries, ["scale_f32_plain", "copy_f32_plain", "other"]);
        assert!(module.text.contains("param_0\n)\n.maxntid 256\n.minnctapersm 2\n{\n"), "{}", module.text);
        assert!(module.text.contains("copy_f32_plain()\n.maxntid 1024\n{\n"), "{}", module.text);
        assert!(module.text.contains("other()\n{\n"), "{}", module.text);
    }

    #[test]
    fn only_bounds_are_added() {
        let kept = finish(MODULE).unwrap().text;
        let kept: Vec<_> = kept.lines().filter(|line| !line.starts_with(".m")).collect();
        assert_eq!(kept, MODULE.lines().collect::<Vec<_>>());
    }

    #[test]
    fn unresolved_functions_are_refused_by_name() {
        let text = "\
.extern .func  (.param .b32 func_retval0) sinf
(
\t.param .b32 sinf_param_0
)
;
.extern .func __divti3(.param .b64 a);
.extern .func
no_result
;
.extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
.extern .shared .align 16 .b8 tile[];
";
        let Err(Problem::Unresolved(functions)) = finish(text) else { panic!("accepted") };
        assert_eq!(functions, ["sinf", "__divti3", "no_result"]);
        let error = Problem::Unresolved(functions).in_file(Path::new("k.ptx")).to_string();
        assert!(
            error.starts_with("k.ptx calls functions that nothing defines:\n  - sinf\n  - __divti3\n"),
            "{error}"
        );
    }

    #[test]
    fn bounds_that_make_no_sense_are_refused() {
        let refused = |line: &str| match finish(&format!("{MODULE}{line}\n")) {
            Err(Problem::Malformed(problem)) => problem,
            other => panic!("{other:?}"),
        };
        assert!(refused("// launch_bounds ghost 32 0").contains("`ghost`, which is no kernel"));
        assert!(refused("// launch_bounds other 2048 0").contains("2048 threads; a block has 1 to 1024"));
        assert!(refused("// launch_bounds other many").contains("expected `// launch_bounds <entry>"));
        assert!(refused("// launch_bounds copy_f32_plain 512 0").contains("two different launch bounds"));
    }

    #[test]
    fn the_same_bounds_twice_are_the_same_bounds() {
        assert!(finish(&format!("{MODULE}// launch_bounds copy_f32_plain 1024 0\n")).is_ok());
    }
}
