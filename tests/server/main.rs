//! The HTTP server with the model that the binary carries, on the CPU, over real sockets. `tests/clients/` has the clients that people
//! use, and schemathesis.

mod banned;
mod client;
mod connections;
mod conversations;
mod drafts;
mod embeddings;
mod fields;
mod formats;
mod generate;
mod grammars;
mod hostile;
mod hub;
#[allow(dead_code, reason = "the half of those that prove what goes wrong")]
#[path = "../common/hub_server.rs"]
mod hub_server;
mod infill;
mod lifecycle;
mod limits;
mod load;
mod logs;
mod long_texts;
mod lora;
mod messages;
#[path = "../common/minute.rs"]
mod minute;
mod models;
mod openai;
mod page;
mod prompt_cache;
mod prompt_logprobs;
mod refusals;
mod responses;
mod routers;
mod samplers;
mod schemas;
mod served_model;
mod templates;
mod thinking;
mod tools;
