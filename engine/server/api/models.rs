//! `/v1/models`, and which of the models are loaded.

use crate::App;
use crate::body::JsonBody;
use crate::engine_handle::EngineHandle;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use crate::models::{Serving, Shelf, Status};
use crate::served_model::ModelInfo;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::Uri;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::{IntoParams, ToSchema};

/// The models of the server, and their adapters.
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
    /// Tokens of the longest sequence, prompt and answer together. Where the model is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
    /// What it runs on. Where it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Of an adapter the model that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Other names of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    /// Of a server with several models.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ModelStatus>,
}

/// Whether a model is in memory, as llama.cpp's server says it.
#[derive(Serialize, ToSchema)]
pub struct ModelStatus {
    /// `loaded`, `loading` or `unloaded`.
    value: &'static str,
    /// It could not be loaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    failed: bool,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl ModelStatus {
    fn new(status: Status) -> Self {
        let (value, reason) = match status {
            Status::Unloaded => ("unloaded", None),
            Status::Loading => ("loading", None),
            Status::Loaded => ("loaded", None),
            Status::Failed(reason) => ("unloaded", Some(reason)),
        };
        Self { value, failed: reason.is_some(), reason }
    }
}

impl Model {
    fn new(app: &App, name: String) -> Self {
        let aliases = app.config.aliases.iter().filter(|(_, of)| **of == name);
        Self {
            aliases: aliases.map(|(alias, _)| alias.clone()).collect(),
            id: name,
            object: "model",
            created: unix_seconds(app.started),
            owned_by: "qernel",
            max_model_len: None,
            device: None,
            parent: None,
            status: None,
        }
    }

    /// A loaded model and its adapters, each by the name that requests call it.
    fn of_engine(app: &App, engine: &EngineHandle) -> Result<Vec<Self>, ApiError> {
        let info = engine.model()?;
        let names = std::iter::once(&info.name).chain(info.adapters.iter().map(|adapter| &adapter.name));
        let has_others = app.models.shelf.is_some();
        let models = names.map(|name| Self {
            max_model_len: Some(info.max_model_len),
            device: Some(info.device.clone()),
            parent: (*name != info.name).then(|| info.name.clone()),
            status: has_others.then(|| ModelStatus::new(Status::Loaded)),
            ..Self::new(app, name.clone())
        });
        Ok(models.collect())
    }

    /// All that requests may name: the model that the server was started with first.
    async fn all(app: &App) -> Result<Vec<Self>, ApiError> {
        let Some(shelf) = &app.models.shelf else {
            return app.models.fixed.as_ref().map_or(Ok(Vec::new()), |engine| Self::of_engine(app, engine));
        };
        shelf.look(None).await;
        // While it is loaded its name is not known.
        let fixed = app.models.fixed.as_ref().map(|engine| Self::of_engine(app, engine));
        let mut all = fixed.and_then(Result::ok).unwrap_or_default();
        for shown in shelf.all() {
            let loaded = shown.engine.map(|engine| Self::of_engine(app, &engine));
            if all.iter().any(|model| *model.id == *shown.name) {
                continue;
            }
            match loaded {
                Some(Ok(models)) => all.extend(models),
                _ => all.push(Self {
                    status: Some(ModelStatus::new(shown.status)),
                    ..Self::new(app, shown.name.to_string())
                }),
            }
        }
        Ok(all)
    }
}

/// Which model is meant.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ModelQuery {
    /// A model's name. [default: the only one, or the one that was loaded last]
    model: Option<String>,
}

impl ModelQuery {
    /// The model that a path's query names, if it is loaded.
    ///
    /// # Errors
    /// As [`App::looking`]; 400 where the query cannot be read.
    pub async fn find(app: &Arc<App>, uri: &Uri) -> Result<Arc<Serving>, ApiError> {
        let Query(Self { model }) = Query::try_from_uri(uri)
            .map_err(|error| ApiError::field("model", format!("model: {}", error.body_text())))?;
        let serving = app.looking(model.as_deref()).await?;
        serving.asked(model.as_deref(), None)?;
        Ok(serving)
    }
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// 404, with the names that would do on a server of one model.
pub fn unknown(name: &str, model: &ModelInfo) -> ApiError {
    let mut message = format!("this server has no model {name:?}; it has {:?}", model.name);
    if !model.adapters.is_empty() {
        let names: Vec<_> = model.adapters.iter().map(|adapter| format!("{:?}", adapter.name)).collect();
        message += &format!(", with the adapters {}", names.join(", "));
    }
    ApiError::no_model(message)
}

/// The models that requests may name.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, description = "The models of this server.", body = ModelList),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
    (status = 503, description = "The only one is being loaded.", body = ErrorResponse),
))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList { object: "list", data: Model::all(&app).await? }))
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
    let all = Model::all(&app).await?;
    let found = all.into_iter().find(|model| model.id == app.own_name(&name));
    found.map(Json).ok_or_else(|| app.unknown(&name))
}

described!(ModelName: super::fields::MODEL_NAME);

/// Which model is to be loaded or unloaded.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ModelName {
    /// Its name.
    model: String,
}

/// That it was done.
#[derive(Serialize, ToSchema)]
pub struct Done {
    /// `true`
    success: bool,
}

/// Loads a model, as a request does that names it, and answers once it is loaded.
#[utoipa::path(post, path = "/models/load", tag = "llama.cpp", request_body = ModelName, responses(
    (status = 200, description = "It is loaded.", body = Done),
    (status = "4XX", description = "There is no such model (404), or too many requests wait (429).", body = ErrorResponse),
    (status = 500, description = "It cannot be loaded.", body = ErrorResponse),
    (status = 503, description = "There is no room beside models that are busy.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn load(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<ModelName>,
) -> Result<Json<Done>, ApiError> {
    shelf(&app)?.acquire(app.own_name(&request.model)).await?.ok_or_else(|| app.unknown(&request.model))?;
    Ok(Json(Done { success: true }))
}

/// Unloads a model that has no requests, and answers once its memory is free.
#[utoipa::path(post, path = "/models/unload", tag = "llama.cpp", request_body = ModelName, responses(
    (status = 200, description = "It is unloaded.", body = Done),
    (status = "4XX", description = "It is not loaded (400), there is no such model (404), or it has requests to answer (409).", body = ErrorResponse),
))]
pub async fn unload(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<ModelName>,
) -> Result<Json<Done>, ApiError> {
    shelf(&app)?.unload(app.own_name(&request.model)).await?.ok_or_else(|| app.unknown(&request.model))?;
    Ok(Json(Done { success: true }))
}

/// The models that come and go.
fn shelf(app: &App) -> Result<&Shelf, ApiError> {
    let one =
        || ApiError::invalid("this server keeps one model; one with --models-dir loads and unloads them");
    app.models.shelf.as_deref().ok_or_else(one)
}
