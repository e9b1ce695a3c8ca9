//! Writes GGUF files: in memory ([`Writer`]), or tensor after tensor where they are more than fits there ([`StreamWriter`]). What the engine
//! runs is read by [`super::Gguf`].

mod copy;
mod stream;

pub use copy::{PartSize, Parts, merge};
pub use stream::{Header, StreamWriter};

use super::types::{GgmlType, ValueType, value_type};
use std::io::{self, Write};

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Vec<u8>),
    /// The element type, and the elements, which all have it.
    Array(ValueType, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    value_type!();

    /// Appends what stands behind its type in a file.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => out.push(*v),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::String(v) => encode_string(v, out),
            Self::Array(element, values) => {
                out.extend((*element as u32).to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.encode(out));
            }
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

impl From<super::Value<'_>> for Value {
    fn from(value: super::Value) -> Self {
        use super::Value as Read;
        match value {
            Read::U8(v) => Self::U8(v),
            Read::I8(v) => Self::I8(v),
            Read::U16(v) => Self::U16(v),
            Read::I16(v) => Self::I16(v),
            Read::U32(v) => Self::U32(v),
            Read::I32(v) => Self::I32(v),
            Read::F32(v) => Self::F32(v),
            Read::Bool(v) => Self::Bool(v),
            Read::String(v) => Self::String(v.to_vec()),
            Read::Array(v) => Self::Array(v.element_type(), v.iter().map(Self::from).collect()),
            Read::U64(v) => Self::U64(v),
            Read::I64(v) => Self::I64(v),
            Read::F64(v) => Self::F64(v),
        }
    }
}

fn encode_string(text: &[u8], out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

macro_rules! value_from {
    ($($source:ty => $variant:ident),*) => {$(
        impl From<$source> for Value {
            fn from(value: $source) -> Self {
                Self::$variant(value)
            }
        }

        impl From<Vec<$source>> for Value {
            fn from(values: Vec<$source>) -> Self {
                Self::Array(ValueType::$variant, values.into_iter().map(Self::$variant).collect())
            }
        }
    )*};
}
value_from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.as_bytes().to_vec())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value.into_bytes())
    }
}

impl From<&[String]> for Value {
    fn from(values: &[String]) -> Self {
        Self::Array(ValueType::String, values.iter().map(|value| value.as_str().into()).collect())
    }
}

/// Everything before the tensor data, padded to the alignment; of each tensor its name, dimensions as in the file, type and bytes.
fn header<'a>(
    version: u32,
    alignment: u32,
    metadata: &[(String, Value)],
    tensors: impl ExactSizeIterator<Item = (&'a str, &'a [u64], GgmlType, u64)>,
) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(super::MAGIC);
    out.extend(version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        encode_string(key.as_bytes(), &mut out);
        out.extend((value.value_type() as u32).to_le_bytes());
        value.encode(&mut out);
    }
    let mut offset: u64 = 0;
    for (name, ne, ggml_type, num_bytes) in tensors {
        encode_string(name.as_bytes(), &mut out);
        out.extend((ne.len() as u32).to_le_bytes());
        ne.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(ggml_type.0.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += num_bytes.next_multiple_of(alignment.into());
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    out
}

/// Everything before the data of tensors that are nowhere yet.
pub(super) fn table(metadata: &[(String, Value)], tensors: &[super::Assembled]) -> Vec<u8> {
    let dimensions: Vec<Vec<u64>> =
        tensors.iter().map(|tensor| tensor.shape.iter().rev().copied().collect()).collect();
    let lines = tensors.iter().zip(&dimensions);
    let lines: Vec<_> = lines.map(|(tensor, ne)| (&tensor.name[..], &ne[..], tensor.ggml_type, 0)).collect();
    header(3, super::DEFAULT_ALIGNMENT, metadata, lines.into_iter())
}

/// A file in memory: version 3, little-endian, tensors in the order in which they were added.
#[derive(Clone, Debug)]
pub struct Writer {
    version: u32,
    alignment: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, GgmlType, Vec<u8>)>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty file.
    pub fn new() -> Self {
        Self { version: 3, alignment: super::DEFAULT_ALIGNMENT, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// Writes `version` into the header; 2 has the same layout as 3.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// Pads tensors to `alignment` bytes and says so in the metadata.
    ///
    /// # Panics
    /// If `alignment` is not a power of two.
    pub fn alignment(&mut self, alignment: u32) -> &mut Self {
        assert!(
            alignment.is_power_of_two(),
            "the alignment of tensors must be a power of two, not {alignment}"
        );
        self.alignment = alignment;
        self.metadata("general.alignment", alignment)
    }

    /// Adds a metadata value.
    pub fn metadata(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    /// Replaces or adds a metadata value.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.remove_metadata(key);
        self.metadata(key, value)
    }

    /// Removes a metadata value, if it is there.
    pub fn remove_metadata(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(name, _)| name != key);
        self
    }

    /// Adds a tensor of row-major shape `shape` (`[rows, cols]`; the file stores it reversed). The bytes are written
    /// as they are, whatever their number.
    pub fn tensor(&mut self, name: &str, shape: &[u64], ggml_type: GgmlType, data: Vec<u8>) -> &mut Self {
        let ne = shape.iter().rev().copied().collect();
        self.tensors.push((name.to_owned(), ne, ggml_type, data));
        self
    }

    /// Removes a tensor, if it is there.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|tensor| tensor.0 != name);
        self
    }

    /// The file in parts, as [`Gguf::open`](super::Gguf::open) finds them by their names: the metadata in the first, tensors shared out in
    /// their order.
    ///
    /// # Panics
    /// If there are no parts, or more than a u16 counts.
    pub fn split(&self, num_parts: usize) -> Vec<Self> {
        let count = u16::try_from(num_parts).expect("a u16 of parts");
        let mut tensors = self.tensors.clone().into_iter();
        let part = |no: u16| {
            let metadata = if no == 0 { self.metadata.clone() } else { Vec::new() };
            let share = tensors.len().div_ceil(usize::from(count - no));
            let mut part = Self { metadata, tensors: tensors.by_ref().take(share).collect(), ..*self };
            part.metadata("split.no", no)
                .metadata("split.count", count)
                .metadata("split.tensors.count", self.tensors.len() as i32);
            part
        };
        (0..count).map(part).collect()
    }

    /// Everything before the tensor data, padded to the alignment.
    fn header(&self) -> Vec<u8> {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, ne, ggml_type, data)| (&name[..], &ne[..], *ggml_type, data.len() as u64));
        header(self.version, self.alignment, &self.metadata, tensors)
    }

    fn padded(&self, length: usize) -> usize {
        length.next_multiple_of(self.alignment as usize)
    }

    /// Writes the file.
    pub fn write_to(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        out.write_all(&self.header())?;
        for (_, _, _, data) in &self.tensors {
            out.write_all(data)?;
            out.write_all(&vec![0; self.padded(data.len()) - data.len()])?;
        }
        Ok(())
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for (_, _, _, data) in &self.tensors {
            out.extend(data);
            out.resize(self.padded(out.len()), 0);
        }
        out
    }
}
