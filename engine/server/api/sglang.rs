//! `/server_info` and `/get_load`: what SGLang's router asks the servers behind it, to be read only.

use crate::App;
use crate::error::{ApiError, ErrorResponse};
use axum::Json;
use axum::extract::State;
use qernel_core::kv_layout::PAGE_SIZE;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// What the server is.
#[derive(Serialize, ToSchema)]
pub struct ServerInfo {
    /// What requests call the model. Where its file lies is not said.
    served_model_name: String,
    version: &'static str,
    /// Sequences that run together.
    max_running_requests: usize,
    /// Tokens of the longest sequence, prompt and answer together.
    context_length: usize,
}

/// How much the server has to do.
#[derive(Serialize, ToSchema)]
pub struct Load {
    /// The engine's number: there is one.
    dp_rank: u32,
    /// Sequences in the batch, and those that wait.
    num_reqs: usize,
    /// Sequences that wait for a place in the batch.
    num_waiting_reqs: usize,
    /// Tokens that have room in the pages of the KV cache that hold a sequence.
    num_tokens: usize,
}

/// What the server is, as SGLang's says it.
#[utoipa::path(get, path = "/server_info", tag = "SGLang", responses(
    (status = 200, description = "The server.", body = ServerInfo),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
))]
pub async fn server_info(State(app): State<Arc<App>>) -> Result<Json<ServerInfo>, ApiError> {
    let app = app.looking(None).await?;
    let model = app.engine.model()?;
    Ok(Json(ServerInfo {
        served_model_name: model.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        max_running_requests: app.config.max_num_sequences,
        context_length: model.max_model_len,
    }))
}

/// How much the server has to do, as SGLang's says it. `/metrics` has more.
#[utoipa::path(get, path = "/get_load", tag = "SGLang", responses(
    (status = 200, description = "One engine's load.", body = Vec<Load>),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
))]
pub async fn get_load(State(app): State<Arc<App>>) -> Result<Json<Vec<Load>>, ApiError> {
    let app = app.looking(None).await?;
    app.engine.model()?;
    let load = app.engine.load();
    let (waiting, running, num_tokens) = (load.waiting, load.running, load.used_pages * PAGE_SIZE);
    Ok(Json(vec![Load { dp_rank: 0, num_reqs: waiting + running, num_waiting_reqs: waiting, num_tokens }]))
}
