//! The HTTP server: many connections, one engine for each model.
//!
//! ```text
//! connection -> router -> api::* -> EngineHandle -> engine thread: Engine::submit, Engine::step
//!                            ^-- Answer (a bounded channel of events) --'
//! ```
//!
//! Tokio's threads parse, tokenise and write; the engine's thread (`engine_thread`) computes. A dropped `Answer` is
//! how a client's leaving reaches the engine. Where there are several models (`models`), each that is loaded has a thread, and a request
//! has a lease of the one that it names.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod annotations;
mod answer;
mod api;
mod auth;
mod body;
mod config;
mod connection;
mod engine_handle;
mod engine_thread;
mod error;
mod fields;
mod files;
mod gbnf;
mod grammar;
mod host;
mod metrics;
mod models;
mod number;
mod openapi;
mod peers;
mod prompt_cache;
mod schema;
mod served_model;
mod sse;
mod stream;
mod texts;
mod trace;
mod warm_up;
mod work;

pub use config::{PromptCacheConfig, ReasoningFormat, ServerConfig};
pub use grammar::{Grammar, gbnf_grammar};
pub use models::{ListedModel, ModelSource, Room};
pub use openapi::document as openapi_document;
pub use served_model::ServedModel;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::middleware::from_fn_with_state;
use engine_handle::{EngineHandle, Health};
use host::Hosts;
use metrics::Metrics;
use models::{Models, Shelf};
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use work::Work;

/// What a step may take that is under way when everything else has ended.
const LAST_STEP: Duration = Duration::from_secs(5);
/// What writing the prefix caches to files may take besides.
const KEEPING: Duration = Duration::from_secs(60);

/// Opens a model, on the thread that is its engine's from then on.
pub type Open = Box<dyn FnOnce() -> Result<ServedModel> + Send>;

/// What every handler sees.
pub struct App {
    config: ServerConfig,
    hosts: Hosts,
    models: Models,
    work: Work,
    metrics: Arc<Metrics>,
    /// Answers that later ones may follow.
    responses: api::responses::Store,
    started: SystemTime,
}

/// A server that has its port and not yet a model.
pub struct Server {
    config: ServerConfig,
    hosts: Hosts,
    listener: TcpListener,
}

impl Server {
    /// Takes the port.
    ///
    /// # Errors
    /// [`Error::Io`] where the address cannot be had, [`Error::Request`] where the configuration makes no sense.
    pub fn bind(mut config: ServerConfig) -> Result<Self> {
        cors(&config.cors)?;
        config.prompt_cache.as_ref().map_or(Ok(()), PromptCacheConfig::make_folder)?;
        if let Some(key) = &config.api_key {
            auth::check(key)?;
        }
        api::conversation::budget_of(&config.template_variables)
            .map_err(|error| Error::Request(format!("--chat-template-kwargs: thinking_budget: {error}")))?;
        for (name, value) in [
            ("--max-num-sequences", config.max_num_sequences),
            ("--max-connections", config.max_connections),
            ("--max-connections-per-client", config.max_peer_connections.unwrap_or(1)),
            ("--max-body", config.max_body_bytes),
            ("--max-n", config.max_choices),
        ] {
            if value == 0 {
                return Err(Error::Request(format!("{name} is 0; the server would answer nothing")));
            }
        }
        config.max_connections = files::bound(config.max_connections);
        let address = format!("{}:{}", config.host, config.port);
        let is_local = ["127.0.0.1", "::1", "localhost"].contains(&config.host.as_str());
        if !is_local && config.api_key.is_none() {
            tracing::warn!("anybody who reaches {address} may use the model; --api-key asks for a key");
        }
        let listener = TcpListener::bind((config.host.as_str(), config.port))
            .and_then(|listener| {
                // The standard library asks for 128: clients that come at once beyond that would knock again after a second.
                let backlog = i32::try_from(config.max_connections).unwrap_or(i32::MAX);
                socket2::SockRef::from(&listener).listen(backlog.max(128))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .map_err(|error| Error::io(&address, error))?;
        let bound = listener.local_addr().map_err(|error| Error::io(&address, error))?;
        let hosts = Hosts::new(&config, bound.ip())?;
        Ok(Self { config, hosts, listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// [`Error::Io`] from the system.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|error| Error::io("the server's socket", error))
    }

    /// Loads the model with `open` on a thread of its own and answers until `stop` is done and what then runs is complete
    /// or out of time. While the model loads, `/health` says so and the rest answers 503.
    ///
    /// # Errors
    /// Those of `open`; [`Error::Io`] where the system refuses threads or sockets.
    pub fn run(
        self,
        open: impl FnOnce() -> Result<ServedModel> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        // Compiled once, here, and not again for each caller's types.
        self.run_until(Some(Box::new(open)), None, std::pin::pin!(stop))
    }

    /// As [`Server::run`], with the models of `source` besides, each loaded when a request names it; without `open` with these alone.
    ///
    /// # Errors
    /// As [`Server::run`], and those of [`ModelSource::list`].
    pub fn run_models(
        self,
        open: Option<Open>,
        source: Arc<dyn ModelSource>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        self.run_until(open, Some(source), std::pin::pin!(stop))
    }

    fn run_until(
        self,
        open: Option<Open>,
        source: Option<Arc<dyn ModelSource>>,
        stop: Pin<&mut dyn Future<Output = ()>>,
    ) -> Result<()> {
        let Self { config, hosts, listener } = self;
        let io = |error| Error::io("the server's runtime", error);
        let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        // Tokio waits without end for the first of them where the system does not start the second.
        host_memory::try_threads("the server", workers)?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime
            .worker_threads(workers)
            .max_blocking_threads(work::TEXT_THREADS)
            .thread_name("http")
            .enable_all();
        // Tokio panics where the system does not start its threads.
        let runtime = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.build()))
            .map_err(|_| host_memory::no_thread("the server", "it panicked"))?
            .map_err(io)?;
        let metrics = Arc::new(Metrics::default());
        let shelf = source.map(|source| Shelf::new(source, &config, Arc::clone(&metrics))).transpose()?;
        let start = |open| EngineHandle::start(open, &config, Arc::clone(&metrics));
        let fixed =
            open.map(start).transpose().map_err(|error| host_memory::no_thread("the engine", error))?;
        let (fixed, thread) = fixed.map(|(engine, thread)| (Arc::new(engine), thread)).unzip();
        let models = Models { fixed, shelf };
        let cors = cors(&config.cors)?;
        let work = Work::new(config.request_timeout);
        let responses = api::responses::Store::new(config.max_stored_responses);
        let app =
            Arc::new(App { config, hosts, models, work, metrics, responses, started: SystemTime::now() });
        let router = router(&app, cors);
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(io)?;
            // Without an engine there is nothing to wait for.
            let stop = async {
                tokio::select! {
                    () = stop => (),
                    () = app.models.stopped() => (),
                }
            };
            connection::serve(listener, router, Arc::clone(&app), stop).await;
            Ok(())
        })?;
        // What still runs is dropped here, and with it the last senders: the engines' threads end after their step. One that
        // loads its model is not waited for.
        let keeping = app.config.prompt_cache.as_ref().map_or(Duration::ZERO, |_| KEEPING);
        let is_loading = app.models.health() == Health::Loading;
        let patience = if is_loading { Duration::ZERO } else { LAST_STEP + keeping };
        runtime.shutdown_timeout(Duration::from_secs(1));
        let others = app.models.shelf.as_ref().map(|shelf| shelf.close()).unwrap_or_default();
        drop(app);
        let start = Instant::now();
        let is_done = || thread.as_ref().is_none_or(|thread| thread.is_finished());
        while !is_done() || !others.iter().all(|thread| thread.is_finished()) {
            if start.elapsed() >= patience {
                tracing::warn!("the engine is still at work; it is left to the end of the program");
                ENGINE_IS_LEFT.store(true, Ordering::SeqCst);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let panicked = |_| Err(Error::Device("the engine's thread panicked".into()));
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
    }
}

/// See [`engine_is_left`].
static ENGINE_IS_LEFT: AtomicBool = AtomicBool::new(false);

/// Whether a server of this process has ended while its engine was at work, which goes on until the process ends.
pub fn engine_is_left() -> bool {
    ENGINE_IS_LEFT.load(Ordering::SeqCst)
}

fn router(app: &Arc<App>, cors: Option<CorsLayer>) -> Router {
    let router = api::routes()
        .fallback(api::nowhere)
        .method_not_allowed_fallback(api::no_such_method)
        .layer(from_fn_with_state(Arc::clone(app), auth::require_key));
    let router = match cors {
        // A browser asks without the key whether it may ask with it.
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router.layer(from_fn_with_state(Arc::clone(app), host::require_host));
    router.layer(from_fn_with_state(Arc::clone(app), trace::trace)).with_state(Arc::clone(app))
}

fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let parse = |origin: &String| {
            let fault = || {
                Error::Request(format!(
                    "--cors: expected an origin such as https://example.org, found {origin:?}"
                ))
            };
            origin.contains("://").then(|| HeaderValue::from_str(origin).ok()).flatten().ok_or_else(fault)
        };
        AllowOrigin::list(origins.iter().map(parse).collect::<Result<Vec<_>>>()?)
    };
    let layer =
        CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::POST, Method::DELETE]);
    // Clients of OpenAI's interface send headers of their own; none of them means anything here.
    let layer = layer.allow_headers(AllowHeaders::mirror_request());
    Ok(Some(layer.expose_headers([trace::REQUEST_ID, header::RETRY_AFTER])))
}

/// A name that nothing else has: 128 bits from the keys that the system gave the standard library's hasher.
fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random_u64(), random_u64())
}

/// 64 random bits.
fn random_u64() -> u64 {
    RandomState::new().hash_one(0)
}
