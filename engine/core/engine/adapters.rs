//! Which adapters requests are answered with.

use super::{AdapterInfo, Engine, Request};
use crate::batch::{AdapterScale, AdapterSet};

impl Engine {
    /// The same with these adapters for requests that say nothing of them, and for vectors of texts, in the place of all.
    #[must_use]
    pub fn with_adapters(self, adapters: AdapterSet) -> Self {
        Self { adapters, ..self }
    }

    /// What is wrong with a request's adapters.
    pub(super) fn check_adapters(&self, request: &Request) -> Result<(), String> {
        let known = self.runner.adapters();
        request.adapters.iter().flat_map(AdapterSet::adapters).try_for_each(|adapter| adapter.check(known))
    }
}

impl AdapterScale {
    /// Whether it is one of the adapters that were loaded, with a scale that is taken.
    ///
    /// # Errors
    /// What was expected and found.
    pub fn check(&self, known: &[AdapterInfo]) -> Result<(), String> {
        let &Self { adapter, scale } = self;
        if known.is_empty() {
            return Err(format!(
                "there is no adapter {adapter}: the program was started without adapters (--lora)"
            ));
        }
        if adapter as usize >= known.len() {
            let names: Vec<_> =
                known.iter().enumerate().map(|(i, info)| format!("{i} ({})", info.name)).collect();
            return Err(format!("there is no adapter {adapter}; there are {}", names.join(", ")));
        }
        match self.is_in_range() {
            true => Ok(()),
            false => {
                let most = Self::MAX;
                Err(format!("expected a scale of adapter {adapter} from -{most} to {most}, found {scale}"))
            }
        }
    }
}
