//! The one thread that owns the engine. Connections hand it requests over a bounded channel; each gets its events over one
//! of its own.
//!
//! Between two steps the thread takes new requests in, ends those whose client has left, and passes the last step's events
//! on. It never waits for a client: whoever does not take events in time loses the answer.

use super::answer::Update;
use super::engine_handle::{Job, SequenceRequest, Shared, Submission};
use super::error::ApiError;
use super::grammar::{self, Grammar};
use super::metrics::{EngineLoad, Rejection};
use super::models::Lease;
use super::prompt_cache::PromptCache;
use super::texts::TextJobs;
use super::warm_up::make_token;
use super::work::RequestPermit;
use qernel_core::engine::{Engine, Event, FinishReason, Thinking, ThinkingConstraint, TokenConstraint};
use qernel_core::error::{Error, Result};
use qernel_core::scheduler::SequenceId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::Span;

/// How long a request may wait at most while the thread looks after a device that failed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A sequence that waits or runs.
struct Active {
    choice: usize,
    updates: mpsc::Sender<Update>,
    /// Held until it ends.
    _permit: Option<OwnedSemaphorePermit>,
    /// Keeps the model loaded until it ends.
    _lease: Option<Lease>,
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

/// The engine, and whom it works for.
pub(super) struct EngineThread {
    engine: Engine,
    delivery: Delivery,
    texts: TextJobs,
    /// What the last step made, and when.
    made: (Vec<Event>, Instant),
    recovery_interval: Duration,
    prompt_cache: Option<PromptCache>,
}

impl EngineThread {
    pub(super) fn new(
        engine: Engine,
        shared: Arc<Shared>,
        recovery_interval: Duration,
        prompt_cache: Option<PromptCache>,
    ) -> Self {
        let delivery = Delivery { shared, active: HashMap::new(), lost: Vec::new() };
        let (texts, made) = (TextJobs::default(), (Vec::new(), Instant::now()));
        Self { engine, delivery, texts, made, recovery_interval, prompt_cache }
    }

    /// Serves until every sender of submissions is gone.
    pub(super) fn run(mut self, mut incoming: mpsc::Receiver<Job>) {
        loop {
            if !self.engine.has_work() && self.texts.is_empty() {
                self.delivery.pass_on(&mut self.made);
                self.observe();
                self.keep_prompts(PromptCache::save_if_due);
                match self.idle(&mut incoming) {
                    Some(job) => self.accept(job),
                    None => return self.keep_prompts(PromptCache::save),
                }
            }
            while let Ok(job) = incoming.try_recv() {
                self.accept(job);
            }
            if let Some(worked) = self.texts.work(&mut self.engine) {
                self.delivery.shared.set_fault(worked.err().map(|error| error.to_string()));
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

    /// Nothing is known for sure of pages on a device that failed.
    fn keep_prompts(&mut self, keep: impl FnOnce(&mut PromptCache, &mut Engine)) {
        if let Some(cache) = self.prompt_cache.as_mut().filter(|_| !self.delivery.shared.has_fault()) {
            keep(cache, &mut self.engine);
        }
    }

    /// Waits for a submission; `None` when no more can come. After a failed step it looks meanwhile whether the device works
    /// again: those who ask for the server's health would else keep everybody away.
    fn idle(&mut self, incoming: &mut mpsc::Receiver<Job>) -> Option<Job> {
        let mut last_attempt = Instant::now();
        while self.delivery.shared.has_fault() {
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
                self.delivery.shared.set_fault(fault);
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
            self.delivery.shared.set_fault(None);
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
        let Submission { choices, permit: RequestPermit { mut permits, start, lease }, updates, span } =
            submission;
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
                    let (_permit, _lease, span) = (permits.split(1), lease.clone(), span.clone());
                    let newest = None;
                    let active =
                        Active { choice, updates, _permit, _lease, start, newest, siblings, span, param };
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
        self.delivery.shared.set_fault(Some(error.to_string()));
        for (id, active) in self.delivery.active.drain() {
            self.engine.cancel(id);
            let _ = active.updates.try_send(Update::Failed(ApiError::server(error.to_string())));
            self.delivery.shared.metrics.failed();
        }
    }

    fn observe(&self) {
        self.delivery.shared.observe(EngineLoad::of(&self.engine));
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
        if let Some((reason, timings)) = finished {
            metrics.finished(reason, &timings, at - active.start);
        }
        // A closed channel is seen before the next step.
        let sent = if finished.is_some() || too_slow {
            let updates = active.updates.clone();
            // Whoever hears the last word may count on it that nothing is held any more, and that the answer was counted.
            self.active.remove(&id);
            updates.try_send(update)
        } else {
            active.updates.try_send(update)
        };
        debug_assert!(!matches!(sent, Err(TrySendError::Full(_))), "there is room for the last word");
    }
}

impl Drop for Delivery {
    /// An engine that is gone has nothing to do and holds nothing.
    fn drop(&mut self) {
        self.shared.observe(EngineLoad::default());
    }
}
