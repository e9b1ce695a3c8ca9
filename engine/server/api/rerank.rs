//! `/v1/rerank`: how well documents fit a query, in the form of Jina's and Cohere's clients.

use super::embeddings::{MAX_TEXTS, TextUsage, encoded, pooler};
use super::fields;
use crate::App;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use axum::Json;
use axum::extract::State;
use qernel_core::engine::pooling::Pooling;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

described!(RerankRequest: fields::RERANK);

/// Documents that are to be scored.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RerankRequest {
    query: String,
    documents: Vec<Document>,
    model: Option<String>,
    /// So many of the best ones. [default: all]
    #[serde(default, deserialize_with = "crate::number::whole")]
    top_n: Option<usize>,
    /// Whether the answer has the documents' texts. [default: false]
    return_documents: Option<bool>,
}

/// A text, or an object with one.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an object with `text`")]
pub enum Document {
    Plain(String),
    Object { text: String },
}

impl Document {
    fn text(self) -> String {
        match self {
            Self::Plain(text) | Self::Object { text } => text,
        }
    }
}

/// The documents with their scores, the best first.
#[derive(Serialize, ToSchema)]
pub struct RerankResponse {
    /// `list`
    object: &'static str,
    model: String,
    results: Vec<Ranked>,
    usage: TextUsage,
}

/// A document's score.
#[derive(Serialize, ToSchema)]
pub struct Ranked {
    /// Its place in the request.
    index: usize,
    /// From 0 to 1 where the model has two labels.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument>,
}

/// The text of a document.
#[derive(Serialize, ToSchema)]
pub struct RankedDocument {
    text: String,
}

/// Scores documents for a query, with a model that has a classifier (Qwen3-Reranker).
#[utoipa::path(post, path = "/v1/rerank", tag = "qernel", request_body = RerankRequest, responses(
    (status = 200, description = "The scores, the best first.", body = RerankResponse),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn rerank(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<RerankRequest>,
) -> Result<Json<RerankResponse>, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let info = app.model(request.model.as_deref())?;
    let (model, pooler) = (info.name.clone(), pooler(info)?);
    let count = request.documents.len();
    if !(1..=MAX_TEXTS).contains(&count) {
        let message = format!("documents: expected 1 to {MAX_TEXTS}, found {count}");
        return Err(ApiError::field("documents", message));
    }
    let documents: Vec<String> = request.documents.into_iter().map(Document::text).collect();
    let permit = app.permit(1)?;
    // The query is in each.
    let pairs = documents.iter().map(|document| Ok(pooler.pair(&request.query, document)?));
    let (permit, texts) = encoded(&app, permit, "documents", pairs, |ids| ids).await?;
    let usage = TextUsage::of(&texts);
    let scores = app.engine.embed(permit, texts, Pooling::Rank, &app.config).await?;
    let mut results: Vec<Ranked> = scores
        .into_iter()
        .enumerate()
        .map(|(index, score)| Ranked {
            index,
            relevance_score: score.first().copied().unwrap_or_default(),
            document: None,
        })
        .collect();
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(request.top_n.unwrap_or(count));
    if request.return_documents == Some(true) {
        for ranked in &mut results {
            ranked.document = Some(RankedDocument { text: documents[ranked.index].clone() });
        }
    }
    Ok(Json(RerankResponse { object: "list", model, results, usage }))
}
