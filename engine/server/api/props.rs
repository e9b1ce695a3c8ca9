//! `/props` and `/slots`: what front ends made for llama.cpp's server ask for, to be read only.

use super::models::ModelQuery;
use crate::App;
use crate::error::{ApiError, ErrorResponse};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use qernel_core::sampler::SamplingParams;
use qernel_core::tokenizer::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// What the server is.
#[derive(Serialize, ToSchema)]
pub struct Props {
    default_generation_settings: GenerationSettings,
    /// Sequences that run together.
    total_slots: usize,
    /// The model's name; where its file lies is not said.
    model_alias: String,
    /// As `model_alias`.
    model_path: String,
    /// The Jinja text of the chat template; empty where there is none that can be used.
    chat_template: String,
    bos_token: String,
    eos_token: String,
    modalities: Modalities,
    /// Name and version of the program.
    build_info: &'static str,
}

/// How `/v1/generate` and `/infill` make answers unless they are told otherwise.
#[derive(Serialize, ToSchema)]
pub struct GenerationSettings {
    /// Tokens of the longest sequence, prompt and answer together.
    n_ctx: usize,
    params: DefaultParams,
}

/// The samplers' defaults.
#[derive(Serialize, ToSchema)]
pub struct DefaultParams {
    temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    repeat_last_n: i32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// As many tokens as the context has room for.
    n_predict: i32,
}

/// What the model takes beside text: nothing.
#[derive(Serialize, ToSchema)]
pub struct Modalities {
    vision: bool,
    audio: bool,
}

/// One of the sequences that run together. What they say is not shown.
#[derive(Serialize, ToSchema)]
pub struct Slot {
    id: usize,
    /// Tokens of the longest sequence, prompt and answer together.
    n_ctx: usize,
    is_processing: bool,
}

/// The text of a token; empty where there is none.
pub(super) fn text_of(tokenizer: &Tokenizer, token: Option<u32>) -> String {
    let bytes = token.and_then(|token| tokenizer.token_bytes(token)).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the server is, as llama.cpp's says it.
#[utoipa::path(get, path = "/props", tag = "llama.cpp", params(ModelQuery), responses(
    (status = 200, description = "The properties.", body = Props),
    (status = "4XX", description = "There is no such model (404), or the API key is missing (401).", body = ErrorResponse),
    (status = 503, description = "The model is not loaded.", body = ErrorResponse),
))]
pub async fn props(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<Props>, ApiError> {
    let app = ModelQuery::find(&app, &uri).await?;
    let model = app.engine.model()?;
    let default = SamplingParams::default();
    let params = DefaultParams {
        temperature: default.temperature,
        top_k: default.top_k,
        top_p: default.top_p,
        min_p: default.min_p,
        repeat_penalty: default.repeat_penalty,
        repeat_last_n: default.repeat_last_n,
        presence_penalty: default.presence_penalty,
        frequency_penalty: default.frequency_penalty,
        n_predict: -1,
    };
    Ok(Json(Props {
        default_generation_settings: GenerationSettings { n_ctx: model.max_model_len, params },
        total_slots: app.config.max_num_sequences,
        model_alias: model.name.clone(),
        model_path: model.name.clone(),
        chat_template: model.template.as_ref().map_or_else(|_| String::new(), |t| t.source().to_owned()),
        bos_token: text_of(&model.tokenizer, model.tokenizer.bos_token_id()),
        eos_token: text_of(&model.tokenizer, model.tokenizer.eos_token_id()),
        modalities: Modalities { vision: false, audio: false },
        build_info: concat!("qernel ", env!("CARGO_PKG_VERSION")),
    }))
}

/// Which of the sequences that run together are in use; with `fail_on_no_slot=1` whether one is free.
#[utoipa::path(get, path = "/slots", tag = "llama.cpp",
    params(ModelQuery, ("fail_on_no_slot" = Option<String>, Query, description = "With `1`, 503 where none is free.")),
    responses(
        (status = 200, description = "The slots.", body = Vec<Slot>),
        (status = "4XX", description = "There is no such model (404), or the API key is missing (401).", body = ErrorResponse),
        (status = 503, description = "The model is not loaded, or no slot is free.", body = ErrorResponse),
    )
)]
pub async fn slots(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<Vec<Slot>>, ApiError> {
    let app = ModelQuery::find(&app, &uri).await?;
    let n_ctx = app.engine.model()?.max_model_len;
    let (count, running) = (app.config.max_num_sequences, app.engine.load().running);
    let mut query = uri.query().unwrap_or_default().split('&');
    if running >= count && query.any(|pair| pair == "fail_on_no_slot=1") {
        let message = format!("all {count} sequences that run together are in use; try again");
        let busy = ApiError::unavailable("no_slot", message);
        return Err(ApiError { status: StatusCode::SERVICE_UNAVAILABLE, ..busy });
    }
    let slots = (0..count).map(|id| Slot { id, n_ctx, is_processing: id < running });
    Ok(Json(slots.collect()))
}
