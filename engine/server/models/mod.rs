//! The models of a server: the one that it was started with, and those that are loaded when requests name them.

mod arrange;
mod entry;
mod keeper;
mod lease;
mod shelf;
mod source;

pub use lease::Lease;
pub use shelf::{Shelf, Status};
pub use source::{ListedModel, ModelSource, Room};

use crate::App;
use crate::api::models;
use crate::engine_handle::{EngineHandle, Health};
use crate::error::ApiError;
use crate::served_model::ModelInfo;
use crate::work::RequestPermit;
use entry::Lent;
use std::ops::Deref;
use std::sync::Arc;

/// What the server can answer with.
pub struct Models {
    /// The model that it was started with, which stays loaded. A server without a shelf has one.
    pub fixed: Option<Arc<EngineHandle>>,
    /// Those that come and go.
    pub shelf: Option<Arc<Shelf>>,
}

/// The server, with the model that a request is answered by: as long as this lives, the model is not unloaded.
pub struct Serving {
    pub app: Arc<App>,
    pub engine: Arc<EngineHandle>,
    lease: Option<Lease>,
}

impl Deref for Serving {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl Serving {
    /// A permit for `choices` sequences, which keeps the model loaded too.
    ///
    /// # Errors
    /// 429 where there is none.
    pub fn permit(&self, choices: usize) -> Result<RequestPermit, ApiError> {
        let permit = self.engine.reserve(choices)?;
        Ok(RequestPermit { lease: self.lease.clone(), ..permit })
    }
}

impl Models {
    /// Whether answers can be had. Models that come and go have their own states.
    pub fn health(&self) -> Health {
        self.fixed.as_ref().map_or(Health::Ready, |engine| engine.health())
    }

    /// Done when the model that the server was started with is gone.
    pub async fn stopped(&self) {
        match self.fixed.as_ref().map(|engine| engine.stopped()) {
            Some(stopped) => stopped.await,
            None => std::future::pending().await,
        }
    }

    /// The model that the server was started with, if it is the one that is meant.
    fn fixed(&self, name: Option<&str>) -> Option<&Arc<EngineHandle>> {
        let is_meant = |engine: &&Arc<EngineHandle>| match name {
            Some(name) if self.shelf.is_some() => engine.model().is_ok_and(|info| info.is_called(name)),
            // Without others whoever asks for another one is told so later.
            _ => true,
        };
        self.fixed.as_ref().filter(is_meant)
    }
}

impl App {
    /// The name that another one stands for.
    pub(crate) fn own_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.config.aliases.get(name).map_or(name, String::as_str)
    }

    /// The model that a request names, or is meant where it names none. Waits until it is loaded.
    ///
    /// # Errors
    /// 404 for a name that nothing has, and as [`Shelf::acquire`].
    pub(crate) async fn serving(self: &Arc<Self>, model: Option<&str>) -> Result<Arc<Serving>, ApiError> {
        let (name, shelf) = match self.find(model)? {
            Found::Fixed(serving) => return Ok(serving),
            Found::OnShelf(name, shelf) => (name, shelf),
        };
        match shelf.acquire(&name).await? {
            Some(lent) => Ok(self.lent(lent)),
            None => Err(self.unknown(&name)),
        }
    }

    /// As [`App::serving`], of a model that is loaded: nothing is loaded to be looked at.
    ///
    /// # Errors
    /// 404 for a name that nothing has, 503 where the model is not loaded.
    pub(crate) async fn looking(self: &Arc<Self>, model: Option<&str>) -> Result<Arc<Serving>, ApiError> {
        let (name, shelf) = match self.find(model)? {
            Found::Fixed(serving) => return Ok(serving),
            Found::OnShelf(name, shelf) => (name, shelf),
        };
        shelf.look(Some(&name)).await;
        match shelf.loaded(&name) {
            Some(engine) => Ok(Arc::new(Serving { app: Arc::clone(self), engine, lease: None })),
            None if shelf.all().iter().any(|shown| *shown.name == *name) => {
                let message = format!("the model {name:?} is not loaded; a request that names it loads it");
                Err(ApiError::unavailable("model_not_loaded", message))
            }
            None => Err(self.unknown(&name)),
        }
    }

    fn find(self: &Arc<Self>, model: Option<&str>) -> Result<Found<'_>, ApiError> {
        let name = model.map(|name| self.own_name(name));
        if let Some(engine) = self.models.fixed(name) {
            let (app, engine) = (Arc::clone(self), Arc::clone(engine));
            return Ok(Found::Fixed(Arc::new(Serving { app, engine, lease: None })));
        }
        let Some(shelf) = &self.models.shelf else {
            return Err(ApiError::unavailable("stopped", "there is no model"));
        };
        match name {
            Some(name) => Ok(Found::OnShelf(name.into(), shelf)),
            None => match shelf.default_name() {
                Some(name) => Ok(Found::OnShelf(name, shelf)),
                None => {
                    let message = format!("model: none is loaded yet; name one of {}", self.names());
                    Err(ApiError::field("model", message))
                }
            },
        }
    }

    fn lent(self: &Arc<Self>, Lent { engine, lease }: Lent) -> Arc<Serving> {
        Arc::new(Serving { app: Arc::clone(self), engine, lease: Some(lease) })
    }

    /// The names of the first models, for people.
    fn names(&self) -> String {
        const MOST: usize = 20;
        let fixed = self.models.fixed.iter().filter_map(|engine| Some(engine.model().ok()?.name.clone()));
        let shelf = self.models.shelf.iter().flat_map(|shelf| shelf.all());
        let mut names: Vec<String> = fixed.chain(shelf.map(|shown| shown.name.to_string())).collect();
        let more = names.len().saturating_sub(MOST);
        names.truncate(MOST);
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        names.join(", ") + &more
    }

    /// 404, with the names that would do; 503 while the model that the server was started with, whose adapters have names too, is being
    /// loaded.
    pub(crate) fn unknown(&self, name: &str) -> ApiError {
        match (self.models.fixed.as_ref().map(|engine| engine.model()), &self.models.shelf) {
            (Some(Err(loading)), _) => return loading,
            (Some(Ok(info)), None) => return models::unknown(name, info),
            _ => (),
        }
        ApiError::no_model(format!("this server has no model {name:?}; it has {}", self.names()))
    }
}

/// Where a model is.
enum Found<'a> {
    Fixed(Arc<Serving>),
    OnShelf(Arc<str>, &'a Arc<Shelf>),
}

impl ModelInfo {
    /// Whether it is this name's, or one of its adapters is.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.adapters.iter().any(|adapter| adapter.name == name)
    }
}
