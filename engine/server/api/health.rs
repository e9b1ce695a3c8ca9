//! `/health` and `/metrics`.

use crate::App;
use crate::engine_handle::Health;
use crate::error::ErrorResponse;
use crate::metrics::CONTENT_TYPE;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Whether the server can answer.
#[derive(Serialize, ToSchema)]
pub struct HealthResponse {
    /// `ready`, `loading`, `degraded` or `stopped`.
    status: &'static str,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why the model's chat template cannot be used, where it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
}

/// Whether the model answers. Needs no API key.
#[utoipa::path(get, path = "/health", tag = "server", security(()), responses(
    (status = 200, description = "The model answers.", body = HealthResponse),
    (status = 503, description = "It is being loaded, its device failed, its file was changed, or it has stopped.", body = HealthResponse),
))]
pub async fn health(State(app): State<Arc<App>>) -> impl IntoResponse {
    let (status, text, reason) = match app.models.health() {
        Health::Ready => (StatusCode::OK, "ready", None),
        Health::Loading => {
            (StatusCode::SERVICE_UNAVAILABLE, "loading", Some("the model is being loaded".into()))
        }
        Health::Degraded(reason) => (StatusCode::SERVICE_UNAVAILABLE, "degraded", Some(reason)),
        Health::Stopped => {
            (StatusCode::SERVICE_UNAVAILABLE, "stopped", Some("the engine has stopped".into()))
        }
    };
    let template = app
        .models
        .fixed
        .as_ref()
        .and_then(|engine| Some(engine.model().ok()?.template.as_ref().err()?.to_string()));
    (status, Json(HealthResponse { status: text, reason, template }))
}

/// The server's numbers, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "server", responses(
    (status = 200, description = "OpenMetrics text.", body = String, content_type = "application/openmetrics-text"),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
))]
pub async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.encode())
}
