//! An answer as it comes from the engine's thread.

use super::error::ApiError;
use qernel_core::engine::Event;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What the engine's thread says of a submission.
pub enum Update {
    /// All its sequences wait or run.
    Accepted,
    /// Something happened to the sequence of this index.
    Event(usize, Event),
    /// No more comes.
    Failed(ApiError),
}

/// The events of one submission, as they come. Dropping it ends its sequences before the next step.
pub struct Answer {
    receiver: mpsc::Receiver<Update>,
    /// Sequences that have not ended.
    left: usize,
    deadline: Instant,
    time: Duration,
}

impl Answer {
    /// Of `count` sequences, until `deadline`, which is `time` after their request.
    pub fn new(receiver: mpsc::Receiver<Update>, count: usize, deadline: Instant, time: Duration) -> Self {
        Self { receiver, left: count, deadline, time }
    }

    /// The next event and the index of its sequence; `None` when all have ended.
    ///
    /// # Errors
    /// What kept the answer from being completed; nothing comes after it.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let update = self.update().await;
        self.take(update)
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        match self.receiver.try_recv() {
            Ok(update) if self.left > 0 => self.take(Ok(update)),
            _ => Ok(None),
        }
    }

    fn take(&mut self, update: Result<Update, ApiError>) -> Result<Option<(usize, Event)>, ApiError> {
        match update {
            Ok(Update::Event(choice, event)) => {
                self.left -= usize::from(matches!(event, Event::Finished { .. }));
                Ok(Some((choice, event)))
            }
            Ok(Update::Accepted) => Ok(None),
            Ok(Update::Failed(error)) | Err(error) => {
                self.left = 0;
                self.receiver.close();
                Err(error)
            }
        }
    }

    /// The next word on it.
    ///
    /// # Errors
    /// 503 where the engine is gone, 504 where the time is over.
    pub async fn update(&mut self) -> Result<Update, ApiError> {
        match tokio::time::timeout_at(self.deadline.into(), self.receiver.recv()).await {
            Ok(Some(update)) => Ok(update),
            Ok(None) => {
                Err(ApiError::unavailable("stopped", "the engine stopped before the answer was complete"))
            }
            Err(_) => Err(ApiError::timeout(self.time.as_secs())),
        }
    }
}
