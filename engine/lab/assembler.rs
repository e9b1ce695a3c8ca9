//! NVIDIA's assembler and disassembler, where they are installed: what a kernel takes of a multiprocessor, and its SASS.

use super::ptx::Sources;
use super::resources::compiled;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of the CUDA toolkit on `PATH`.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// [`tool`], or an error that says where to get it.
///
/// # Errors
/// [`Error::Request`] if it is not on `PATH`.
pub fn required_tool(name: &str) -> Result<PathBuf> {
    tool(name).ok_or_else(|| {
        Error::Request(format!(
            "{name} is not on PATH: it is part of the CUDA toolkit, and of the Python packages nvidia-cuda-nvcc (ptxas) and \
             nvidia-cuda-nvdisasm"
        ))
    })
}

/// Assembles a PTX module for `arch` into `cubin`; for each kernel, what it takes in words.
///
/// # Errors
/// [`Error::Request`] with what ptxas says of the module, [`Error::Io`] if files cannot be written or ptxas not started.
pub fn assemble(ptxas: &Path, ptx: &str, arch: &str, cubin: &Path) -> Result<BTreeMap<String, String>> {
    let source = cubin.with_extension("ptx");
    std::fs::write(&source, ptx).map_err(|error| Error::io(&source, error))?;
    let mut command = Command::new(ptxas);
    command.args(["-v", "-O3", "-arch", arch, "-o"]).arg(cubin).arg(&source);
    if ptx.contains("\t.loc\t") {
        command.arg("-lineinfo");
    }
    let output = command.output().map_err(|error| Error::io(ptxas, error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Error::Request(format!(
            "{} refuses the PTX for {arch}:\n{}",
            ptxas.display(),
            said.trim()
        )));
    }
    let words = compiled(&said).map(|(kernel, found)| {
        let words = format!(
            "{} registers, {} bytes of static shared memory, {} bytes of stack, {} bytes of spills",
            found.registers, found.shared_bytes, found.stack_bytes, found.spill_bytes
        );
        (kernel, words)
    });
    Ok(words.collect())
}

/// The instructions of one kernel of a cubin, with labels, and with a comment for each source line where it was assembled
/// `with_lines`.
///
/// # Errors
/// [`Error::Io`] if nvdisasm cannot be started, [`Error::Request`] with what it says.
pub fn disassemble(
    nvdisasm: &Path,
    cubin: &Path,
    kernel: &str,
    with_lines: Option<&mut Sources>,
) -> Result<String> {
    let mut command = Command::new(nvdisasm);
    let output =
        command.args(["-c", "-g"]).arg(cubin).output().map_err(|error| Error::io(nvdisasm, error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Request(format!(
            "{} cannot read the assembled kernel: {said}",
            nvdisasm.display()
        )));
    }
    Ok(instructions(&String::from_utf8_lossy(&output.stdout), kernel, with_lines))
}

/// The part of nvdisasm's output that is the kernel's.
fn instructions(listing: &str, kernel: &str, mut sources: Option<&mut Sources>) -> String {
    let label = format!(".text.{kernel}:");
    let mut out = String::new();
    let mut shown = String::new();
    for line in listing.lines().skip_while(|line| line.trim_end() != label).skip(1) {
        if line.trim_start().starts_with(".section") || line.starts_with("//---") {
            break;
        }
        if let (Some((path, number)), Some(sources)) = (place(line), &mut sources) {
            let comment = sources.line(path, number);
            if comment != shown {
                out.push_str(&format!("        // {comment}\n"));
                shown = comment;
            }
        } else if !line.trim().is_empty() {
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

/// Path and line of `//## File "…", line 17`.
fn place(line: &str) -> Option<(&str, u32)> {
    let (path, rest) = line.trim_start().strip_prefix("//## File \"")?.split_once('"')?;
    let number: String = rest.strip_prefix(", line ")?.chars().take_while(char::is_ascii_digit).collect();
    Some((path, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_instructions_are_cut_out_of_a_listing() {
        let listing = "\
.text.a:
        /*0000*/                   EXIT ;
//--------------------- .text.b  --------------------------
\t.section\t.text.b,\"ax\",@progbits
b:
.text.b:
\t//## File \"/nowhere/b.rs\", line 17
        /*0000*/                   LDC R1, c[0x0][0x28] ;
\t//## File \"/nowhere/b.rs\", line 17 inlined at \"/nowhere/c.rs\", line 3
.L_x_1:
        /*0010*/                   EXIT ;
\t.section\t.nv.shared.b
        junk
";
        let expected = "        // /nowhere/b.rs:17
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   EXIT ;
";
        assert_eq!(instructions(listing, "b", Some(&mut Sources::new(None, None))), expected);
    }
}
