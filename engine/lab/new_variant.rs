//! Writes a new variant of an operation: a copy of one that is there, under another name. That is what a variant takes by hand,
//! too: a function in `gpu-kernels/src`, and a line in a table of `engine/cuda`.
//!
//! A variant can be copied if it launches one kernel, a function that has its name and whose entries are named after it. Files are
//! as rustfmt leaves them: blank lines between items and none inside the head of one, a closing brace of an item at the
//! beginning of a line.

use super::source::Checkout;
use crate::error::{Error, Result};
use qernel_core::disk;
use std::ops::Range;
use std::path::PathBuf;

/// What [`plan`] has worked out: the changed texts of two files.
#[derive(Debug)]
pub struct NewVariant {
    /// The kernels, with one more behind the one that was copied.
    pub kernels: (PathBuf, String),
    /// The launch wrapper, with a line more in its table.
    pub wrapper: (PathBuf, String),
}

/// Works out the variant `name` of `op`, a copy of `from`. Nothing is written.
///
/// # Errors
/// [`Error::Request`] if the name will not do or is taken, or there is nothing that can be copied; [`Error::Io`] if the files
/// cannot be read.
pub fn plan(checkout: &Checkout, op: &str, name: &str, from: &str) -> Result<NewVariant> {
    check_name(name)?;
    let (path, table) = wrapper_of(checkout, op)?;
    if table.contains(&format!("\"{name}\" [")) {
        return Err(Error::Request(format!("{op} has a variant {name} already")));
    }
    let cannot =
        |why: &str| Error::Request(format!("{op}={from} {why}: copy it by hand, as CONTRIBUTING says"));
    let entry = entry_of(&table, from).ok_or_else(|| cannot("is not one kernel, a function of its name"))?;
    let end = table[entry.start..].find(" [").unwrap_or(0);
    let rest = &table[entry.start + end..entry.end];
    let copy = rest.replace(&format!("{from}]"), &format!("{name}]"));
    let line = format!("    \"{name}\"{}\n", copy.replace(&format!("{from}()"), &format!("{name}()")));
    let wrapper = (path, with_text_at(&table, entry.end + 1, &line));
    for path in checkout.kernel_files(op)? {
        let text = read(&path)?;
        let Some(item) = function_of(&text, op, from) else { continue };
        let head = format!(
            "/// As [`{from}`], of which it is a copy: say here what it does otherwise, why, and what that brought.\n///\n"
        );
        let copy = text[item.clone()].replacen(&format!("fn {from}"), &format!("fn {name}"), 1);
        let renamed = with_entries_named(&copy, from, name)
            .ok_or_else(|| cannot("has entries that are not named after it"))?;
        let kernels = (path, with_text_at(&text, item.end, &format!("\n{head}{renamed}")));
        return Ok(NewVariant { kernels, wrapper });
    }
    Err(cannot("has no function that gpu-kernels/src tells from others"))
}

impl NewVariant {
    /// Writes both files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self) -> Result<()> {
        for (path, text) in [&self.kernels, &self.wrapper] {
            disk::save(path, None, |out| {
                out.write_all(text.as_bytes()).map_err(|error| Error::io(path, error))
            })?;
        }
        Ok(())
    }
}

/// A variant's name is that of a function and a part of its kernels' names.
fn check_name(name: &str) -> Result<()> {
    const WORDS: [&str; 12] =
        ["as", "do", "dyn", "else", "fn", "for", "if", "in", "let", "loop", "match", "mod"];
    let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.ends_with('_')
        && !name.contains("__");
    if !well_formed || WORDS.contains(&name) {
        return Err(Error::Request(format!(
            "a variant's name is of a to z, 0 to 9 and _, begins with a letter, and is no word of Rust; found {name:?}"
        )));
    }
    if name.split('_').any(|word| ["f32", "f16", "bf16", "u32"].contains(&word)) {
        return Err(Error::Request(format!(
            "{name}: kernels are named op_dtype_variant, so a variant's name has no dtype in it"
        )));
    }
    Ok(())
}

/// The file of `engine/cuda` with the operation's table, and its text.
fn wrapper_of(checkout: &Checkout, op: &str) -> Result<(PathBuf, String)> {
    const OP: &str = "const OP: &str = \"";
    let mut known = Vec::new();
    for path in checkout.wrapper_files()? {
        let text = read(&path)?;
        let Some(at) = text.find(OP).filter(|_| text.contains("\nvariants! {")) else { continue };
        match text[at + OP.len()..].split('"').next() {
            Some(name) if name == op => return Ok((path, text)),
            name => known.extend(name.map(str::to_owned)),
        }
    }
    Err(Error::Request(format!(
        "{op} has no table of variants in engine/cuda; these have one: {}",
        known.join(", ")
    )))
}

/// The line of a table, or several, whose one kernel is called `name`, and which launches that.
fn entry_of(text: &str, name: &str) -> Option<Range<usize>> {
    let mut start = text.find("\nvariants! {")?;
    loop {
        start += text[start..].find(" [")? + 1;
        let line = text[..start].rfind('\n')? + 1;
        let end = start + text[start..].find(";\n")? + 1;
        let kernel = text[start + 1..].split(']').next()?.rsplit("::").next()?;
        if kernel == name && text[start..end].contains(&format!("{name}()")) {
            return Some(line + text[line..].find(|c| c != ' ')?..end);
        }
    }
}

/// The kernel `name` of `op` in a file: its documentation, attribute and body.
fn function_of(text: &str, op: &str, name: &str) -> Option<Range<usize>> {
    let at = ["<", "("].iter().find_map(|end| text.find(&format!("\npub unsafe fn {name}{end}")))?;
    let start = text[..at].rfind("\n\n")? + 2;
    let end = at + text[at..].find("\n}\n")? + 3;
    text[start..at].contains(&format!("name = \"{op}_")).then_some(start..end)
}

/// A kernel with the part `from` of its entries' names replaced; `None` if they have no such part.
fn with_entries_named(kernel: &str, from: &str, to: &str) -> Option<String> {
    const NAME: &str = " name = \"";
    let start = kernel.find(NAME)? + NAME.len();
    let end = start + kernel[start..].find('"')?;
    let names = kernel[start..end].split('_').map(|part| if part == from { to } else { part });
    let names = names.collect::<Vec<_>>().join("_");
    (names != kernel[start..end]).then(|| format!("{}{names}{}", &kernel[..start], &kernel[end..]))
}

fn with_text_at(text: &str, at: usize, more: &str) -> String {
    format!("{}{more}{}", &text[..at], &text[at..])
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::io(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> Checkout {
        Checkout::around(lab::source::built_in()).unwrap()
    }

    #[test]
    fn every_operation_with_a_plain_variant_can_have_another() {
        for (op, variants) in crate::cuda::kernels() {
            if !variants.contains(&"plain") {
                continue;
            }
            let new = plan(&checkout(), op, "v2", "plain").unwrap();
            let (kernels, table) = (&new.kernels.1, &new.wrapper.1);
            assert!(kernels.contains("pub unsafe fn v2") && kernels.contains("_v2"), "{op}");
            assert!(table.contains("    \"v2\" [") && table.contains("v2()"), "{op}: {table}");
            let (before, after) = (std::fs::read_to_string(&new.wrapper.0).unwrap(), table);
            assert_eq!(after.lines().count(), before.lines().count() + 1 + usize::from(op == "attention"));
        }
    }

    #[test]
    fn other_variants_can_be_the_start_where_they_are_one_kernel_of_their_name() {
        for (op, from) in
            [("rms_norm", "registers"), ("matmul", "gemv"), ("attention", "tiled"), ("matmul_add", "mma")]
        {
            let new = plan(&checkout(), op, "wide", from).unwrap();
            assert!(new.kernels.1.contains("_wide"), "{op}={from}");
            assert!(new.wrapper.1.contains("\"wide\" ["), "{op}={from}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let refused =
            |op: &str, name: &str, from: &str| plan(&checkout(), op, name, from).unwrap_err().to_string();
        assert!(refused("norm", "v2", "plain").contains("rms_norm"));
        assert!(refused("rms_norm", "vec4", "plain").contains("already"));
        assert!(refused("rms_norm", "v2", "fast").contains("fast"));
        for (op, from) in [("matmul", "cublas"), ("attention", "split"), ("sample", "split")] {
            assert!(refused(op, "v2", from).contains("by hand"), "{op}={from}");
        }
        assert!(refused("norm_gate_up", "v2", "lanes").contains("not named after it"));
        for bad in ["", "V2", "2v", "a-b", "fn", "v_", "f32", "x_bf16", "../x"] {
            plan(&checkout(), "rms_norm", bad, "plain").unwrap_err();
        }
    }
}
