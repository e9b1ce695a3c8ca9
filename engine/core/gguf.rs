//! GGUF versions 2 and 3: metadata and tensor table of a file, checked against its length; knows no model and no GPU.
//!
//! The format is described in ggml's docs/gguf.md. A file is a memory map or bytes of the program itself; opening it
//! copies nothing but the table of contents, a few dozen bytes for each metadata value and each tensor. Strings,
//! arrays and tensor data are read where they are, when they are asked for.

mod cursor;
mod parse;
mod types;
mod value;
pub mod write;

pub use types::{Block, GgmlType, ValueType};
pub use value::{Array, FromValue, Value};

use crate::disk::{self, Access, Watch};
use crate::error::{Error, Result};
use bytes::Bytes;
use cursor::Cursor;
use parse::{Index, TensorEntry, text};
use std::fmt;
use std::path::Path;

/// The first four bytes of a file.
const MAGIC: [u8; 4] = *b"GGUF";

/// `general.alignment` where the file does not say.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// An opened file. Everything in its table of contents was checked: names are unique, types and counts are known,
/// tensors lie within the file.
pub struct Gguf {
    data: Bytes,
    index: Index,
    watch: Watch,
}

impl Gguf {
    /// Opens a file through a memory map.
    ///
    /// # Errors
    /// As [`Gguf::open_by`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_by(path.as_ref(), Access::Map)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As [`disk::open`]; [`Error::Gguf`] where it is not a well-formed GGUF file.
    pub fn open_by(path: &Path, access: Access) -> Result<Self> {
        let (data, watch) = disk::open(path, access)?;
        let opened = Self::from_bytes(data).map_err(|error| match error {
            Error::Gguf(message) => Error::Gguf(format!("{}: {message}", path.display())),
            error => error,
        });
        Ok(Self { watch, ..opened? })
    }

    /// Reads a file that is in memory; `data` is kept, not copied.
    ///
    /// # Errors
    /// [`Error::Gguf`] where it is not a well-formed GGUF file.
    pub fn from_bytes(data: Bytes) -> Result<Self> {
        let index = parse::parse(&data).map_err(Error::Gguf)?;
        Ok(Self { data, index, watch: Watch::default() })
    }

    /// Tells whether the file was changed after it was opened.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.index.version
    }

    /// Every tensor begins at a multiple of this many bytes.
    pub fn alignment(&self) -> u64 {
        self.index.alignment
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        self.data.len() as u64
    }

    /// All metadata, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.index
            .entries
            .iter()
            .filter_map(|entry| Some((text(&self.data, &entry.key), self.decode(entry).ok()?)))
    }

    /// A metadata value of any type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.find_entry(key).and_then(|entry| self.decode(entry).ok())
    }

    /// A metadata value as `T`, or `None` where the file does not have it.
    ///
    /// # Errors
    /// [`Error::Gguf`] where it has another type.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(entry) = self.find_entry(key) else { return Ok(None) };
        let value = self.decode(entry).and_then(T::from_value);
        value.map(Some).map_err(|error| Error::Gguf(format!("metadata `{key}`: {error}")))
    }

    /// A metadata value as `T`, or `None` with a warning where it has another type: for what a file can be run without.
    pub fn get_or_warn<'a, T: FromValue<'a>>(&'a self, key: &str) -> Option<T> {
        self.get(key).unwrap_or_else(|error| {
            tracing::warn!("left out: {error}");
            None
        })
    }

    /// A metadata value as `T`.
    ///
    /// # Errors
    /// [`Error::Gguf`] where it is missing or has another type.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| {
            Error::Gguf(format!("metadata `{key}`: expected {}, but it is missing", T::expected()))
        })
    }

    fn find_entry(&self, key: &str) -> Option<&parse::Entry> {
        parse::find(&self.data, &self.index.entries, &self.index.entries_by_key, |entry| &entry.key, key)
    }

    fn decode(&self, entry: &parse::Entry) -> Result<Value<'_>, String> {
        Cursor::new(&self.data[entry.value.clone()]).value(entry.value_type, 0)
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.index.tensors.iter().map(|entry| Tensor { file: self, entry })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        parse::find(&self.data, &self.index.tensors, &self.index.tensors_by_name, |tensor| &tensor.name, name)
            .map(|entry| Tensor { file: self, entry })
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.index.version)
            .field("file_size", &self.data.len())
            .field("metadata", &self.index.entries.len())
            .field("tensors", &self.index.tensors.len())
            .finish()
    }
}

/// A line of the tensor table.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    file: &'a Gguf,
    entry: &'a TensorEntry,
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        text(&self.file.data, &self.entry.name)
    }

    /// Its type, known or not.
    pub fn ggml_type(&self) -> GgmlType {
        self.entry.ggml_type
    }

    /// Its row-major shape, outermost dimension first (`[rows, cols]`): the reverse of ggml's `ne`.
    pub fn shape(&self) -> Vec<u64> {
        self.entry.ne[..self.entry.num_dims].iter().rev().copied().collect()
    }

    /// Number of its values.
    pub fn num_values(&self) -> u64 {
        self.entry.ne.iter().product()
    }

    /// Bytes of its data, or `None` where its type is unknown.
    pub fn num_bytes(&self) -> Option<u64> {
        self.entry.ggml_type.block().map(|_| self.entry.data.len() as u64)
    }

    /// Its data, shared with the file.
    ///
    /// # Errors
    /// [`Error::Gguf`] where its type is unknown, so that its size is too.
    pub fn data(&self) -> Result<Bytes> {
        match self.entry.ggml_type.block() {
            Some(_) => Ok(self.file.data.slice(self.entry.data.clone())),
            None => Err(Error::Gguf(format!(
                "tensor `{}` has {}, whose size this version does not know",
                self.name(),
                self.entry.ggml_type
            ))),
        }
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.name(), self.shape(), self.ggml_type())
    }
}
