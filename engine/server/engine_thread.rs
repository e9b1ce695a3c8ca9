//! The one thread that owns the engine. Connections hand it requests over a bounded channel; each gets its events over one
//! of its own.
//!
//! Between two steps the thread takes new requests in, ends those whose client has left, and passes the last step's events
//! on. It never waits for a client: whoever does not take events in time loses the answer.

use super::answer::{Answer, Update};
use super::config::ServerConfig;
use super::error::ApiError;
use super::grammar::{self, Grammar};
use super::metrics::{Metrics, Rejection};
use super::served_model::expect_other_names;
pub use super::served_model::{ModelInfo, ServedModel};
use super::texts::{TextJob, TextJobs};
use super::warm_up::{make_token, warm_up};
use super::work::RequestPermit;
use qernel_core::batch::AdapterSet;
use qernel_core::engine::{
    Engine, Event, FinishReason, Request, Thinking, ThinkingConstraint, TokenConstraint,
};
use qernel_core::error::{Error, Result};
use qernel_core::scheduler::SequenceId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Span;

/// How long a request may wait at most while the thread looks after a device that failed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    choices: Vec<SequenceRequest>,
    permit: RequestPermit,
    updates: mpsc::Sender<Update>,
    /// Its request in the log.
    span: Span,
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

/// What the thread tells everybody.
struct Shared {
    model: OnceLock<ModelInfo>,
    /// Why the last step failed.
    fault: Mutex<Option<String>>,
    metrics: Arc<Metrics>,
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
    /// Starts the thread. `open` is called on it; its error, or the thread's end, is what the returned receiver gets.
    pub fn start(
        open: impl FnOnce() -> Result<ServedModel> + Send + 'static,
        config: &ServerConfig,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<Result<()>>)> {
        let max_unfinished =
            config.max_num_sequences.saturating_add(config.max_queue).min(Semaphore::MAX_PERMITS);
        let recovery_interval = config.recovery_interval;
        // Each submission holds a permit for a sequence at least, so the channel is never full.
        let (submissions, incoming) = mpsc::channel(max_unfinished);
        let shared = Arc::new(Shared { model: OnceLock::new(), fault: Mutex::default(), metrics });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let ServedModel { engine, template, name, watch } = open()?;
            // Requests name those that they want.
            let mut engine = engine.with_adapters(AdapterSet::default());
            let adapters = engine.runner().adapters().to_vec();
            expect_other_names(&name, &adapters)?;
            warm_up(&mut engine)?;
            let Some(tokenizer) = engine.tokenizer().cloned() else {
                return Err(Error::Tokenizer("a server needs a model file with a vocabulary".into()));
            };
            let longest = (0..tokenizer.vocab_size() as u32)
                .filter_map(|id| tokenizer.token_bytes(id))
                .map(<[u8]>::len);
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
            let _ = of_thread.model.set(info);
            let delivery = Delivery { shared: of_thread, active: HashMap::new(), lost: Vec::new() };
            let (texts, made) = (TextJobs::default(), (Vec::new(), Instant::now()));
            EngineThread { engine, delivery, texts, made, recovery_interval }.run(incoming);
            Ok(())
        })?;
        let permits = Arc::new(Semaphore::new(max_unfinished));
        Ok((Self { submissions, permits, max_unfinished, shared }, thread))
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

/// A sequence that waits or runs.
struct Active {
    choice: usize,
    updates: mpsc::Sender<Update>,
    /// Held until it ends.
    _permit: Option<OwnedSemaphorePermit>,
    start: Instant,
    /// When its newest token came.
    newest: Option<Instant>,
    /// Sequences of its submission, each of which still has a last word.
    siblings: usize,
    /// Its request in the log.
    span: Span,
    /// The field of the request that constrains it.
    param: &'static str,
}

/// The way of events to those who wait for them.
struct Delivery {
    shared: Arc<Shared>,
    active: HashMap<SequenceId, Active>,
    /// Sequences that nobody waits for any more.
    lost: Vec<SequenceId>,
}

struct EngineThread {
    engine: Engine,
    delivery: Delivery,
    texts: TextJobs,
    /// What the last step made, and when.
    made: (Vec<Event>, Instant),
    recovery_interval: Duration,
}

impl EngineThread {
    /// Serves until every sender of submissions is gone.
    fn run(mut self, mut incoming: mpsc::Receiver<Job>) {
        loop {
            if !self.engine.has_work() && self.texts.is_empty() {
                self.delivery.pass_on(&mut self.made);
                self.observe();
                match self.idle(&mut incoming) {
                    Some(job) => self.accept(job),
                    None => return,
                }
            }
            while let Ok(job) = incoming.try_recv() {
                self.accept(job);
            }
            if let Some(worked) = self.texts.work(&mut self.engine) {
                self.delivery.set_fault(worked.err().map(|error| error.to_string()));
            }
            self.end_abandoned();
            self.observe();
            // A GPU computes the next step while the events of the last one go out.
            let Self { engine, delivery, made, .. } = &mut self;
            let events = engine.step_while(&mut || delivery.pass_on(made));
            delivery.pass_on(made);
            match events {
                Ok(events) => self.take(events),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Waits for a submission; `None` when no more can come. After a failed step it looks meanwhile whether the device works
    /// again: those who ask for the server's health would else keep everybody away.
    fn idle(&mut self, incoming: &mut mpsc::Receiver<Job>) -> Option<Job> {
        let mut last_attempt = Instant::now();
        while self.delivery.has_fault() {
            match incoming.try_recv() {
                Ok(job) => return Some(job),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => std::thread::sleep(LOOK_AGAIN.min(self.recovery_interval)),
            }
            if last_attempt.elapsed() >= self.recovery_interval {
                let fault = make_token(&mut self.engine, 0, 1).err().map(|error| error.to_string());
                match &fault {
                    Some(fault) => tracing::debug!("the device still fails: {fault}"),
                    None => tracing::info!("the device works again"),
                }
                self.delivery.set_fault(fault);
                self.observe();
                last_attempt = Instant::now();
            }
        }
        incoming.blocking_recv()
    }

    fn take(&mut self, events: Vec<Event>) {
        let count = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        // A step without tokens may not have asked the device.
        if count > 0 {
            self.delivery.set_fault(None);
            self.delivery.shared.metrics.tokens_made(count);
        }
        self.made = (events, Instant::now());
    }

    fn accept(&mut self, job: Job) {
        match job {
            Job::Answer(submission) => self.join(submission),
            Job::Text(job) => self.texts.push(job),
        }
    }

    fn join(&mut self, submission: Submission) {
        let Submission { choices, permit: RequestPermit { mut permits, start }, updates, span } = submission;
        let siblings = choices.len();
        let mut ids = Vec::with_capacity(siblings);
        for (choice, SequenceRequest { request, grammar, thinking, prompt_param }) in
            choices.into_iter().enumerate()
        {
            let prompt_tokens = request.prompt.len();
            let refusal = self.engine.check(&request).err();
            let is_banned = grammar.is_none() && !request.banned_strings.is_empty();
            let of_schema = if is_banned { "banned_strings" } else { "response_format" };
            let param = grammar.as_ref().map_or(of_schema, Grammar::param);
            let constraint = self.constraint(grammar, thinking);
            let submitted = match (refusal, constraint) {
                (Some(refusal), _) => Err(ApiError::of_request(refusal, prompt_param)),
                (None, Err(error)) => Err(error.into()),
                (None, Ok(constraint)) => {
                    self.engine.submit_constrained(request, constraint).map_err(|error| match error {
                        Error::Request(message) if message.starts_with(grammar::FAULT) => {
                            ApiError::field(param, format!("{param}: {message}"))
                        }
                        error => error.into(),
                    })
                }
            };
            match submitted {
                Ok(id) => {
                    self.delivery.shared.metrics.prompt_tokens(prompt_tokens);
                    ids.push(id);
                    let updates = updates.clone();
                    let (_permit, span) = (permits.split(1), span.clone());
                    let active =
                        Active { choice, updates, _permit, start, newest: None, siblings, span, param };
                    self.delivery.active.insert(id, active);
                }
                Err(error) => {
                    for id in ids {
                        self.delivery.active.remove(&id);
                        self.engine.cancel(id);
                    }
                    let _ = updates.try_send(Update::Failed(error));
                    return;
                }
            }
        }
        let _ = updates.try_send(Update::Accepted);
    }

    /// What an answer may consist of.
    fn constraint(
        &self,
        grammar: Option<Grammar>,
        thinking: Option<Thinking>,
    ) -> Result<Option<Box<dyn TokenConstraint>>> {
        let grammar = grammar.map(|grammar| Box::new(grammar) as Box<dyn TokenConstraint>);
        match (thinking, self.engine.tokenizer()) {
            (Some(thinking), Some(tokenizer)) => {
                Ok(Some(Box::new(ThinkingConstraint::new(tokenizer, &thinking, grammar)?)))
            }
            _ => Ok(grammar),
        }
    }

    /// Ends the sequences whose client has left or listens no more.
    fn end_abandoned(&mut self) {
        let Delivery { shared, active, lost } = &mut self.delivery;
        for (id, Active { choice, span, .. }) in active.extract_if(|_, active| active.updates.is_closed()) {
            // One that has ended meanwhile was completed, if in vain.
            if self.engine.cancel(id) {
                span.in_scope(|| tracing::info!(choice, "its client left"));
                shared.metrics.cancelled();
            }
        }
        for id in lost.drain(..) {
            self.engine.cancel(id);
        }
    }

    /// Nothing that runs can be completed.
    fn fail(&mut self, error: &Error) {
        tracing::error!("a step failed: {error}");
        self.delivery.set_fault(Some(error.to_string()));
        for (id, active) in self.delivery.active.drain() {
            self.engine.cancel(id);
            let _ = active.updates.try_send(Update::Failed(ApiError::server(error.to_string())));
            self.delivery.shared.metrics.failed();
        }
    }

    fn observe(&self) {
        self.delivery.shared.metrics.engine(&self.engine);
    }
}

impl Delivery {
    /// Sends out what a step made, and empties it.
    fn pass_on(&mut self, made: &mut (Vec<Event>, Instant)) {
        let (events, at) = made;
        for event in events.drain(..) {
            self.pass_on_one(event, *at);
        }
    }

    fn pass_on_one(&mut self, event: Event, at: Instant) {
        let id = event.id();
        let Some(active) = self.active.get_mut(&id) else { return };
        let metrics = &self.shared.metrics;
        let finished = match &event {
            Event::Prompt { .. } => None,
            Event::Token { .. } => {
                match active.newest.replace(at) {
                    None => metrics.first_token(at - active.start),
                    Some(before) => metrics.next_token(at - before),
                }
                None
            }
            Event::Finished { reason, usage, timings, .. } => {
                let (choice, tokens) = (active.choice, usage.completion_tokens);
                active.span.in_scope(|| tracing::info!(choice, tokens, %reason, "finished"));
                Some((*reason, *timings))
            }
        };
        // Room is left for the last word of each sibling.
        let too_slow = finished.is_none() && active.updates.capacity() <= active.siblings;
        let reason = finished.map(|(reason, _)| reason);
        let update = if reason == Some(FinishReason::Constraint) {
            let param = active.param;
            let message = format!(
                "{param}: the answer was ended, because what it asks for takes too much work to follow"
            );
            Update::Failed(ApiError::field(param, message))
        } else if let Some(error) = reason.and_then(FinishReason::error) {
            tracing::error!("{error}");
            Update::Failed(ApiError::server(error.to_string()))
        } else if too_slow {
            metrics.rejected(Rejection::SlowReader);
            self.lost.push(id);
            Update::Failed(ApiError::server("the answer was ended because its reader is too slow"))
        } else {
            Update::Event(active.choice, event)
        };
        // A closed channel is seen before the next step.
        let sent = active.updates.try_send(update);
        debug_assert!(!matches!(sent, Err(TrySendError::Full(_))), "there is room for the last word");
        if let Some((reason, timings)) = finished {
            metrics.finished(reason, &timings, at - active.start);
        }
        if finished.is_some() || too_slow {
            self.active.remove(&id);
        }
    }

    fn has_fault(&self) -> bool {
        self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set_fault(&self, fault: Option<String>) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}
