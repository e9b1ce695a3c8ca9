//! What is made of whole texts: vectors and scores. Between two steps of answers the engine's thread computes some rows of one text, as
//! there is room.

use super::config::ServerConfig;
use super::engine_handle::{EngineHandle, Job};
use super::error::ApiError;
use super::work::RequestPermit;
use qernel_core::engine::Engine;
use qernel_core::engine::pooling::Pooling;
use qernel_core::error::{Error, Result};
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// The texts of a request, of each of which a vector is wanted, or more, or a score; and what is made so far.
pub(super) struct TextJob {
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
    /// The next one has begun.
    has_begun: bool,
    made: Vec<Vec<f32>>,
    /// Gone when it has been told.
    reply: Option<oneshot::Sender<Told>>,
    /// Held until it is done.
    permit: Option<RequestPermit>,
}

/// What was made.
type Told = Result<Vec<Vec<f32>>, ApiError>;

/// The requests that wait, in their order.
#[derive(Default)]
pub(super) struct TextJobs(VecDeque<TextJob>);

impl TextJobs {
    pub(super) fn push(&mut self, job: TextJob) {
        self.0.push_back(job);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Goes on with the text whose turn it is, where there is room for it. Requests whose client has left are dropped. Says whether the device worked, or
    /// what it failed of; `None` where it had nothing to do.
    pub(super) fn work(&mut self, engine: &mut Engine) -> Option<Result<()>> {
        if self.0.front().is_some_and(|job| job.has_begun && !job.is_waited_for()) {
            engine.cancel_embedding();
        }
        self.0.retain(TextJob::is_waited_for);
        let job = self.0.front_mut()?;
        let worked = job.work(engine);
        // Its client has got what was made, or why not. What a client has left in the middle is given up when its turn comes again.
        if job.reply.is_none() {
            self.0.pop_front();
        }
        worked
    }
}

impl TextJob {
    /// Neither done nor left by its client.
    fn is_waited_for(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// As [`TextJobs::work`].
    fn work(&mut self, engine: &mut Engine) -> Option<Result<()>> {
        if let Some(text) = self.texts.get(self.made.len()) {
            let begins = self.has_begun
                || match engine.begin_embedding(text, self.pooling) {
                    Ok(begins) => begins,
                    Err(error) => return self.fail(error),
                };
            if !begins {
                return None;
            }
            match engine.advance_embedding() {
                Ok(Some(vectors)) => self.made.push(vectors.concat()),
                Ok(None) => {
                    self.has_begun = true;
                    return Some(Ok(()));
                }
                Err(error) => return self.fail(error),
            }
            self.has_begun = false;
        }
        if self.made.len() == self.texts.len() {
            let made = std::mem::take(&mut self.made);
            self.tell(Ok(made));
        }
        Some(Ok(()))
    }

    /// Tells what was wrong; what the device failed of is the engine's thread's business too.
    fn fail(&mut self, error: Error) -> Option<Result<()>> {
        let failed = matches!(error, Error::Device(_));
        let told = ApiError::from(error);
        let fault = failed.then(|| Error::Device(told.body.message.clone()));
        self.tell(Err(told));
        fault.map(Err)
    }

    fn tell(&mut self, made: Told) {
        if let Some(reply) = self.reply.take() {
            // Whoever hears it may count on it that nothing is held any more.
            self.permit = None;
            // Its client may have left.
            let _ = reply.send(made);
        }
    }
}

impl EngineHandle {
    /// Makes a vector of each text. Dropping the future ends it before the next text.
    ///
    /// # Errors
    /// 400 where the engine refuses a text, 500 where the device fails, 503 where there is no engine any more, 504 after the time that an
    /// answer has.
    pub async fn embed(
        &self,
        permit: RequestPermit,
        texts: Vec<Vec<u32>>,
        pooling: Pooling,
        config: &ServerConfig,
    ) -> Result<Vec<Vec<f32>>, ApiError> {
        let time = config.request_timeout;
        let deadline = permit.start + time;
        let (reply, told) = oneshot::channel();
        let reply = Some(reply);
        let permit = Some(permit);
        let job = TextJob { texts, pooling, has_begun: false, made: Vec::new(), reply, permit };
        self.send(Job::Text(job))?;
        match tokio::time::timeout_at(deadline.into(), told).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => {
                Err(ApiError::unavailable("stopped", "the engine stopped before the answer was complete"))
            }
            Err(_) => Err(ApiError::timeout(time.as_secs())),
        }
    }
}
