//! `/tokenize`, `/detokenize` and `/tokenizer_info`.

use super::models::ModelQuery;
use super::{fields, props};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use crate::metrics::Rejection;
use crate::{App, number};
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

described! {
    TokenizeRequest: fields::TOKENIZE,
    DetokenizeRequest: fields::DETOKENIZE,
}

/// Text to be cut into tokens: `text`, or `prompt`, to which the answer has vLLM's form too.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TokenizeRequest {
    text: Option<String>,
    prompt: Option<String>,
    /// Whether BOS comes first where the model's prompts begin with it. [default: true for `prompt`, false for `text`]
    add_special_tokens: Option<bool>,
    /// Whether the names of special tokens become those tokens. [default: true]
    parse_special: Option<bool>,
    /// Whose tokens they are. [default: the only model's, or that of the one that was loaded last]
    model: Option<String>,
}

/// The tokens of a text.
#[derive(Serialize, ToSchema)]
pub struct TokenizeResponse {
    ids: Vec<u32>,
    count: usize,
    /// As `ids`, of a `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<u32>>,
    /// Tokens of the longest sequence, of a `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
}

/// Tokens to be put together: `ids`, or `tokens`, to which the answer has vLLM's form too.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DetokenizeRequest {
    #[serde(default, deserialize_with = "number::whole_list_if_any")]
    ids: Option<Vec<u32>>,
    #[serde(default, deserialize_with = "number::whole_list_if_any")]
    tokens: Option<Vec<u32>>,
    /// Whether special tokens are left out. [default: false]
    skip_special: Option<bool>,
    /// Whose tokens they are. [default: the only model's, or that of the one that was loaded last]
    model: Option<String>,
}

/// The text of tokens.
#[derive(Serialize, ToSchema)]
pub struct DetokenizeResponse {
    text: String,
    /// As `text`, of `tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
}

/// What the tokenizer has beside its vocabulary.
#[derive(Serialize, ToSchema)]
pub struct TokenizerInfo {
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
    /// The Jinja text of the chat template; null where there is none that can be used.
    chat_template: Option<String>,
    /// Tokens of the longest sequence.
    model_max_length: usize,
}

/// The value of one of two fields that mean the same, and whether it is the second.
fn one_of<T>(names: [&str; 2], values: [Option<T>; 2]) -> Result<(T, bool), ApiError> {
    let [name, other] = names;
    match values {
        [Some(value), None] => Ok((value, false)),
        [None, Some(value)] => Ok((value, true)),
        [None, None] => Err(ApiError::field(name, format!("expected `{name}` or `{other}`, found neither"))),
        [Some(_), Some(_)] => {
            Err(ApiError::field(other, format!("expected `{name}` or `{other}`, found both; leave one out")))
        }
    }
}

/// Text to token ids. Without `add_special_tokens` nothing is added to a `text`, no template and no BOS.
#[utoipa::path(post, path = "/tokenize", tag = "qernel", request_body = TokenizeRequest, responses(
    (status = 200, description = "The ids.", body = TokenizeResponse),
    (status = "4XX", description = "The request is wrong, or too many wait (429).", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
))]
pub async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    app.asked(request.model.as_deref(), None)?;
    let permit = app.work.reserve().inspect_err(|_| app.metrics.rejected(Rejection::QueueFull))?;
    let of_thread = Arc::clone(&app);
    let parse_special = request.parse_special.unwrap_or(true);
    let (text, is_prompt) = one_of(["text", "prompt"], [request.text, request.prompt])?;
    let adds_special = request.add_special_tokens.unwrap_or(is_prompt);
    let encode = move || {
        let tokenizer = &of_thread.engine.model()?.tokenizer;
        let bos = tokenizer.bos_token_id().filter(|_| adds_special && tokenizer.adds_bos());
        let ids = tokenizer.encode(&text, parse_special)?;
        Ok(bos.into_iter().chain(ids).collect::<Vec<u32>>())
    };
    let (_permit, ids) = app.work.tokenize(permit, encode).await?;
    let max_model_len = is_prompt.then_some(app.engine.model()?.max_model_len);
    Ok(Json(TokenizeResponse {
        count: ids.len(),
        tokens: is_prompt.then(|| ids.clone()),
        ids,
        max_model_len,
    }))
}

/// Token ids to text; bytes that are no characters become U+FFFD.
#[utoipa::path(post, path = "/detokenize", tag = "qernel", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text.", body = DetokenizeResponse),
    (status = "4XX", description = "The request is wrong.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
))]
pub async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let info = app.asked(request.model.as_deref(), None)?.info;
    let (ids, is_tokens) = one_of(["ids", "tokens"], [request.ids, request.tokens])?;
    let text = info.tokenizer.decode(&ids, request.skip_special.unwrap_or(false));
    let field = if is_tokens { "tokens" } else { "ids" };
    let text = text.map_err(|error| ApiError::field(field, format!("{field}: {error}")))?;
    Ok(Json(DetokenizeResponse { prompt: is_tokens.then(|| text.clone()), text }))
}

/// What programs that measure models ask of a tokenizer, as vLLM's server says it.
#[utoipa::path(get, path = "/tokenizer_info", tag = "vLLM", params(ModelQuery), responses(
    (status = 200, description = "Special tokens and the template.", body = TokenizerInfo),
    (status = "4XX", description = "There is no such model (404), or the API key is missing (401).", body = ErrorResponse),
    (status = 503, description = "The model is not loaded.", body = ErrorResponse),
))]
pub async fn tokenizer_info(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<TokenizerInfo>, ApiError> {
    let app = ModelQuery::find(&app, &uri).await?;
    let model = app.engine.model()?;
    let tokenizer = &model.tokenizer;
    let text = |token: Option<u32>| token.map(|token| props::text_of(tokenizer, Some(token)));
    Ok(Json(TokenizerInfo {
        bos_token: text(tokenizer.bos_token_id()),
        eos_token: text(tokenizer.eos_token_id()),
        pad_token: text(tokenizer.padding_token_id()),
        chat_template: model.template.as_ref().ok().map(|template| template.source().to_owned()),
        model_max_length: model.max_model_len,
    }))
}
