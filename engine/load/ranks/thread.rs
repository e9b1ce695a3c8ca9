//! The thread of a rank: it makes the rank's runner and does with it what it is told.

use super::super::device_choice::DeviceChoice;
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use qernel_core::model::Runner;
use qernel_cuda::Group;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a rank is told to do.
pub(super) type Task = Box<dyn FnOnce(&mut dyn Runner) + Send>;

/// A rank's thread, which ends when this is dropped.
pub(super) struct RankThread {
    rank: usize,
    /// `None` when no more tasks come.
    tasks: Option<Sender<Task>>,
    opened: Receiver<Result<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Tells the others of a thread that panics.
struct Guard(Arc<Group>, usize);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&format!("rank {} panicked", self.1));
        }
    }
}

impl RankThread {
    /// Starts the thread of rank `rank`, whose runner `open` makes there.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has no thread.
    pub(super) fn start(
        group: &Arc<Group>,
        rank: usize,
        device: DeviceChoice,
        open: impl FnOnce() -> Result<Box<dyn Runner>> + Send + 'static,
    ) -> Result<Self> {
        let (tasks, told) = mpsc::channel::<Task>();
        let (answer, opened) = mpsc::channel();
        let guard = Guard(group.clone(), rank);
        let serve = move || {
            let group = guard.0.clone();
            match open() {
                Err(error) => {
                    group.fail(&format!("rank {rank}: {error}"));
                    let _ = answer.send(Err(error));
                }
                Ok(mut runner) => {
                    let _ = answer.send(Ok(()));
                    told.into_iter().for_each(|task| task(&mut *runner));
                }
            }
            drop(guard);
        };
        // Kernels of an emulated device run on the threads of rayon that its own thread belongs to, and some wait for those of others.
        let body: Box<dyn FnOnce() + Send> = match device {
            DeviceChoice::Emulated => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                let pool = pool.map_err(|error| host_memory::no_thread("a rank", error))?;
                Box::new(move || pool.install(serve))
            }
            _ => Box::new(serve),
        };
        let thread = std::thread::Builder::new()
            .name(format!("rank {rank}"))
            .spawn(body)
            .map_err(|error| host_memory::no_thread("a rank", error))?;
        Ok(Self { rank, tasks: Some(tasks), opened, thread: Some(thread) })
    }

    /// Waits until the rank's runner is there.
    ///
    /// # Errors
    /// What opening it said.
    pub(super) fn opened(&mut self) -> Result<()> {
        self.opened.recv().unwrap_or_else(|_| Err(self.gone()))
    }

    /// Lets the rank do `task`; where the answer comes.
    pub(super) fn tell<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut dyn Runner) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (answer, receiver) = mpsc::channel();
        let task: Task = Box::new(move |runner| {
            let _ = answer.send(task(runner));
        });
        // Where the thread has ended, so has the channel of the answer.
        let _ = self.tasks.as_ref().map(|tasks| tasks.send(task));
        receiver
    }

    /// Waits for the answer of [`RankThread::tell`].
    ///
    /// # Errors
    /// [`Error::Device`] if none comes within `limit`.
    pub(super) fn answer<T>(&self, receiver: &Receiver<Result<T>>, limit: Duration) -> Result<T> {
        match receiver.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(RecvTimeoutError::Timeout) => Err(Error::Device(format!(
                "rank {} gives no answer for {} s",
                self.rank,
                limit.as_secs_f32()
            ))),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    fn gone(&self) -> Error {
        Error::Device(format!("the thread of rank {} has ended", self.rank))
    }

    /// No more tasks come: the thread ends its own work.
    pub(super) fn close(&mut self) {
        self.tasks = None;
    }
}

impl Drop for RankThread {
    fn drop(&mut self) {
        self.close();
        // What it panicked with was said when it did.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
