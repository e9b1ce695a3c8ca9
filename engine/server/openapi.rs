//! The OpenAPI document, made of the types that requests are parsed into and answers are written from.

use super::api::{chat, completions, generate, health, models, page, tokens};
use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi, openapi};

#[derive(OpenApi)]
#[openapi(
    info(title = "qernel", description = "A Qwen inference server. Fields that it does not know are refused by name."),
    paths(
        generate::generate,
        chat::chat_completions,
        completions::completions,
        models::list,
        models::retrieve,
        tokens::tokenize,
        tokens::detokenize,
        health::health,
        health::metrics,
        page::index,
        page::style,
        page::script,
        self::openapi,
    ),
    components(schemas(generate::TokenEvent, generate::EndEvent, chat::ChatChunk)),
    security(("api_key" = [])),
    modifiers(&ApiKey),
    tags((name = "OpenAI"), (name = "qernel"), (name = "server")),
)]
struct Document;

struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("api_key", bearer);
    }
}

/// The document.
pub fn document() -> openapi::OpenApi {
    Document::openapi()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "server", responses(
    (status = 200, description = "OpenAPI 3.1.", body = serde_json::Value),
    (status = 401, description = "The API key is missing.", body = super::error::ErrorResponse),
))]
pub async fn openapi() -> Json<openapi::OpenApi> {
    Json(document())
}
