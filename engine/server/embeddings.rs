//! Vectors and scores of texts: between two steps of answers the engine's thread computes some rows of one, as there is room.

use super::config::ServerConfig;
use super::engine_thread::{EngineHandle, Job};
use super::error::ApiError;
use super::work::RequestPermit;
use qernel_core::engine::Engine;
use qernel_core::engine::pooling::Pooling;
use qernel_core::error::Error;
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// What a request gets: a vector for each text.
type Vectors = Result<Vec<Vec<f32>>, ApiError>;

/// The texts of a request.
pub(super) struct EmbedJob {
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
    /// The next one has begun.
    has_begun: bool,
    /// Those that are made.
    vectors: Vec<Vec<f32>>,
    reply: oneshot::Sender<Vectors>,
    /// Held until it is done.
    _permit: RequestPermit,
}

/// The requests that wait, in their order.
#[derive(Default)]
pub(super) struct Embeddings(VecDeque<EmbedJob>);

impl Embeddings {
    pub(super) fn push(&mut self, job: EmbedJob) {
        self.0.push_back(job);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Computes the next rows of the text whose turn it is, where there is room for it. Requests whose client has left are dropped. Says
    /// whether the device worked, or what it failed of; `None` where it had nothing to do.
    pub(super) fn work(&mut self, engine: &mut Engine) -> Option<Result<(), Error>> {
        if self.0.front().is_some_and(|job| job.has_begun && job.reply.is_closed()) {
            engine.cancel_embedding();
        }
        self.0.retain(|job| !job.reply.is_closed());
        let job = self.0.front_mut()?;
        let made = match job.texts.get(job.vectors.len()) {
            None => Ok(None),
            Some(_) if job.has_begun => engine.advance_embedding(),
            Some(text) => match engine.begin_embedding(text, job.pooling) {
                Ok(true) => {
                    job.has_begun = true;
                    engine.advance_embedding()
                }
                Ok(false) => return None,
                Err(error) => Err(error),
            },
        };
        match made {
            Ok(None) => {}
            Ok(Some(vectors)) => {
                job.has_begun = false;
                job.vectors.push(vectors.concat());
            }
            Err(error) => {
                let failed = matches!(error, Error::Device(_));
                let told = ApiError::from(error);
                let fault = failed.then(|| Error::Device(told.body.message.clone()));
                self.finish(Err(told));
                return fault.map(Err);
            }
        }
        if job.vectors.len() == job.texts.len() {
            let vectors = std::mem::take(&mut job.vectors);
            self.finish(Ok(vectors));
        }
        Some(Ok(()))
    }

    fn finish(&mut self, vectors: Vectors) {
        if let Some(job) = self.0.pop_front() {
            // Its client may have left.
            let _ = job.reply.send(vectors);
        }
    }
}

impl EngineHandle {
    /// Makes a vector of each text. Dropping the future ends it.
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
    ) -> Vectors {
        let time = config.request_timeout;
        let deadline = permit.start + time;
        let (reply, told) = oneshot::channel();
        self.send(Job::Embed(EmbedJob {
            texts,
            pooling,
            has_begun: false,
            vectors: Vec::new(),
            reply,
            _permit: permit,
        }))?;
        match tokio::time::timeout_at(deadline.into(), told).await {
            Ok(Ok(vectors)) => vectors,
            Ok(Err(_)) => {
                Err(ApiError::unavailable("stopped", "the engine stopped before the answer was complete"))
            }
            Err(_) => Err(ApiError::timeout(time.as_secs())),
        }
    }
}
