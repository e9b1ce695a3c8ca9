//! What Prometheus may know.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use qernel_core::engine::{Engine, FinishReason, Timings};
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A counter for each value of one label.
type ByLabel = Family<[(&'static str, String); 1], Counter>;

/// The server's numbers. All times are in seconds.
pub struct Metrics {
    registry: Registry,
    waiting: Gauge,
    running: Gauge,
    pages: Gauge,
    used_pages: Gauge,
    cached_pages: Gauge,
    checkpoints: Gauge,
    used_checkpoints: Gauge,
    host_checkpoints: Gauge,
    host_checkpoint_bytes: Gauge,
    connections: Gauge,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    draft_tokens: Counter,
    accepted_draft_tokens: Counter,
    decode_steps: Counter,
    tokens_per_second: Gauge<f64, AtomicU64>,
    first_token: Histogram,
    next_token: Histogram,
    duration: Histogram,
    finished: ByLabel,
    cancelled: Counter,
    failed: Counter,
    template_failed: Counter,
    rejected: ByLabel,
    responses: ByLabel,
    models_loaded: Gauge,
    model_loads: ByLabel,
    model_failures: ByLabel,
    model_unloads: Family<[(&'static str, String); 2], Counter>,
    /// Tokens made in each of the last slots of time.
    recent: Mutex<VecDeque<(Instant, u64)>>,
}

/// The span over which the rate is taken, and the slots that it is made of.
const RATE_WINDOW: Duration = Duration::from_secs(5);
const RATE_SLOT: Duration = Duration::from_millis(100);

/// Why a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    QueueFull,
    Connections,
    /// No place for its model came: others are busy.
    ModelsBusy,
    /// It did not take its tokens in time.
    SlowReader,
}

/// What an engine has to do and what it holds, between two steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineLoad {
    /// Sequences that wait for a place in the batch.
    pub waiting: usize,
    /// Sequences in the batch.
    pub running: usize,
    pages: usize,
    cached_pages: usize,
    /// Pages that hold a sequence.
    pub used_pages: usize,
    checkpoints: usize,
    used_checkpoints: usize,
    host_checkpoints: usize,
    host_checkpoint_bytes: usize,
}

impl EngineLoad {
    pub fn of(engine: &Engine) -> Self {
        let ((waiting, running), pool) = (engine.num_sequences(), engine.pool());
        let checkpoints = engine.checkpoints();
        Self {
            waiting,
            running,
            pages: pool.num_pages(),
            cached_pages: pool.num_cached(),
            used_pages: pool.num_used(),
            checkpoints: checkpoints.map_or(0, |checkpoints| checkpoints.num_places()),
            used_checkpoints: checkpoints.map_or(0, |checkpoints| checkpoints.num_known()),
            host_checkpoints: checkpoints.map_or(0, |checkpoints| checkpoints.host().num_known()),
            host_checkpoint_bytes: checkpoints.map_or(0, |checkpoints| checkpoints.host().num_bytes()),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of a millisecond to about 100 s.
        let times = || Histogram::new(exponential_buckets(0.0001, 2.0, 21));
        let mut metrics = Self {
            registry: Registry::with_prefix("qernel"),
            waiting: Gauge::default(),
            running: Gauge::default(),
            pages: Gauge::default(),
            used_pages: Gauge::default(),
            cached_pages: Gauge::default(),
            checkpoints: Gauge::default(),
            used_checkpoints: Gauge::default(),
            host_checkpoints: Gauge::default(),
            host_checkpoint_bytes: Gauge::default(),
            connections: Gauge::default(),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            draft_tokens: Counter::default(),
            accepted_draft_tokens: Counter::default(),
            decode_steps: Counter::default(),
            tokens_per_second: Gauge::default(),
            first_token: times(),
            next_token: times(),
            duration: times(),
            finished: ByLabel::default(),
            cancelled: Counter::default(),
            failed: Counter::default(),
            template_failed: Counter::default(),
            rejected: ByLabel::default(),
            responses: ByLabel::default(),
            models_loaded: Gauge::default(),
            model_loads: ByLabel::default(),
            model_failures: ByLabel::default(),
            model_unloads: Family::default(),
            recent: Mutex::default(),
        };
        let r = &mut metrics.registry;
        add(r, "requests_waiting", "Sequences that wait for a place in the batch", &metrics.waiting);
        add(r, "requests_running", "Sequences in the batch", &metrics.running);
        add(r, "kv_pages", "Pages of the KV cache", &metrics.pages);
        add(r, "kv_pages_used", "Pages that hold a sequence", &metrics.used_pages);
        add(r, "kv_pages_cached", "Free pages that the prefix cache knows", &metrics.cached_pages);
        add(
            r,
            "state_checkpoints",
            "Copies of recurrent layers' states that may be kept",
            &metrics.checkpoints,
        );
        add(r, "state_checkpoints_used", "Copies that are kept", &metrics.used_checkpoints);
        add(r, "state_checkpoints_host", "Copies in host memory", &metrics.host_checkpoints);
        add(r, "state_checkpoints_host_bytes", "Bytes that they take", &metrics.host_checkpoint_bytes);
        add(r, "connections", "Open connections", &metrics.connections);
        add(r, "prompt_tokens", "Tokens of accepted prompts", &metrics.prompt_tokens);
        add(r, "completion_tokens", "Tokens made", &metrics.completion_tokens);
        add(r, "draft_tokens", "Tokens drafted and computed, of sequences that ended", &metrics.draft_tokens);
        add(r, "draft_tokens_accepted", "Those of them that stayed", &metrics.accepted_draft_tokens);
        add(
            r,
            "sequence_decode_steps",
            "Steps behind the prefill that sequences took part in, of those that ended",
            &metrics.decode_steps,
        );
        add(r, "tokens_per_second", "Tokens made a second, over the last 5 s", &metrics.tokens_per_second);
        add(r, "time_to_first_token_seconds", "From a request to its first token", &metrics.first_token);
        add(
            r,
            "time_between_tokens_seconds",
            "From one token of a sequence to its next",
            &metrics.next_token,
        );
        add(r, "request_duration_seconds", "From a request to the end of its answer", &metrics.duration);
        add(r, "requests_finished", "Sequences that ended, by reason", &metrics.finished);
        add(r, "requests_cancelled", "Sequences whose client left", &metrics.cancelled);
        add(r, "requests_failed", "Sequences that a device error ended", &metrics.failed);
        add(
            r,
            "template_failures",
            "Conversations that the chat template failed on, or took too much for",
            &metrics.template_failed,
        );
        add(r, "requests_rejected", "Clients turned away, by reason", &metrics.rejected);
        add(r, "http_responses", "Answers, by status", &metrics.responses);
        add(r, "models_loaded", "Models of --models-dir that are loaded", &metrics.models_loaded);
        add(r, "model_loads", "Loads of models of --models-dir, by model", &metrics.model_loads);
        add(r, "model_load_failures", "Those that failed, by model", &metrics.model_failures);
        add(r, "model_unloads", "Models unloaded, by model and reason", &metrics.model_unloads);
        metrics
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: &M) {
    registry.register(name, help, metric.clone());
}

impl Metrics {
    /// Everything, in the text format of OpenMetrics.
    pub fn encode(&self) -> String {
        self.tokens_per_second.set(self.rate(Instant::now()));
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }

    /// What an engine has to do changed. Of several engines the sum is shown.
    pub fn engine(&self, before: &EngineLoad, now: &EngineLoad) {
        let change = |gauge: &Gauge, of: fn(&EngineLoad) -> usize| {
            gauge.inc_by(of(now) as i64 - of(before) as i64);
        };
        change(&self.waiting, |load| load.waiting);
        change(&self.running, |load| load.running);
        change(&self.pages, |load| load.pages);
        change(&self.cached_pages, |load| load.cached_pages);
        change(&self.used_pages, |load| load.used_pages);
        change(&self.checkpoints, |load| load.checkpoints);
        change(&self.used_checkpoints, |load| load.used_checkpoints);
        change(&self.host_checkpoints, |load| load.host_checkpoints);
        change(&self.host_checkpoint_bytes, |load| load.host_checkpoint_bytes);
    }

    pub fn prompt_tokens(&self, count: usize) {
        self.prompt_tokens.inc_by(count as u64);
    }

    /// The first token of a sequence.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// A later token.
    pub fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    /// A step made `count` tokens.
    pub fn tokens_made(&self, count: usize) {
        let (count, now) = (count as u64, Instant::now());
        self.completion_tokens.inc_by(count);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match recent.back_mut() {
            Some((start, made)) if now - *start < RATE_SLOT => *made += count,
            _ => recent.push_back((now, count)),
        }
        while recent.front().is_some_and(|(start, _)| now - *start > RATE_WINDOW) {
            recent.pop_front();
        }
    }

    /// Tokens a second over the window that ends `now`.
    fn rate(&self, now: Instant) -> f64 {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = recent.iter().filter(|(start, _)| now.saturating_duration_since(*start) <= RATE_WINDOW);
        inside.map(|(_, made)| *made).sum::<u64>() as f64 / RATE_WINDOW.as_secs_f64()
    }

    /// A sequence came to its end.
    pub fn finished(&self, reason: FinishReason, timings: &Timings, after: Duration) {
        self.draft_tokens.inc_by(timings.draft_tokens as u64);
        self.accepted_draft_tokens.inc_by(timings.accepted_draft_tokens as u64);
        self.decode_steps.inc_by(timings.decode_steps as u64);
        self.finished.get_or_create(&[("reason", reason.to_string())]).inc();
        self.duration.observe(after.as_secs_f64());
    }

    /// A sequence whose client left.
    pub fn cancelled(&self) {
        self.cancelled.inc();
    }

    /// A sequence that a failed step ended.
    pub fn failed(&self) {
        self.failed.inc();
    }

    /// The chat template failed on a conversation.
    pub fn template_failed(&self) {
        self.template_failed.inc();
    }

    pub fn rejected(&self, reason: Rejection) {
        let reason = match reason {
            Rejection::QueueFull => "queue_full",
            Rejection::Connections => "connections",
            Rejection::ModelsBusy => "models_busy",
            Rejection::SlowReader => "slow_reader",
        };
        self.rejected.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// A model of the folder is loaded.
    pub fn model_loaded(&self, model: &str) {
        self.models_loaded.inc();
        self.model_loads.get_or_create(&[("model", model.into())]).inc();
    }

    /// A model of the folder could not be loaded.
    pub fn model_failed(&self, model: &str) {
        self.model_failures.get_or_create(&[("model", model.into())]).inc();
    }

    /// The memory of a model of the folder is free again.
    pub fn model_unloaded(&self, model: &str, reason: &str) {
        self.models_loaded.dec();
        self.model_unloads.get_or_create(&[("model", model.into()), ("reason", reason.into())]).inc();
    }

    /// An answer went out.
    pub fn responded(&self, status: u16) {
        self.responses.get_or_create(&[("status", status.to_string())]).inc();
    }

    /// Counts a connection for as long as the returned value lives.
    pub fn connection(&self) -> impl Drop + use<> {
        struct Open(Gauge);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.connections.inc();
        Open(self.connections.clone())
    }
}
