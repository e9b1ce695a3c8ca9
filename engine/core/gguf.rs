//! GGUF versions 2 and 3: metadata and tensor table of a file, checked against its length; knows no model and no GPU.
//!
//! The format is described in ggml's docs/gguf.md. A file is a memory map or bytes of the program itself; opening it
//! copies nothing but the table of contents, a few dozen bytes for each metadata value and each tensor. Strings,
//! arrays and tensor data are read where they are, when they are asked for.

mod cursor;
mod joined;
mod parse;
mod parts;
mod types;
mod value;
pub mod write;

pub use parts::PartName;
pub use types::{Block, GgmlType, ValueType};
pub use value::{Array, FromValue, Value};

use crate::disk::{self, Access, Watch};
use crate::error::{Error, Result};
use bytes::Bytes;
use cursor::Cursor;
use parse::{Index, Make, TensorEntry, text};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The first four bytes of a file.
const MAGIC: [u8; 4] = *b"GGUF";

/// `general.alignment` where the file does not say.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// An opened file, with the other parts where it is the first of several. Everything in its table of contents was checked: names are unique, types and counts are known,
/// tensors lie within the file. A clone copies the table of contents alone.
#[derive(Clone)]
pub struct Gguf {
    data: Bytes,
    index: Index,
    watch: Watch,
    /// The parts after the first, in their order.
    others: Vec<Gguf>,
    /// Metadata that replace those of the file or come behind them: their keys, types and bytes.
    replaced: Vec<(String, ValueType, Vec<u8>)>,
    /// Where it was opened.
    path: Option<PathBuf>,
}

impl Gguf {
    /// Opens a file through a memory map.
    ///
    /// # Errors
    /// As [`Gguf::open_by`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_by(path.as_ref(), Access::Map)
    }

    /// Opens a file; a part of a model (`NAME-00001-of-00003.gguf`) with all the others.
    ///
    /// # Errors
    /// As [`disk::open`]; [`Error::Gguf`] where it is not a well-formed GGUF file or a part is missing.
    pub fn open_by(path: &Path, access: Access) -> Result<Self> {
        parts::open(path, |path| Self::open_one(path, access))
    }

    /// One file, whether a part or a whole.
    fn open_one(path: &Path, access: Access) -> Result<Self> {
        let (data, watch) = disk::open(path, access)?;
        let opened = Self::from_bytes(data).map_err(|error| match error {
            Error::Gguf(message) => Error::Gguf(format!("{}: {message}", path.display())),
            error => error,
        });
        Ok(Self { watch, path: Some(path.to_owned()), ..opened? })
    }

    /// Reads a file that is in memory; `data` is kept, not copied.
    ///
    /// # Errors
    /// [`Error::Gguf`] where it is not a well-formed GGUF file.
    pub fn from_bytes(data: Bytes) -> Result<Self> {
        let index = parse::parse(&data).map_err(Error::Gguf)?;
        let watch = Watch::default();
        Ok(Self { data, index, watch, others: Vec::new(), replaced: Vec::new(), path: None })
    }

    /// A file that is nowhere: metadata, and tensors whose data is made when it is asked for.
    ///
    /// # Errors
    /// [`Error::Gguf`] where the tensors or the metadata would make no well-formed file.
    pub fn assembled(
        metadata: &[(String, write::Value)],
        tensors: Vec<Assembled>,
        watch: Watch,
    ) -> Result<Self> {
        let data = Bytes::from(write::table(metadata, &tensors));
        let (mut index, _) = parse::parse_header(&data).map_err(Error::Gguf)?;
        for (entry, tensor) in index.tensors.iter_mut().zip(tensors) {
            entry.make = Some(Make(tensor.make));
        }
        Ok(Self { data, index, watch, others: Vec::new(), replaced: Vec::new(), path: None })
    }

    /// Tells whether the file or one of its parts was changed after it was opened.
    pub fn watch(&self) -> Watch {
        Watch::all(self.parts().map(|part| &part.watch))
    }

    /// Where it was opened, of several parts the first; `None` where it is no file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.index.version
    }

    /// Every tensor begins at a multiple of this many bytes.
    pub fn alignment(&self) -> u64 {
        self.index.alignment
    }

    /// Bytes of the whole file, of all parts together.
    pub fn file_size(&self) -> u64 {
        let made = |part: &Gguf| -> u64 {
            part.index
                .tensors
                .iter()
                .filter(|entry| entry.make.is_some())
                .map(|entry| entry.data.len() as u64)
                .sum()
        };
        self.parts().map(|part| part.data.len() as u64 + made(part)).sum()
    }

    /// Files that the model is in.
    pub fn num_parts(&self) -> usize {
        1 + self.others.len()
    }

    fn parts(&self) -> impl Iterator<Item = &Gguf> {
        std::iter::once(self).chain(&self.others)
    }

    /// All metadata, in the order of the file, then those that were added.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        let of_file = self.index.entries.iter().map(|entry| text(&self.data, &entry.key));
        let added =
            self.replaced.iter().map(|(key, ..)| key.as_str()).filter(|key| self.find_entry(key).is_none());
        of_file.chain(added).filter_map(|key| Some((key, self.value(key)?)))
    }

    /// The bytes of all metadata, key and value in turn, in the order of [`Gguf::metadata`].
    pub fn metadata_bytes(&self) -> impl Iterator<Item = &[u8]> {
        let bytes = |key| Some([str::as_bytes(key), self.find_bytes(key)?.1]);
        self.metadata().filter_map(move |(key, _)| bytes(key)).flatten()
    }

    /// Replaces or adds a metadata value, in memory.
    ///
    /// # Errors
    /// [`Error::Gguf`] where the value is an array nested too deeply.
    pub fn set_metadata(&mut self, key: &str, value: &write::Value) -> Result<()> {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        Cursor::new(&bytes)
            .value(value.value_type(), 0)
            .map_err(|error| Error::Gguf(format!("metadata `{key}`: {error}")))?;
        self.replaced.retain(|(replaced, ..)| replaced != key);
        self.replaced.push((key.to_owned(), value.value_type(), bytes));
        Ok(())
    }

    /// A metadata value of any type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.find_value(key).and_then(Result::ok)
    }

    /// A metadata value as `T`, or `None` where the file does not have it.
    ///
    /// # Errors
    /// [`Error::Gguf`] where it has another type.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.find_value(key) else { return Ok(None) };
        let value = value.and_then(T::from_value);
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

    /// A metadata value; an error should another process have changed the file.
    fn find_value(&self, key: &str) -> Option<Result<Value<'_>, String>> {
        self.find_bytes(key).map(|(value_type, bytes)| Cursor::new(bytes).value(value_type, 0))
    }

    /// A metadata value as it is written.
    fn find_bytes(&self, key: &str) -> Option<(ValueType, &[u8])> {
        let replaced = self.replaced.iter().find(|(replaced, ..)| replaced == key);
        match replaced {
            Some((_, value_type, bytes)) => Some((*value_type, &bytes[..])),
            None => self.find_entry(key).map(|entry| (entry.value_type, &self.data[entry.value.clone()])),
        }
    }

    /// All tensors, in the order of the file, part after part.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.parts().flat_map(Self::own_tensors).collect::<Vec<_>>().into_iter()
    }

    /// The tensors of this file alone.
    fn own_tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.index.tensors.iter().map(|entry| Tensor { file: self, entry })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.parts().find_map(|file| {
            let Index { tensors, tensors_by_name, .. } = &file.index;
            let entry = parse::find(&file.data, tensors, tensors_by_name, |tensor| &tensor.name, name)?;
            Some(Tensor { file, entry })
        })
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.index.version)
            .field("file_size", &self.file_size())
            .field("metadata", &self.index.entries.len())
            .field("tensors", &self.tensors().len())
            .finish()
    }
}

/// Makes the data of a tensor.
pub type MakeData = Arc<dyn Fn() -> Result<Bytes> + Send + Sync>;

/// A tensor of a file that is [assembled](Gguf::assembled).
#[derive(Clone)]
pub struct Assembled {
    pub name: String,
    /// Row-major, outermost dimension first.
    pub shape: Vec<u64>,
    pub ggml_type: GgmlType,
    /// As many bytes as the shape takes in this type.
    pub make: MakeData,
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

    /// Whether its data is made when it is asked for, and in no file as it is.
    pub fn is_made(&self) -> bool {
        self.entry.make.is_some()
    }

    /// Its data, shared with the file or made.
    ///
    /// # Errors
    /// [`Error::Gguf`] where its type is unknown, so that its size is too; what making it says.
    pub fn data(&self) -> Result<Bytes> {
        if let Some(Make(make)) = &self.entry.make {
            let data = make()?;
            return match data.len() == self.entry.data.len() {
                true => Ok(data),
                false => Err(Error::Gguf(format!(
                    "tensor `{}` has {} bytes, and {} belong to its shape",
                    self.name(),
                    data.len(),
                    self.entry.data.len()
                ))),
            };
        }
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
