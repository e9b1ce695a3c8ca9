//! Safetensors: a header in JSON, then the bytes of tensors; one file, or several with an index.
//!
//! The format is described in the README of huggingface/safetensors: eight bytes for the length of the header, an object that gives each tensor's
//! type, shape and place behind the header, row-major little-endian data.

use super::fault;
use super::files::{Files, is_plain_name};
use super::json::Fields;
use crate::disk::Watch;
use crate::error::{Error, Result};
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Bytes of a header at most, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Types of tensors that are read; the others are kept by name, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F16,
    Bf16,
    /// Four bits of exponent and three of mantissa.
    F8E4m3,
    Other(String),
}

impl Dtype {
    fn named(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F8_E4M3" => Self::F8E4m3,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Bits of a value; `None` for a type that the format does not have.
    fn bits(&self) -> Option<u64> {
        Some(match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::F8E4m3 => 8,
            Self::Other(name) => match name.as_str() {
                "F4" => 4,
                "F6_E2M3" | "F6_E3M2" => 6,
                "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
                "I16" | "U16" => 16,
                "I32" | "U32" => 32,
                "C64" | "F64" | "I64" | "U64" => 64,
                _ => return None,
            },
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
            Self::Other(name) => name,
        })
    }
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub dtype: Dtype,
    /// Row-major, outermost dimension first; their product is that of its values.
    pub shape: Vec<u64>,
    pub data: Bytes,
}

/// The names of a folder's files of weights, of which some may be missing.
pub(super) fn names(files: &Files) -> Result<BTreeSet<String>> {
    Ok(match Fields::read(files, INDEX)? {
        Some(index) => read_index(&index)?.into_values().collect(),
        None => BTreeSet::from([SINGLE.to_owned()]),
    })
}

/// All tensors of a folder by their names, with what watches their files.
pub(super) fn open_all(files: &Files) -> Result<(BTreeMap<String, Stored>, Watch)> {
    let index = Fields::read(files, INDEX)?;
    let weight_map = match &index {
        Some(index) => read_index(index)?,
        None => BTreeMap::new(),
    };
    let names: BTreeSet<&str> = match &index {
        Some(_) => weight_map.values().map(String::as_str).collect(),
        None => BTreeSet::from([SINGLE]),
    };
    let (mut tensors, mut watches) = (BTreeMap::new(), Vec::new());
    for name in &names {
        let (bytes, watch) =
            files.weights(name)?.ok_or_else(|| missing(files, name, index.is_some(), names.len()))?;
        watches.push(watch);
        for (tensor, stored) in read(name, &bytes)? {
            if index.is_some() && weight_map.get(&tensor).map(String::as_str) != Some(name) {
                return Err(fault(
                    name,
                    format!(
                        "it has the tensor `{tensor}`, which {INDEX} does not have in it: they are of different models"
                    ),
                ));
            }
            tensors.insert(tensor, stored);
        }
    }
    if let Some((tensor, file)) = weight_map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
        return Err(fault(
            file,
            format!(
                "{INDEX} says that it has the tensor `{tensor}`, but it has not: it is of another model, or was cut"
            ),
        ));
    }
    Ok((tensors, Watch::all(&watches)))
}

fn missing(files: &Files, name: &str, of_index: bool, count: usize) -> Error {
    let folder = files.folder.display();
    Error::Folder(match of_index {
        true => format!(
            "{folder} has no {name}: one of the {count} files that {INDEX} names; download the missing ones"
        ),
        false => format!(
            "{folder} has neither {SINGLE} nor {INDEX}; weights in other forms (.bin, .pth) are not read"
        ),
    })
}

/// Which file each tensor is in.
fn read_index(index: &Fields) -> Result<BTreeMap<String, String>> {
    let map = index.require("weight_map", Fields::object)?;
    let entry = |(tensor, file): (&String, &serde_json::Value)| match file.as_str() {
        Some(file) if is_plain_name(file) && file.ends_with(".safetensors") => {
            Ok((tensor.clone(), file.to_owned()))
        }
        _ => Err(map.invalid(tensor, file, "the name of a .safetensors file in the folder")),
    };
    map.values.iter().map(entry).collect()
}

/// What the header says of a tensor.
#[derive(serde::Deserialize)]
struct Line {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The object of a header: names may not come twice.
struct Header(BTreeMap<String, Line>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lines;
        impl<'de> Visitor<'de> for Lines {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut lines = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    let line = map.next_value()?;
                    if lines.contains_key(&name) {
                        return Err(serde::de::Error::custom(format!("the tensor `{name}` is there twice")));
                    }
                    lines.insert(name, line);
                }
                Ok(Header(lines))
            }
        }
        deserializer.deserialize_map(Lines)
    }
}

/// The tensors of one file; nothing is copied.
pub(super) fn read(file: &str, bytes: &Bytes) -> Result<Vec<(String, Stored)>> {
    let failed = |what: String| fault(file, what);
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(failed(format!(
            "it has {} bytes, which is less than the length of a header",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(failed(
            "it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".to_owned(),
        ));
    }
    if length > MAX_HEADER.min(rest.len() as u64) {
        let most = rest.len();
        return Err(failed(format!(
            "its header claims {length} bytes, but {most} follow (at most {MAX_HEADER} are read): it is cut, or no safetensors file"
        )));
    }
    // Fits: no more than what follows.
    let (header, data) = rest.split_at(length as usize);
    let Header(lines) = serde_json::from_slice(header)
        .map_err(|error| failed(format!("its header is malformed: {error}")))?;
    let data_start = bytes.len() - data.len();
    let mut tensors = Vec::with_capacity(lines.len());
    let mut places = Vec::with_capacity(lines.len());
    for (name, line) in lines {
        let [begin, end] =
            place(&line, data.len() as u64).map_err(|what| failed(format!("tensor `{name}` {what}")))?;
        places.push((begin, end, tensors.len()));
        let data = bytes.slice(data_start + begin..data_start + end);
        tensors.push((name, Stored { dtype: Dtype::named(&line.dtype), shape: line.shape, data }));
    }
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(failed(format!(
            "the data of the tensors `{}` and `{}` overlap",
            tensors[pair[0].2].0, tensors[pair[1].2].0
        ))),
        None => Ok(tensors),
    }
}

/// Where the data of a tensor is behind the header of a file with `len` bytes there.
fn place(line: &Line, len: u64) -> Result<[usize; 2], String> {
    let Line { dtype, shape, data_offsets: [begin, end] } = line;
    let bits = Dtype::named(dtype)
        .bits()
        .ok_or_else(|| format!("has the type {dtype}, which the format does not have"))?;
    if shape.contains(&0) {
        return Err(format!("has the shape {shape:?}, which holds nothing"));
    }
    let values = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n));
    let bytes =
        values.and_then(|values| values.checked_mul(bits)).filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
    if begin > end || *end > len {
        return Err(format!(
            "lies at the bytes {begin} to {end} of {len}: the file is cut, or its header is wrong"
        ));
    }
    match bytes {
        Some(bytes) if bytes == end - begin => Ok([*begin as usize, *end as usize]),
        _ => Err(format!(
            "has the shape {shape:?} of {dtype} and {} bytes, which do not belong together",
            end - begin
        )),
    }
}
