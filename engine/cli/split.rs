//! `qernel split` and `qernel merge`: a model in several files, and in one.

use super::options::parse_size;
use super::output::Output;
use crate::disk;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::gguf::write::{PartSize, Parts, merge};
use std::path::PathBuf;

/// Cut a model file into several, which are one model wherever files are opened
#[derive(Clone, Debug, clap::Args)]
pub struct SplitArgs {
    /// The model
    pub input: PathBuf,
    /// What the names begin with: PREFIX-00001-of-00003.gguf
    #[arg(value_name = "PREFIX")]
    pub prefix: PathBuf,
    /// Size of a file at most, as 2GiB or 500MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "max_tensors")]
    pub max_size: Option<usize>,
    /// Tensors of a file at most [default: 128]
    #[arg(long, value_name = "N")]
    pub max_tensors: Option<usize>,
    /// Replace files that are there already
    #[arg(long)]
    pub force: bool,
}

/// Put the files of a model together
#[derive(Clone, Debug, clap::Args)]
pub struct MergeArgs {
    /// Any of the files
    pub input: PathBuf,
    /// The file to make
    pub output: PathBuf,
    /// Replace a file that is there already
    #[arg(long)]
    pub force: bool,
}

/// Tensors of a part, as gguf-split's.
const TENSORS: usize = 128;

/// Runs `split`. If a file cannot be written, those that were are removed.
///
/// # Errors
/// Whatever is wrong with the files or the options.
pub fn split(args: SplitArgs) -> Result<()> {
    let gguf = Gguf::open(&args.input)?;
    let tensors = PartSize::Tensors(args.max_tensors.unwrap_or(TENSORS));
    let parts = Parts::new(&gguf, args.max_size.map_or(tensors, |size| PartSize::Bytes(size as u64)))?;
    let prefix = args.prefix.file_name().map(|name| name.to_string_lossy().into_owned());
    let prefix = prefix.ok_or_else(|| {
        Error::Request(format!("{}: expected the beginning of a file's name", args.prefix.display()))
    })?;
    let path_of =
        |i: usize| args.prefix.with_file_name(format!("{prefix}-{:05}-of-{:05}.gguf", i + 1, parts.count()));
    // Before any is written: those of an older model are not half replaced.
    for path in (0..parts.count()).map(path_of) {
        if path.exists() && !args.force {
            let path = path.display();
            return Err(Error::Request(format!(
                "{path} is there already; --force replaces it, or choose another prefix"
            )));
        }
    }
    let mut out = Output::stdout();
    for i in 0..parts.count() {
        let path = path_of(i);
        let written = disk::save_model(&path, &gguf.watch(), args.force, |file| parts.write(i, &path, file));
        if let Err(error) = written {
            for done in (0..i).map(path_of) {
                // What cannot be removed either is told by the error that stays.
                let _ = std::fs::remove_file(done);
            }
            return Err(error);
        }
        out.line(&path.display().to_string())?;
    }
    Ok(())
}

/// Runs `merge`.
///
/// # Errors
/// Whatever is wrong with the files.
pub fn run_merge(args: MergeArgs) -> Result<()> {
    let gguf = Gguf::open(&args.input)?;
    let path = &args.output;
    disk::save_model(path, &gguf.watch(), args.force, |file| merge(&gguf, path, file))?;
    Output::stdout().line(&format!(
        "{}: {} tensors of {} files",
        path.display(),
        gguf.tensors().len(),
        gguf.num_parts()
    ))
}
