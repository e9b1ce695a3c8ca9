//! Writes a model of a few megabytes with random weights: something to run the engine on without a download.
//! Its answers are noise.
//!
//! ```text
//! cargo run --release --example tiny_model -- tiny.gguf
//! ```

use clap::Parser;
use qernel::formats::MatrixFormat;
use qernel::model::ARCHITECTURES;
use qernel::testing::TinyModel;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a tiny GGUF file with random weights.
#[derive(Parser)]
struct Args {
    /// The file to write.
    output: PathBuf,
    /// Format of the matrices; of blocks, rows must be whole ones.
    #[arg(long, value_parser = parse_format, default_value = "f16")]
    format: MatrixFormat,
    /// Architecture of the model.
    #[arg(long, value_parser = parse_architecture, default_value = "qwen2")]
    arch: &'static str,
    /// Give the head a matrix of its own.
    #[arg(long)]
    untied: bool,
    /// Leave out the biases of Q, K and V.
    #[arg(long)]
    no_bias: bool,
    /// Put Q, K and V into one tensor.
    #[arg(long)]
    fused_qkv: bool,
    /// Values of one attention head.
    #[arg(long, default_value_t = 64, value_parser = size)]
    head_dim: usize,
    /// Values of a row between layers [default: heads times head_dim].
    #[arg(long, value_parser = size)]
    hidden: Option<usize>,
    /// Attention heads.
    #[arg(long, default_value_t = 4, value_parser = size)]
    heads: usize,
    /// KV heads; they divide the heads.
    #[arg(long, default_value_t = 2, value_parser = size)]
    kv_heads: usize,
    /// Decoder layers.
    #[arg(long, default_value_t = 2, value_parser = size)]
    layers: usize,
    /// Longest context in tokens.
    #[arg(long, default_value_t = 2048, value_parser = size)]
    context: usize,
    /// Values between the projections of an MLP [default: one and a half times those of a row].
    #[arg(long, value_parser = size)]
    intermediate: Option<usize>,
    /// Layers from this one on add nothing: a file of the same seed with as many layers drafts for this one and is always right.
    #[arg(long)]
    silent_from: Option<usize>,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn parse_format(text: &str) -> Result<MatrixFormat, String> {
    let found = MatrixFormat::ALL.iter().copied().find(|format| format.name() == text);
    found.ok_or_else(|| {
        let names: Vec<_> = MatrixFormat::ALL.iter().map(|format| format.name()).collect();
        format!("expected {}", names.join(", "))
    })
}

fn parse_architecture(text: &str) -> Result<&'static str, String> {
    let found = ARCHITECTURES.iter().copied().find(|&known| known == text);
    found.ok_or_else(|| format!("expected {}", ARCHITECTURES.join(", ")))
}

fn size(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1 << 16).contains(n)).ok_or_else(|| "expected 1 to 65536".to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.heads.is_multiple_of(args.kv_heads) || !args.head_dim.is_multiple_of(2) {
        eprintln!("error: --kv-heads must divide --heads, and --head-dim must be even");
        return ExitCode::from(2);
    }
    let hidden_size = args.hidden.unwrap_or(args.heads * args.head_dim);
    let model = TinyModel {
        seed: args.seed,
        architecture: args.arch,
        format: args.format,
        hidden_size,
        intermediate_size: args.intermediate.unwrap_or(hidden_size * 3 / 2),
        num_hidden_layers: args.layers,
        num_attention_heads: args.heads,
        num_key_value_heads: args.kv_heads,
        head_dim: args.head_dim,
        max_position_embeddings: args.context,
        tie_word_embeddings: !args.untied,
        attention_bias: !args.no_bias,
        fused_qkv: args.fused_qkv,
        silent_from: args.silent_from,
        ..TinyModel::default()
    };
    let written = File::create(&args.output).map(BufWriter::new).and_then(|mut file| {
        model.writer().write_to(&mut file)?;
        file.flush()
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", args.output.display());
            ExitCode::FAILURE
        }
    }
}
