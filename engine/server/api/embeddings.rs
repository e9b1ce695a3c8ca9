//! `/v1/embeddings`: vectors of texts.

use super::fields;
use super::openai::log_user;
use super::prompt::Prompt;
use crate::App;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use crate::models::Serving;
use crate::served_model::ModelInfo;
use crate::work::RequestPermit;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use qernel_core::engine::pooling::{Normalize, Pooler, Pooling};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

described!(EmbeddingRequest: fields::EMBEDDING);

/// Texts of a request at most, as in OpenAI's interface.
pub const MAX_TEXTS: usize = 2048;
/// Tokens that all texts of a request have together, at most.
const MAX_TOKENS: usize = 1 << 20;

/// Texts whose vectors are wanted.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct EmbeddingRequest {
    /// Token ids are taken as they are.
    input: Prompt,
    model: Option<String>,
    /// How vectors are written; `base64` of little-endian f32. [default: float]
    encoding_format: Option<Encoding>,
    /// Values of a vector that are wanted, the first ones; its length is made 1 again. For models that were made so. [default: all]
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "crate::number::whole")]
    dimensions: Option<usize>,
    /// Goes to the log.
    user: Option<String>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    #[default]
    Float,
    Base64,
}

/// The vectors, in the order of their texts.
#[derive(Serialize, ToSchema)]
pub struct EmbeddingList {
    /// `list`
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: TextUsage,
}

/// The vector of a text.
#[derive(Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// Numbers, or their bytes.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

/// Tokens that a request took.
#[derive(Serialize, ToSchema)]
pub struct TextUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

impl TextUsage {
    pub fn of(texts: &[Vec<u32>]) -> Self {
        let tokens = texts.iter().map(Vec::len).sum();
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

/// Vectors of texts, of length 1. How they are made of a text's rows is what the model's file says (mean, first or last token), or
/// the last token's.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest, responses(
    (status = 200, description = "The vectors.", body = EmbeddingList),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn embeddings(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<EmbeddingRequest>,
) -> Result<Json<EmbeddingList>, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let info = app.model(request.model.as_deref())?;
    let (model, pooler) = (info.name.clone(), pooler(info)?);
    let pooling = match pooler.pooling {
        None => Pooling::Last,
        Some(pooling @ (Pooling::Mean | Pooling::Cls | Pooling::Last)) => pooling,
        Some(Pooling::Rank) => {
            return Err(ApiError::invalid("the model is a reranker: its place is /v1/rerank"));
        }
        Some(Pooling::None) => {
            return Err(ApiError::invalid(
                "the model's file says that it makes a vector of each token, not of a text",
            ));
        }
    };
    let count = request.input.count();
    if !(1..=MAX_TEXTS).contains(&count) {
        return Err(ApiError::field(
            "input",
            format!("input: expected 1 to {MAX_TEXTS} texts, found {count}"),
        ));
    }
    let most = pooler.num_values();
    if let Some(dimensions) = request.dimensions.filter(|dimensions| !(1..=most).contains(dimensions)) {
        let message = format!(
            "dimensions: expected 1 to {most}, the values of this model's vectors, found {dimensions}"
        );
        return Err(ApiError::field("dimensions", message));
    }
    let permit = app.permit(1)?;
    let (permit, texts) = texts(&app, permit, request.input, pooler).await?;
    log_user(request.user.as_deref());
    let usage = TextUsage::of(&texts);
    let vectors = app.engine.embed(permit, texts, pooling, &app.config).await?;
    let encoding = request.encoding_format.unwrap_or_default();
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let embedding = written(vector, request.dimensions, encoding);
        Embedding { object: "embedding", index, embedding }
    });
    let data = data.collect();
    Ok(Json(EmbeddingList { object: "list", data, model, usage }))
}

/// The tokens of texts as they come, each as `finish` leaves it; too many of them together are refused, for all are kept until the last
/// one's turn.
///
/// # Errors
/// Those of the texts; 400, by the name of the field.
pub async fn encoded(
    app: &Arc<Serving>,
    mut permit: RequestPermit,
    param: &'static str,
    texts: impl Iterator<Item = Result<String, ApiError>>,
    finish: impl Fn(Vec<u32>) -> Vec<u32>,
) -> Result<(RequestPermit, Vec<Vec<u32>>), ApiError> {
    let (mut encoded, mut total) = (Vec::with_capacity(texts.size_hint().0), 0);
    for text in texts {
        let text = text?;
        let prompt;
        (permit, prompt) = app.encode(permit, param, |_| Ok(text)).await?;
        let tokens = finish(prompt.ids);
        total += tokens.len();
        if total > MAX_TOKENS {
            let message = format!(
                "{param}: the texts have more than {MAX_TOKENS} tokens together; send them in several requests"
            );
            return Err(ApiError::field(param, message));
        }
        encoded.push(tokens);
    }
    Ok((permit, encoded))
}

/// What makes vectors of the model's rows.
///
/// # Errors
/// 400 where it makes none.
pub fn pooler(info: &ModelInfo) -> Result<&Arc<Pooler>, ApiError> {
    info.pooler.as_ref().ok_or_else(|| ApiError::invalid("this server makes no vectors"))
}

/// The tokens of each text.
async fn texts(
    app: &Arc<Serving>,
    permit: RequestPermit,
    input: Prompt,
    pooler: &Arc<Pooler>,
) -> Result<(RequestPermit, Vec<Vec<u32>>), ApiError> {
    let texts = match input {
        Prompt::Ids(ids) => return Ok((permit, vec![ids])),
        Prompt::IdLists(lists) => return Ok((permit, lists)),
        Prompt::Text(text) => vec![text],
        Prompt::Texts(texts) => texts,
    };
    let tokenizer = &app.engine.model()?.tokenizer;
    encoded(app, permit, "input", texts.into_iter().map(Ok), |ids| pooler.around(tokenizer, ids)).await
}

/// A vector as it is asked for.
fn written(mut vector: Vec<f32>, dimensions: Option<usize>, encoding: Encoding) -> Vector {
    vector.truncate(dimensions.unwrap_or(vector.len()));
    Normalize::Euclidean.apply(&mut vector);
    match encoding {
        Encoding::Float => Vector::Floats(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Base64(BASE64_STANDARD.encode(bytes))
        }
    }
}
