//! Where a model runs and what it may take there.

use super::Model;
use crate::error::Result;
use crate::load::{self, DeviceChoice, KvCacheSize, RunnerOptions};
use std::path::Path;

/// Rows of logits that a step can hand out, for [`Model::logits`]: a few MB for the largest vocabularies.
const LOGIT_ROWS: usize = 16;

/// How a model is opened, in the way of [`std::fs::OpenOptions`].
///
/// ```
/// use qernel::{Device, Model};
///
/// # fn main() -> qernel::Result<()> {
/// let model = Model::options().device(Device::Cpu).context(256).memory_fraction(0.5).open_haiku()?;
/// assert_eq!(model.context(), 256);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ModelOptions {
    runner: RunnerOptions,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self { runner: RunnerOptions { max_num_logits: LOGIT_ROWS, ..RunnerOptions::default() } }
    }
}

impl ModelOptions {
    /// Where to compute. The default is the first GPU that can be used, or else the CPU; GPUs need the feature `cuda`.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.runner.device = device;
        self
    }

    /// The longest sequence in tokens, prompt and answer together. The default is what the model was made for, or less where
    /// less fits; on the CPU at most 32,768 a sequence.
    pub fn context(mut self, tokens: usize) -> Self {
        self.runner.max_model_len = Some(tokens);
        self
    }

    /// The share of the device's free memory that weights, KV cache and work buffers may take, above 0 and at most 1. The
    /// default is 0.9.
    pub fn memory_fraction(mut self, share: f64) -> Self {
        self.runner.memory_fraction = share;
        self
    }

    /// Bytes of the KV cache. The default is on the CPU one whole context, or as much as is no more than 128 MiB, which is taken from
    /// the system as it is used; on a GPU all that is left.
    pub fn kv_cache_memory(mut self, bytes: usize) -> Self {
        self.runner.kv_cache = KvCacheSize::Bytes(bytes);
        self
    }

    /// Sequences that run at once, for [`Model::into_engine`] and servers. The default is 1.
    pub fn max_num_sequences(mut self, count: usize) -> Self {
        self.runner.max_num_sequences = count;
        self.runner.max_num_logits = count.max(LOGIT_ROWS);
        self
    }

    /// On a GPU, the number of layers, from the first on, whose experts stay in host memory and are computed by the CPU: for mixtures of
    /// experts that the GPU has no room for. All where that is more than there are; the default is 0.
    pub fn cpu_moe(mut self, layers: usize) -> Self {
        self.runner.cpu_moe = layers;
        self
    }

    /// The number of GPUs that every layer of the model is shared out over; the default is 1.
    pub fn tensor_parallel(mut self, gpus: usize) -> Self {
        self.runner.tensor_parallel = gpus;
        self
    }

    /// The proportions of the model's layers that each of as many GPUs has, such as `&[3.0, 1.0]`: for models that one does not hold.
    #[cfg(feature = "cuda")]
    pub fn layer_split(mut self, shares: &[f64]) -> Self {
        self.runner.layer_split = Some(load::LayerSplit::Shares(shares.to_vec()));
        self
    }

    /// Opens a GGUF file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::Gguf`](crate::Error::Gguf), [`Error::Model`](crate::Error::Model) or
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for what is wrong with the file, [`Error::Memory`](crate::Error::Memory)
    /// where it does not fit, [`Error::Device`](crate::Error::Device) where the device is missing or fails, and
    /// [`Error::Request`](crate::Error::Request) for an option out of range. The text says what to do.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Model> {
        self.open_file(Some(path.as_ref()))
    }

    /// Opens the small model that this library carries.
    ///
    /// # Errors
    /// As [`ModelOptions::open`].
    pub fn open_haiku(&self) -> Result<Model> {
        self.open_file(None)
    }

    fn open_file(&self, path: Option<&Path>) -> Result<Model> {
        Model::new(load::LoadedModel::open(path, &self.runner, &mut |_, _| ())?)
    }
}
