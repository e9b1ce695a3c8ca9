//! The names that a part of a template sees.

use crate::error::Result;
use crate::heap::{Heap, Held, OVERHEAD};
use crate::value::Value;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Names and, through its parent, those around it.
pub struct Scope {
    names: RefCell<HashMap<Arc<str>, Value>>,
    held: RefCell<Held>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    /// # Errors
    /// As [`Heap::room`].
    pub fn new(heap: &Heap, parent: Option<&Rc<Self>>) -> Result<Rc<Self>> {
        let held = RefCell::new(heap.hold(2 * OVERHEAD)?);
        Ok(Rc::new(Self { names: RefCell::default(), held, parent: parent.cloned() }))
    }

    /// Sets a name here, whatever it is further out.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn set(&self, name: &Arc<str>, value: Value) -> Result<()> {
        if self.names.borrow_mut().insert(Arc::clone(name), value).is_none() {
            self.held.borrow_mut().grow(2 * OVERHEAD)?;
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.names.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    /// Forgets everything: macros hold the scope that holds them.
    pub fn clear(&self) {
        let names = std::mem::take(&mut *self.names.borrow_mut());
        let heap = self.held.borrow().heap().clone();
        heap.discard(names.into_values());
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.clear();
    }
}
