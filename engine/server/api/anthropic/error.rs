//! Errors as Anthropic's clients expect them.

use crate::error::{ApiError, ErrorObject};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request is not answered.
pub struct AnthropicError(ApiError);

impl From<ApiError> for AnthropicError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

/// The body of every answer that is an error.
#[derive(Serialize, ToSchema)]
pub struct AnthropicErrorResponse {
    /// `error`
    #[serde(rename = "type")]
    kind: &'static str,
    error: ErrorObject,
}

impl AnthropicErrorResponse {
    /// The body that says it.
    pub fn new(error: ApiError) -> Self {
        let kind = match error.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        Self { kind: "error", error: ErrorObject { kind, ..error.body } }
    }
}

/// An error in the form that the clients of a path expect.
pub fn respond(error: ApiError, path: &str) -> Response {
    match path.starts_with("/v1/messages") {
        true => AnthropicError(error).into_response(),
        false => error.into_response(),
    }
}

impl IntoResponse for AnthropicError {
    fn into_response(self) -> Response {
        let body = Json(AnthropicErrorResponse::new(self.0.clone())).into_response().into_body();
        let mut response = self.0.into_response();
        // Its length is another one.
        response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        *response.body_mut() = body;
        response
    }
}
