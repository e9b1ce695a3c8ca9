//! JSON objects of a folder, whose fields are asked for by name and type.

use super::fault;
use super::files::Files;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The fields of an object in a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    /// The file, for messages.
    pub file: String,
    pub values: Map<String, Value>,
}

impl Fields {
    /// The object of a file; `None` where there is no such file.
    pub(super) fn read(files: &Files, name: &str) -> Result<Option<Self>> {
        let Some(text) = files.text(name)? else { return Ok(None) };
        let values = serde_json::from_str(&text)
            .map_err(|error| fault(name, format!("expected a JSON object: {error}")))?;
        Ok(Some(Self { file: name.to_owned(), values }))
    }

    /// A field that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The error for a field of another kind.
    pub(super) fn invalid(&self, key: &str, found: impl std::fmt::Display, expected: &str) -> Error {
        fault(&self.file, format!("`{key}` is {found}; expected {expected}"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        take: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| self.invalid(key, shown(value), expected))
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<u64>> {
        let whole = |value: &Value| {
            value.as_u64().or_else(|| {
                value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64)
            })
        };
        self.typed(key, "a whole number", whole)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    /// An object in this one.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        let values = self.typed(key, "an object", Value::as_object)?;
        Ok(values.map(|values| Self { file: format!("{}: {key}", self.file), values: values.clone() }))
    }

    /// A field that must be there; `take` is one of the above.
    pub(super) fn require<'a, T>(
        &'a self,
        key: &str,
        take: impl Fn(&'a Self, &str) -> Result<Option<T>>,
    ) -> Result<T> {
        take(self, key)?.ok_or_else(|| fault(&self.file, format!("`{key}` is missing")))
    }
}

/// A value in a message, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    const MAX_SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
