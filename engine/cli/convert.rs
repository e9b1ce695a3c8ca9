//! `qernel convert`: a GGUF file of a folder from Hugging Face's hub.

use super::output::{Output, note};
use super::quantize::{self, QuantizeArgs};
use crate::config::Config;
use crate::disk::{self, Access};
use crate::error::{Error, Result};
use crate::gguf::write::merge;
use crate::load::open_gguf;
use crate::quantize::Mixture;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Make a GGUF file of a model in a folder, as Hugging Face's hub has them
#[derive(Clone, Debug, clap::Args)]
pub struct ConvertArgs {
    /// The folder: config.json, safetensors, tokenizer.json
    pub folder: PathBuf,
    /// The file to make
    pub output: PathBuf,
    /// Quantise at once, by llama-quantize's names: Q8_0, Q4_K_M, F16, … [default: floats stay what they are, FP8 becomes 16 bits]
    #[arg(value_name = "TYPE")]
    pub mixture: Option<Mixture>,
    /// Replace a model that has the new one's name
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the folder; [`Error::Io`] if the file cannot be written.
pub fn run(args: ConvertArgs) -> Result<ExitCode> {
    if !args.folder.is_dir() {
        let folder = args.folder.display();
        return Err(Error::Request(format!(
            "{folder} is no folder; `qernel quantize` and `qernel merge` take files"
        )));
    }
    let ConvertArgs { folder: input, output, mixture, force } = args;
    let Some(mixture) = mixture else { return whole(&input, &output, force) };
    quantize::run(QuantizeArgs { force, ..QuantizeArgs::new(input, output, mixture) })
}

/// Writes all tensors in the formats that they have.
fn whole(input: &std::path::Path, output: &std::path::Path, force: bool) -> Result<ExitCode> {
    let start = Instant::now();
    let gguf = open_gguf(Some(input), Access::Map)?;
    // A file that cannot be run is made all the same: others may know more.
    if let Err(error) = Config::from_gguf(&gguf) {
        note(format!("this version cannot run the model: {error}"));
    }
    disk::save_model(output, &gguf.watch(), force, |out| merge(&gguf, output, out))?;
    let mib = gguf.file_size() as f64 / f64::from(1 << 20);
    let (tensors, seconds) = (gguf.tensors().len(), start.elapsed().as_secs_f64());
    Output::stdout().line(&format!("{tensors} tensors, {mib:.2} MiB; {seconds:.1} s"))?;
    Ok(ExitCode::SUCCESS)
}
