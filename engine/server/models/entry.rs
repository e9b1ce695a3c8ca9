//! One model of many, and what becomes of it.

use super::lease::Lease;
use crate::engine_handle::EngineHandle;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a model is between its files and memory.
pub(super) enum State {
    Unloaded,
    Loading(Arc<EngineHandle>),
    Loaded(Arc<EngineHandle>),
    /// Takes no requests any more, and is unloaded when those that it has are answered.
    Draining(Arc<EngineHandle>, Reason),
    /// Its thread gives back what it holds.
    Unloading(Reason),
}

/// Why a model is unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody asked it for long.
    Idle,
    /// Another one needs its place.
    Room,
    /// Its files are others now, or gone.
    Changed,
    /// Somebody wants it so.
    Asked,
    /// Its thread ended by itself.
    Failed,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Room => "room",
            Self::Changed => "changed",
            Self::Asked => "asked",
            Self::Failed => "failed",
        }
    }
}

/// Why a model could not be loaded.
pub(super) struct Failure {
    pub message: String,
    version: u64,
    at: Instant,
}

/// A model that lends itself to a request.
pub struct Lent {
    // Dropped before the lease: who gives the last one back leaves no handle behind.
    pub engine: Arc<EngineHandle>,
    pub lease: Lease,
}

/// A model that there is or was.
pub(super) struct Entry {
    /// Of its files as they are.
    pub version: u64,
    /// Of its files as they were when it was loaded last.
    loaded_version: u64,
    /// Of its files when they were looked at.
    pub checked_version: Option<u64>,
    /// Bytes of memory that it takes, as they say.
    pub bytes: u64,
    /// Its files are there.
    pub is_listed: bool,
    pub state: State,
    /// Requests that have it.
    pub leases: usize,
    /// Requests that wait for it.
    pub waiting: usize,
    /// Since when somebody waits for it.
    pub wanted: Instant,
    /// When it was lent or given back last.
    pub used: Instant,
    pub failure: Option<Failure>,
    /// Models that may be loaded beside it: fewer than were when there was too little memory.
    pub most_beside: usize,
    /// Its engine's.
    pub thread: Option<JoinHandle<()>>,
}

impl Entry {
    pub fn new(version: u64) -> Self {
        let now = Instant::now();
        Self {
            version,
            loaded_version: version,
            checked_version: None,
            bytes: 0,
            is_listed: true,
            state: State::Unloaded,
            leases: 0,
            waiting: 0,
            wanted: now,
            used: now,
            failure: None,
            most_beside: usize::MAX,
            thread: None,
        }
    }

    pub fn is_loading(&self) -> bool {
        matches!(self.state, State::Loading(_))
    }

    pub fn is_unloaded(&self) -> bool {
        matches!(self.state, State::Unloaded)
    }

    /// Why it cannot be loaded, for a request that came at `since`: that was found behind it, or not long before and its files are as
    /// they were.
    pub fn failure(&self, since: Instant, retry: Duration) -> Option<&Failure> {
        let is_known = |failure: &&Failure| {
            failure.at >= since || (failure.version == self.version && failure.at.elapsed() < retry)
        };
        self.failure.as_ref().filter(is_known).filter(|_| self.is_unloaded())
    }

    /// Whether its files are to be looked at before another model makes room for it.
    pub fn is_unchecked(&self, now: Instant, retry: Duration) -> bool {
        let is_new = self.checked_version != Some(self.version);
        is_new && self.is_listed && self.is_unloaded() && self.failure(now, retry).is_none()
    }

    /// One more request waits, since now.
    pub fn wait(&mut self) {
        // Those who wait since before a failure are about to be told of it.
        if self.waiting == 0 || self.failure.as_ref().is_some_and(|failure| failure.at >= self.wanted) {
            self.wanted = Instant::now();
        }
        self.waiting += 1;
    }

    /// Nothing is asked of it.
    pub fn is_idle(&self) -> bool {
        self.leases == 0 && self.waiting == 0
    }

    /// It is in memory, of files that are not what they were.
    pub fn is_stale(&self) -> bool {
        !self.is_listed || self.version != self.loaded_version
    }

    /// Its files are about to be read as they are now.
    pub fn begin(&mut self) {
        (self.loaded_version, self.failure) = (self.version, None);
    }

    pub fn fail(&mut self, message: String) {
        self.failure = Some(Failure { message, version: self.loaded_version, at: Instant::now() });
    }

    /// Lets those who have it end, and nobody begin; what is asked of it already is answered.
    pub fn drain(&mut self, reason: Reason) {
        self.state = match std::mem::replace(&mut self.state, State::Unloaded) {
            State::Loaded(_) if self.leases == 0 => State::Unloading(reason),
            State::Loaded(engine) => State::Draining(engine, reason),
            other => other,
        };
    }

    /// Goes on where it was to make room and nobody needs that any more.
    pub fn resume(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Unloaded) {
            State::Draining(engine, Reason::Room) => State::Loaded(engine),
            other => other,
        };
    }

    /// The engine, once there is one and until it goes.
    pub fn engine(&self) -> Option<&Arc<EngineHandle>> {
        match &self.state {
            State::Loaded(engine) | State::Draining(engine, _) => Some(engine),
            _ => None,
        }
    }
}
