//! `lab ptx`: what the compiler, and the assembler, made of a kernel.

use crate::cli::output::{Output, message, note};
use crate::cuda;
use crate::error::{Error, Result};
use crate::lab::assembler::{assemble, disassemble, required_tool, tool};
use crate::lab::ptx::{Module, Sources, annotated, find};
use crate::lab::source::Checkout;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print the PTX or the SASS of a kernel with its source lines, and what it takes of a multiprocessor
#[derive(Debug, clap::Args)]
pub struct PtxArgs {
    /// Name of a kernel, its beginning, or a pattern with * and ? (`lab list` has the names)
    kernel: String,
    /// Which of the embedded modules [default: the one that this machine's GPU runs, else sm_80]
    #[arg(long, value_name = "ARCH", value_parser = clap::builder::PossibleValuesParser::new(crate::ptx::TARGETS))]
    arch: Option<String>,
    /// Read this module instead of an embedded one
    #[arg(long, value_name = "FILE", conflicts_with = "arch")]
    ptx: Option<PathBuf>,
    /// Print the machine code instead (needs ptxas and nvdisasm)
    #[arg(long)]
    sass: bool,
    /// Leave the source lines out: with --sass, exactly what runs
    #[arg(long)]
    no_source: bool,
}

pub(super) fn run(args: PtxArgs) -> Result<ExitCode> {
    let from_file;
    let text = match &args.ptx {
        Some(path) => {
            from_file = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
            &from_file
        }
        None => {
            let target = args.arch.as_deref().unwrap_or_else(|| target_of_this_machine());
            crate::ptx::ptx_with_lines(target).expect("clap lets only known targets through")
        }
    };
    let module = Module::parse(text);
    let names: Vec<&str> = module.entries().collect();
    let kernels = find(&names, &args.kernel)?;
    let arch = module.target().ok_or_else(|| {
        let path = args.ptx.as_deref().unwrap_or_else(|| "the embedded PTX".as_ref());
        Error::Request(format!("{}: expected a PTX module, found no .target in it", path.display()))
    })?;

    // Lines of an unknown module are those of the files that it names; of our own, those of this checkout.
    let checkout = Checkout::find().ok();
    let built_at = std::env::current_exe().and_then(std::fs::metadata).and_then(|data| data.modified()).ok();
    let built_at = if args.ptx.is_none() { built_at } else { None };
    let mut sources = Sources::new(checkout.as_ref().map(Checkout::root), built_at);
    let mut out = Output::stdout();
    for (i, kernel) in kernels.into_iter().enumerate() {
        if i > 0 {
            out.line("")?;
        }
        out.line(&format!("// {kernel} for {arch}"))?;
        let run = cuda_builder::without_line_info(&module.only(|name| name == kernel));
        if args.sass {
            show_sass(&mut out, &module, kernel, arch, &run, &args, &mut sources)?;
        } else {
            if let Some(ptxas) = tool("ptxas") {
                let folder = temporary_folder()?;
                match assemble(&ptxas, &run, arch, &folder.path().join("kernel.cubin")) {
                    Ok(resources) => out.line(&describe(&resources, kernel))?,
                    // An older ptxas than the architecture: the PTX can be read all the same.
                    Err(error) => note(message(&error).trim_end()),
                }
            }
            let text = if args.no_source { run } else { annotated(&module, kernel, &mut sources) };
            out.text(&text)?;
        }
    }
    if !args.no_source && !module.has_lines() {
        note("note: this module has no source lines; cuda_builder's generate_line_info(true) writes them");
    }
    for file in sources.changed() {
        note(format_args!("note: {file} has changed since this program was built; its lines may have moved"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Assembles, disassembles and prints one kernel.
fn show_sass(
    out: &mut Output,
    module: &Module,
    kernel: &str,
    arch: &str,
    run: &str,
    args: &PtxArgs,
    sources: &mut Sources,
) -> Result<()> {
    let (ptxas, nvdisasm) = (required_tool("ptxas")?, required_tool("nvdisasm")?);
    let folder = temporary_folder()?;
    let cubin = folder.path().join("kernel.cubin");
    out.line(&describe(&assemble(&ptxas, run, arch, &cubin)?, kernel))?;
    let plain = disassemble(&nvdisasm, &cubin, kernel, None)?;
    if args.no_source || !module.has_lines() {
        return out.text(&plain);
    }
    let cubin = folder.path().join("lines.cubin");
    assemble(&ptxas, &module.only(|name| name == kernel), arch, &cubin)?;
    let with_lines = disassemble(&nvdisasm, &cubin, kernel, Some(sources))?;
    let (expected, found) = (operations(&plain), operations(&with_lines));
    if expected != found {
        out.line(
            "// with source lines ptxas schedules this kernel a little otherwise; --no-source shows exactly what runs",
        )?;
    }
    out.text(&with_lines)
}

/// The instructions without addresses' comments, for comparing listings. Labels are numbered otherwise in each.
fn operations(listing: &str) -> Vec<&str> {
    let code = |line: &'_ str| line.trim_start().starts_with("/*");
    let lines = listing.lines().filter(|line| code(line));
    lines.map(|line| line.split("`(.L").next().unwrap_or(line)).collect()
}

fn describe(words: &BTreeMap<String, String>, kernel: &str) -> String {
    format!("// {}", words.get(kernel).map_or("ptxas said nothing of its resources", String::as_str))
}

/// The module that the first GPU runs, or the one for all.
fn target_of_this_machine() -> &'static str {
    let devices = cuda::probe().unwrap_or_default();
    devices.first().and_then(|device| device.target().ok()).unwrap_or(crate::ptx::TARGETS[0])
}

fn temporary_folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("qernel-")
        .tempdir()
        .map_err(|error| Error::io(std::env::temp_dir(), error))
}
