//! Where a server finds models.

use crate::served_model::ServedModel;
use qernel_core::error::{Error, Result};

/// Where a server finds the models that it loads when requests name them.
pub trait ModelSource: Send + Sync + 'static {
    /// The models that there are now, each name once. Asked from one thread at a time, about once a second while requests come.
    ///
    /// # Errors
    /// Whatever keeps it from looking; the server goes on with what was there before.
    fn list(&self) -> Result<Vec<ListedModel>>;

    /// Looks at a model's files without loading them, before another model makes room for it, and says how many bytes of memory it takes.
    /// Called from one thread at a time.
    ///
    /// # Errors
    /// What is wrong with them.
    fn check(&self, name: &str) -> Result<u64>;

    /// Loads a model, on the thread that is its engine's from then on.
    ///
    /// # Errors
    /// Whatever is wrong with its files or the device. After [`Error::Memory`](qernel_core::Error::Memory) another model is unloaded, where
    /// there is one, and this one tried again.
    fn open(&self, name: &str, room: Room) -> Result<ServedModel>;

    /// What clients are told of an error of [`ModelSource::open`]: where files lie, say, is nothing for them.
    fn explain(&self, error: &Error) -> String {
        error.to_string()
    }
}

/// What else there is when a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// The part of the memory that is free now which leaves as much to each model that has still a place; above 0 and at most 1.
    pub share: f64,
    /// No other model would be unloaded for this one.
    pub is_last: bool,
}

/// A model that can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    /// What requests call it.
    pub name: String,
    /// Another number where its files are others, or were written to.
    pub version: u64,
}
