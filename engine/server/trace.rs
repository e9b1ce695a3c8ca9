//! A name and a line of the log for every request.

use super::{App, random_id};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::time::Instant;
use tracing::Instrument;

/// Clients may name their requests by it; every answer has it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer name is replaced.
const LONGEST_ID: usize = 128;

/// Gives a request its id, a span of the log, and a line when its answer begins.
pub async fn trace(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).filter(|id| is_id(id));
    let id = given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&random_id("req-")).expect("letters and digits make a header")
    });
    let path = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path
    );
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    app.metrics.responded(status);
    let ms = start.elapsed().as_secs_f64() * 1e3;
    span.in_scope(|| tracing::info!(status, ms = (ms * 1e3).round() / 1e3, "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn is_id(id: &HeaderValue) -> bool {
    (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}
