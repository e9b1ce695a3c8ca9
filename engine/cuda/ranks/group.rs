//! What the threads of ranks agree on: where everybody's memory is, what all have room for, whether one of them has failed.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the memory of a rank is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub ordinal: u32,
    /// Address and bytes.
    pub slots: (u64, usize),
    /// Of rank 0: the word that says a wait was given up.
    pub given_up: u64,
}

/// Where rows are that a device hands on to the next, which may read them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub address: u64,
    pub bytes: usize,
    /// In memory of the host, not of the device.
    pub in_host: bool,
}

/// What a device and the one behind it agree on.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Of the device before.
    ordinal: Option<u32>,
    /// Whether the one behind reaches its memory.
    reaches: Option<bool>,
    /// Of the step that is computed.
    rows: Option<Rows>,
}

/// Threads, each of which has a device, that compute a model together.
pub struct Group {
    num_ranks: usize,
    limit: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    places: Vec<Option<Place>>,
    numbers: Vec<Option<u64>>,
    /// Of each device and the next.
    links: Vec<Link>,
    /// A rank has refused the step that is computed.
    is_refused: bool,
    /// Kernels may write to other ranks' memory.
    has_started: bool,
    left: usize,
    failure: Option<String>,
}

/// How long loading is waited for, at most: files may come from a slow disk, and a rank that fails says so at once.
const LOADING: Duration = Duration::from_secs(3600);

/// Set in the word by the host.
const FAILED: u32 = u32::MAX;

/// The word at an address.
///
/// # Safety
/// It is there, in memory of the host.
pub(super) unsafe fn load(address: u64) -> u32 {
    // SAFETY: the caller's promise; devices write it in one piece.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }.load(Ordering::Acquire)
}

/// The error of what a kernel left in the word.
pub(super) fn given_up(who: u32, num_ranks: usize, limit: Duration) -> Error {
    if who == FAILED {
        return Error::Device("another rank has failed".into());
    }
    let [rank, other] = [(who - 1) as usize / num_ranks, (who - 1) as usize % num_ranks];
    Error::Device(format!("rank {rank} has waited {} s for rank {other}", limit.as_secs_f32()))
}

impl Group {
    /// `num_ranks` ranks that wait no longer than `limit` for each other once all are loaded.
    pub fn new(num_ranks: usize, limit: Duration) -> Self {
        let state = State {
            places: vec![None; num_ranks],
            numbers: vec![None; num_ranks],
            links: vec![Link::default(); num_ranks],
            is_refused: false,
            has_started: false,
            left: 0,
            failure: None,
        };
        Self { num_ranks, limit, state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// How long a rank waits for another.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` answers, as long as loading may take.
    fn wait<T>(&self, what: &str, ready: impl Fn(&State) -> Option<T>) -> Result<T> {
        self.wait_at_most(self.limit.max(LOADING), what, ready)
    }

    /// Waits until `ready` answers, at most `limit`.
    fn wait_at_most<T>(&self, limit: Duration, what: &str, ready: impl Fn(&State) -> Option<T>) -> Result<T> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if let Some(why) = &state.failure {
                return Err(Error::Device(why.clone()));
            }
            if let Some(answer) = ready(&state) {
                return Ok(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Device(format!(
                    "not all {} ranks have {what} within {} s",
                    self.num_ranks,
                    limit.as_secs_f32()
                )));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says where a rank's memory is, and learns the others', by their ranks.
    pub(super) fn join(&self, rank: usize, place: Place) -> Result<Vec<Place>> {
        self.state().places[rank] = Some(place);
        self.changed.notify_all();
        self.wait("joined", |state| state.places.iter().copied().collect())
    }

    /// The smallest of the numbers that all ranks give; once in a group.
    ///
    /// # Errors
    /// [`Error::Device`] if a rank has failed or does not come.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn smallest(&self, rank: usize, number: u64) -> Result<u64> {
        self.state().numbers[rank] = Some(number);
        self.changed.notify_all();
        let all = |state: &State| state.numbers.iter().copied().collect::<Option<Vec<_>>>();
        self.wait("opened their devices", |state| all(state)?.into_iter().min())
    }

    /// Changes what device `number` and the next agree on.
    fn change_link(&self, number: usize, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.state().links.get_mut(number) {
            change(link);
        }
        self.changed.notify_all();
    }

    /// Device `number` is here.
    pub(super) fn come(&self, number: usize, ordinal: u32) {
        self.change_link(number, |link| link.ordinal = Some(ordinal));
    }

    /// The ordinal of device `number`, once it is here.
    pub(super) fn ordinal(&self, number: usize) -> Result<u32> {
        self.wait("opened their devices", |state| state.links.get(number)?.ordinal)
    }

    /// Says whether the device behind device `number` reaches its memory.
    pub(super) fn set_reach(&self, number: usize, reaches: bool) {
        self.change_link(number, |link| link.reaches = Some(reaches));
    }

    /// What [`Group::set_reach`] says, once it has.
    pub(super) fn is_reached(&self, number: usize) -> Result<bool> {
        self.wait("opened their devices", |state| state.links.get(number)?.reaches)
    }

    /// Forgets what rows were handed on: a step begins.
    pub fn begin_step(&self) {
        let mut state = self.state();
        state.is_refused = false;
        state.links.iter_mut().for_each(|link| link.rows = None);
    }

    /// A rank has refused the step: it hands nothing on.
    pub fn refuse_step(&self) {
        self.state().is_refused = true;
        self.changed.notify_all();
    }

    /// Device `number` has rows for the next.
    pub(super) fn give_rows(&self, number: usize, rows: Rows) {
        self.change_link(number, |link| link.rows = Some(rows));
    }

    /// The rows of device `number`, once it has some.
    pub(super) fn take_rows(&self, number: usize) -> Result<Rows> {
        let limit = self.limit.saturating_mul(2);
        let rows = self.wait_at_most(limit, "handed on their rows", |state| match state.is_refused {
            true => Some(None),
            false => state.links.get(number)?.rows.map(Some),
        })?;
        rows.ok_or_else(|| Error::Request("another GPU has refused the step".into()))
    }

    /// From now on kernels may write to other ranks' memory.
    pub fn start(&self) {
        self.state().has_started = true;
    }

    /// Ends all waiting: a rank has failed. The first reason stays.
    pub fn fail(&self, why: &str) {
        let mut state = self.state();
        state.failure.get_or_insert_with(|| why.to_owned());
        if let Some(place) = state.places.first().copied().flatten().filter(|_| state.left < self.num_ranks) {
            // SAFETY: rank 0 frees it when all have left.
            let word = unsafe { AtomicU32::from_ptr(place.given_up as *mut u32) };
            word.compare_exchange(0, FAILED, Ordering::AcqRel, Ordering::Acquire).ok();
        }
        self.changed.notify_all();
    }

    /// Why a rank has failed, if one has.
    pub fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    /// A rank will launch nothing more. Whether, a while later, all others have said so too, or nobody ever launched anything.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.state();
        state.left += 1;
        if !state.has_started {
            // What rank 0 has may be freed now.
            state.places.iter_mut().for_each(|place| *place = None);
        }
        self.changed.notify_all();
        let end = Instant::now() + self.limit;
        while state.has_started && state.left < self.num_ranks {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
