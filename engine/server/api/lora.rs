//! Adapters of the model: which there are, and which of them a request is answered with.

use super::models::{self, ModelQuery};
use crate::App;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use crate::models::Serving;
use crate::number::Whole;
use crate::served_model::ModelInfo;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use qernel_core::batch::{AdapterScale, AdapterSet};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

described!(LoraScale: super::fields::LORA_SCALE);

/// An adapter that a request is answered with.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct LoraScale {
    /// Its number in `/lora-adapters`.
    #[schema(value_type = u32)]
    id: Whole<u32>,
    /// What its updates are multiplied with. [default: the adapter's own scale]
    #[schema(minimum = -100, maximum = 100)]
    scale: Option<f32>,
}

/// An adapter that was loaded.
#[derive(Serialize, ToSchema)]
pub struct LoraAdapter {
    id: u32,
    /// What requests call it as their `model`.
    name: String,
    /// The same.
    path: String,
    /// What its updates are multiplied with where a request names it.
    scale: f32,
}

/// What a request asks.
pub struct AskedModel<'a> {
    pub info: &'a ModelInfo,
    /// What the answer calls it: the name of the model, or of one of its adapters.
    pub name: String,
    pub adapters: AdapterSet,
}

impl Serving {
    /// The model that a request names, or one of its adapters, with the adapters that its field `lora` has in the place of that.
    ///
    /// # Errors
    /// 404 for a name that nothing has, 400 for an adapter that is not there; both list what is.
    pub(super) fn asked(
        &self,
        model: Option<&str>,
        lora: Option<&[LoraScale]>,
    ) -> Result<AskedModel<'_>, ApiError> {
        let info = self.engine.model()?;
        let of_name = match model.map(|name| self.own_name(name)) {
            Some(name) if name != info.name => {
                Some(named(info, name).ok_or_else(|| models::unknown(name, info))?)
            }
            _ => None,
        };
        let adapters = match lora {
            Some(list) => list.iter().map(|of| scaled(info, of)).collect::<Result<_, _>>()?,
            None => of_name.map(|(_, scale)| vec![scale]).unwrap_or_default(),
        };
        let name = of_name.map_or(&info.name, |(name, _)| name).clone();
        Ok(AskedModel { info, name, adapters: AdapterSet::new(&adapters) })
    }
}

/// The adapter of this name, with its own scale.
fn named<'a>(info: &'a ModelInfo, name: &str) -> Option<(&'a String, AdapterScale)> {
    let mut adapters = (0..).zip(&info.adapters);
    let (adapter, found) = adapters.find(|(_, adapter)| adapter.name == name)?;
    Some((&found.name, AdapterScale { adapter, scale: found.scale }))
}

/// An adapter of a request's list.
fn scaled(
    info: &ModelInfo,
    LoraScale { id: Whole(id), scale }: &LoraScale,
) -> Result<AdapterScale, ApiError> {
    let own = || info.adapters.get(*id as usize).map_or(1.0, |found| found.scale);
    let of = AdapterScale { adapter: *id, scale: scale.unwrap_or_else(own) };
    match of.check(&info.adapters) {
        Ok(()) => Ok(of),
        Err(what) => Err(ApiError::field("lora", format!("lora: {what}"))),
    }
}

/// The adapters that requests may name.
#[utoipa::path(get, path = "/lora-adapters", tag = "llama.cpp", params(ModelQuery), responses(
    (status = 200, description = "The adapters.", body = Vec<LoraAdapter>),
    (status = "4XX", description = "There is no such model (404), or the API key is missing (401).", body = ErrorResponse),
    (status = 503, description = "The model is not loaded.", body = ErrorResponse),
))]
pub async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<Vec<LoraAdapter>>, ApiError> {
    let app = ModelQuery::find(&app, &uri).await?;
    let adapters = (0..).zip(&app.engine.model()?.adapters).map(|(id, adapter)| LoraAdapter {
        id,
        name: adapter.name.clone(),
        path: adapter.name.clone(),
        scale: adapter.scale,
    });
    Ok(Json(adapters.collect()))
}
