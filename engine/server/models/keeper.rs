//! The thread that looks at files and clocks, so that no request has to wait for a disk on a thread that others need.

use super::shelf::Shelf;
use qernel_core::error::Result;
use qernel_core::host_memory;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A look is as good as a new one for so long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A request waits for a look no longer: the disk hangs, and what was seen before has to do.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
/// From one look at the clock to the next, at most.
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// What the thread is asked for.
enum Ask {
    /// Which models there are.
    Look,
    /// Whether the files of a model are some.
    Check(Arc<str>),
}

/// The way to the thread.
pub(super) struct Keeper {
    asks: Sender<(Ask, oneshot::Sender<()>)>,
    /// When it was asked last.
    asked: Mutex<Option<Instant>>,
}

/// The other end of it.
pub(super) struct Asked(Receiver<(Ask, oneshot::Sender<()>)>);

impl Keeper {
    pub fn new() -> (Self, Asked) {
        let (asks, asked) = channel();
        (Self { asks, asked: Mutex::new(Some(Instant::now())) }, Asked(asked))
    }

    /// Has the files looked at, where `may_be_old` is not enough: they were looked at less than a second ago.
    pub async fn look(&self, may_be_old: bool) {
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if may_be_old && asked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
                return;
            }
            *asked = Some(Instant::now());
        }
        self.ask(Ask::Look).await;
    }

    /// Has the files of a model looked at.
    pub async fn check(&self, name: Arc<str>) {
        self.ask(Ask::Check(name)).await;
    }

    async fn ask(&self, ask: Ask) {
        let (tell, told) = oneshot::channel();
        if self.asks.send((ask, tell)).is_ok() {
            let _ = tokio::time::timeout(LOOK_PATIENCE, told).await;
        }
    }
}

impl Asked {
    /// Starts the thread, which lives as long as the shelf.
    ///
    /// # Errors
    /// [`Error::Memory`](qernel_core::Error::Memory) where the system refuses it.
    pub fn start(self, shelf: &Arc<Shelf>, idle: Option<Duration>) -> Result<()> {
        let shelf = Arc::downgrade(shelf);
        let thread = std::thread::Builder::new().name("models".into());
        let thread = thread.spawn(move || self.run(&shelf, idle));
        thread.map(drop).map_err(|error| host_memory::no_thread("the models", error))
    }

    fn run(self, shelf: &Weak<Shelf>, idle: Option<Duration>) {
        let tick = idle.map(|idle| (idle / 4).clamp(Duration::from_millis(1), LONGEST_TICK));
        loop {
            let asked = match tick {
                Some(tick) => self.0.recv_timeout(tick),
                None => self.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let Some(shelf) = shelf.upgrade() else { return };
            match asked {
                Ok((ask, tell)) => {
                    match ask {
                        Ask::Look => shelf.read_list(),
                        Ask::Check(name) => shelf.check(&name),
                    }
                    // Who asked may have left.
                    let _ = tell.send(());
                }
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(idle) = idle {
                shelf.unload_idle(idle);
            }
        }
    }
}
