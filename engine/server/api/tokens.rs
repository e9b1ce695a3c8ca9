//! `/tokenize` and `/detokenize`.

use super::fields;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use crate::metrics::Rejection;
use crate::{App, number};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

described! {
    TokenizeRequest: fields::TOKENIZE,
    DetokenizeRequest: fields::DETOKENIZE,
}

/// Text to be cut into tokens.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TokenizeRequest {
    text: String,
    /// Whether the names of special tokens become those tokens. [default: true]
    parse_special: Option<bool>,
    /// Whose tokens they are. [default: the only model's, or that of the one that was loaded last]
    model: Option<String>,
}

/// The tokens of a text.
#[derive(Serialize, ToSchema)]
pub struct TokenizeResponse {
    ids: Vec<u32>,
    count: usize,
}

/// Tokens to be put together.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DetokenizeRequest {
    #[serde(deserialize_with = "number::whole_list")]
    ids: Vec<u32>,
    /// Whether special tokens are left out. [default: false]
    skip_special: Option<bool>,
    /// Whose tokens they are. [default: the only model's, or that of the one that was loaded last]
    model: Option<String>,
}

/// The text of tokens.
#[derive(Serialize, ToSchema)]
pub struct DetokenizeResponse {
    text: String,
}

/// Text to token ids. Nothing is added, no template and no BOS.
#[utoipa::path(post, path = "/tokenize", tag = "qernel", request_body = TokenizeRequest, responses(
    (status = 200, description = "The ids.", body = TokenizeResponse),
    (status = "4XX", description = "The request is wrong, or too many wait (429).", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
))]
pub async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    app.asked(request.model.as_deref(), None)?;
    let permit = app.work.reserve().inspect_err(|_| app.metrics.rejected(Rejection::QueueFull))?;
    let of_thread = Arc::clone(&app);
    let parse_special = request.parse_special.unwrap_or(true);
    let encode = move || Ok(of_thread.engine.model()?.tokenizer.encode(&request.text, parse_special)?);
    let (_permit, ids) = app.work.tokenize(permit, encode).await?;
    Ok(Json(TokenizeResponse { count: ids.len(), ids }))
}

/// Token ids to text; bytes that are no characters become U+FFFD.
#[utoipa::path(post, path = "/detokenize", tag = "qernel", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text.", body = DetokenizeResponse),
    (status = "4XX", description = "The request is wrong.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
))]
pub async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let info = app.asked(request.model.as_deref(), None)?.info;
    let text = info.tokenizer.decode(&request.ids, request.skip_special.unwrap_or(false));
    let named = |error: qernel_core::Error| ApiError::field("ids", format!("ids: {error}"));
    Ok(Json(DetokenizeResponse { text: text.map_err(named)? }))
}
