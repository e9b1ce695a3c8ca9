//! The way to an engine's thread, and what everybody may know of the engine. Connections hand it requests over a bounded channel; each gets
//! its events over one of its own.

use super::answer::{Answer, Update};
use super::config::{PromptCacheConfig, ServerConfig};
use super::engine_thread::EngineThread;
use super::error::ApiError;
use super::grammar::Grammar;
use super::metrics::{EngineLoad, Metrics, Rejection};
use super::prompt_cache::PromptCache;
use super::served_model::{ModelInfo, ServedModel, expect_other_names};
use super::texts::TextJob;
use super::warm_up::warm_up;
use super::work::RequestPermit;
use qernel_core::batch::AdapterSet;
use qernel_core::engine::{Request, Thinking};
use qernel_core::error::{Error, Result};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tracing::Span;

/// The tokenizer composes characters first (NFC), of which a text has at most so many times the bytes.
const MOST_COMPOSED: usize = 3;

/// One sequence of a request.
pub struct SequenceRequest {
    pub request: Request,
    /// What the answer must be.
    pub grammar: Option<Grammar>,
    /// How its thoughts are bound. What it must be begins behind them.
    pub thinking: Option<Thinking>,
    /// The field that the prompt was made of.
    pub prompt_param: &'static str,
}

/// One request to be answered: one or more sequences.
pub(super) struct Submission {
    pub choices: Vec<SequenceRequest>,
    pub permit: RequestPermit,
    pub updates: mpsc::Sender<Update>,
    /// Its request in the log.
    pub span: Span,
}

/// What the engine's thread does.
pub(super) enum Job {
    Answer(Submission),
    Text(TextJob),
}

/// The way to the engine's thread.
pub struct EngineHandle {
    submissions: mpsc::Sender<Job>,
    permits: Arc<Semaphore>,
    max_unfinished: usize,
    shared: Arc<Shared>,
}

/// The other end of it: what becomes the engine.
pub(super) struct EngineEnd {
    incoming: mpsc::Receiver<Job>,
    recovery_interval: Duration,
    prompt_cache: Option<PromptCacheConfig>,
    shared: Arc<Shared>,
}

/// What the thread tells everybody.
pub(super) struct Shared {
    model: OnceLock<ModelInfo>,
    /// Why the last step failed.
    fault: Mutex<Option<String>>,
    load: Mutex<EngineLoad>,
    pub(super) metrics: Arc<Metrics>,
}

impl Shared {
    pub(super) fn has_fault(&self) -> bool {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn set_fault(&self, fault: Option<String>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Tells what the engine has to do now; the metrics have the sum over all engines.
    pub(super) fn observe(&self, now: EngineLoad) {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        self.metrics.engine(&load, &now);
        *load = now;
    }
}

impl EngineEnd {
    /// Opens the model on this thread, which is the engine's from then on, and serves until every handle is gone. `ready` is called
    /// once requests can be answered.
    ///
    /// # Errors
    /// Those of `open`, and whatever keeps the model from answering.
    pub(super) fn run(self, open: impl FnOnce() -> Result<ServedModel>, ready: impl FnOnce()) -> Result<()> {
        let Self { incoming, recovery_interval, prompt_cache, shared } = self;
        let ServedModel { engine, template, name, watch, fingerprint } = open()?;
        // Requests name those that they want.
        let mut engine = engine.with_adapters(AdapterSet::default());
        let adapters = engine.runner().adapters().to_vec();
        expect_other_names(&name, &adapters)?;
        warm_up(&mut engine)?;
        let prompt_cache = prompt_cache
            .zip(fingerprint)
            .and_then(|(config, of)| PromptCache::open(config, &name, of, &mut engine));
        let Some(tokenizer) = engine.tokenizer().cloned() else {
            return Err(Error::Tokenizer("a server needs a model file with a vocabulary".into()));
        };
        let longest =
            (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token_bytes(id)).map(<[u8]>::len);
        let max_bytes = longest.max().unwrap_or(0).saturating_mul(engine.max_model_len());
        let info = ModelInfo {
            name,
            adapters,
            tokenizer,
            pooler: engine.pooler().cloned(),
            template,
            max_model_len: engine.max_model_len(),
            max_prompt_bytes: max_bytes.saturating_mul(MOST_COMPOSED),
            device: engine.runner().device_name(),
            watch,
            grammars: OnceLock::new(),
        };
        tracing::info!(model = info.name, device = info.device, context = info.max_model_len, "ready");
        let _ = shared.model.set(info);
        ready();
        EngineThread::new(engine, shared, recovery_interval, prompt_cache).run(incoming);
        Ok(())
    }
}

/// Whether answers can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Loading,
    Ready,
    /// The device failed, and the next requests show whether it still does; or the model's file was changed, for good.
    Degraded(String),
    Stopped,
}

impl EngineHandle {
    /// Both ends of the way; the other one is for a thread that becomes the engine's.
    pub(super) fn new(config: &ServerConfig, metrics: Arc<Metrics>) -> (Self, EngineEnd) {
        let max_unfinished = config.max_unfinished();
        // Each submission holds a permit for a sequence at least, so the channel is never full.
        let (submissions, incoming) = mpsc::channel(max_unfinished);
        let (model, fault, load) = (OnceLock::new(), Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { model, fault, load, metrics });
        let recovery_interval = config.recovery_interval;
        let (prompt_cache, of_end) = (config.prompt_cache.clone(), Arc::clone(&shared));
        let end = EngineEnd { incoming, recovery_interval, prompt_cache, shared: of_end };
        let permits = Arc::new(Semaphore::new(max_unfinished));
        (Self { submissions, permits, max_unfinished, shared }, end)
    }

    /// Starts the thread. `open` is called on it; its error, or the engine's end, is what the thread returns.
    pub fn start(
        open: impl FnOnce() -> Result<ServedModel> + Send + 'static,
        config: &ServerConfig,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<Result<()>>)> {
        let (handle, end) = Self::new(config, metrics);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || end.run(open, || ()))?;
        Ok((handle, thread))
    }

    /// What the engine has to do.
    pub fn load(&self) -> EngineLoad {
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model.
    ///
    /// # Errors
    /// 503 while it is being loaded.
    pub fn model(&self) -> Result<&ModelInfo, ApiError> {
        let loading = || ApiError::unavailable("loading", "the model is being loaded; try again");
        self.shared.model.get().ok_or_else(loading)
    }

    /// Done when there is no engine any more.
    pub fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let submissions = self.submissions.clone();
        async move { submissions.closed().await }
    }

    /// Whether answers can be had, now.
    pub fn health(&self) -> Health {
        if self.submissions.is_closed() {
            return Health::Stopped;
        }
        let Some(model) = self.shared.model.get() else { return Health::Loading };
        if let Some(change) = model.watch.changed() {
            return Health::Degraded(change);
        }
        match &*self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Health::Degraded(reason.clone()),
            None => Health::Ready,
        }
    }

    /// Sequences that may wait and run together.
    pub fn max_unfinished(&self) -> usize {
        self.max_unfinished
    }

    /// A permit for `choices` sequences.
    ///
    /// # Errors
    /// 429 where there is none.
    pub fn reserve(&self, choices: usize) -> Result<RequestPermit, ApiError> {
        let full = |_| {
            self.shared.metrics.rejected(Rejection::QueueFull);
            ApiError::queue_full(self.max_unfinished)
        };
        let choices = u32::try_from(choices).unwrap_or(u32::MAX);
        Arc::clone(&self.permits).try_acquire_many_owned(choices).map(RequestPermit::new).map_err(full)
    }

    /// Hands something that has a permit to the engine.
    ///
    /// # Errors
    /// 503 where there is no engine any more.
    pub(super) fn send(&self, job: Job) -> Result<(), ApiError> {
        let stopped = |_| ApiError::unavailable("stopped", "the engine has stopped");
        self.submissions.try_send(job).map_err(stopped)
    }

    /// Hands a request to the engine and waits until it is accepted. Dropping the answer ends it.
    ///
    /// # Errors
    /// 400 where the engine refuses it, 503 where there is no engine any more, 504 after the time that an answer has.
    pub async fn submit(
        &self,
        permit: RequestPermit,
        choices: Vec<SequenceRequest>,
        config: &ServerConfig,
    ) -> Result<Answer, ApiError> {
        let time = config.request_timeout;
        // The last words of all sequences always have room.
        let (updates, receiver) = mpsc::channel(config.max_pending_events + 2 * choices.len());
        let span = Span::current();
        let mut answer = Answer::new(receiver, choices.len(), permit.start + time, time);
        self.send(Job::Answer(Submission { choices, permit, updates, span }))?;
        match answer.update().await? {
            Update::Failed(error) => Err(error),
            _ => Ok(answer),
        }
    }
}
