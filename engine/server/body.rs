//! The body of a request: bounded in size and time, JSON, and nothing in it that is not understood.

use super::App;
use super::error::ApiError;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::time::timeout;

/// A body in JSON. Refusals name the field.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        // Besides being true, this keeps other sites' pages out: without CORS a browser sends JSON only where it is asked to.
        let media_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::refused(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                None,
                format!("expected the header `Content-Type: application/json`, found {essence:?}"),
            ));
        }
        let bytes = read(request.into_body(), app).await?;
        parse(&bytes).map(Self)
    }
}

async fn read(body: Body, app: &App) -> Result<bytes::Bytes, ApiError> {
    let (max, time) = (app.config.max_body_bytes, app.config.io_timeout);
    match timeout(time, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            None,
            format!("the body has more than {max} bytes, the most that this server takes"),
        )),
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body ended early: {error}"))),
        Err(_) => Err(ApiError::refused(
            StatusCode::REQUEST_TIMEOUT,
            None,
            format!("the body was not complete after {} s", time.as_secs()),
        )),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::invalid(format!("the body is not UTF-8: byte {} begins no character", error.valid_up_to()))
    })?;
    let json = &mut serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if !inner.is_data() {
            return ApiError::invalid(format!("the body is not JSON: {inner}"));
        }
        match path.as_str() {
            "." => ApiError::invalid(inner.to_string()),
            path => ApiError::field(path, format!("{path}: {inner}")),
        }
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?;
    Ok(value)
}
