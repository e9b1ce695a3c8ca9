//! From a file to a model that runs: opens it, chooses a device, works out what fits, loads.
//!
//! [`LoadedModel::open`] does all of it; [`open_runner`] is the part after the file was read, for whoever has a [`Weights`] already.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod adapters;
mod device_choice;
mod draft_model;
pub mod embedded;
mod fingerprint;
mod fit;
#[cfg(feature = "cuda")]
mod gpu;
mod memory_plan;
mod models_folder;
#[cfg(feature = "cuda")]
mod ranks;
mod runner;
mod sidecar;

pub use adapters::{AdapterChoice, with_adapters};
pub use device_choice::DeviceChoice;
pub use draft_model::DraftChoice;
pub use fit::{MODEST_CONTEXT, SMALL_CACHE, fit_cpu};
#[cfg(feature = "cuda")]
pub use gpu::{fit_cuda, matrix_dtype, open_device};
pub use memory_plan::kv_layout;
pub use models_folder::{FoundModel, ModelsFolder};
#[cfg(feature = "cuda")]
pub use ranks::{LayerSplit, devices};
pub use runner::{
    CHECKPOINTS, DtypeChoice, KvCacheSize, KvType, ModelData, RunnerOptions, open_observed_runner,
    open_runner, open_runners,
};

use draft_model::DraftFile;
use qernel_core::batch::{Batch, LogitRows, SequenceRows};
use qernel_core::chat::ChatTemplate;
use qernel_core::config::Config;
use qernel_core::disk::{Access, Watch};
use qernel_core::engine::pooling::Pooler;
use qernel_core::engine::{DraftSource, Engine, EngineConfig, Fingerprint, Speculative};
use qernel_core::error::{Error, Result};
use qernel_core::folder;
use qernel_core::gguf::Gguf;
use qernel_core::host_memory;
use qernel_core::kv_format::KvFormats;
use qernel_core::kv_layout::pages_for;
use qernel_core::lora::AdapterMetadata;
use qernel_core::model::Runner;
use qernel_core::tokenizer::Tokenizer;
pub use qernel_core::weights::DecodeBytes;
use qernel_core::weights::Weights;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A model file, opened and loaded.
pub struct LoadedModel {
    pub tokenizer: Arc<Tokenizer>,
    pub runner: Box<dyn Runner>,
    /// Makes vectors and scores of texts.
    pub pooler: Arc<Pooler>,
    /// Drafts tokens, where the runner has room for drafts.
    pub drafts: DraftSource,
    /// For requests that say nothing of it.
    pub speculative: Speculative,
    /// [`RunnerOptions::checkpoint_host_memory`]
    pub checkpoint_host_memory: usize,
    pub stats: LoadStats,
    /// Tells whether the file was changed while it is in use.
    pub watch: Watch,
    /// What the model is known by, where [`RunnerOptions::fingerprint`] asks for it.
    pub fingerprint: Option<Fingerprint>,
}

/// What the timing summary must know of a model.
#[derive(Clone, Debug)]
pub struct LoadStats {
    /// Opening the file and bringing the weights to the device, in seconds.
    pub load_s: f64,
    /// Bytes of weights that a decode step reads, as they are held.
    pub decode_bytes: DecodeBytes,
    pub times: LoadTimes,
}

/// When the parts of opening a model had ended; each but the vocabulary follows the one before.
#[derive(Clone, Copy, Debug)]
pub struct LoadTimes {
    /// The file was mapped and its header read.
    pub file: Instant,
    /// The device was open, its kernels loaded, and the first tensor on it.
    pub device: Instant,
    /// All tensors were there.
    pub weights: Instant,
    /// The vocabulary was read, beside all of this.
    pub vocabulary: Instant,
    /// KV pages and work buffers were allocated too, and the vocabulary was there.
    pub ready: Instant,
}

impl LoadedModel {
    /// Opens the file, or the embedded model where none is named, and loads it. `progress` is called with the bytes of weights
    /// loaded so far and with their sum.
    ///
    /// # Errors
    /// Whatever is wrong with the file, the options or the device.
    pub fn open(
        path: Option<&Path>,
        options: &RunnerOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let start = Instant::now();
        Self::load(&open_gguf(path, Access::Map)?, start, options, progress)
    }

    /// As [`LoadedModel::open`], of a file that is open; its opening began at `start`.
    ///
    /// # Errors
    /// As [`LoadedModel::open`].
    pub fn load(
        gguf: &Gguf,
        start: Instant,
        options: &RunnerOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let config = config_of(gguf)?;
        let source = (options.max_drafts > 0).then_some(&options.drafts);
        let joined = source.map(|choice| sidecar::with_block(gguf, &config, choice)).transpose()?.flatten();
        let gguf = joined.as_ref().unwrap_or(gguf);
        let config = match source {
            Some(DraftChoice::Mtp | DraftChoice::MtpOf(_) | DraftChoice::MtpElse(_)) => {
                config_of(gguf)?.with_draft(gguf)?
            }
            _ => config,
        };
        let weights = with_adapters(Weights::from_gguf(gguf, &config)?, &config, &options.adapters)?;
        // Layers that draft further tokens are not computed, and `inspect` counts them.
        let drafts = |name: &String| config.is_draft_tensor(name);
        let unused: Vec<_> = weights.unused.iter().filter(|name| !drafts(name)).cloned().collect();
        if !unused.is_empty() {
            tracing::warn!("tensors that the model has no use for: {}", unused.join(", "));
        }
        if options.check_tensors {
            let check = gguf.check_tensors()?;
            if !check.not_checked.is_empty() {
                tracing::warn!(
                    "tensors in formats that are not looked through: {}",
                    check.not_checked.join(", ")
                );
            }
            check.expect_finite()?;
        }
        let pooler = Arc::new(Pooler::new(gguf, &config, &weights)?);
        let draft_file = match source {
            Some(DraftChoice::Model(path)) => Some(DraftFile::open(path)?),
            _ => None,
        };
        let file = Instant::now();
        let mut first_and_last_tensor = None;
        let draft_file = draft_file.as_ref();
        // The vocabulary is read, and that of what drafts compared with it, by another core while the weights go up.
        let (tokenizer, runner) = std::thread::scope(|scope| {
            let tokenizer = std::thread::Builder::new()
                .spawn_scoped(scope, || {
                    let (tokenizer, vocabulary) = (Tokenizer::from_gguf(gguf), Instant::now());
                    let fits = match (&tokenizer, draft_file) {
                        (Ok(tokenizer), Some(file)) => file.expect_vocabulary(tokenizer),
                        _ => Ok(()),
                    };
                    (tokenizer, fits, vocabulary)
                })
                .map_err(|error| host_memory::no_thread("reading the vocabulary", error))?;
            let model = ModelData { weights: &weights, config: &config };
            let runner = open_runners(
                &model,
                draft_file.map(DraftFile::data).as_ref(),
                options,
                &mut |loaded, total| {
                    let now = Instant::now();
                    first_and_last_tensor.get_or_insert((now, now)).1 = now;
                    progress(loaded, total);
                },
            );
            Ok((tokenizer.join(), runner))
        })?;
        let (tokenizer, fits, vocabulary) =
            tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (tokenizer, ready) = (tokenizer?, Instant::now());
        let (runner, draft_runner) = runner?;
        let runner = with_finite_logits(runner)?;
        fits?;
        let drafts = match (&options.drafts, draft_runner) {
            (_, Some(runner)) => DraftSource::Model(with_finite_logits(runner)?),
            (DraftChoice::Ngram(ngram), _) => DraftSource::Ngram(*ngram),
            _ => DraftSource::Mtp,
        };
        let (device, loaded) = first_and_last_tensor.unwrap_or((ready, ready));
        let stats = LoadStats {
            load_s: start.elapsed().as_secs_f64(),
            decode_bytes: runner.decode_bytes(),
            times: LoadTimes { file, device, weights: loaded, vocabulary, ready },
        };
        let (tokenizer, speculative, watch) = (Arc::new(tokenizer), options.speculative, gguf.watch());
        let fingerprint = options.fingerprint.then(|| fingerprint::fingerprint(gguf, &weights, options));
        let fingerprint = fingerprint.transpose()?;
        let checkpoint_host_memory = options.checkpoint_host_memory;
        Ok(Self {
            tokenizer,
            runner,
            pooler,
            drafts,
            speculative,
            checkpoint_host_memory,
            stats,
            watch,
            fingerprint,
        })
    }

    /// The file's chat template, or ChatML.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_tokenizer`].
    pub fn template(&self) -> Result<ChatTemplate> {
        ChatTemplate::from_tokenizer(&self.tokenizer)
    }

    /// An engine over the model, with all that it allows.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn into_engine(self) -> Result<Engine> {
        self.into_engine_with(EngineConfig::default())
    }

    /// An engine over the model, as `config` says.
    ///
    /// # Errors
    /// As [`Engine::new`] and [`Engine::with_host_checkpoints`].
    pub fn into_engine_with(self, config: EngineConfig) -> Result<Engine> {
        let engine = Engine::new(self.runner, Some(self.tokenizer), config)?.with_pooler(self.pooler);
        let engine = engine.with_drafts(self.drafts)?.with_speculative(self.speculative);
        engine.with_host_checkpoints(self.checkpoint_host_memory)
    }
}

/// What the file says of the model that it has.
fn config_of(gguf: &Gguf) -> Result<Config> {
    if AdapterMetadata::of_gguf(gguf)?.is_some() {
        return Err(Error::Model(
            "the file is an adapter, not a model: take --lora for it, and --model for the model that it is for".into(),
        ));
    }
    Config::from_gguf(gguf)
}

/// Bytes that a file's model takes, as far as its table of contents says, for no tensor is read: its weights, and the KV cache that `options`
/// ask for, or one of a whole context, of at most [`MODEST_CONTEXT`], where they ask for none.
///
/// # Errors
/// Whatever keeps it from being run that can be told without its tensors.
pub fn model_bytes(gguf: &Gguf, options: &RunnerOptions) -> Result<u64> {
    let config = config_of(gguf)?;
    let weights = Weights::from_gguf(gguf, &config)?.num_bytes();
    let [k, v] = options.kv_types.map(KvType::on_cpu);
    let context = options.max_model_len.unwrap_or(config.max_position_embeddings.min(MODEST_CONTEXT));
    let cache = match options.kv_cache {
        KvCacheSize::Bytes(bytes) => bytes,
        _ => {
            let layout = kv_layout(&config, KvFormats { k, v }, pages_for(context))?;
            layout.num_pages.saturating_mul(layout.page_bytes())
        }
    };
    Ok(weights.saturating_add(cache as u64))
}

/// The ids of a prompt that no template made, behind the token that begins every text where the model has one.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn encode_plain(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
    Ok(bos.into_iter().chain(tokenizer.encode(text, true)?).collect())
}

/// Computes the logits that follow one token, which must be numbers: weights that are not, or a device that computes wrongly, are found before
/// anybody waits for an answer.
fn with_finite_logits(mut runner: Box<dyn Runner>) -> Result<Box<dyn Runner>> {
    const TOKEN: u32 = 0;
    let rows = SequenceRows { tokens: &[TOKEN], position: 0, pages: &[0], logits: LogitRows::Last };
    let logits = runner.logits(&Batch::new(&[rows]))?;
    let bad = logits.iter().filter(|logit| !logit.is_finite()).count();
    if bad == 0 {
        return Ok(runner);
    }
    Err(Error::NotFinite(format!(
        "of the model's {} logits after token {TOKEN}, {bad} are NaN or infinite: its weights may be damaged (--check-tensors looks through them), \
         or the device computes wrongly",
        logits.len()
    )))
}

/// The file or the folder that `--model` names, or the embedded model.
///
/// # Errors
/// As [`Gguf::open_by`] and [`folder::open`].
pub fn open_gguf(model: Option<&Path>, access: Access) -> Result<Gguf> {
    match model {
        None => crate::embedded::haiku(),
        Some(path) if path.is_dir() => folder::open(path, access),
        Some(path) => Gguf::open_by(path, access),
    }
}
