//! Models that are loaded when requests name them, and unloaded when they are not needed or others need their place.
//!
//! All decisions are made under one lock, by [`Shelf::arrange`] (`arrange.rs`), whenever something has changed: a request waits or leaves, a model is loaded,
//! lent, given back or gone. Whoever waits is a future, which looks again after each change.

use super::entry::{Entry, Lent, Reason, State};
use super::keeper::Keeper;
use super::lease::Held;
use super::source::{ListedModel, ModelSource};
use crate::config::ServerConfig;
use crate::engine_handle::EngineHandle;
use crate::error::ApiError;
use crate::metrics::{Metrics, Rejection};
use qernel_core::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout_at;

/// Models of a source, some of them loaded.
pub struct Shelf {
    pub(super) config: ServerConfig,
    pub(super) source: Arc<dyn ModelSource>,
    pub(super) metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    /// Told of every change.
    pub(super) changes: watch::Sender<()>,
    keeper: Keeper,
    pub(super) me: Weak<Self>,
}

/// What is under the lock.
#[derive(Default)]
pub(super) struct Inner {
    pub entries: BTreeMap<Arc<str>, Entry>,
    /// The model that was loaded last.
    pub last_loaded: Option<Arc<str>>,
    /// Requests that wait.
    waiting: usize,
    pub is_closed: bool,
}

/// What a model is doing, as it is told to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Unloaded,
    Loading,
    Loaded,
    /// It could not be loaded, and why.
    Failed(String),
}

/// A model in the list of all.
pub struct Shown {
    pub name: Arc<str>,
    pub status: Status,
    /// Where it is loaded.
    pub engine: Option<Arc<EngineHandle>>,
}

impl Shelf {
    /// Looks which models there are; none is loaded yet.
    ///
    /// # Errors
    /// Those of the source, [`Error::Memory`] where the system refuses a thread.
    pub fn new(
        source: Arc<dyn ModelSource>,
        config: &ServerConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>> {
        let listed = source.list()?;
        let (keeper, asked) = Keeper::new();
        let shelf = Arc::new_cyclic(|me| Self {
            config: config.clone(),
            source,
            metrics,
            inner: Mutex::default(),
            changes: watch::Sender::new(()),
            keeper,
            me: Weak::clone(me),
        });
        shelf.take_list(listed);
        asked.start(&shelf, config.models_idle)?;
        Ok(shelf)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the files, unless somebody has just done so.
    pub async fn look(&self, name: Option<&str>) {
        let is_known = name.is_none_or(|name| self.lock().entries.contains_key(name));
        self.keeper.look(is_known).await;
    }

    /// What is on the shelf, in the order of names.
    pub fn all(&self) -> Vec<Shown> {
        let inner = self.lock();
        let listed = inner.entries.iter().filter(|(_, entry)| entry.is_listed || !entry.is_unloaded());
        listed
            .map(|(name, entry)| Shown {
                name: Arc::clone(name),
                engine: entry.engine().cloned(),
                status: match (&entry.state, &entry.failure) {
                    (State::Loading(_), _) => Status::Loading,
                    (State::Loaded(_) | State::Draining(..), _) => Status::Loaded,
                    (State::Unloaded, Some(failure)) => Status::Failed(failure.message.clone()),
                    (State::Unloaded | State::Unloading(_), _) => Status::Unloaded,
                },
            })
            .collect()
    }

    /// The model that is meant where a request names none: the one that was loaded last, or the only one.
    pub fn default_name(&self) -> Option<Arc<str>> {
        let inner = self.lock();
        let last = inner.last_loaded.iter().find(|&name| inner.entries.contains_key(name));
        let only = || (inner.entries.len() == 1).then(|| inner.entries.keys().next()).flatten();
        last.or_else(only).cloned()
    }

    /// The engine of a model that is loaded, to be looked at: that keeps no model loaded.
    pub fn loaded(&self, name: &str) -> Option<Arc<EngineHandle>> {
        self.lock().entries.get(name)?.engine().cloned()
    }

    /// A model, once it is loaded; `None` where there is none of this name.
    ///
    /// # Errors
    /// 500 where it cannot be loaded, 503 where others are busy for too long, 504 where loading takes too long, 429 where too many wait.
    pub async fn acquire(&self, name: &str) -> Result<Option<Lent>, ApiError> {
        self.look(Some(name)).await;
        let (start, mut changes) = (Instant::now(), self.changes.subscribe());
        if let Some(name) = self.unchecked(name, start) {
            self.keeper.check(name).await;
        }
        let waiter = {
            let mut inner = self.lock();
            let Some((name, entry)) = inner.find(name) else { return Ok(None) };
            if let Some(lent) = self.answer(&name, entry, start)? {
                return Ok(Some(lent));
            }
            self.wait_for(name, &mut inner)?
        };
        loop {
            let _ = timeout_at((start + self.bound(&waiter.name)).into(), changes.changed()).await;
            let mut inner = self.lock();
            let Some((name, entry)) = inner.find(&waiter.name) else { return Ok(None) };
            if let Some(lent) = self.answer(&name, entry, start)? {
                return Ok(Some(lent));
            }
            let is_loading = entry.is_loading();
            if start.elapsed() >= self.bound_of(is_loading) {
                return Err(match is_loading {
                    true => ApiError::timeout(self.config.request_timeout.as_secs()),
                    false => self.busy(&inner),
                });
            }
        }
    }

    /// A model whose files nobody has looked at yet.
    fn unchecked(&self, name: &str, now: Instant) -> Option<Arc<str>> {
        let mut inner = self.lock();
        let (name, entry) = inner.find(name)?;
        entry.is_unchecked(now, self.config.models_retry).then_some(name)
    }

    /// Looks at a model's files, unless that was done meanwhile: one that cannot be loaded takes nobody's place.
    pub(super) fn check(&self, name: &str) {
        let now = Instant::now();
        if self.unchecked(name, now).is_none() {
            return;
        }
        let version = self.lock().entries.get(name).map(|entry| entry.version);
        let checked = self.source.check(name);
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(name) else { return };
        match checked {
            Ok(bytes) => (entry.checked_version, entry.bytes) = (version, bytes),
            Err(error) if entry.is_unchecked(now, self.config.models_retry) => {
                entry.begin();
                self.failed(name, entry, &error);
            }
            Err(_) => (),
        }
    }

    /// A model cannot be loaded.
    pub(super) fn failed(&self, name: &str, entry: &mut Entry, error: &Error) {
        tracing::warn!(model = name, "it cannot be loaded: {error}");
        self.metrics.model_failed(name);
        entry.fail(self.source.explain(error));
    }

    /// How long a request waits for this model, as it is now.
    fn bound(&self, name: &str) -> Duration {
        self.bound_of(self.lock().entries.get(name).is_some_and(Entry::is_loading))
    }

    fn bound_of(&self, is_loading: bool) -> Duration {
        let time = self.config.request_timeout;
        if is_loading { time } else { self.config.models_patience.min(time) }
    }

    /// Lets a request wait.
    fn wait_for(&self, name: Arc<str>, inner: &mut Inner) -> Result<Waiter<'_>, ApiError> {
        let most = self.config.max_unfinished();
        if inner.waiting >= most {
            self.metrics.rejected(Rejection::QueueFull);
            return Err(ApiError::queue_full(most));
        }
        inner.waiting += 1;
        if let Some(entry) = inner.entries.get_mut(&name) {
            entry.wait();
        }
        self.arrange(inner);
        Ok(Waiter { shelf: self, name })
    }

    /// What a request that wants a model since then gets now, if anything.
    fn answer(&self, name: &Arc<str>, entry: &mut Entry, since: Instant) -> Result<Option<Lent>, ApiError> {
        if let Some(failure) = entry.failure(since, self.config.models_retry) {
            return Err(ApiError::model_failed(name, &failure.message));
        }
        Ok(self.lend(name, entry))
    }

    fn lend(&self, name: &Arc<str>, entry: &mut Entry) -> Option<Lent> {
        let State::Loaded(engine) = &entry.state else { return None };
        let engine = Arc::clone(engine);
        entry.leases += 1;
        entry.used = Instant::now();
        Some(Lent { engine, lease: Arc::new(Held::new(&self.me, name)) })
    }

    /// 503, with the models that are in the way.
    fn busy(&self, inner: &Inner) -> ApiError {
        self.metrics.rejected(Rejection::ModelsBusy);
        let loaded = inner.entries.iter().filter(|(_, entry)| !entry.is_unloaded());
        let names: Vec<&str> = loaded.map(|(name, _)| &**name).collect();
        let message = format!(
            "the model cannot be loaded now: there is no room beside {}, which have requests to answer; try again",
            names.join(", ")
        );
        ApiError::unavailable("models_busy", message)
    }

    /// A request has ended.
    pub(super) fn give_back(&self, name: &str) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(name) else { return };
        entry.leases -= 1;
        entry.used = Instant::now();
        if let State::Draining(_, reason) = entry.state
            && entry.leases == 0
        {
            entry.state = State::Unloading(reason);
        }
        self.arrange(&mut inner);
    }

    /// Unloads a model and waits until its memory is free; `None` where there is none of this name.
    ///
    /// # Errors
    /// 400 where it is not loaded, 409 where it has requests to answer or is being loaded.
    pub async fn unload(&self, name: &str) -> Result<Option<()>, ApiError> {
        self.look(Some(name)).await;
        let mut changes = self.changes.subscribe();
        {
            let mut inner = self.lock();
            let Some((_, entry)) = inner.find(name) else { return Ok(None) };
            match entry.state {
                State::Unloaded => return Err(ApiError::field("model", "model: it is not loaded")),
                State::Loading(_) | State::Draining(..) => return Err(ApiError::model_in_use(name)),
                State::Loaded(_) if !entry.is_idle() => return Err(ApiError::model_in_use(name)),
                _ => entry.drain(Reason::Asked),
            }
            self.arrange(&mut inner);
        }
        let is_leaving = || {
            let mut inner = self.lock();
            inner.find(name).is_some_and(|(_, entry)| matches!(entry.state, State::Unloading(_)))
        };
        while is_leaving() && changes.changed().await.is_ok() {}
        Ok(Some(()))
    }

    /// Unloads models that nobody has asked for as long as this.
    pub(super) fn unload_idle(&self, after: Duration) {
        let mut inner = self.lock();
        let idle =
            inner.entries.values_mut().filter(|entry| entry.is_idle() && entry.used.elapsed() >= after);
        idle.for_each(|entry| entry.drain(Reason::Idle));
        self.arrange(&mut inner);
    }

    /// Asks the source, and takes what it has.
    pub(super) fn read_list(&self) {
        match self.source.list() {
            Ok(listed) => self.take_list(listed),
            Err(error) => tracing::warn!("the models cannot be listed: {error}"),
        }
    }

    fn take_list(&self, listed: Vec<ListedModel>) {
        let mut inner = self.lock();
        inner.entries.values_mut().for_each(|entry| entry.is_listed = false);
        for ListedModel { name, version } in listed {
            let entry = inner.entries.entry(name.into()).or_insert_with(|| Entry::new(version));
            entry.is_listed = true;
            if entry.version != version {
                (entry.version, entry.most_beside) = (version, usize::MAX);
            }
        }
        inner.entries.retain(|_, entry| entry.is_listed || !entry.is_unloaded() || !entry.is_idle());
        self.arrange(&mut inner);
    }

    /// Lets all models go. What it returns are the threads that have one and end after their step; one that loads a model is not waited
    /// for.
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        let mut inner = self.lock();
        inner.is_closed = true;
        let mut threads = Vec::new();
        for entry in inner.entries.values_mut() {
            if !entry.is_loading() {
                threads.extend(entry.thread.take());
            }
            entry.state = State::Unloading(Reason::Asked);
        }
        threads
    }
}

impl Inner {
    /// A model that can be had, and its name as it is kept.
    fn find(&mut self, name: &str) -> Option<(Arc<str>, &mut Entry)> {
        let key = Arc::clone(self.entries.get_key_value(name)?.0);
        let entry = self.entries.get_mut(name).filter(|entry| entry.is_listed)?;
        Some((key, entry))
    }
}

/// A request that waits for a model, until it has it or its client leaves.
struct Waiter<'a> {
    shelf: &'a Shelf,
    name: Arc<str>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut inner = self.shelf.lock();
        inner.waiting -= 1;
        if let Some(entry) = inner.entries.get_mut(&self.name) {
            entry.waiting -= 1;
        }
        self.shelf.arrange(&mut inner);
    }
}
