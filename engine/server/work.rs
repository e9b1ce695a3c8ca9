//! Work that takes its time: tokenising, templates, grammars. A few threads of each kind do it, and nothing is queued behind
//! them: who waits for a turn is a future, so that a client that leaves takes its request along.

use super::error::ApiError;
use super::models::Lease;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Threads that tokenise and render templates for prompts.
const PROMPT_THREADS: usize = 4;
/// Threads that tokenise for `/tokenize`, whose texts may be longer than any prompt.
const TOKENIZE_THREADS: usize = 2;
/// Both, which take the runtime's threads for work that blocks.
pub const TEXT_THREADS: usize = PROMPT_THREADS + TOKENIZE_THREADS;
/// Threads that compile grammars: slow schemas must not keep texts waiting.
const GRAMMAR_THREADS: usize = 2;
/// llguidance recurses for each property and reference. The largest schema that is let through needs about a fifth of it;
/// pages that are not touched take no memory.
const GRAMMAR_STACK: usize = 256 << 20;
/// Requests without a sequence (`/tokenize`) that may wait for a turn.
const MAX_WAITING: usize = 64;

/// That a request was let in: as long as it lives, the request counts.
pub struct RequestPermit {
    pub permits: OwnedSemaphorePermit,
    /// When it was let in.
    pub start: Instant,
    /// What keeps its model loaded, where models come and go.
    pub lease: Option<Lease>,
}

impl RequestPermit {
    pub fn new(permits: OwnedSemaphorePermit) -> Self {
        Self { permits, start: Instant::now(), lease: None }
    }
}

/// Turns on the threads.
pub struct Work {
    prompts: Arc<Semaphore>,
    tokenize: Arc<Semaphore>,
    grammars: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// From a request's acceptance on.
    time: Duration,
}

impl Work {
    pub fn new(time: Duration) -> Self {
        let of = |permits| Arc::new(Semaphore::new(permits));
        Self {
            prompts: of(PROMPT_THREADS),
            tokenize: of(TOKENIZE_THREADS),
            grammars: of(GRAMMAR_THREADS),
            waiting: of(MAX_WAITING),
            time,
        }
    }

    /// A permit for a request that asks for no sequence.
    ///
    /// # Errors
    /// 429 where there is none.
    pub fn reserve(&self) -> Result<RequestPermit, ApiError> {
        let permit = Arc::clone(&self.waiting).try_acquire_owned();
        permit.map(RequestPermit::new).map_err(|_| ApiError::busy(MAX_WAITING))
    }

    /// Makes and tokenises a prompt. The permit goes along, so that it stays taken while the thread is.
    ///
    /// # Errors
    /// Those of `work`, and 504 where the request's time is over.
    pub async fn prompt<T: Send + 'static>(
        &self,
        permit: RequestPermit,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(RequestPermit, T), ApiError> {
        self.run(&self.prompts, permit, work, spawn_blocking).await
    }

    /// Tokenises what is no prompt.
    ///
    /// # Errors
    /// Those of `work`, and 504 where the request's time is over.
    pub async fn tokenize<T: Send + 'static>(
        &self,
        permit: RequestPermit,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(RequestPermit, T), ApiError> {
        self.run(&self.tokenize, permit, work, spawn_blocking).await
    }

    /// Compiles a grammar, on a stack that is large enough.
    ///
    /// # Errors
    /// Those of `work`, and 504 where the request's time is over.
    pub async fn grammar<T: Send + 'static>(
        &self,
        permit: RequestPermit,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(RequestPermit, T), ApiError> {
        let run = |job: Job| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(GRAMMAR_STACK);
            let started = thread.spawn(job).map(drop);
            started.map_err(|error| ApiError::server(format!("no thread for the grammar: {error}")))
        };
        self.run(&self.grammars, permit, work, run).await
    }

    async fn run<T: Send + 'static>(
        &self,
        turns: &Arc<Semaphore>,
        permit: RequestPermit,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
        spawn: impl FnOnce(Job) -> Result<(), ApiError>,
    ) -> Result<(RequestPermit, T), ApiError> {
        let deadline = (permit.start + self.time).into();
        let done = async {
            let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| ApiError::server("no turns"))?;
            let (tell, told) = oneshot::channel();
            let job = move || {
                // Between the turn and the thread's beginning the client may have left.
                if !tell.is_closed() {
                    let done = work();
                    drop(turn);
                    let _ = tell.send(done.map(|done| (permit, done)));
                }
            };
            spawn(Box::new(job))?;
            told.await.unwrap_or_else(|_| {
                Err(ApiError::server("the request could not be worked on: a thread panicked"))
            })
        };
        tokio::time::timeout_at(deadline, done)
            .await
            .unwrap_or_else(|_| Err(ApiError::timeout(self.time.as_secs())))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A turn is a thread: nothing waits in the runtime's queue.
fn spawn_blocking(job: Job) -> Result<(), ApiError> {
    tokio::task::spawn_blocking(job);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime
            .worker_threads(1)
            .max_blocking_threads(TEXT_THREADS)
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    /// Jobs that run until they are told to end.
    fn hold(
        work: &Arc<Work>,
        count: usize,
        end: &Arc<std::sync::Mutex<mpsc::Receiver<()>>>,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let start = |_| {
            let (work, end) = (Arc::clone(work), Arc::clone(end));
            tokio::spawn(async move {
                let permit = work.reserve().unwrap();
                let _ = work.tokenize(permit, move || Ok(end.lock().unwrap().recv())).await;
            })
        };
        (0..count).map(start).collect()
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn what_is_abandoned_keeps_its_turn_only_while_it_runs() {
        block_on(async {
            let work = Arc::new(Work::new(Duration::from_secs(1)));
            let (tell, end) = mpsc::channel();
            let end = Arc::new(std::sync::Mutex::new(end));
            let running = hold(&work, TOKENIZE_THREADS, &end);
            until(|| work.tokenize.available_permits() == 0).await;
            let waiting = hold(&work, MAX_WAITING - TOKENIZE_THREADS, &end);
            until(|| work.waiting.available_permits() == 0).await;
            let full = work.reserve().err().unwrap();
            assert_eq!((full.status.as_u16(), full.retry_after), (429, Some(1)));

            // Those that wait are gone with their clients; those that run keep permit and turn until they are done.
            waiting.iter().chain(&running).for_each(tokio::task::JoinHandle::abort);
            until(|| work.waiting.available_permits() == MAX_WAITING - TOKENIZE_THREADS).await;
            assert_eq!(work.tokenize.available_permits(), 0);
            let late = work.tokenize(work.reserve().unwrap(), || Ok(())).await.err().unwrap();
            assert_eq!(late.status.as_u16(), 504);
            // Prompts and grammars have threads of their own.
            assert!(work.prompt(work.reserve().unwrap(), || Ok(())).await.is_ok());
            assert!(work.grammar(work.reserve().unwrap(), || Ok(())).await.is_ok());

            (0..TOKENIZE_THREADS).for_each(|_| tell.send(()).unwrap());
            until(|| work.waiting.available_permits() == MAX_WAITING).await;
            assert!(work.tokenize(work.reserve().unwrap(), || Ok(())).await.is_ok());
            let panicked =
                work.grammar(work.reserve().unwrap(), || -> Result<(), _> { panic!("as it should") }).await;
            assert_eq!(panicked.err().unwrap().status.as_u16(), 500);
            assert!(work.grammar(work.reserve().unwrap(), || Ok(())).await.is_ok());
        });
    }
}
