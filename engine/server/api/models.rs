//! `/v1/models`.

use super::lora::AskedModel;
use crate::App;
use crate::engine_thread::ModelInfo;
use crate::error::{ApiError, ErrorResponse};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// The models of the server: one, and its adapters.
#[derive(Serialize, ToSchema)]
pub struct ModelList {
    /// `list`
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub struct Model {
    /// What requests call it.
    id: String,
    /// `model`
    object: &'static str,
    /// When the server started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// Tokens of the longest sequence, prompt and answer together.
    max_model_len: usize,
    /// What it runs on.
    device: String,
    /// Of an adapter the model that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

impl Model {
    /// The model, or one of its adapters, by the name that requests call it.
    fn new(app: &App, info: &ModelInfo, name: String) -> Self {
        Self {
            parent: (name != info.name).then(|| info.name.clone()),
            id: name,
            object: "model",
            created: unix_seconds(app.started),
            owned_by: "qernel",
            max_model_len: info.max_model_len,
            device: info.device.clone(),
        }
    }
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// 404, with the name that would do.
pub fn unknown(name: &str, model: &ModelInfo) -> ApiError {
    let mut message = format!("this server has no model {name:?}; it has {:?}", model.name);
    if !model.adapters.is_empty() {
        let names: Vec<_> = model.adapters.iter().map(|adapter| format!("{:?}", adapter.name)).collect();
        message += &format!(", with the adapters {}", names.join(", "));
    }
    let mut error = ApiError::refused(StatusCode::NOT_FOUND, Some("model_not_found"), message);
    error.body.param = Some("model".into());
    error
}

/// The models that requests may name.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, description = "The model of this server.", body = ModelList),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
    (status = 503, description = "It is being loaded.", body = ErrorResponse),
))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let info = app.engine.model()?;
    let names = std::iter::once(&info.name).chain(info.adapters.iter().map(|adapter| &adapter.name));
    let data = names.map(|name| Model::new(&app, info, name.clone())).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "OpenAI",
    params(("model" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "The model.", body = Model),
        (status = 400, description = "The path is no UTF-8.", body = ErrorResponse),
        (status = 401, description = "The API key is missing.", body = ErrorResponse),
        (status = 404, description = "There is no such model.", body = ErrorResponse),
        (status = 503, description = "It is being loaded.", body = ErrorResponse),
    )
)]
pub async fn retrieve(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(name) =
        name.map_err(|error| ApiError::field("model", format!("model: {}", error.body_text())))?;
    let AskedModel { info, name, .. } = app.asked(Some(&name), None)?;
    Ok(Json(Model::new(&app, info, name)))
}
