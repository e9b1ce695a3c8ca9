//! `/`: the chat page.

use crate::error::ErrorResponse;
use axum::http::{Uri, header};
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

/// What the page consists of: name, media type, text.
const FILES: [(&str, &str, &str); 7] = [
    ("chat.css", STYLE, include_str!("../page/chat.css")),
    ("chat.js", SCRIPT, include_str!("../page/chat.js")),
    ("markdown.js", SCRIPT, include_str!("../page/markdown.js")),
    ("settings.js", SCRIPT, include_str!("../page/settings.js")),
    ("store.js", SCRIPT, include_str!("../page/store.js")),
    ("stream.js", SCRIPT, include_str!("../page/stream.js")),
    ("view.js", SCRIPT, include_str!("../page/view.js")),
];
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// How the chat page looks, and what it does.
#[utoipa::path(get, path = "/page/{file}", tag = "server",
    params(("file" = String, Path, description = "`chat.css`, `chat.js` or another of the page's scripts.")),
    responses(
        (status = 200, description = "A style sheet or a script.", content(
            (String = "text/javascript"),
            (String = "text/css"),
        )),
        (status = 401, description = "The API key is missing.", body = ErrorResponse),
        (status = 404, description = "The page has no such file.", body = ErrorResponse),
    )
)]
pub async fn file(uri: Uri) -> Response {
    let name = uri.path().strip_prefix("/page/").unwrap_or_default();
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, media_type, text)) => serve(media_type, text),
        None => super::nowhere(uri).await,
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
