//! `/`: the chat page.

use crate::error::ErrorResponse;
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// What the page may do: nothing but talk to this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The chat page.
#[utoipa::path(get, path = "/", tag = "server", responses(
    (status = 200, description = "A page to chat with the model.", body = String, content_type = "text/html"),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
))]
pub async fn index() -> Response {
    serve("text/html; charset=utf-8", include_str!("../page/index.html"))
}

/// How the chat page looks.
#[utoipa::path(get, path = "/page/chat.css", tag = "server", responses(
    (status = 200, description = "The style sheet.", body = String, content_type = "text/css"),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
))]
pub async fn style() -> Response {
    serve("text/css; charset=utf-8", include_str!("../page/chat.css"))
}

/// What the chat page does.
#[utoipa::path(get, path = "/page/chat.js", tag = "server", responses(
    (status = 200, description = "The script.", body = String, content_type = "text/javascript"),
    (status = 401, description = "The API key is missing.", body = ErrorResponse),
))]
pub async fn script() -> Response {
    serve("text/javascript; charset=utf-8", include_str!("../page/chat.js"))
}

fn serve(media_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
