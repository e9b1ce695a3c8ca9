//! The OpenAPI document, made of the types that requests are parsed into and answers are written from, and of the tables of
//! fields.

use super::api::{
    self, anthropic, chat, chat_answer, completions, embeddings, generate, health, infill, lora, models,
    page, props, rerank, responses, sglang, tokens,
};
use super::fields;
use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi, openapi};

#[derive(OpenApi)]
#[openapi(
    info(title = "qernel", description = "An inference server for models in GGUF files. Fields that it does not know are refused by name."),
    paths(
        generate::generate,
        chat::chat_completions,
        responses::create,
        responses::retrieve,
        responses::delete,
        anthropic::messages,
        anthropic::count_tokens,
        completions::completions,
        infill::infill,
        embeddings::embeddings,
        rerank::rerank,
        models::list,
        models::retrieve,
        models::load,
        models::unload,
        tokens::tokenize,
        tokens::detokenize,
        tokens::tokenizer_info,
        props::props,
        lora::list,
        props::slots,
        sglang::server_info,
        sglang::get_load,
        health::health,
        health::metrics,
        page::index,
        page::file,
        self::openapi,
    ),
    components(schemas(generate::TokenEvent, generate::EndEvent, chat_answer::ChatChunk)),
    security(("api_key" = [])),
    modifiers(&ApiKey, &Fields),
    tags((name = "OpenAI"), (name = "Anthropic"), (name = "qernel"), (name = "llama.cpp"), (name = "SGLang"), (name = "vLLM"), (name = "server")),
)]
struct Document;

struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("api_key", bearer);
    }
}

/// Adds the fields that are taken or refused without being parsed.
struct Fields;

impl Modify for Fields {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let schemas = &mut document.components.get_or_insert_default().schemas;
        for (object, table) in api::fields::OBJECTS {
            let Some(openapi::RefOr::T(openapi::Schema::Object(object))) = schemas.get_mut(*object) else {
                continue;
            };
            for (treatment, names) in *table {
                let Some(schema) = fields::schema(*treatment) else { continue };
                let properties = names.iter().map(|name| ((*name).to_owned(), schema.clone()));
                object.properties.extend(properties);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Each table's fields are those of the type that is parsed, each once, and the document has all.
    #[test]
    fn tables_types_and_the_document_agree() {
        let document = serde_json::to_value(document()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for (object, table) in api::fields::OBJECTS {
            let properties = schemas[*object]["properties"].as_object().unwrap();
            let documented: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
            let names: Vec<&str> = table.iter().flat_map(|(_, names)| *names).copied().collect();
            let known: BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(documented, known, "{object}");
            assert_eq!(names.len(), known.len(), "{object}: a field stands there twice");
            assert_eq!(schemas[*object]["additionalProperties"], false, "{object}");
        }
        // What requests consist of is in the tables.
        for (name, schema) in schemas.iter().filter(|(_, schema)| schema["additionalProperties"] == false) {
            let is_known = api::fields::OBJECTS.iter().any(|(object, _)| object == name);
            assert!(is_known || ["NamedTool", "FunctionName"].contains(&name.as_str()), "{name}: {schema}");
        }
    }
}
