//! Options that several subcommands share.

use super::cache_types::CacheTypeArgs;
use super::chain::ChainArgs;
use super::drafts::DraftArgs;
use super::hub::{self, HubArgs};
use super::overrides::OverrideArgs;
use super::split_mode::RankArgs;
use crate::checkpoints::CHECKPOINT_EVERY;
use crate::disk::Access;
use crate::engine::EngineConfig;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::hub::Event;
use crate::load::{
    AdapterChoice, CHECKPOINTS, DeviceChoice, DtypeChoice, KvCacheSize, KvType, LoadedModel, RunnerOptions,
    open_gguf,
};
use crate::sampler::SamplingParams;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Which model file, and how it is read.
#[derive(Clone, Debug, Args)]
pub struct FileArgs {
    /// GGUF file of the model, or a folder as Hugging Face's hub has them [default: the small haiku model that the program carries]
    #[arg(short, long, value_name = "PATH", env = "QERNEL_MODEL")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub hub: HubArgs,
    /// Read the model file into memory instead of mapping it: slower to start, but whoever changes the file meanwhile does no harm
    #[arg(long)]
    pub no_mmap: bool,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

impl FileArgs {
    /// Makes a path of a model that is named by [`HubArgs`], loading it if need be.
    ///
    /// # Errors
    /// As [`HubArgs::open`].
    pub fn fetch(&mut self, show: &mut dyn FnMut(Event)) -> Result<()> {
        if let Some(model) = self.hub.open(false, show)? {
            self.model = Some(model.path);
        }
        Ok(())
    }

    /// Whether a model is named: a path, or one of the hub.
    pub fn is_named(&self) -> bool {
        self.model.is_some() || self.hub.hf_repo.is_some()
    }

    /// Opens the file or the folder, or the embedded model where none is named.
    ///
    /// # Errors
    /// As [`open_gguf`] and [`OverrideArgs::apply`].
    pub fn open(&self) -> Result<Gguf> {
        let access = if self.no_mmap { Access::Read } else { Access::Map };
        let mut gguf = open_gguf(self.model.as_deref(), access).map_err(hub::perhaps_a_name)?;
        self.overrides.apply(&mut gguf)?;
        Ok(gguf)
    }
}

/// Which model, where it runs and how much memory it may take.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// Where to compute: auto (a GPU if there is one), cuda, cuda:N, cpu or emulated
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Format of matrices on a GPU: auto (the file's, but f16 for bf16 where its range suffices), f16 or bf16
    #[arg(long, default_value = "auto", value_name = "DTYPE")]
    pub dtype: DtypeChoice,
    /// Longest context in tokens; 0 for what the model was made for [default: what the model was made for, or what fits; on the CPU at
    /// most 32768 a sequence]
    #[arg(short = 'c', long, value_name = "TOKENS")]
    pub ctx_size: Option<usize>,
    /// Rows of one step: prompts longer than this are prefilled in chunks [default: 512, on a GPU up to 8192 as memory allows]
    #[arg(short = 'b', long, value_name = "TOKENS")]
    pub batch_size: Option<usize>,
    /// Memory of the KV cache, as 2GiB, 512MiB or bytes [default: on the CPU a whole context once or 128 MiB, at most half of what is
    /// free; on a GPU all that is left]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub kv_cache_memory: Option<usize>,
    #[command(flatten)]
    pub cache_types: CacheTypeArgs,
    /// Copies of the states of recurrent layers that are kept, so that a later prompt goes on where it leaves an earlier one; each takes
    /// as much memory as a sequence's states
    #[arg(long, value_name = "COUNT", default_value_t = CHECKPOINTS)]
    pub checkpoints: usize,
    /// Host memory for copies of such states that have to make room for others, as 2GiB, 512MiB or bytes: prompts go on from them as long as
    /// their pages are there
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    pub checkpoint_host_memory: usize,
    #[command(flatten)]
    pub drafts: DraftArgs,
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Share of the free GPU memory, beside what others have taken, that weights, KV pages and workspace may take
    #[arg(long, default_value_t = 0.9, value_name = "SHARE")]
    pub gpu_memory_fraction: f64,
    #[command(flatten)]
    pub experts: ExpertArgs,
    #[command(flatten)]
    pub ranks: RankArgs,
    /// Read all tensors first, and refuse a file with values that are NaN or infinite
    #[arg(long)]
    pub check_tensors: bool,
    /// Kernel variants by operation, such as rms_norm=plain,attention=split; on the CPU matmul_blocks=exact
    #[arg(long, value_name = "OP=VARIANT,…")]
    pub kernel: Option<String>,
    /// What it is known by is asked for.
    #[arg(skip)]
    pub fingerprint: bool,
}

/// Which adapters are loaded beside the model.
#[derive(Clone, Debug, Args)]
pub struct LoraArgs {
    /// Load an adapter beside the model: a GGUF file or a folder as PEFT saves it, with what its updates are multiplied with [default: 1]; may
    /// be given several times
    #[arg(long, value_name = "[NAME=]FILE[:SCALE]")]
    pub lora: Vec<AdapterChoice>,
}

/// Where experts are computed.
#[derive(Clone, Debug, Args)]
pub struct ExpertArgs {
    /// Leave the experts of the first N layers in host memory and compute them on the CPU, everything else on the GPU: for mixtures of
    /// experts that the GPU has no room for
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub n_cpu_moe: usize,
    /// The same of all layers
    #[arg(long)]
    pub cpu_moe: bool,
}

impl ExpertArgs {
    /// The number of those layers; [`usize::MAX`] for all.
    pub fn layers(&self) -> usize {
        if self.cpu_moe { usize::MAX } else { self.n_cpu_moe }
    }
}

/// How requests are served.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// Compute every prompt from its first token, even if the KV cache still has its beginning from an earlier one
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Copy the states of recurrent layers every so many tokens of a prompt too, rounded up to pages of 32, so that a prompt which leaves a
    /// long one early does not cost from its beginning on; at most half of --checkpoints are of one prompt. 0: behind its last page alone
    #[arg(long, value_name = "TOKENS", default_value_t = CHECKPOINT_EVERY)]
    pub checkpoint_every: usize,
}

impl EngineArgs {
    /// What these options ask for.
    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            prefix_cache: !self.no_prefix_cache,
            checkpoint_every: self.checkpoint_every,
            ..EngineConfig::default()
        }
    }
}

impl ModelArgs {
    /// As [`FileArgs::fetch`], with the block that drafts, where that is asked for and has a file of its own.
    ///
    /// # Errors
    /// As [`HubArgs::open`].
    pub fn fetch(&mut self, show: &mut dyn FnMut(Event)) -> Result<()> {
        if let Some(model) = self.file.hub.open(self.drafts.takes_sidecar(), show)? {
            self.file.model = Some(model.path);
            self.drafts.sidecar = model.sidecar;
        }
        Ok(())
    }

    /// Opens the file and loads the model for at most `max_num_sequences` sequences at a time, with a progress bar where
    /// standard error is a terminal.
    ///
    /// # Errors
    /// Whatever is wrong with the file, the options or the device.
    pub fn open(&self, max_num_sequences: usize) -> Result<LoadedModel> {
        self.open_with(max_num_sequences, KvCacheSize::Auto)
    }

    /// As [`ModelArgs::open`], with a KV cache of the size `unasked` where the options leave it open.
    ///
    /// # Errors
    /// As [`ModelArgs::open`].
    pub fn open_with(&self, max_num_sequences: usize, unasked: KvCacheSize) -> Result<LoadedModel> {
        self.load(&RunnerOptions {
            kv_cache: self.kv_cache_memory.map_or(unasked, KvCacheSize::Bytes),
            ..self.options(max_num_sequences)?
        })
    }

    /// As [`ModelArgs::open`] for one sequence, with room for `max_num_logits` rows of a step that are wanted.
    ///
    /// # Errors
    /// As [`ModelArgs::open`].
    pub fn open_for_rows(&self, max_num_logits: usize) -> Result<LoadedModel> {
        self.load(&RunnerOptions { max_num_logits, ..self.options(1)? })
    }

    /// Opens the file and loads the model as `options` say.
    ///
    /// # Errors
    /// As [`ModelArgs::open`].
    pub fn load(&self, options: &RunnerOptions) -> Result<LoadedModel> {
        let start = Instant::now();
        let gguf = self.file.open()?;
        let bar = progress_bar();
        let model = LoadedModel::load(&gguf, start, options, &mut |loaded, total| {
            bar.set_length(total);
            bar.set_position(loaded);
        });
        bar.finish_and_clear();
        model
    }
}

/// Bytes of the logits of a step at most, where those of all its tokens are wanted.
const LOGITS_BYTES: usize = 64 << 20;

impl ModelArgs {
    /// Tokens of a step whose logits are wanted, of a context of `len`: of a large vocabulary some at a time.
    pub fn logit_rows(vocab_size: usize, len: usize) -> usize {
        (LOGITS_BYTES / (4 * vocab_size.max(1))).clamp(1, len.max(1))
    }

    /// What these options ask for, for at most `max_num_sequences` sequences at a time.
    ///
    /// # Errors
    /// [`Error::Request`] for a kernel or a split that there is not.
    pub fn options(&self, max_num_sequences: usize) -> Result<RunnerOptions> {
        let mut options = RunnerOptions {
            device: self.device,
            dtype: self.dtype,
            kv_types: self.cache_types.types(KvType::Auto),
            kv_cache: self.kv_cache_memory.map_or(KvCacheSize::Auto, KvCacheSize::Bytes),
            max_model_len: self.ctx_size.filter(|&tokens| tokens > 0),
            max_num_tokens: self.batch_size,
            max_num_sequences,
            max_num_logits: max_num_sequences,
            checkpoints: self.checkpoints,
            checkpoint_host_memory: self.checkpoint_host_memory,
            max_drafts: self.drafts.max(),
            drafts: self.drafts.choice()?,
            speculative: self.drafts.speculative()?,
            adapters: self.lora.lora.clone(),
            memory_fraction: self.gpu_memory_fraction,
            cpu_moe: self.experts.layers(),
            check_tensors: self.check_tensors,
            fingerprint: self.fingerprint,
            ..RunnerOptions::default()
        };
        self.ranks.apply(&mut options)?;
        options.choose_kernels(self.kernel.as_deref().unwrap_or_default())?;
        Ok(options)
    }
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
        .expect("the template is well-formed");
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    bar.with_style(style)
}

/// The sampling flags of llama.cpp, with its meaning, order (penalties, top-k, top-p, min-p, temperature) and defaults.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature; 0 and less always take the likeliest token
    #[arg(
        long = "temp",
        alias = "temperature",
        default_value_t = 0.8,
        value_name = "T",
        allow_negative_numbers = true
    )]
    pub temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 40, value_name = "K", allow_negative_numbers = true)]
    pub top_k: i32,
    /// Keep the likeliest tokens whose probabilities add up to P; 1 keeps all
    #[arg(long, default_value_t = 0.95, value_name = "P", allow_negative_numbers = true)]
    pub top_p: f32,
    /// Keep tokens with at least this share of the likeliest one's probability; 0 keeps all
    #[arg(long, default_value_t = 0.05, value_name = "P", allow_negative_numbers = true)]
    pub min_p: f32,
    /// Divide the logits of repeated tokens by it; 1 is off
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    /// How many of the last tokens the penalties look at; 0 none, -1 the whole context
    #[arg(long, default_value_t = 64, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: i32,
    /// Subtract from the logit of every token that has occurred; 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtract from a token's logit once for each time it has occurred; 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Seed of the random generator; the same seed gives the same text; -1 takes one from the clock [default: -1]
    #[arg(short, long, value_name = "SEED", allow_negative_numbers = true)]
    pub seed: Option<Seed>,
    #[command(flatten)]
    pub further: ChainArgs,
}

impl SamplingArgs {
    /// The sampler's parameters; without `--seed` the clock gives one.
    pub fn params(&self) -> SamplingParams {
        let from_clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_nanos() as u64
        };
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed.and_then(|seed| seed.0).unwrap_or_else(from_clock),
            chain: self.further.chain(),
        }
    }
}

/// What an answer must not have.
#[derive(Clone, Debug, Args)]
pub struct BannedArgs {
    /// Go another way wherever this text, in upper or lower case, would be in the answer; may be given several times
    #[arg(long = "banned-string", value_name = "TEXT")]
    pub banned_strings: Vec<String>,
}

/// A seed, or llama.cpp's -1 for a random one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub Option<u64>);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        number_or_minus_one(text, "a seed").map(Self)
    }
}

/// A bound on tokens, or llama.cpp's -1 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtMost(Option<usize>);

impl AtMost {
    /// The number of tokens, if there is a bound.
    pub fn bound(self) -> Option<usize> {
        self.0
    }
}

impl FromStr for AtMost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        number_or_minus_one(text, "a number of tokens").map(Self)
    }
}

fn number_or_minus_one<T: FromStr>(text: &str, what: &str) -> Result<Option<T>, String> {
    match text {
        "-1" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("expected {what} of 0 or more, or -1")),
    }
}

/// Drops the line break at the end of a text, if there is one: it belongs to the file or the pipe that the text came in.
pub fn drop_line_break(text: &mut String) {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
}

/// A number of bytes as it is typed: plain, or with a unit of powers of 1024 (KiB, MiB, GiB, TiB; K, M, G and T mean the same) or of
/// 1000 (KB, MB, GB, TB).
pub fn parse_size(text: &str) -> Result<usize> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim().to_ascii_lowercase());
    let step: f64 = if unit.ends_with("ib") || unit.len() < 2 { 1024.0 } else { 1000.0 };
    let power = match &unit[..] {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(1),
        "m" | "mb" | "mib" => Some(2),
        "g" | "gb" | "gib" => Some(3),
        "t" | "tb" | "tib" => Some(4),
        _ => None,
    };
    let bytes = power.zip(number.parse::<f64>().ok()).map(|(power, number)| number * step.powi(power));
    let bytes = bytes.filter(|&bytes| bytes < usize::MAX as f64);
    bytes.map(|bytes| bytes as usize).ok_or_else(|| {
        Error::Request(format!("expected a size such as 2GiB, 512MiB or a number of bytes; found {text:?}"))
    })
}

/// Token ids as they are typed: separated by commas or white space.
pub fn parse_ids(text: &str) -> Result<Vec<u32>> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse().map_err(|_| {
                Error::Request(format!("expected token ids such as 9707,11,1879; found {part:?}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_one_has_the_meaning_of_llama_cpp() {
        assert_eq!("-1".parse(), Ok(Seed(None)));
        assert_eq!("18446744073709551615".parse(), Ok(Seed(Some(u64::MAX))));
        assert_eq!("-1".parse::<AtMost>().unwrap().bound(), None);
        assert_eq!("0".parse::<AtMost>().unwrap().bound(), Some(0));
        for bad in ["-2", "", "x", "1.5", "-1.0"] {
            assert!(
                bad.parse::<AtMost>().unwrap_err().contains("or -1") && bad.parse::<Seed>().is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn one_line_break_is_dropped() {
        for (text, rest) in
            [("", ""), ("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\r", "a\r")]
        {
            let mut dropped = text.to_owned();
            drop_line_break(&mut dropped);
            assert_eq!(dropped, rest, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("12b", 12),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("1.5G", 3 << 29),
            ("3GB", 3_000_000_000),
            ("4k", 4096),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "GiB", "-1", "1e9", "2GiBs", "1..5M", "many", "99999999999TiB", "½G"] {
            assert!(matches!(parse_size(bad), Err(Error::Request(_))), "{bad}");
        }
    }

    #[test]
    fn ids_may_be_separated_by_commas_and_white_space() {
        assert_eq!(parse_ids("9707,11, 1879\n").unwrap(), [9707, 11, 1879]);
        assert_eq!(parse_ids("").unwrap(), [0; 0]);
        for bad in ["9707,-1", "a", "4294967296"] {
            assert!(matches!(parse_ids(bad), Err(Error::Request(_))), "{bad}");
        }
    }
}
