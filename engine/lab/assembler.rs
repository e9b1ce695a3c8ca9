//! NVIDIA's assembler and disassembler, where they are installed: what a kernel takes of a multiprocessor, and its SASS.

use super::ptx::Sources;
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What ptxas says that a kernel takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    pub kernel: String,
    /// Of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub shared_bytes: u32,
    /// Bytes of local memory of a thread.
    pub stack_bytes: u32,
    /// Bytes that a thread stores to local memory for want of registers.
    pub spill_stores: u32,
    /// Bytes that it loads back.
    pub spill_loads: u32,
}

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

/// A PTX module, assembled for `arch` into `cubin`; what each kernel takes.
///
/// # Errors
/// [`Error::Request`] with what ptxas says of the module, [`Error::Io`] if files cannot be written or ptxas not started.
pub fn assemble(ptxas: &Path, ptx: &str, arch: &str, cubin: &Path) -> Result<Vec<Resources>> {
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
    Ok(resources(&said))
}

/// Reads what `ptxas -v` prints.
fn resources(said: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            all.push(Resources { kernel, ..Resources::default() });
            continue;
        }
        let Some(last) = all.last_mut() else { continue };
        // The number before a phrase: `32 registers`.
        let number = |phrase: &str| {
            let before = line.split_once(phrase)?.0.trim_end();
            before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
        };
        for (phrase, field) in [
            (" registers", &mut last.registers),
            (" bytes smem", &mut last.shared_bytes),
            (" bytes stack frame", &mut last.stack_bytes),
            (" bytes spill stores", &mut last.spill_stores),
            (" bytes spill loads", &mut last.spill_loads),
        ] {
            if let Some(value) = number(phrase) {
                *field = value;
            }
        }
    }
    all
}

/// The instructions of one kernel of a cubin, with labels, and with a comment for each source line where the cubin knows
/// them.
///
/// # Errors
/// [`Error::Io`] if nvdisasm cannot be started, [`Error::Request`] with what it says.
pub fn disassemble(nvdisasm: &Path, cubin: &Path, kernel: &str, sources: &mut Sources) -> Result<String> {
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
    Ok(instructions(&String::from_utf8_lossy(&output.stdout), kernel, sources))
}

/// The part of nvdisasm's output that is the kernel's.
fn instructions(listing: &str, kernel: &str, sources: &mut Sources) -> String {
    let label = format!(".text.{kernel}:");
    let mut out = String::new();
    let mut shown = String::new();
    for line in listing.lines().skip_while(|line| line.trim_end() != label).skip(1) {
        if line.trim_start().starts_with(".section") || line.starts_with("//---") {
            break;
        }
        if let Some((path, number)) = place(line) {
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
    fn resources_are_read_from_what_ptxas_prints() {
        let said = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for a
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 34944 bytes smem
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Used 14 registers, used 0 barriers
";
        let a = Resources {
            kernel: "a".into(),
            registers: 255,
            shared_bytes: 34_944,
            stack_bytes: 16,
            spill_stores: 8,
            spill_loads: 12,
        };
        let b = Resources { kernel: "b".into(), registers: 14, ..Resources::default() };
        assert_eq!(resources(said), [a, b]);
    }

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
        assert_eq!(instructions(listing, "b", &mut Sources::new(None, None)), expected);
    }
}
