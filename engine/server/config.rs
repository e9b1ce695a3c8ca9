//! What the server is told when it starts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Where in an answer the model's thoughts are, as llama.cpp has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// In `content`, as the model wrote them.
    None,
    /// In `reasoning_content`.
    Deepseek,
    /// In `reasoning_content`, where the chat template knows of thoughts.
    #[default]
    Auto,
}

impl std::str::FromStr for ReasoningFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "deepseek" => Ok(Self::Deepseek),
            "auto" => Ok(Self::Auto),
            other => Err(format!("expected none, deepseek or auto, found {other:?}")),
        }
    }
}

/// Where the prefix caches of models outlive the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptCacheConfig {
    /// Has a file for each model, by its name.
    pub folder: PathBuf,
    /// Of a file, at most.
    pub max_bytes: u64,
    /// Files are also written when nothing is left to do and this has passed since the last time. None: when the server or the model goes.
    pub interval: Option<Duration>,
}

/// Limits and names of a server. Every bound here is what keeps its memory bounded too.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address or host name to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// What clients must show, as `Authorization: Bearer KEY` or as the password of basic authentication.
    pub api_key: Option<String>,
    /// Origins whose pages may call the server (`*`: any). None: browsers keep other pages out.
    pub cors: Vec<String>,
    /// Names that the server answers for besides loopback's, its own and addresses (`*`: any). None: any where it asks for a key or
    /// listens beyond loopback, else no others.
    pub allowed_hosts: Vec<String>,
    /// Sequences that run at once.
    pub max_num_sequences: usize,
    /// Sequences that may wait besides those that run; what comes then is answered with 429.
    pub max_queue: usize,
    /// Open connections; what comes then is answered with 503.
    pub max_connections: usize,
    /// Those of one address (of IPv6, of one network of 64 bits); what comes then is answered with 503. None: three quarters of
    /// all.
    pub max_peer_connections: Option<usize>,
    /// Events that may wait for a client to take them; one that lets more pile up loses its answer.
    pub max_pending_events: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Answers to one request: prompts times `n`.
    pub max_choices: usize,
    /// Answers of `/v1/responses` that are kept for later ones.
    pub max_stored_responses: usize,
    /// Variables of the chat template, where a request does not give them.
    pub template_variables: serde_json::Map<String, serde_json::Value>,
    /// Where the thoughts of a model are.
    pub reasoning_format: ReasoningFormat,
    /// Tokens after which thoughts are closed, where a request says nothing else: 0 thinks nothing, `None` leaves it to the model.
    pub reasoning_budget: Option<usize>,
    /// What the model is made to think before its thoughts are closed for it.
    pub reasoning_budget_message: String,
    /// From a request's acceptance to the end of its answer.
    pub request_timeout: Duration,
    /// For the head of a request, for its body, and for a client to take any of what was sent.
    pub io_timeout: Duration,
    /// Between two attempts to compute something after a step has failed, while nobody asks for anything.
    pub recovery_interval: Duration,
    /// From the signal to stop until what still runs is ended.
    pub shutdown_timeout: Duration,
    /// Where prefix caches are kept; None: they go with the server.
    pub prompt_cache: Option<PromptCacheConfig>,
    /// Other names of models, and the names that they stand for.
    pub aliases: BTreeMap<String, String>,
    /// Models of a [`ModelSource`](crate::ModelSource) that are loaded at a time; 0: as many as fit.
    pub max_models: usize,
    /// Bytes that those that are loaded take together, as their files say; one alone may take more. None: no bound.
    pub models_memory: Option<u64>,
    /// After so long without a request such a model is unloaded. None: it stays until another one needs its place.
    pub models_idle: Option<Duration>,
    /// How long a request waits at most until there is a place for its model.
    pub models_patience: Duration,
    /// From a failure to load a model to the next attempt, where its files stay as they are.
    pub models_retry: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            api_key: None,
            cors: Vec::new(),
            allowed_hosts: Vec::new(),
            max_num_sequences: 64,
            max_queue: 256,
            max_connections: 1024,
            max_peer_connections: None,
            max_pending_events: 4096,
            max_body_bytes: 4 << 20,
            max_choices: 16,
            max_stored_responses: 1024,
            template_variables: serde_json::Map::new(),
            reasoning_format: ReasoningFormat::Auto,
            reasoning_budget: None,
            reasoning_budget_message: String::new(),
            request_timeout: Duration::from_secs(600),
            io_timeout: Duration::from_secs(30),
            recovery_interval: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(30),
            prompt_cache: None,
            aliases: BTreeMap::new(),
            max_models: 4,
            models_memory: None,
            models_idle: None,
            models_patience: Duration::from_secs(60),
            models_retry: Duration::from_secs(10),
        }
    }
}

impl ServerConfig {
    /// Sequences of a model that may wait and run together.
    pub(crate) fn max_unfinished(&self) -> usize {
        self.max_num_sequences.saturating_add(self.max_queue).min(Semaphore::MAX_PERMITS)
    }

    /// Connections that one address may have.
    pub(crate) fn peer_connections(&self) -> usize {
        self.max_peer_connections.unwrap_or_else(|| (self.max_connections / 4 * 3).max(1))
    }
}
