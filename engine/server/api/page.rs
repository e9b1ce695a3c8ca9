//! `/`: the chat page.

use crate::server::error::{ApiError, ErrorResponse};
use axum::extract::Path;
use axum::http::{StatusCode, header};
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

/// A file that the chat page uses.
#[utoipa::path(get, path = "/page/{file}", tag = "server",
    params(("file" = String, Path, description = "`chat.css` or `chat.js`.")),
    responses(
        (status = 200, description = "The file.", content(
            (String = "text/css"),
            (String = "text/javascript"),
        )),
        (status = 401, description = "The API key is missing.", body = ErrorResponse),
        (status = 404, description = "There is no such file.", body = ErrorResponse),
    )
)]
pub async fn file(Path(file): Path<String>) -> Result<Response, ApiError> {
    match file.as_str() {
        "chat.css" => Ok(serve("text/css; charset=utf-8", include_str!("../page/chat.css"))),
        "chat.js" => Ok(serve("text/javascript; charset=utf-8", include_str!("../page/chat.js"))),
        _ => Err(ApiError::refused(StatusCode::NOT_FOUND, None, "the page has no such file")),
    }
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
