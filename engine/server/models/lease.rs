//! What keeps a model loaded.

use super::shelf::Shelf;
use std::sync::{Arc, Weak};

/// As long as one of its copies lives, the model that it is of stays loaded.
pub type Lease = Arc<Held>;

/// A model that is not unloaded.
pub struct Held {
    shelf: Weak<Shelf>,
    name: Arc<str>,
}

impl Held {
    pub(super) fn new(shelf: &Weak<Shelf>, name: &Arc<str>) -> Self {
        Self { shelf: Weak::clone(shelf), name: Arc::clone(name) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(shelf) = self.shelf.upgrade() {
            shelf.give_back(&self.name);
        }
    }
}
