//! The embedded model as tests have it served: they make it say what they want, wait, or fail.

use qernel::batch::{Batch, BatchLimits};
use qernel::engine::EngineConfig;
use qernel::error::{Error, Result};
use qernel::kv_layout::KvLayout;
use qernel::load::{AdapterChoice, DeviceChoice, LoadedModel, RunnerOptions};
use qernel::model::{AdapterInfo, Kept, KeptLayout, Runner};
use qernel::sampler::{Logprobs, NO_TOKEN, SamplingRow};
use qernel::server::ServedModel;
use qernel::tokenizer::Tokenizer;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What a test does to the model while it is served.
#[derive(Default)]
pub struct Control {
    /// Every step fails.
    pub fail: AtomicBool,
    /// Every step finds no token to draw.
    pub broken: AtomicBool,
    /// Milliseconds that every step takes more.
    pub pause: AtomicU64,
    /// Steps computed so far.
    pub steps: AtomicU64,
    /// What was computed: `step` for answers, `hidden` for a text whose vector is wanted.
    pub calls: Mutex<Vec<&'static str>>,
    /// Tokens that are drawn next, one after the other, where they are allowed. For one sequence at a time.
    script: Mutex<VecDeque<u32>>,
    tokenizer: OnceLock<Arc<Tokenizer>>,
}

impl Control {
    /// Makes the model say this next, and then end.
    pub fn say(&self, text: &str) {
        self.begin(text);
        let tokenizer = self.tokenizer.get().expect("the model is open");
        self.script.lock().unwrap().push_back(tokenizer.end_of_generation()[0]);
    }

    /// Makes the model say this next; it goes on as it likes.
    pub fn begin(&self, text: &str) {
        let tokenizer = self.tokenizer.get().expect("the model is open");
        let mut script = self.script.lock().unwrap();
        script.clear();
        script.extend(tokenizer.encode(text, true).unwrap());
    }

    /// Puts the script's token in place of one that was drawn, where that is allowed.
    fn follow(&self, tokens: &mut [u32], rows: &[SamplingRow]) {
        let mut script = self.script.lock().unwrap();
        for (token, row) in tokens.iter_mut().zip(rows) {
            let next = script.front().copied();
            if let Some(next) =
                next.filter(|&next| row.allowed.as_ref().is_none_or(|allowed| allowed.contains(next)))
            {
                *token = next;
                script.pop_front();
            }
        }
    }
}

/// The embedded model under a test's control.
struct Controlled {
    inner: Box<dyn Runner>,
    control: Arc<Control>,
}

impl Runner for Controlled {
    fn limits(&self) -> &BatchLimits {
        self.inner.limits()
    }

    fn kv_layout(&self) -> &KvLayout {
        self.inner.kv_layout()
    }

    fn kept_layout(&self) -> Option<KeptLayout> {
        self.inner.kept_layout()
    }

    fn read_kept(&mut self, kept: Kept) -> Result<Vec<u8>> {
        self.inner.read_kept(kept)
    }

    fn write_kept(&mut self, kept: Kept, bytes: &[u8]) -> Result<()> {
        self.inner.write_kept(kept, bytes)
    }

    fn adapters(&self) -> &[AdapterInfo] {
        self.inner.adapters()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn max_model_len(&self) -> usize {
        self.inner.max_model_len()
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        std::thread::sleep(Duration::from_millis(self.control.pause.load(Ordering::Relaxed)));
        if self.control.fail.load(Ordering::Relaxed) {
            return Err(Error::Device("the cable was pulled".into()));
        }
        self.control.steps.fetch_add(1, Ordering::Relaxed);
        self.control.calls.lock().unwrap().push("step");
        let mut tokens = self.inner.step(batch, rows)?;
        self.control.follow(&mut tokens, rows);
        let broken = self.control.broken.load(Ordering::Relaxed);
        Ok(if broken { vec![NO_TOKEN; tokens.len()] } else { tokens })
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        self.inner.take_logprobs()
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.inner.logits(batch)
    }

    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        std::thread::sleep(Duration::from_millis(self.control.pause.load(Ordering::Relaxed)));
        if self.control.fail.load(Ordering::Relaxed) {
            return Err(Error::Device("the cable was pulled".into()));
        }
        self.control.calls.lock().unwrap().push("hidden");
        self.inner.hidden(batch)
    }

    fn hidden_of_all(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.inner.hidden_of_all(batch)
    }

    fn device_name(&self) -> String {
        self.inner.device_name()
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        self.inner.read_bandwidth()
    }
}

/// The model that the binary carries, on the CPU.
pub fn open_model(max_num_sequences: usize) -> Result<LoadedModel> {
    open_model_with(options(max_num_sequences))
}

fn options(max_num_sequences: usize) -> RunnerOptions {
    RunnerOptions {
        device: DeviceChoice::Cpu,
        fingerprint: true,
        ..RunnerOptions::for_sequences(max_num_sequences)
    }
}

fn open_model_with(options: RunnerOptions) -> Result<LoadedModel> {
    LoadedModel::open(None, &options, &mut |_, _| ())
}

/// Opens a file for a server, whatever its name is there.
pub fn open_file(path: &Path, max_num_sequences: usize, control: Arc<Control>) -> Result<ServedModel> {
    let model = LoadedModel::open(Some(path), &options(max_num_sequences), &mut |_, _| ())?;
    open_so(model, control, EngineConfig::default(), |_| Ok(()))
}

/// Opens it for a server.
pub fn open(max_num_sequences: usize, control: Arc<Control>) -> Result<ServedModel> {
    open_changed(max_num_sequences, control, |_| Ok(()))
}

/// The same for an engine that does so much at once.
pub fn open_with(
    max_num_sequences: usize,
    control: Arc<Control>,
    config: EngineConfig,
) -> Result<ServedModel> {
    open_so(open_model(max_num_sequences)?, control, config, |_| Ok(()))
}

/// Opens it for a server, and changes it before it is served.
pub fn open_changed(
    max_num_sequences: usize,
    control: Arc<Control>,
    change: impl FnOnce(&mut LoadedModel) -> Result<()>,
) -> Result<ServedModel> {
    open_so(open_model(max_num_sequences)?, control, EngineConfig::default(), change)
}

/// As [`open_changed`], with these adapters.
pub fn open_adapted(
    max_num_sequences: usize,
    control: Arc<Control>,
    adapters: Vec<AdapterChoice>,
    change: impl FnOnce(&mut LoadedModel) -> Result<()>,
) -> Result<ServedModel> {
    let model = open_model_with(RunnerOptions { adapters, ..options(max_num_sequences) })?;
    open_so(model, control, EngineConfig::default(), change)
}

fn open_so(
    mut model: LoadedModel,
    control: Arc<Control>,
    config: EngineConfig,
    change: impl FnOnce(&mut LoadedModel) -> Result<()>,
) -> Result<ServedModel> {
    change(&mut model)?;
    let template = model.template();
    let fingerprint = model.fingerprint;
    let _ = control.tokenizer.set(Arc::clone(&model.tokenizer));
    model.runner = Box::new(Controlled { inner: model.runner, control });
    Ok(ServedModel {
        engine: model.into_engine_with(config)?,
        template,
        name: "haiku".into(),
        watch: Default::default(),
        fingerprint,
    })
}
