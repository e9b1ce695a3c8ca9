//! One kernel out of a PTX module, with its source lines.

use crate::cuda::ptx::location;
use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

pub use crate::cuda::ptx::Module;

/// [`Module::only`] of one kernel, to be read: a comment with the source line above the instructions that come from it, `sources`
/// supplying the text.
pub fn annotated(module: &Module, kernel: &str, sources: &mut Sources) -> String {
    let mut out = module.header_text();
    for text in module.texts(|name| name == kernel) {
        out.push('\n');
        let mut shown = None;
        for line in text.lines() {
            if let Some((file, number)) = location(line) {
                // Line 0 is code of no line.
                if number > 0
                    && shown.replace((file, number)) != Some((file, number))
                    && let Some(path) = module.file(file)
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

.visible .entry a_kernel(
\t.param .u64 p
)
.maxntid 64
{
\t.loc\t1 2 0
\tmov.b32 %r1, 1;
$L__tmp0:
\t.loc\t1 2 9
\tret;
}
\t.file\t1 \"/somewhere/kernel.rs\"
\t.section\t.debug_macinfo\t{\t}
";

    #[test]
    fn source_lines_stand_above_their_instructions_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel.rs");
        std::fs::write(&path, "first\n    second();\n").unwrap();
        let text = MODULE.replace("/somewhere/kernel.rs", path.to_str().unwrap());
        let annotated = super::annotated(&Module::parse(&text), "a_kernel", &mut Sources::new(None, None));
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
        let text = annotated(&module, "rms_norm_bf16_vec4", &mut Sources::new(None, None));
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
