//! Conversations that later requests go on with, within bounds.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of all conversations that are kept.
const MAX_BYTES: usize = 64 << 20;

/// The newest answers and the turns that led to them. The oldest ones go where there is no more room.
pub struct Store {
    /// Answers that are kept.
    max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_id: HashMap<String, Arc<Entry>>,
    /// The oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

/// An answer that is kept, as JSON: values would take many times as much.
pub struct Entry {
    turns: Box<RawValue>,
    response: Box<RawValue>,
    bytes: usize,
}

impl Entry {
    /// The turns, those of the answer too, without the instructions.
    pub fn turns(&self) -> Vec<Value> {
        serde_json::from_str(self.turns.get()).expect("it was written from such turns")
    }

    /// The answer, as it was given.
    pub fn response(&self) -> &RawValue {
        &self.response
    }
}

impl Store {
    /// Of at most so many answers.
    pub fn new(max: usize) -> Self {
        Self { max, kept: Mutex::default() }
    }

    /// The answer of this id, if it is kept.
    pub fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.lock().by_id.get(id).cloned()
    }

    /// Keeps an answer, and the turns that end with it. One that is larger than all room is not kept.
    pub fn put(&self, id: &str, turns: &[Value], response: &impl Serialize) {
        if self.max == 0 {
            return;
        }
        let (Ok(turns), Ok(response)) = (to_raw_value(turns), to_raw_value(response)) else { return };
        let bytes = 2 * id.len() + turns.get().len() + response.get().len();
        if bytes > MAX_BYTES {
            return;
        }
        let mut kept = self.lock();
        kept.bytes += bytes;
        kept.order.push_back(id.to_owned());
        kept.by_id.insert(id.to_owned(), Arc::new(Entry { turns, response, bytes }));
        while kept.by_id.len() > self.max || kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.order.pop_front() else { break };
            kept.forget(&oldest);
        }
    }

    /// Forgets an answer; `false` if there is none of this id.
    pub fn remove(&self, id: &str) -> bool {
        let mut kept = self.lock();
        kept.order.retain(|known| known != id);
        kept.forget(id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn forget(&mut self, id: &str) -> bool {
        let entry = self.by_id.remove(id);
        self.bytes -= entry.as_ref().map_or(0, |entry| entry.bytes);
        entry.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let store = Store::new(2);
        for id in ["a", "b", "c"] {
            store.put(id, &[id.into()], &Value::Null);
        }
        assert!(store.get("a").is_none());
        assert_eq!(store.get("b").unwrap().turns(), ["b"]);
        assert!(store.remove("b") && !store.remove("b"));
        store.put("d", &[], &Value::Null);
        assert!(store.get("c").is_some() && store.get("d").is_some());
        // One that takes nearly all room leaves none for others.
        store.put("e", &[], &"x".repeat(MAX_BYTES - 10));
        assert!(store.get("e").is_some() && store.get("d").is_none());
        store.put("f", &[], &"x".repeat(MAX_BYTES));
        assert!(store.get("f").is_none());
        assert_eq!(Store::new(0).get("a").map(|_| ()), None);
    }

    /// What is kept takes no more memory than its text, which is what is counted: numbers are no values of many bytes each.
    #[test]
    fn answers_are_kept_as_text() {
        let store = Store::new(2);
        store.put("a", &[vec![0; 1000].into()], &vec![0; 1000]);
        let entry = store.get("a").unwrap();
        assert_eq!(entry.response().get().len(), 2001);
        assert_eq!(entry.bytes, 2 + 2003 + 2001);
        assert_eq!(entry.turns(), [Value::from(vec![0; 1000])]);
    }
}
