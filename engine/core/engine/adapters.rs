//! Which adapters requests are answered with.

use super::{Engine, Request};
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
        let adapters = request.adapters.iter().flat_map(AdapterSet::adapters);
        for adapter in adapters {
            if adapter.adapter as usize >= known.len() {
                let names: Vec<_> =
                    (0..).zip(known).map(|(i, info): (u32, _)| format!("{i} ({})", info.name)).collect();
                let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(format!(
                    "there is no adapter {}; those that were loaded: {there}",
                    adapter.adapter
                ));
            }
            if !adapter.is_in_range() {
                let (number, scale, most) = (adapter.adapter, adapter.scale, AdapterScale::MAX);
                return Err(format!("the scale of adapter {number} is {scale}; expected -{most} to {most}"));
            }
        }
        Ok(())
    }
}
