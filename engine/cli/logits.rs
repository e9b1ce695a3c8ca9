//! `qernel logits`: token ids in, logits out, for comparing with other implementations.

use super::cache_types::CacheTypeArgs;
use super::options::{ExpertArgs, FileArgs, LoraArgs};
use super::output::Output;
use super::split_mode::RankArgs;
use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::config::Config;
use crate::cpu::kernels::MatmulBlocks;
use crate::disk;
use crate::error::{Error, Result};
use crate::kv_layout::pages_for;
use crate::load::{DtypeChoice, KvType, RunnerOptions, open_runner, with_adapters};
use crate::weights::Weights;
use std::io::{self, Write};
use std::path::PathBuf;

/// Print the ten largest logits after the last token as JSON, or save those of every position.
#[derive(clap::Args, Debug)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub ids: Vec<u32>,
    /// Save the logits of every position as a NumPy file, f32 [num_tokens, vocab_size], and print nothing.
    #[arg(long, value_name = "FILE.npy")]
    pub save: Option<PathBuf>,
    /// Where to compute: auto (a GPU if there is one), cuda, cuda:N or cpu.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Format of matrices on a GPU: auto (the file's, but f16 for bf16 if no weight is beyond its range), f16 or bf16.
    #[arg(long, default_value = "auto", value_name = "DTYPE")]
    pub dtype: DtypeChoice,
    #[command(flatten)]
    pub experts: ExpertArgs,
    #[command(flatten)]
    pub ranks: RankArgs,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub cache_types: CacheTypeArgs,
    /// Kernel variants by operation, such as rms_norm=plain,matmul=plain; on the CPU matmul_blocks=int8.
    #[arg(long, value_name = "OP=VARIANT,…")]
    pub kernel: Option<String>,
}

/// Rows of a step when all need logits: those are 39 MB for a vocabulary of 152 k.
const CHUNK_ALL: usize = 64;

/// Rows of a step when only the last needs logits.
const CHUNK_LAST: usize = 512;

/// How many logits are printed.
const TOP: usize = 10;

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the file, the ids or the device; [`Error::Io`] if the output cannot be written.
pub fn run(args: LogitsArgs) -> Result<()> {
    if let Some(path) = &args.save {
        // Before the model is loaded for it.
        disk::refuse_model(path, args.file.model.as_deref())?;
    }
    let gguf = args.file.open()?;
    let config = Config::from_gguf(&gguf)?;
    let weights = with_adapters(Weights::from_gguf(&gguf, &config)?, &config, &args.lora.lora)?;
    let num_tokens = args.ids.len();
    let chunk = num_tokens.min(if args.save.is_some() { CHUNK_ALL } else { CHUNK_LAST });
    let mut options = RunnerOptions {
        device: args.device.parse()?,
        dtype: args.dtype,
        // What is compared with other implementations has no error that could be avoided.
        kv_types: args.cache_types.types(KvType::Precise),
        cpu_blocks: MatmulBlocks::Exact,
        cpu_moe: args.experts.layers(),
        max_model_len: Some(num_tokens),
        max_num_tokens: Some(chunk),
        max_num_logits: if args.save.is_some() { chunk } else { 1 },
        ..RunnerOptions::default()
    };
    args.ranks.apply(&mut options)?;
    options.choose_kernels(args.kernel.as_deref().unwrap_or_default())?;
    let mut runner = open_runner(&weights, &config, &options, &mut |_, _| ())?;
    let adapters = runner.all_adapters();
    let pages: Vec<u32> = (0..pages_for(num_tokens) as u32).collect();
    let mut step = |position: usize, logits| {
        let tokens = &args.ids[position..num_tokens.min(position + chunk)];
        let rows = SequenceRows { tokens, position, pages: &pages, logits };
        runner.logits(&Batch::new(&[rows]).with_adapters([adapters.clone()]))
    };

    if let Some(path) = &args.save {
        let error = |source| Error::io(path, source);
        return disk::save(path, args.file.model.as_deref(), |file| {
            write_npy_header(file, num_tokens, config.vocab_size).map_err(error)?;
            for position in (0..num_tokens).step_by(chunk) {
                for logit in step(position, LogitRows::All)? {
                    file.write_all(&logit.to_le_bytes()).map_err(error)?;
                }
            }
            Ok(())
        });
    }
    let mut last = Vec::new();
    for position in (0..num_tokens).step_by(chunk) {
        let rows = if position + chunk >= num_tokens { LogitRows::Last } else { LogitRows::None };
        last = step(position, rows)?;
    }
    let json = serde_json::json!({ "top": largest(&last), "logit_rms": root_mean_square(&last) });
    Output::stdout().json(&json)
}

/// Header of a NumPy file, version 1.0, of f32 `[rows, cols]`, row-major: a Python dictionary, padded so that the
/// data begins at a multiple of 64. Source: NumPy's documentation of `numpy.lib.format`.
fn write_npy_header(out: &mut dyn Write, rows: usize, cols: usize) -> io::Result<()> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let prefix = b"\x93NUMPY\x01\x00";
    while !(prefix.len() + 2 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    out.write_all(prefix)?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// The ten largest logits with their tokens, the largest first, of equal ones the lower token.
fn largest(logits: &[f32]) -> Vec<(usize, f32)> {
    let mut order: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    let descending = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if order.len() > TOP {
        order.select_nth_unstable_by(TOP, descending);
        order.truncate(TOP);
    }
    order.sort_unstable_by(descending);
    order
}

fn root_mean_square(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    (sum / values.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_are_in_order_and_ties_take_the_lower_token() {
        let mut logits: Vec<f32> = (0..100).map(|i| i as f32).collect();
        logits[3] = 99.0;
        let top = largest(&logits);
        assert_eq!(top.len(), 10);
        assert_eq!(&top[..3], &[(3, 99.0), (99, 99.0), (98, 98.0)]);
        assert_eq!(largest(&logits[..2]), [(1, 1.0), (0, 0.0)]);
    }

    #[test]
    fn the_header_of_a_numpy_file_is_padded() {
        let mut bytes = Vec::new();
        write_npy_header(&mut bytes, 19, 151_936).unwrap();
        assert_eq!(bytes.len(), 128);
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        assert_eq!(u16::from_le_bytes([bytes[8], bytes[9]]), 118);
        assert_eq!(bytes.last(), Some(&b'\n'));
    }
}
