//! Which models are loaded and unloaded, and when: what follows from the requests that wait and those that have a model.

use super::entry::{Entry, Reason, State};
use super::shelf::{Inner, Shelf};
use super::source::{ModelSource, Room};
use crate::engine_handle::{EngineEnd, EngineHandle};
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

impl Shelf {
    /// Does what is to be done next, and tells everybody who waits.
    pub(super) fn arrange(&self, inner: &mut Inner) {
        if !inner.is_closed {
            let stale = inner.entries.values_mut().filter(|entry| entry.is_stale());
            stale.for_each(|entry| entry.drain(Reason::Changed));
            match inner.next_wanted(self.config.models_retry) {
                Some(name) => self.make_room(inner, &name),
                None => inner.entries.values_mut().for_each(Entry::resume),
            }
        }
        self.changes.send_replace(());
    }

    /// Loads a model where there is a place for it, or else makes one.
    fn make_room(&self, inner: &mut Inner, name: &Arc<str>) {
        let places = match self.config.max_models {
            0 => usize::MAX,
            most => most,
        };
        let Entry { most_beside, bytes, .. } = inner.entries[name];
        let most_beside = most_beside.min(places - 1);
        let most_bytes = self.config.models_memory.unwrap_or(u64::MAX);
        // What has nobody beside it is tried, whatever it takes.
        let has_room = |others: &[&Entry]| {
            let taken = others.iter().fold(bytes, |taken, entry| taken.saturating_add(entry.bytes));
            others.is_empty() || (others.len() <= most_beside && taken <= most_bytes)
        };
        let others: Vec<&Entry> = inner.entries.values().filter(|entry| !entry.is_unloaded()).collect();
        let is_leaving = |entry: &Entry| matches!(entry.state, State::Draining(..) | State::Unloading(_));
        let is_moving = |entry: &Entry| entry.is_loading() || matches!(entry.state, State::Unloading(_));
        if has_room(&others) {
            // One after the other: each plans with the memory that is free when it comes.
            if !others.iter().any(|entry| is_moving(entry)) {
                let share = 1.0 / (places.min(inner.entries.len()) - others.len()).max(1) as f64;
                let room = Room { share, is_last: others.is_empty() };
                self.begin_loading(inner, name, room);
            }
            return;
        }
        let staying: Vec<&Entry> = others.into_iter().filter(|entry| !is_leaving(entry)).collect();
        if !has_room(&staying)
            && let Some(victim) = inner.least_recently_used()
        {
            victim.drain(Reason::Room);
        }
    }

    fn begin_loading(&self, inner: &mut Inner, name: &Arc<str>, room: Room) {
        let Some(entry) = inner.entries.get_mut(name) else { return };
        let (handle, end) = EngineHandle::new(&self.config, Arc::clone(&self.metrics));
        let (shelf, source, of_thread) = (Weak::clone(&self.me), Arc::clone(&self.source), Arc::clone(name));
        tracing::info!(model = &**name, "loading");
        entry.begin();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || run_engine(&shelf, &*source, &of_thread, room, end));
        match thread {
            Ok(thread) => {
                entry.state = State::Loading(Arc::new(handle));
                entry.thread = Some(thread);
            }
            Err(error) => entry.fail(host_memory::no_thread("the engine", error).to_string()),
        }
    }

    /// A model answers.
    fn ready(&self, name: &Arc<str>) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(name) else { return };
        if let State::Loading(engine) = &entry.state {
            entry.state = State::Loaded(Arc::clone(engine));
            (entry.used, entry.most_beside) = (Instant::now(), usize::MAX);
            self.metrics.model_loaded(name);
            inner.last_loaded = Some(Arc::clone(name));
        }
        self.arrange(&mut inner);
    }

    /// A model's thread is at its end, and what it held is free.
    fn ended(&self, name: &Arc<str>, result: Result<()>) {
        let mut inner = self.lock();
        let others = inner.entries.values().filter(|entry| !entry.is_unloaded()).count() - 1;
        let Some(entry) = inner.entries.get_mut(name) else { return };
        match (std::mem::replace(&mut entry.state, State::Unloaded), result) {
            (State::Loading(_), Err(Error::Memory(why))) if others > 0 => {
                tracing::info!(model = &**name, "too little memory beside {others} other models: {why}");
                entry.most_beside = others - 1;
            }
            (State::Loading(_), result) => {
                let error = result.err().unwrap_or_else(|| Error::Device("its engine ended".into()));
                self.failed(name, entry, &error);
            }
            (state, result) => {
                let reason = match state {
                    State::Unloading(reason) if result.is_ok() => reason,
                    _ => Reason::Failed,
                };
                tracing::info!(model = &**name, reason = reason.name(), "unloaded");
                self.metrics.model_unloaded(name, reason.name());
            }
        }
        inner.entries.retain(|_, entry| entry.is_listed || !entry.is_unloaded() || !entry.is_idle());
        self.arrange(&mut inner);
    }
}

impl Inner {
    /// The model that somebody has waited for longest, and that nothing is done about yet.
    fn next_wanted(&self, retry: Duration) -> Option<Arc<str>> {
        let wanted = self.entries.iter().filter(|(_, entry)| {
            let is_possible = entry.is_listed && entry.failure(entry.wanted, retry).is_none();
            entry.waiting > 0 && entry.is_unloaded() && is_possible
        });
        wanted.min_by_key(|(_, entry)| entry.wanted).map(|(name, _)| Arc::clone(name))
    }

    /// The loaded model to be unloaded first: of those that nobody waits for one without requests, and of these the one that was
    /// used longest ago.
    fn least_recently_used(&mut self) -> Option<&mut Entry> {
        let loaded = self.entries.values_mut();
        let loaded = loaded.filter(|entry| matches!(entry.state, State::Loaded(_)) && entry.waiting == 0);
        loaded.min_by_key(|entry| (entry.leases > 0, entry.used))
    }
}

/// The life of a model's thread.
fn run_engine(shelf: &Weak<Shelf>, source: &dyn ModelSource, name: &Arc<str>, room: Room, end: EngineEnd) {
    let open = || {
        let model = source.open(name, room)?;
        Ok(crate::ServedModel { name: name.to_string(), ..model })
    };
    let ready = || {
        if let Some(shelf) = shelf.upgrade() {
            shelf.ready(name);
        }
    };
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| end.run(open, ready)));
    let ended = ended.unwrap_or_else(|_| Err(Error::Device("the engine's thread panicked".into())));
    if let Some(shelf) = shelf.upgrade() {
        shelf.ended(name, ended);
    }
}
