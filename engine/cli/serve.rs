//! `qernel serve`: the HTTP server.

use super::conversation::{ReasoningArgs, TemplateArgs};
use super::hub;
use super::interrupt::{EXIT_INTERRUPTED, end_at_once};
use super::log::Queue;
use super::models_dir::{FolderModels, ModelsArgs, load_beside, served};
use super::options::{ModelArgs, parse_size};
use crate::embedded;
use crate::error::{Error, Result};
use crate::folder;
use crate::load::ModelsFolder;
use crate::server::{Open, PromptCacheConfig, ReasoningFormat, Server, ServerConfig, engine_is_left};
use clap::value_parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Serve a model, or several, over HTTP: OpenAI's and Anthropic's interfaces, the engine's own, and a chat page
///
/// Ctrl-C or SIGTERM stops accepting, lets what runs be completed, and ends the program with status 0; a second one ends
/// it at once.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Key that clients must show (every path but /health)
    #[arg(long, value_name = "KEY", env = "QERNEL_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// What clients call the model [default: the name of its file]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    #[command(flatten)]
    models: ModelsArgs,
    #[command(flatten)]
    prompt_cache: PromptCacheArgs,
    /// Let pages of this origin call the server (* for any); may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Answer for this host name too (* for any); may be given several times
    ///
    /// Loopback's names, addresses and the name of --host always do. Without this option, a server with a key or beyond loopback
    /// answers for any name.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allowed_hosts: Vec<String>,
    /// Sequences that run at once
    #[arg(long, alias = "parallel", default_value_t = 64, value_name = "N")]
    max_num_sequences: usize,
    /// Sequences that may wait besides; what comes then is answered with 429
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_queue: usize,
    /// Open connections; what comes then is answered with 503
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_connections: usize,
    /// Those from one address; what comes then is answered with 503 [default: three quarters of all]
    #[arg(long, value_name = "N")]
    max_connections_per_client: Option<usize>,
    #[command(flatten)]
    template: TemplateArgs,
    /// Where a model's thoughts are: none (in content, as written), deepseek (in reasoning_content), auto (there, if the chat template
    /// knows of thoughts)
    #[arg(long, default_value = "auto", value_name = "FORMAT")]
    reasoning_format: ReasoningFormat,
    #[command(flatten)]
    reasoning: ReasoningArgs,
    /// Answers to one request (n times its prompts)
    #[arg(long, default_value_t = 16, value_name = "N")]
    max_n: usize,
    /// Answers of /v1/responses that are kept, so that later ones may follow them; 0 keeps none
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_stored_responses: usize,
    /// Bytes of a request's body
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES")]
    max_body: usize,
    /// Seconds that an answer may take
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=31_536_000))]
    timeout: u64,
    /// Seconds that a client may take to send a request's head, its body, or to take any of its answer
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=31_536_000))]
    io_timeout: u64,
    /// Seconds that answers have left when the server is told to stop
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=31_536_000))]
    shutdown_timeout: u64,
}

/// What outlives the server.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prompts kept over a restart")]
struct PromptCacheArgs {
    /// Keep what was computed of prompts in this folder when the server stops or a model is unloaded, in a file for each model, and go on with
    /// it at the next start: the files hold prompts and answers, for their owner alone to read
    #[arg(long, value_name = "DIR")]
    prompt_cache: Option<PathBuf>,
    /// Size of a file at most, as 4GiB or bytes: what was used longest ago is left out
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1GiB")]
    prompt_cache_size: usize,
    /// Write it also when nothing is left to do and so many seconds have passed since the last time
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=31_536_000))]
    prompt_cache_interval: Option<u64>,
}

impl PromptCacheArgs {
    fn config(&self) -> Option<PromptCacheConfig> {
        Some(PromptCacheConfig {
            folder: self.prompt_cache.clone()?,
            max_bytes: self.prompt_cache_size as u64,
            interval: self.prompt_cache_interval.map(Duration::from_secs),
        })
    }
}

/// Runs the server until a signal stops it; `log` is where its lines wait.
pub fn run(args: ServeArgs, log: &Queue) -> Result<ExitCode> {
    give_memory_back();
    let seconds = Duration::from_secs;
    let prompt_cache = args.prompt_cache.config();
    let fingerprint = prompt_cache.is_some();
    let server = Server::bind(ServerConfig {
        host: args.host,
        port: args.port,
        api_key: args.api_key,
        cors: args.cors,
        allowed_hosts: args.allowed_hosts,
        max_num_sequences: args.max_num_sequences,
        max_queue: args.max_queue,
        max_connections: args.max_connections,
        max_peer_connections: args.max_connections_per_client,
        max_body_bytes: args.max_body,
        max_choices: args.max_n,
        max_stored_responses: args.max_stored_responses,
        template_variables: args.template.variables(),
        reasoning_format: args.reasoning_format,
        reasoning_budget: args.reasoning.reasoning_budget.bound(),
        reasoning_budget_message: args.reasoning.reasoning_budget_message,
        request_timeout: seconds(args.timeout),
        io_timeout: seconds(args.io_timeout),
        shutdown_timeout: seconds(args.shutdown_timeout),
        models_idle: args.models.idle(),
        max_models: args.models.models_max,
        models_memory: args.models.models_memory.map(|bytes| bytes as u64),
        prompt_cache,
        aliases: args.models.alias.into_iter().collect(),
        ..ServerConfig::default()
    })?;
    // Who reads that it listens may well tell it to stop.
    let stop = stop_signal(log.clone());
    tracing::info!("listening on http://{}", server.local_addr()?);
    let (template, max_num_sequences) = (args.template, args.max_num_sequences);
    let mut model = ModelArgs { fingerprint, ..args.model };
    let source = (args.models.models_dir.as_deref())
        .map(|folder| folder_models(folder, &model, &template, max_num_sequences))
        .transpose()?;
    let is_named = model.file.is_named();
    let name =
        move |model: &ModelArgs| args.model_name.unwrap_or_else(|| default_name(model.file.model.as_deref()));
    let Some(source) = source else {
        let open = move || {
            model.fetch(&mut hub::log)?;
            let name = name(&model);
            served(model.open(max_num_sequences)?, &template, name)
        };
        return server.run(open, stop).map(|()| ended(log));
    };
    let room = source.room_beside(args.models.models_max)?;
    let open: Open = Box::new(move || {
        model.fetch(&mut hub::log)?;
        let name = name(&model);
        served(load_beside(&model, max_num_sequences, room)?, &template, name)
    });
    server.run_models(is_named.then_some(open), source, stop).map(|()| ended(log))
}

/// What the program ends with when the server has.
fn ended(log: &Queue) -> ExitCode {
    if engine_is_left() {
        log.flush();
        end_at_once(0);
    }
    ExitCode::SUCCESS
}

/// The models of a folder beside `model`, if that names one.
fn folder_models(
    folder: &Path,
    model: &ModelArgs,
    template: &TemplateArgs,
    max_num_sequences: usize,
) -> Result<Arc<FolderModels>> {
    if !model.file.is_named() && (!model.lora.lora.is_empty() || model.drafts.model_draft.is_some()) {
        return Err(Error::Request(
            "--lora and --model-draft are for the model that --model or -hf names: name one beside --models-dir, or leave them out".into(),
        ));
    }
    let folder = ModelsFolder::new(folder, model.file.model.as_deref())?;
    Ok(Arc::new(FolderModels::new(folder, model.clone(), template.clone(), max_num_sequences)))
}

/// Makes memory of large requests go back to the system as soon as it is free. By itself glibc keeps more the more it has seen: after eight
/// texts of 4 MiB at once a server held 115 MB for good.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_memory_back() {
    const LARGE: i32 = 1 << 20;
    // SAFETY: both set a number of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_memory_back() {}

/// What clients call a model: its file's name without the ending, or that of its folder.
fn default_name(model: Option<&Path>) -> String {
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = model.and_then(|path| if path.is_dir() { folder::name(path) } else { stem(path) });
    name.unwrap_or_else(|| embedded::SHORT_NAME.into())
}

/// Done when the program is told to stop. Told again, it ends as soon as the log is written: the handler runs on a thread of its own,
/// which nothing that the server does can hold up.
fn stop_signal(log: Queue) -> impl Future<Output = ()> {
    let stop = Arc::new(Notify::new());
    let (tell, told) = (Arc::clone(&stop), AtomicBool::new(false));
    let installed = ctrlc::set_handler(move || {
        if told.swap(true, Ordering::SeqCst) {
            log.flush();
            end_at_once(EXIT_INTERRUPTED);
        }
        tell.notify_one();
    });
    if let Err(error) = installed {
        tracing::warn!("signals end the program at once: {error}");
    }
    async move { stop.notified().await }
}
