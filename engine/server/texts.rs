//! What is made of whole texts: vectors, scores, how likely their tokens are. Between two steps of answers the engine's thread
//! computes some rows of one text, or all, as there is room.

use super::config::ServerConfig;
use super::engine_thread::{EngineHandle, Job};
use super::error::ApiError;
use super::work::RequestPermit;
use qernel_core::batch::AdapterSet;
use qernel_core::engine::Engine;
use qernel_core::engine::pooling::Pooling;
use qernel_core::error::{Error, Result};
use qernel_core::sampler::Logprobs;
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// The texts of a request, and what of them is made so far.
pub(super) struct Texts<T> {
    texts: Vec<Vec<u32>>,
    /// The next one has begun.
    has_begun: bool,
    made: Vec<T>,
    /// Gone when it has been told.
    reply: Option<oneshot::Sender<Told<T>>>,
    /// Held until it is done, and given back then.
    permit: Option<RequestPermit>,
}

/// What came of working on a text.
enum Progress<T> {
    /// There was no room.
    Waits,
    /// A part of it is done.
    Goes,
    Done(T),
}

/// What was made, and the request's permit.
type Told<T> = Result<(RequestPermit, Vec<T>), ApiError>;

/// What is wanted of them.
pub(super) enum TextJob {
    /// A vector, or more, or a score of each.
    Embed(Texts<Vec<f32>>, Pooling),
    /// How likely each token but the first is with these adapters, and so many likeliest ones in its place.
    Score(Texts<Vec<Logprobs>>, AdapterSet, usize),
}

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
        if self.0.front().is_some_and(|job| job.has_begun() && !job.is_waited_for()) {
            engine.cancel_embedding();
        }
        self.0.retain(TextJob::is_waited_for);
        let job = self.0.front_mut()?;
        let worked = match job {
            TextJob::Embed(texts, pooling) => {
                let has_begun = texts.has_begun;
                texts.work(|text| {
                    if !has_begun && !engine.begin_embedding(text, *pooling)? {
                        return Ok(Progress::Waits);
                    }
                    let vectors = engine.advance_embedding()?;
                    Ok(vectors.map_or(Progress::Goes, |vectors| Progress::Done(vectors.concat())))
                })
            }
            TextJob::Score(texts, adapters, count) => texts.work(|text| {
                let scored = engine.prompt_logprobs(text, adapters, *count)?;
                Ok(scored.map_or(Progress::Waits, Progress::Done))
            }),
        };
        // What a client has left in the middle is given up when its turn comes again.
        if job.is_told() {
            self.0.pop_front();
        }
        worked
    }
}

impl TextJob {
    /// The text whose turn it is has been computed in part.
    fn has_begun(&self) -> bool {
        match self {
            Self::Embed(texts, _) => texts.has_begun,
            Self::Score(texts, ..) => texts.has_begun,
        }
    }

    /// Its client has got what was made, or why not.
    fn is_told(&self) -> bool {
        match self {
            Self::Embed(texts, _) => texts.reply.is_none(),
            Self::Score(texts, ..) => texts.reply.is_none(),
        }
    }

    /// Neither done nor left by its client.
    fn is_waited_for(&self) -> bool {
        match self {
            Self::Embed(texts, _) => texts.is_waited_for(),
            Self::Score(texts, ..) => texts.is_waited_for(),
        }
    }
}

impl<T> Texts<T> {
    fn is_waited_for(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// As [`TextJobs::work`].
    fn work(&mut self, make: impl FnOnce(&[u32]) -> Result<Progress<T>>) -> Option<Result<()>> {
        let made = self.texts.get(self.made.len()).map(|text| make(text));
        match made {
            Some(Ok(Progress::Waits)) => return None,
            Some(Ok(Progress::Goes)) => self.has_begun = true,
            Some(Ok(Progress::Done(made))) => {
                self.has_begun = false;
                self.made.push(made);
            }
            Some(Err(error)) => {
                let failed = matches!(error, Error::Device(_));
                let told = ApiError::from(error);
                let fault = failed.then(|| Error::Device(told.body.message.clone()));
                self.tell(Err(told));
                return fault.map(Err);
            }
            None => (),
        }
        if self.made.len() == self.texts.len() {
            let made = std::mem::take(&mut self.made);
            self.tell(Ok(made));
        }
        Some(Ok(()))
    }

    fn tell(&mut self, made: Result<Vec<T>, ApiError>) {
        if let (Some(reply), Some(permit)) = (self.reply.take(), self.permit.take()) {
            // Its client may have left.
            let _ = reply.send(made.map(|made| (permit, made)));
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
        let (_, vectors) =
            self.of_texts(permit, texts, |texts| TextJob::Embed(texts, pooling), config).await?;
        Ok(vectors)
    }

    /// How likely each token of each text but its first is, and `count` likeliest ones in its place. The permit comes back.
    ///
    /// # Errors
    /// As [`EngineHandle::embed`].
    pub async fn score(
        &self,
        permit: RequestPermit,
        texts: Vec<Vec<u32>>,
        adapters: AdapterSet,
        count: usize,
        config: &ServerConfig,
    ) -> Told<Vec<Logprobs>> {
        self.of_texts(permit, texts, |texts| TextJob::Score(texts, adapters, count), config).await
    }

    async fn of_texts<T>(
        &self,
        permit: RequestPermit,
        texts: Vec<Vec<u32>>,
        job: impl FnOnce(Texts<T>) -> TextJob,
        config: &ServerConfig,
    ) -> Told<T> {
        let time = config.request_timeout;
        let deadline = permit.start + time;
        let (reply, told) = oneshot::channel();
        let texts =
            Texts { texts, has_begun: false, made: Vec::new(), reply: Some(reply), permit: Some(permit) };
        self.send(Job::Text(job(texts)))?;
        match tokio::time::timeout_at(deadline.into(), told).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => {
                Err(ApiError::unavailable("stopped", "the engine stopped before the answer was complete"))
            }
            Err(_) => Err(ApiError::timeout(time.as_secs())),
        }
    }
}
